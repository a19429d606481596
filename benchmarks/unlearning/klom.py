"""Digits MLP, 5 % forgotten: distributions over 100 seeds of unlearned models beside those of retrained ones.

Every method unlearns the same 100 deployed models (seeds 0 to 99) and is compared with 100 oracles (seeds 100 to 199);
the floor is 100 other oracles (seeds 200 to 299) against those. How to predict and how to fine-tune was chosen on
random forget sets (draws 100, 101, 108, 115 and 116) that are not in the table; the baselines' learning rates are the
best of a grid in hindsight, by the distance of the first ten models' mean margins, on the very sets of the table.

The datamodels are those of `datamodels.py`, fitted once for all forget sets.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from applications.unlearning import SCRUB, Deployed, GradAscent, GradDiff, compare, subpopulation
from applications.unlearning.evaluation import SPLITS, Evaluation, split
from applications.unlearning.matching import match
from benchmarks.tables import mean, table
from benchmarks.unlearning.datamodels import PRIOR, Change, Datamodel, Interpolated, logits_on, train
from recipe import Correct, Margin, Setting, effects_of
from recipe import batch as batches
from recipe.batch import Batch
from recipe.digits import MLP_SGD, load_digits, mlp
from recipe.setting import Parameters

MODELS = 100
DRAWS = range(5)  # of random forget sets
CLASSES = (8, 0, 2, 4, 6)  # half of each of which is forgotten
ENDS = ((0, True), (1, False), (2, True), (3, True), (3, False))  # components, and which end of them
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

Margins = dict[str, tuple[Tensor, float]]  # of each split: margins (models, points) and accuracy


def forget_sets(setting: Setting) -> dict[str, list[Tensor]]:
    """Fifty points: at random, half of a class, one end of a principal component of the effects."""
    random = [torch.randperm(setting.n, generator=torch.Generator().manual_seed(draw))[:50] for draw in DRAWS]
    effects = effects_of(PRIOR.fit(setting))
    halves = [(setting.pool[1] == label).nonzero()[:50, 0] for label in CLASSES]
    return {
        "random": random,
        "half of a class": halves,
        "one end of a component": [subpopulation(effects, 50, component, largest) for component, largest in ENDS],
    }


def margins_of(setting: Setting, splits: Sequence[Batch], models: Sequence[Parameters]) -> Margins:
    """Margins and accuracy of models on every split."""
    found = {}
    for name, data in zip(SPLITS, splits, strict=True):
        logits = logits_on(setting, data, models)
        margins = torch.stack([Margin()(z, data) for z in logits])
        found[name] = (margins, float(torch.stack([Correct()(z, data).mean() for z in logits]).mean()))
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


def evaluations(
    setting: Setting,
    held_out: Batch,
    forget: Tensor,
    start: list[Parameters],
    datamodels: Mapping[str, Datamodel],
) -> dict[str, Evaluation]:
    """Every method on one forget set."""
    keep = torch.ones(setting.n).index_fill(0, forget, 0.0)
    splits, points = split(setting, forget, held_out), setting.n + batches.size(held_out)
    places = [(keep == 0).nonzero().squeeze(1), keep.nonzero().squeeze(1), torch.arange(setting.n, points)]

    def seen(models: Sequence[Parameters]) -> Margins:
        return margins_of(setting, splits, models)

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

    def direct(datamodel: Datamodel) -> Margins:
        margins, tops = datamodel.margins(keep, start)
        return {
            k: (margins[:, at], float((tops[:, at] > 0).float().mean())) for k, at in zip(SPLITS, places, strict=True)
        }

    def dmm(datamodel: Datamodel) -> Margins:
        data, wanted = datamodel.wanted(keep, start)
        with torch.enable_grad():
            tuned = [
                match(one, data, logits, datamodel.matching, one.seed)
                for one, logits in zip(deployed, wanted, strict=True)
            ]
        return seen(tuned)

    add("do nothing", lambda: seen(start))
    for name, datamodel in datamodels.items():
        add(f"{name}: DM-Direct (outputs)", partial(direct, datamodel))
        add(f"{name}: DMM (model)", partial(dmm, datamodel))
    grids = {
        "gradient ascent": [GradAscent(epochs=5, lr=lr) for lr in RATES],
        "gradient difference": [GradDiff(epochs=5, lr=lr) for lr in RATES],
        "SCRUB": [SCRUB(epochs=3, ascent=2, lr=lr) for lr in RATES[:3]],
    }
    for name, grid in grids.items():
        method = best_of(grid, deployed, keep, splits[0], oracles["forget"][0])
        print(f"{name}: lr {method.lr:g}", file=sys.stderr)
        add(name, each(method))
    return result


def main() -> None:
    """Two tables a kind of forget set."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="CG did not converge")
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD)
    start = train(setting, torch.ones(setting.n), range(MODELS))
    whole, kernel = batches.concatenate(setting.pool, digits.test), Interpolated.fitted(setting, digits.test)
    datamodels = {
        "regression": Datamodel.of_margins(Change.fitted(setting), setting, whole),
        "kernel regression": Datamodel.of_logits(kernel, setting, whole),
    }
    header = ("", *(f"KLoM {name} (floor)" for name in SPLITS), "W1 forget (floor)", "error forget (floor)",
              "U-LiRA (oracles)", "accuracy forget, held out (oracles)", "CPU of a retraining")  # fmt: skip
    for name, sets in forget_sets(setting).items():
        overlaps = [kernel.overlap(forget) for forget in sets]
        assert max(overlaps) < 1
        print(f"{name}: overlap with the nearest set {', '.join(f'{o:.2f}' for o in overlaps)}", file=sys.stderr)
        found = [evaluations(setting, digits.test, forget, start, datamodels) for forget in sets]
        for which, some in ((f"mean of {len(sets)}", found), ("the first", found[:1])):
            rows = [row(method, [each[method] for each in some]) for method in found[0]]
            table(f"KL(unlearned || oracle), 95th percentiles, {name}, {which}", header, rows)


def row(method: str, found: Sequence[Evaluation]) -> tuple[str, ...]:
    """Means over forget sets, and the standard errors of the divergences."""
    splits = {k: [e.splits[k] for e in found] for k in SPLITS}
    forget, held = splits["forget"], splits["held out"]
    divergences = []
    for of in splits.values():
        values = torch.tensor([s.klom for s in of])
        shown = mean(values, 2) if len(of) > 1 else f"{values[0]:.2f}"
        divergences.append(f"{shown} ({average(s.klom_floor for s in of):.2f})")
    return (
        method, *divergences,
        f"{average(s.wasserstein for s in forget):.2f} ({average(s.wasserstein_floor for s in forget):.2f})",
        f"{average(s.error for s in forget):.3f} ({average(s.error_floor for s in forget):.3f})",
        f"{average(e.membership[0].mean for e in found):.3f} ({average(e.membership[1].mean for e in found):.3f})",
        f"{average(s.accuracy for s in forget):.3f}, {average(s.accuracy for s in held):.3f} "
        f"({average(s.oracle_accuracy for s in forget):.3f}, {average(s.oracle_accuracy for s in held):.3f})",
        f"{average(e.time for e in found):.1%}",
    )  # fmt: skip


def average(values: Iterable[float]) -> float:
    """The mean."""
    return statistics.fmean(values)
