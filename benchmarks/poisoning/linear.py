"""Linear classifiers of two classes: MNIST 1-vs-7 by influence, refitted on the way, and by the KKT attack."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from applications.poisoning import Poisoning, Range, Sanitation
from benchmarks.data import mnist
from estimators.adjoint_influence import AdjointInfluence
from recipe import CG, LBFGS, CrossEntropy, GradientAscent, Hinge, Loss, Setting, solve
from recipe.batch import Batch, labels, take

SPLITS = 8
LOSSES: dict[str, tuple[Callable, Callable]] = {  # what the victim minimises, and what the attacker differentiates
    "logistic": (CrossEntropy(), CrossEntropy()),
    "hinge": (Hinge(), Hinge(smooth=0.1)),
}


class TwoClass(nn.Module):
    """Logits `-z/2` and `z/2` of one linear function `z`: half the parameters of two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, ...)` inputs to `(b, 2)` logits."""
        z = self.linear(x.flatten(1)) / 2
        return torch.cat([-z, z], 1)


class Split(NamedTuple):
    """Disjoint parts of a data set, `(inputs, labels)` each: the attacker sees the first two."""

    train: Batch
    targets: Batch
    test: Batch


def ones_and_sevens(seed: int) -> Split:
    """MNIST's 1 (label 0) and 7 (label 1): 500 to train on, 250 for the attacker, 250 to measure on."""
    x, y = mnist()
    kept = (y == 1) | (y == 7)
    return split((x[kept], (y[kept] == 7).long()), seed, 500, 250)


def split(data: Batch, seed: int, train: int, targets: int) -> Split:
    """In an order of the seed."""
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(labels(data))))
    first, second = train, train + targets
    return Split(*(take(data, part) for part in (order[:first], order[first:second], order[second:])))


def setting(parts: Split, loss: Callable, l2: float) -> Setting:
    """A linear model trained to its optimum; outputs are losses."""
    width = parts.train[0].shape[1]  # type: ignore[index]
    return Setting(
        lambda: TwoClass(width), parts.train, parts.targets, LBFGS(l2=l2, tolerance=1e-5), loss=loss, output=Loss()
    )


def two_points(parts: Split, share: float, sanitation: Sanitation | None, whole: bool = False) -> Poisoning:
    """One point a class with copies in inverse balance; it starts as the flipped point that passes most easily."""
    y = torch.tensor([0, 1])
    own = labels(parts.train)
    count = round(share * len(own))
    ones = round(count * float((own == 0).double().mean()))
    model = setting(parts, CrossEntropy(), 0.01)
    box = Range(whole=whole).box(model, torch.zeros(2, parts.train[0].shape[1]), 0)  # type: ignore[index]
    x = parts.train[0]  # type: ignore[index]
    feasible = sanitation.allowed(model, y, box, whole) if sanitation else box
    begin = torch.stack([x[own == 1].mean(0), x[own == 0].mean(0)])  # the middle of the other class
    start = feasible.within.project(begin) if whole else feasible.project(begin)
    return Poisoning((start, y), feasible, copies=(count - ones, ones))


def influence_attack(task: Poisoning, surrogate: Setting, steps: int, lr: float) -> tuple[Batch, dict]:
    """Ascent with a datamodel fitted around every iterate; the best by retraining on the attacker's targets."""
    estimator = AdjointInfluence(inverse=CG(1e-4))
    solver = GradientAscent(lr=lr, steps=steps, refit=steps - 1, measured=True, decay=True)
    found = solve(task, estimator.fit(surrogate), solver, estimator, surrogate)
    return task.batch(found.decision), dict(found.provenance["notes"])
