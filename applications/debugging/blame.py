"""Helpful and harmful training points of a prediction, or of a group of predictions.

    effect_i = d f_target / d w_i   at full weights; of a group, the mean over its targets.

Positive holds the output up: with a margin, the point helps the prediction.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Examples, Exhibit, Exhibits, Finding, Strip, Term
from recipe.findings.examples import check_examples

EFFECT = Term(
    "effect",
    "The predicted change of the output, in its own unit, as the weight of this training point goes from 0 to 1. "
    "Positive: the point holds the output up.",
)
PREDICTED = Term("output", "The target's output after training on everything, as the datamodel has it.")


@dataclass(frozen=True, eq=False)
class Blame:
    """Training points by what they do to an output: `helpful` and `harmful` indices, most first, with `effects`.

    Args:
        helpful: `(k,)` points that hold the output up most.
        harmful: `(k,)` points that pull it down most.
        effects: `(n,)`, of all points.
        targets: what was asked about.
    """

    helpful: Tensor
    harmful: Tensor
    effects: Tensor
    targets: tuple[int, ...] = ()

    def to_pandas(self) -> Any:
        """A row a point: `side`, `rank`, `point`, `effect`."""
        import pandas as pd

        sides = (("helpful", self.helpful), ("harmful", self.harmful))
        rows = [
            (side, rank, i, float(self.effects[i])) for side, found in sides for rank, i in enumerate(found.tolist())
        ]
        return pd.DataFrame(rows, columns=["side", "rank", "point", "effect"])

    def strips(self, points: Examples) -> list[Strip]:
        """The helpful and the harmful points, to look at."""
        check_examples(points, len(self.effects), "training points")

        def cards(found: Tensor) -> list[Card]:
            return [Card(points[i], f"point {i}", f"{float(self.effects[i]):+.3g}") for i in found.tolist()]

        return [
            Strip("Holds the output up most", cards(self.helpful), EFFECT),
            Strip("Pulls it down most", cards(self.harmful), EFFECT),
        ]

    def finding(self, points: Examples, targets: Examples | None = None, what: str = "output") -> Finding:
        """A section of a report.

        Args:
            points: how to show training points.
            targets: how to show the targets.
            what: what the output is, such as "margin of the predicted label".
        """
        asked = ", ".join(map(str, self.targets[:8])) + ", …" * (len(self.targets) > 8)
        group = f"the {len(self.targets)} targets {asked}" if len(self.targets) != 1 else f"target {asked}"
        seen = [] if targets is None else [Card(targets[i], f"target {i}") for i in self.targets[:12]]
        half = int((self.effects.abs().sort(descending=True).values.cumsum(0) < self.effects.abs().sum() / 2).sum()) + 1
        top = self.effects[self.helpful]
        return Finding(
            "Helpful and harmful points",
            f"Which training points make the {what} of {group} what it is?",
            f"The {len(top)} most helpful points are predicted to hold the {what} up by {float(top.sum()):.3g} "
            f"together; half of all influence is in {half} of {len(self.effects)} points.",
            [*([Strip("Asked about", seen)] if seen else []), *self.strips(points)],
            frame=self.to_pandas,
        )


def blame(f_hat: OutputFunction, target: int | Sequence[int], k: int = 10) -> Blame:
    """The k training points that hold an output up most, and the k that pull it down most.

    Args:
        f_hat: a datamodel of an output that is better when larger, such as `TopMargin`.
        target: which target, or several, whose mean counts.
        k: how many of each.

    Returns:
        Indices, and the output's derivative `(n,)` in every point's weight at full weights.

    Raises:
        IndexError: there is no such target.
        ValueError: an empty group, or true outputs, which have no gradient.
    """
    targets = tuple(target) if isinstance(target, Sequence | Tensor) else (target,)
    if not targets:
        raise ValueError("The group has no targets; pass at least one.")
    rows = [f_hat.rows(int(j)) for j in targets]  # before anything is computed
    w = torch.ones(f_hat.n, requires_grad=True)
    outputs = f_hat(w)
    if not outputs.requires_grad:
        raise ValueError(f"{type(f_hat).__name__} has no gradient in the training weights; ask a datamodel of it.")
    (effects,) = torch.autograd.grad(torch.stack([outputs[row].mean() for row in rows]).mean(), w)
    return _of(effects, k, tuple(int(j) % f_hat.output_shape[0] for j in targets))


def blame_each(f_hat: OutputFunction, targets: Sequence[int], k: int = 10) -> list[Blame]:
    """`blame` for many targets one by one, from the effects of all of them at once."""
    effects = by_target(f_hat, targets)
    count = f_hat.output_shape[0]
    return [_of(row, k, (int(j) % count,)) for row, j in zip(effects, targets, strict=True)]


def removal_orders(f_hat: OutputFunction, targets: Sequence[int], k: int) -> Tensor:
    """The k points to remove first, for every target those that hold its output up most: `(targets, k)`."""
    return by_target(f_hat, targets).argsort(dim=1, descending=True, stable=True)[:, :k]


def predictions(f_hat: OutputFunction, each: Sequence[Blame], points: Examples, targets: Examples) -> Exhibits:
    """Many predictions, each with its helpful and harmful points, to browse."""
    check_examples(targets, f_hat.output_shape[0], "targets")
    with torch.no_grad():
        outputs = f_hat(torch.ones(f_hat.n))
    items = []
    for found in each:
        (j,) = found.targets
        value = float(outputs[f_hat.rows(j)].mean())
        card = Card(targets[j], f"target {j}", f"output {value:.3g}")
        items.append(Exhibit(card, found.strips(points)))
    return Exhibits("Every prediction, with what holds it up", items, PREDICTED)


def _of(effects: Tensor, k: int, targets: tuple[int, ...]) -> Blame:
    order = effects.argsort(descending=True, stable=True)
    return Blame(order[:k], order.flip(0)[:k], effects, targets)


def by_target(f_hat: OutputFunction, targets: Sequence[int]) -> Tensor:
    """Effects `(targets, n)`, the mean where a target has several outputs.

    Raises:
        IndexError: there is no such target.
        ValueError: no targets.
    """
    rows = [f_hat.rows(int(j)) for j in targets]
    if not rows:
        raise ValueError("No targets were chosen; pass at least one.")
    effects = effects_of(f_hat).detach()
    return torch.stack([effects[row].mean(0) for row in rows])
