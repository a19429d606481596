"""Logistic regression, trained exactly: how near are predicted margins to those of the retrained model?"""

import sys

import torch
from torch import Tensor

from applications.unlearning import Unlearning, subpopulation
from benchmarks.tables import mean, table
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from recipe import Newton, Retrain, Setting, SizeCorrected, effects_of
from recipe.digits import load_digits, logistic

SHARES = (0.01, 0.05, 0.10)
DRAWS = range(3)


def forget_sets(effects: Tensor, n: int) -> dict[str, list[Tensor]]:
    """Three random sets of each size, and both ends of two principal components of the effects at 5 %."""
    sets = {}
    for share in SHARES:
        orders = [torch.randperm(n, generator=torch.Generator().manual_seed(draw)) for draw in DRAWS]
        sets[f"random {share:.0%}"] = [order[: round(share * n)] for order in orders]
    ends = [subpopulation(effects, n // 20, c, largest) for c in (0, 1) for largest in (True, False)]
    return {**sets, "subpopulations 5%": ends}


def main() -> None:
    """Both weight decays."""
    digits = load_digits()
    rows = []
    for l2 in (1e-2, 1e-3):
        setting = Setting(logistic, digits.train, digits.targets, Newton(l2=l2))
        f, ones = Retrain(setting), torch.ones(setting.n)
        tangent, step = Influence().fit(setting), NewtonStep().fit(setting)
        deployed = f(ones)
        predictors = {
            "influence": tangent,
            "size-corrected": SizeCorrected(tangent),
            "Newton step": step,
            "two Newton steps": NewtonStep(steps=2).fit(setting),
        }
        for name, sets in forget_sets(effects_of(tangent), setting.n).items():
            task = Unlearning(sets, deployed)
            truth = f(task.retained(setting.n))  # (k, m)
            nothing = (deployed - truth).abs().mean(1)
            errors = {k: (task.wanted(g) - truth).abs().mean(1) for k, g in predictors.items()}
            ratios = [f"{mean(e, 4)} (1/{nothing.mean() / e.mean():.1f})" for e in errors.values()]
            rows.append((f"{l2:g}", name, mean(nothing, 4), *ratios))
            print(rows[-1], file=sys.stderr, flush=True)
    header = ("weight decay", "forget set", "do nothing", *predictors)
    table(
        "Mean absolute margin error (and as a fraction of doing nothing), 200 targets, ± s.e. over sets", header, rows
    )
