"""Digits MLP, 5 % forgotten: distributions over 100 seeds of unlearned models beside those of retrained ones.

Every method unlearns the same 100 deployed models (seeds 0 to 99) and is compared with 100 oracles (seeds 100 to 199);
the floor is 100 other oracles (seeds 200 to 299) against those. How to predict and how to fine-tune was chosen on a
random forget set (draw 100) that is not in the table; the baselines' learning rates are the best of a grid in
hindsight, by KLoM on the forget set of the first ten models' mean margins, on the very sets of the table.
"""

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from applications.unlearning import SCRUB, Deployed, GradAscent, GradDiff, compare, subpopulation
from applications.unlearning.evaluation import SPLITS, Evaluation, split
from applications.unlearning.matching import match, sampled
from benchmarks.tables import table
from estimators.ekfac import EKFAC
from estimators.newton_step import NewtonStep
from recipe import CG, AdamW, Correct, GaussNewton, Logits, Margin, Setting, effects_of
from recipe.batch import Batch
from recipe.digits import MLP_SGD, load_digits, mlp
from recipe.setting import Parameters

MODELS = 100
ESTIMATOR = NewtonStep(curvature=GaussNewton(), damping=0.002, inverse=CG(tolerance=5e-2), models=10)
MATCHING = AdamW(epochs=20, batch_size=64, lr=1e-3)
RETAINED = 3.0
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

Margins = dict[str, tuple[Tensor, float]]  # of each split: margins (models, points) and accuracy


def train(setting: Setting, weights: Tensor, seeds: Sequence[int]) -> list[Parameters]:
    """Models of these seeds."""
    stacked = setting.algorithm.train_many(setting, weights.expand(len(seeds), -1), seeds)
    return [{name: t[i].clone() for name, t in stacked.items()} for i in range(len(seeds))]


def forget_sets(setting: Setting) -> dict[str, Tensor]:
    """Fifty points: at random, one end of the first principal component of the effects, half of a class."""
    random = torch.randperm(setting.n, generator=torch.Generator().manual_seed(0))[:50]
    group = subpopulation(effects_of(EKFAC(models=5).fit(setting)), 50)
    return {"random": random, "subpopulation": group, "half of the eights": (setting.pool[1] == 8).nonzero()[:50, 0]}


def logits_on(setting: Setting, splits: Sequence[Batch], models: Sequence[Parameters]) -> list[Tensor]:
    """Logits `(models, points, C)` on every split."""
    with torch.no_grad():
        return [torch.stack([setting.predict(theta, data) for theta in models]) for data in splits]


def margins_of(logits: Sequence[Tensor], splits: Sequence[Batch]) -> Margins:
    """Margins and accuracy of logits."""
    found = {}
    for name, z, data in zip(SPLITS, logits, splits, strict=True):
        margins = torch.stack([Margin()(one, data) for one in z])
        found[name] = (margins, float(torch.stack([Correct()(one, data).mean() for one in z]).mean()))
    return found


def best_of(grid: Sequence[Any], deployed: Sequence[Deployed], keep: Tensor, forgotten: Batch, oracles: Tensor) -> Any:
    """The method of a grid whose ten first models come nearest on the forget set, in hindsight."""

    def distance(method: Any) -> float:
        margins = []
        for one in deployed[:10]:
            theta = method.unlearn(one, keep, one.seed)
            margins.append(Margin()(one.setting.predict(theta, forgotten), forgotten))
        return float((torch.stack(margins).mean(0) - oracles.mean(0)).abs().mean())

    return min(grid, key=distance)


def evaluations(setting: Setting, held_out: Batch, forget: Tensor, start: list[Parameters]) -> dict[str, Evaluation]:
    """Every method on one forget set."""
    keep = torch.ones(setting.n).index_fill(0, forget, 0.0)
    splits = split(setting, forget, held_out)

    def seen(models: Sequence[Parameters]) -> Margins:
        return margins_of(logits_on(setting, splits, models), splits)

    clock = time.process_time()
    oracles = seen(train(setting, keep, range(MODELS, 2 * MODELS)))
    retraining = (time.process_time() - clock) / MODELS
    others = seen(train(setting, keep, range(2 * MODELS, 3 * MODELS)))
    deployed = [Deployed(setting, theta, seed=seed) for seed, theta in enumerate(start)]
    result = {}

    def add(name: str, run: Callable[[], Margins]) -> None:
        clock = time.process_time()
        with torch.no_grad():
            found = run()
        cost = (time.process_time() - clock) / MODELS / retraining
        groups = {k: (found[k], oracles[k], others[k]) for k in SPLITS}
        result[name] = compare(groups, time=cost)
        print(f"{name}\n{result[name]}", file=sys.stderr, flush=True)

    def each(method: Any) -> Callable[[], Margins]:
        def run() -> Margins:
            with torch.enable_grad():
                return seen([method.unlearn(one, keep, one.seed) for one in deployed])

        return run

    f_hat = ESTIMATOR.fit(setting)

    def change(data: Batch) -> Tensor:
        there = f_hat.on(data, Logits())
        return (there(keep) - there(torch.ones(setting.n))).view(there.output_shape)

    def direct() -> Margins:
        predicted = [z + change(data) for z, data in zip(logits_on(setting, splits, start), splits, strict=True)]
        return margins_of(predicted, splits)

    def dmm() -> Margins:
        data = sampled(setting, keep, RETAINED, 0)
        moved = change(data)
        with torch.enable_grad():
            return seen([
                match(one, data, setting.predict(one.parameters, data).detach() + moved, MATCHING, one.seed)
                for one in deployed
            ])  # fmt: skip

    add("do nothing", lambda: seen(start))
    add("DM-Direct (outputs)", direct)
    add("DMM (model)", dmm)
    grids = {
        "gradient ascent": [GradAscent(epochs=5, lr=lr) for lr in RATES],
        "gradient difference": [GradDiff(epochs=5, lr=lr) for lr in RATES],
        "SCRUB": [SCRUB(epochs=3, ascent=2, lr=lr) for lr in RATES[:3]],
    }
    for name, grid in grids.items():
        method = best_of(grid, deployed, keep, splits[0], oracles["forget"][0])
        add(f"{name}, lr {method.lr:g}", each(method))
    return result


def main() -> None:
    """One table a forget set."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="CG did not converge")
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD)
    start = train(setting, torch.ones(setting.n), range(MODELS))
    header = ("", *(f"KLoM {name} (floor)" for name in SPLITS), "W1 forget (floor)", "error forget (floor)",
              "U-LiRA (oracles)", "accuracy forget, held out (oracles)", "CPU of a retraining")  # fmt: skip
    for name, forget in forget_sets(setting).items():
        rows = []
        for method, e in evaluations(setting, digits.test, forget, start).items():
            d, h = e.splits["forget"], e.splits["held out"]
            divergences = [f"{s.klom:.2f} ({s.klom_floor:.2f})" for s in e.splits.values()]
            accuracy = f"{d.accuracy:.3f}, {h.accuracy:.3f} ({d.oracle_accuracy:.3f}, {h.oracle_accuracy:.3f})"
            rows.append((
                method, *divergences, f"{d.wasserstein:.2f} ({d.wasserstein_floor:.2f})",
                f"{d.error:.3f} ({d.error_floor:.3f})", f"{e.membership[0]} ({e.membership[1].mean:.3f})", accuracy,
                f"{e.time:.1%}",
            ))  # fmt: skip
        table(f"KL(unlearned || oracle), 95th percentiles, {name}", header, rows)
