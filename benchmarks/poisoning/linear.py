"""Linear classifiers of two classes, attacked by influence, refitted on the way, and by the KKT attack."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from applications.defences import Defence, inspect, most_suspicious, poisoned
from applications.poisoning import KKT, Decoy, Poisoning, Range, Sanitation
from benchmarks.data import mnist
from estimators.adjoint_influence import AdjointInfluence
from recipe import (
    CG,
    LBFGS,
    Correct,
    CrossEntropy,
    Custom,
    GradientAscent,
    Hinge,
    Loss,
    Objective,
    Retrain,
    Setting,
    solve,
)
from recipe.batch import Batch, concatenate, labels, take

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


def aiming_widely(parts: Split) -> Split:
    """The attacker aims at all that it has, its training points too, which stand for what it has not seen."""
    return parts._replace(targets=concatenate(parts.targets, parts.train))


def setting(parts: Split, loss: Callable, l2: float) -> Setting:
    """A linear model trained to its optimum; outputs are losses."""
    width = parts.train[0].shape[1]  # type: ignore[index]
    algorithm = support_vectors(l2) if loss == Hinge() else LBFGS(l2=l2, tolerance=1e-5)
    return Setting(lambda: TwoClass(width), parts.train, parts.targets, algorithm, loss=loss, output=Loss())


def support_vectors(l2: float) -> Custom:
    """The hinge's optimum by liblinear's dual: with its corners L-BFGS ends 2 % above it, and ten times later."""

    def train(model: Any, dataset: Any, seed: int) -> Any:
        x, y = dataset.datasets
        machine = LinearSVC(loss="hinge", C=1 / (len(y) * l2), tol=1e-6, max_iter=100_000, random_state=seed)
        machine.fit(csr_matrix(x.double().numpy()), y.numpy())  # the bias counts in its penalty, as it does in ours
        with torch.no_grad():
            model.linear.weight.copy_(torch.from_numpy(machine.coef_))
            model.linear.bias.copy_(torch.from_numpy(machine.intercept_))
        return model

    return Custom(train, Objective(l2=l2), f"liblinear's hinge, l2={l2}")


def two_points(parts: Split, share: float, sanitation: Sanitation | None, l2: float = 0.01) -> Poisoning:
    """One point a class with copies in inverse balance; it starts as the flipped point that passes most easily."""
    y = torch.tensor([0, 1])
    own = labels(parts.train)
    count = round(share * len(own))
    ones = round(count * float((own == 0).double().mean()))
    model = setting(parts, CrossEntropy(), l2)
    box = Range().box(model, torch.zeros(2, parts.train[0].shape[1]), 0)  # type: ignore[index]
    x = parts.train[0]  # type: ignore[index]
    feasible = sanitation.allowed(model, y, box) if sanitation else box
    begin = torch.stack([x[own == 1].mean(0), x[own == 0].mean(0)])  # the middle of the other class
    return Poisoning((feasible.project(begin), y), feasible, copies=(count - ones, ones))


def influence_attack(task: Poisoning, surrogate: Setting, steps: int, lr: float) -> tuple[Batch, dict]:
    """Ascent with a datamodel fitted around every iterate; the best by retraining on the attacker's targets."""
    estimator = AdjointInfluence(inverse=CG(1e-4))
    solver = GradientAscent(lr=lr, steps=steps, refit=steps - 1, measured=True, decay=True)
    found = solve(task, estimator.fit(surrogate), solver, estimator, surrogate)
    return task.batch(found.decision), dict(found.provenance["notes"])


def kkt_attack(
    surrogate: Setting,
    tasks: Sequence[Poisoning],
    decoys: Sequence[Decoy],
    loss_caps: Sequence[float | None] = (None,),
    defences: Sequence[Defence] = (),
) -> tuple[Batch, dict]:
    """What does most, as errors on the attacker's targets, among poisons that the defences let through."""
    f = Retrain(surrogate.on(output=Correct()))

    def accept(added: Batch) -> bool:
        return not any(removed(surrogate, added, defences))

    found = [(task, solve(task, f, KKT(surrogate, decoys, cap, accept))) for task in tasks for cap in loss_caps]
    task, best = max(found, key=lambda pair: pair[1].predicted)
    return task.batch(best.decision), dict(best.provenance["notes"])


def measured(victim: Setting, test: Batch, added: Batch | None) -> tuple[float, float]:
    """Loss and error of the retrained victim, which is convex: one run is all runs."""
    f, ones = Retrain(victim.on(test, Loss())), torch.ones(victim.n)
    return float(f(ones, added).mean()), 1 - float(f.on(test, Correct())(ones, added).mean())


def removed(victim: Setting, added: Batch, defences: Sequence[Defence]) -> list[float]:
    """The share of the poison among the 5 % of each class that a defence throws away."""
    mixed, poison = poisoned(victim, added)
    return [inspect(defence, mixed, poison).poison for defence in defences]


def defended(victim: Setting, test: Batch, added: Batch | None, defences: Sequence[Defence]) -> list[float]:
    """Errors of victims trained on what each defence leaves, 95 % of each class."""
    mixed, _ = poisoned(victim, added)
    f, y = Retrain(mixed.on(test, Correct())), labels(mixed.pool)
    left = [~most_suspicious(defence.scores(mixed), 0.05, y) for defence in defences]
    return [1 - float(f(kept.float()).mean()) for kept in left]
