"""Selection, unlearning and poisoning, each against random and against doing nothing, by retraining.

Selection and unlearning average over draws of the flipped labels and of the forget set, poisoning over draws of the
poisons' start; every figure is of models that were really retrained. Debugging has benchmarks of its own.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from applications.data_selection import DataSelection
from applications.poisoning import Poisoning, random_label_flips
from applications.unlearning import Unlearning
from benchmarks.tables import mean, table
from estimators.ekfac_cg import EKFACCG
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from recipe import (
    CG,
    Correct,
    GaussNewton,
    GradientAscent,
    Greedy,
    Loss,
    Newton,
    OutputFunction,
    Retrain,
    Setting,
    SizeCorrected,
    TopK,
    solve,
)
from recipe.digits import LOGISTIC_SGD, MLP_SGD, flip_labels, load_digits, logistic, mlp

DIGITS = load_digits()
CURVATURE = {"inverse": CG(tolerance=1e-2)}  # the MLP's 9 610 parameters make a dense inverse slow and large
DRAWS = range(5)
FRESH = range(10, 15)  # flips on which nothing was chosen: how to select the MLP's points was, on draws 100 to 103


# ---- selection -----------------------------------------------------------------------------------------------------
def selection(model: Callable, algorithm: object, estimator: object, solver: object) -> dict[str, list[float]]:
    """Held-out accuracy of 300 of 1 000 points where 30 % of the labels are wrong, a value a draw of the flips."""
    found: dict[str, list[float]] = {}
    for draw in FRESH:
        train, flipped = flip_labels(DIGITS.train, 0.3, seed=draw)
        setting = Setting(model, train, DIGITS.targets, algorithm)  # type: ignore[arg-type]
        f = Retrain(setting, seeds=range(5))
        accuracy = f.on(DIGITS.test, Correct())
        task = DataSelection(size=300, seed=draw)
        baselines = task.problem(f).baselines
        chosen = solve(task, estimator.fit(setting), solver).decision  # type: ignore[attr-defined]
        clean = (~flipped).nonzero().squeeze(1)
        rows = {
            "chosen": chosen[None],
            "random": torch.stack(list(baselines["random"])),  # type: ignore[arg-type]
            "lowest loss": baselines["lowest loss"](f)[None],  # type: ignore[operator]
            "full pool (do nothing)": torch.ones(1, 1000),
            "random of the known-clean": torch.zeros(1, 1000).index_fill(
                1, clean[torch.randperm(len(clean), generator=torch.Generator().manual_seed(draw))[:300]], 1.0
            ),
        }
        for name, weights in rows.items():
            found.setdefault(name, []).append(float(accuracy(weights).mean()))
    return found


def show_selection() -> None:
    """Logistic regression and MLP, one shot and in steps."""
    cases = [
        ("logistic", logistic, LOGISTIC_SGD, Influence(), TopK()),
        ("logistic", logistic, LOGISTIC_SGD, Influence(), Greedy(refit=10)),
        ("MLP", mlp, MLP_SGD, EKFACCG(models=5, lazy=True), TopK()),
        ("MLP", mlp, MLP_SGD, EKFACCG(models=5, lazy=True), Greedy(refit=4)),
    ]
    rows = []
    for name, model, algorithm, estimator, solver in cases:
        found = selection(model, algorithm, estimator, solver)
        gains = [chosen - random for chosen, random in zip(found["chosen"], found["random"], strict=True)]
        found = {"chosen": found.pop("chosen"), "gain over random": gains, **found}
        rows.append((name, f"`{type(estimator).__name__}`, `{solver}`", *(mean(v) for v in found.values())))
        print(f"selection: {rows[-1]}", file=sys.stderr, flush=True)
    header = ("model", "estimator, solver", *found)
    table("Selection: held-out accuracy, 300 of 1 000 with 30 % of the labels flipped, 5 draws x 5 seeds", header, rows)


# ---- unlearning ----------------------------------------------------------------------------------------------------
def unlearning(setting: Setting, estimators: dict[str, OutputFunction], oracles: int) -> dict[str, list[float]]:
    """Mean absolute margin error against retraining without a random 5 %, a value a forget set.

    The truth is the change averaged over the oracles' seeds, added to the deployed model of seed 0; its noise is the
    mean standard error of that average.
    """
    f = Retrain(setting, seeds=range(oracles))
    ones = torch.ones(setting.n)
    full = f.per_seed(ones)
    found: dict[str, list[float]] = {}
    for draw in DRAWS:
        forget = torch.randperm(setting.n, generator=torch.Generator().manual_seed(draw))[:50]
        task = Unlearning(forget, full[0])
        changes = f.per_seed(task.retained(setting.n)) - full  # (oracles, m)
        truth = full[0] + changes.mean(0)
        errors = {"do nothing": full[0] - truth, **{k: task.wanted(g) - truth for k, g in estimators.items()}}
        for name, error in errors.items():
            found.setdefault(name, []).append(float(error.abs().mean()))
        noise = changes.std(0) / oracles**0.5
        found.setdefault("noise of the truth", []).append(float(noise.mean()))
    return found


def show_unlearning() -> None:
    """Logistic regression (weight decay 1e-2) and MLP."""
    cases = []
    for name, algorithm, oracles in (("exact", Newton(l2=1e-2), 2), ("SGD", LOGISTIC_SGD, 400)):
        setting = Setting(logistic, DIGITS.train, DIGITS.targets, algorithm)
        tangent, step = Influence().fit(setting), NewtonStep().fit(setting)
        datamodels = {"influence": tangent, "size-corrected": SizeCorrected(tangent), "Newton step": step}
        cases.append((f"logistic, {name}, {oracles} oracles", unlearning(setting, datamodels, oracles)))
    setting = Setting(mlp, DIGITS.train, DIGITS.targets, MLP_SGD)
    tangent = Influence(models=5, **CURVATURE).fit(setting)
    step = NewtonStep(curvature=GaussNewton(), models=5, **CURVATURE).fit(setting)
    datamodels = {"influence": tangent, "size-corrected": SizeCorrected(tangent), "Newton step": step}
    cases.append(("MLP, 200 oracles", unlearning(setting, datamodels, oracles=200)))
    header = ("model", *cases[0][1])
    rows = [(name, *(mean(v, 4) for v in found.values())) for name, found in cases]
    table("Unlearning a random 5 %: mean absolute margin error, 5 forget sets", header, rows)


# ---- poisoning -----------------------------------------------------------------------------------------------------
def poisoning(model: Callable, algorithm: object, estimator: object, solver: object) -> dict[str, list[Tensor]]:
    """Mean target loss and held-out accuracy with 20 poisons, a value a draw of the start."""
    setting = Setting(model, DIGITS.train, DIGITS.targets, algorithm, output=Loss())  # type: ignore[arg-type]
    f = Retrain(setting, seeds=range(5))
    accuracy = f.on(DIGITS.test, Correct())
    f_hat, ones = estimator.fit(setting), torch.ones(setting.n)  # type: ignore[attr-defined]
    found: dict[str, list[Tensor]] = {}
    for draw in DRAWS:
        task = Poisoning(random_label_flips(setting, 20, seed=draw))
        poisons = task.batch(solve(task, f_hat, solver).decision)
        assert float(poisons[0].min()) >= 0
        assert float(poisons[0].max()) <= 1
        for name, added in {"do nothing": None, "random label flips": task.start, "poisons": poisons}.items():
            values = torch.stack([f(ones, added).mean(), accuracy(ones, added).mean()])
            found.setdefault(name, []).append(values)
    return found


def show_poisoning() -> None:
    """Logistic regression and MLP."""
    ascent = GradientAscent(lr=0.05, steps=60, refit=6)
    cases = [
        ("logistic", logistic, LOGISTIC_SGD, Influence(models=1), ascent),
        ("MLP", mlp, MLP_SGD, Influence(**CURVATURE), replace(ascent, steps=30, refit=3)),
    ]
    rows = []
    for name, model, algorithm, estimator, solver in cases:
        for row, values in poisoning(model, algorithm, estimator, solver).items():
            loss, accuracy = torch.stack(values).T
            rows.append((name, row, mean(loss), mean(accuracy)))
    title = "Poisoning with 20 points in the valid pixel range beside 1 000, 5 draws x 5 seeds"
    table(title, ("model", "", "target loss", "held-out accuracy"), rows)


def main() -> None:
    """All three tables."""
    for show in (show_selection, show_unlearning, show_poisoning):
        show()


if __name__ == "__main__":
    main()
