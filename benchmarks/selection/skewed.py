"""A skewed pool and a balanced target: five digits ten times as frequent as the other five, 20 % of the labels flipped.

Pool 1 650, targets 400, test 1 600 of MNIST-5k; 200 points are chosen. Quotas ask for as many of each (noisy) label as
there are; min-max minimises the loss of the worst class of targets, over datamodels of losses.
"""

import sys
from typing import Any

import torch

from applications.data_selection import DataSelection, TargetSets, balanced
from benchmarks.selection.mnist_pool import NETWORK_SGD, network, random_subset, split
from benchmarks.tables import mean, table
from estimators.ekfac import EKFAC
from recipe import Convex, Correct, Greedy, Loss, Retrain, Setting, TopK, solve
from recipe.digits import flip_labels

DRAWS, SEEDS, SIZE = range(1, 6), range(3), 200


def skewed(draw: int) -> tuple[Setting, Any]:
    """The setting and the test split."""
    pool, targets, test = split(draw, 3000, 400, 1600)
    keep = torch.cat([(pool[1] == c).nonzero().squeeze(1)[: 30 if c % 2 else 300] for c in range(10)])
    train, _ = flip_labels((pool[0][keep], pool[1][keep]), 0.2, seed=draw)
    return Setting(network, train, targets, NETWORK_SGD), test


def worst_and_mean(draw: int) -> dict[str, tuple[float, float]]:
    """Accuracy on the worst class, and on all, of every way of selecting."""
    setting, test = skewed(draw)
    labels = setting.pool[-1]  # type: ignore[index]
    f, plain = Retrain(setting, SEEDS), DataSelection(SIZE, seed=draw)
    quotas = DataSelection(SIZE, labels, balanced(labels, SIZE))
    worst = DataSelection(SIZE, sets=TargetSets(setting.probe[-1], worst=True))  # type: ignore[index]
    both = DataSelection(SIZE, labels, balanced(labels, SIZE), sets=worst.sets)
    estimator = EKFAC(models=3)
    margins, losses = estimator.fit(setting), estimator.fit(setting.on(output=Loss()))
    decisions = {
        "top-k": solve(plain, margins, TopK()).decision,
        "top-k, quotas": solve(quotas, margins, TopK()).decision,
        "`Convex()`, min-max": solve(worst, losses, Convex()).decision,
        "`Convex()`, min-max and quotas": solve(both, losses, Convex()).decision,
        "`Greedy(refit=4)`": solve(plain, margins, Greedy(refit=4)).decision,
        "`Greedy(refit=4)`, quotas": solve(quotas, margins, Greedy(refit=4)).decision,
        "random": random_subset(torch.ones(setting.n), SIZE, draw),
        "class-balanced random": quotas.subset(setting.n).sample(torch.Generator().manual_seed(draw)),
        "lowest loss": plain.problem(f).baselines["lowest loss"](f),  # type: ignore[operator]
        "all of the pool": torch.ones(setting.n),
    }
    correct = f.on(test, Correct()).per_seed(torch.stack(list(decisions.values())))  # (seeds, ways, test)
    by_class = torch.stack([correct[..., test[1] == c].mean(-1) for c in range(10)], -1)
    found = {
        name: (float(by_class[:, i].amin(-1).mean()), float(correct[:, i].mean())) for i, name in enumerate(decisions)
    }
    print(f"skewed, draw {draw}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    found = [worst_and_mean(draw) for draw in DRAWS]
    rows = [(name, *(mean([one[name][k] for one in found]) for k in range(2))) for name in found[0]]
    title = "A pool skewed 10:1 and a balanced target: 200 of 1 650, 5 draws x 3 seeds"
    table(title, ("chosen by", "accuracy on the worst class", "accuracy"), rows)
