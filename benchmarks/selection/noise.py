"""MNIST-5k with 30 % of the labels flipped: a third of the pool, chosen for low loss on clean targets.

Pool 1 500, targets 300, test 3 000. How to select (estimator, stages) was chosen on the draws 100 and 101.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from applications.data_selection import DataSelection, balanced
from benchmarks.selection.mnist_pool import NETWORK_SGD, network, random_subset, split
from benchmarks.tables import mean, table
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from recipe import Correct, Greedy, Retrain, Setting, TopK, solve
from recipe.digits import flip_labels

DRAWS, SEEDS, SIZE, NOISE = range(1, 6), range(3), 500, 0.3
METHODS: dict[str, tuple[Any, Any]] = {
    "`EKFACCG(models=2, lazy=True)`, `TopK()` (DsDm's step)": (EKFACCG(models=2, lazy=True), TopK()),
    "the same, `Greedy(refit=4)`": (EKFACCG(models=2, lazy=True), Greedy(refit=4)),
    "`EKFAC(models=2)`, `Greedy(refit=4)`": (EKFAC(models=2), Greedy(refit=4)),
}


def accuracies(draw: int, methods: dict[str, tuple[Any, Any]]) -> dict[str, float]:
    """Held-out accuracy of every way of selecting on one draw of split and flips."""
    clean, targets, test = split(draw, 1500, 300, 3000)
    train, flipped = flip_labels(clean, NOISE, seed=draw)
    setting = Setting(network, train, targets, NETWORK_SGD)
    f, task = Retrain(setting, SEEDS), DataSelection(SIZE, seed=draw)
    correct = f.on(test, Correct())
    alike = DataSelection(SIZE, train[1], balanced(train[1], SIZE)).subset(setting.n)
    lowest: Callable[[Any], Tensor] = task.problem(f).baselines["lowest loss"]  # type: ignore[assignment]
    rows = {
        "random": random_subset(torch.ones(setting.n), SIZE, draw),
        "class-balanced random": alike.sample(torch.Generator().manual_seed(draw)),
        "lowest loss": lowest(f),
        "all of the noisy pool": torch.ones(setting.n),
        "random of the known-clean": random_subset(~flipped, SIZE, draw),
    }
    for name, (estimator, solver) in methods.items():
        rows[name] = solve(task, estimator.fit(setting), solver).decision
    found = dict(zip(rows, correct(torch.stack(list(rows.values()))).mean(1).tolist(), strict=True))
    print(f"noise, draw {draw}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    found = [accuracies(draw, METHODS) for draw in DRAWS]
    rows = []
    for name in (*METHODS, "random", "class-balanced random", "lowest loss", "all of the noisy pool",
                 "random of the known-clean"):  # fmt: skip
        values = [one[name] for one in found]
        gains = [one[name] - one["random"] for one in found]
        rows.append((name, mean(values), mean(gains)))
    title = "MNIST-5k, 30 % flipped: held-out accuracy of 500 of 1 500, 5 draws x 3 seeds"
    table(title, ("chosen by", "accuracy", "gain over random"), rows)
