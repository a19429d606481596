"""Brittleness: how many points have to go until a prediction of the digits MLP flips, by whom they are named.

The 50 targets of lowest positive margin, margins of the predicted label, 5 seeds, every size verified by retraining;
what was found is retrained once more with 5 other seeds.
"""

import sys

import torch

from applications.debugging import as_predicted, brittleness, removal_orders
from benchmarks.tables import table
from estimators.ekfac import EKFAC
from estimators.logra import LoGra
from estimators.random import Random
from estimators.regression import Regression, Ridge
from estimators.similarity import Similarity
from estimators.train_loss import TrainLoss
from recipe import Retrain, Setting, TopMargin
from recipe.digits import MLP_SGD, load_digits, mlp

SIZES, TARGETS, SEEDS = (2, 4, 8, 16, 32, 64), 50, range(5)
METHODS = {
    "`Regression(subsets=1000, alpha=.9, penalty=Ridge(), prior=EKFAC(models=5))`": Regression(
        subsets=1000, alpha=0.9, penalty=Ridge(), prior=EKFAC(models=5)
    ),
    "`EKFAC(models=5)`": EKFAC(models=5),
    "`LoGra(models=5)`": LoGra(models=5),
    "`Similarity(models=5)`": Similarity(models=5),
    "`TrainLoss(models=5)`": TrainLoss(models=5),
    "random": Random(),
}


def main() -> None:
    """A row a method."""
    digits = load_digits()
    f = Retrain(Setting(mlp, digits.train, digits.targets, MLP_SGD), SEEDS)
    f = f.on(as_predicted(f), TopMargin())
    margins = f(torch.ones(f.n))
    chosen = [int(j) for j in margins.argsort() if margins[j] > 0][:TARGETS]
    rows = []
    for name, estimator in METHODS.items():
        orders = removal_orders(estimator.fit(f.setting), chosen, SIZES[-1])
        found = brittleness(orders, f, chosen, SIZES)
        middle = f"{found.median:.0f}" if found.median <= SIZES[-1] else f"> {SIZES[-1]}"
        left = sum(flip.size is None for flip in found.flips)
        quarter = float(found.sizes.quantile(0.25, interpolation="higher"))
        lower = f"{quarter:.0f}" if quarter <= SIZES[-1] else f"> {SIZES[-1]}"
        rows.append((name, middle, lower, f"{left} of {TARGETS}", f"{found.confirmed} of {TARGETS - left}"))
        print(rows[-1], file=sys.stderr, flush=True)
    header = ("removed first by", "median to flip", "lower quartile", f"not flipped by {SIZES[-1]}", "fresh seeds")
    table(
        f"Brittleness: removals that flip {TARGETS} predictions, each verified by retraining with 5 seeds", header, rows
    )


if __name__ == "__main__":
    main()
