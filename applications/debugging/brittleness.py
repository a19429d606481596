"""Predictions that rest on few points: the smallest removal that flips one, verified by retraining.

    smallest k   with   f_target(all but the first k points of an order) < 0,

f a margin of the predicted label. The order comes from a datamodel, most helpful first. A removal is tried at growing
sizes and, between the last that did not flip and the first that did, by bisection, which takes flipping for monotone.
The k found is an upper bound: another set of points may do with fewer.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.datamodel import OutputFunction
from recipe.findings import Card, Curves, Examples, Finding, Grid, Strip, Term

REMOVED = Term("points removed", "How many training points were left out, the most helpful of each prediction first.")
FLIPPED = Term(
    "share flipped", "The share of the predictions that retraining without the points turned to another label."
)


@dataclass(frozen=True)
class Flip:
    """The smallest removal found that flips a prediction.

    Args:
        size: how many points; None where no removal of the tried sizes flipped it.
        before: the output with everything.
        after: the output without the points (of the largest removal, where none flipped it).
    """

    size: int | None
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Brittleness:
    """How few removals flip each of many predictions.

    Args:
        targets: which predictions.
        flips: what was found for each.
        limit: the largest removal that was tried.
        seeds: how many retrainings the mean output is of.
        n: how many training points there are.
    """

    targets: tuple[int, ...]
    flips: tuple[Flip, ...]
    limit: int
    seeds: int
    n: int

    @property
    def sizes(self) -> Tensor:
        """`(targets,)` numbers of points, infinite where nothing tried flipped the prediction."""
        return torch.tensor([float("inf") if flip.size is None else float(flip.size) for flip in self.flips])

    @property
    def median(self) -> float:
        """The median number of points; infinite where most predictions never flip."""
        return float(self.sizes.quantile(0.5, interpolation="higher"))

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Numbers of points, and the share of predictions that flip with at most so many."""
        sizes = self.sizes
        found = sorted({1.0, *sizes[sizes.isfinite()].tolist(), float(self.limit)})
        return found, [float((sizes <= k).float().mean()) for k in found]

    def to_pandas(self) -> Any:
        """A row a prediction: `target`, `removed` (infinite where it never flipped), `before`, `after`."""
        import pandas as pd

        rows = [
            (j, size, flip.before, flip.after)
            for j, size, flip in zip(self.targets, self.sizes.tolist(), self.flips, strict=True)
        ]
        return pd.DataFrame(rows, columns=["target", "removed", "before", "after"])

    def finding(
        self, points: Examples | None, targets: Examples, others: dict[str, "Brittleness"] | None = None
    ) -> Finding:
        """A section of a report, with what other orders needed beside, by name."""
        curves = {"by the datamodel": self, **(others or {})}
        order = self.sizes.argsort(stable=True).tolist()
        cards = [Card(targets[self.targets[i]], f"target {self.targets[i]}", self._said(i)) for i in order[:12]]
        within = sum(flip.size is not None for flip in self.flips)
        columns = [
            Term("removed first", "What decides which training points are removed first."),
            Term("median", "The median number of points that flips a prediction, verified by retraining."),
            Term("flipped", f"Predictions of {len(self.flips)} that a removal of at most {self.limit} points flips."),
        ]
        rows = [(k, b.median, sum(flip.size is not None for flip in b.flips)) for k, b in curves.items()]
        middle = f"half of them by {self.median:.0f} or fewer" if self.median < float("inf") else "fewer than half"
        return Finding(
            "Predictions that rest on few points",
            "How many training points have to go until the retrained model says something else?",
            f"Removing at most {self.limit} of {self.n} points flips {within} of {len(self.flips)} predictions, "
            f"{middle}. Each was verified by retraining with {self.seeds} seed{'s' * (self.seeds != 1)}.",
            [
                Curves(
                    "Brittleness", REMOVED, FLIPPED, {name: b.curve for name, b in curves.items()}, logarithmic=True
                ),
                Strip("The most brittle predictions", cards, REMOVED),
                *([Grid("Beside other orders of removal", columns, rows, best=0)] if others else []),
            ],
        )

    def _said(self, i: int) -> str:
        size = self.flips[i].size
        return f"> {self.limit} points" if size is None else f"{size} point{'s' * (size != 1)}"


def brittleness(
    orders: Tensor, f: OutputFunction, targets: Sequence[int], sizes: Sequence[int], refine: bool = True
) -> Brittleness:
    """The smallest removal that flips each prediction, by retraining.

    Args:
        orders: `(targets, k)` training points, the first to be removed first, as `removal_orders` gives them.
        f: true outputs of a margin, `Retrain(setting, seeds)` on `as_predicted` targets; their mean over seeds decides.
        targets: which predictions; one that is wrong with everything (a margin below zero) flips with 0 points.
        sizes: numbers of points to try, ascending; each is a retraining a seed for who has not flipped, all together.
        refine: whether to bisect between the last size that did not flip and the first that did.

    Raises:
        ValueError: sizes that do not ascend, or exceed the orders; other numbers of targets and orders.
        IndexError: there is no such target.
    """
    _check_sizes(sizes, orders.shape[1])
    if len(orders) != len(targets):
        raise ValueError(f"Expected an order for each of {len(targets)} targets; got {len(orders)}.")
    search = _Search(orders, f, [f.rows(int(j)) for j in targets])
    everything = range(len(targets))
    before = search.outputs(dict.fromkeys(everything, 0))
    low, high, after = dict.fromkeys(everything, 0), {i: 0 for i in everything if before[i] < 0}, dict(before)
    for size in sizes:
        left = [i for i in everything if i not in high]
        for i, value in search.outputs(dict.fromkeys(left, size)).items():
            after[i] = value
            (high if value < 0 else low)[i] = size
    while refine:
        middle = {i: (low[i] + high[i]) // 2 for i in high if high[i] - low[i] > 1}
        if not middle:
            break
        for i, value in search.outputs(middle).items():
            if value < 0:
                high[i], after[i] = middle[i], value
            else:
                low[i] = middle[i]
    flips = tuple(Flip(high.get(i), before[i], after[i]) for i in everything)
    return Brittleness(tuple(int(j) for j in targets), flips, sizes[-1], max(1, len(f.seeds)), f.n)


def smallest_flip(order: Tensor, f: OutputFunction, target: int, sizes: Sequence[int]) -> Flip:
    """Retrain without the first points of an order, more and more of them, until the output falls below zero.

    Args:
        order: training points, the first to be removed first, for example `blame(f_hat, target, k).helpful`.
        f: true outputs of a margin, `Retrain(setting, seeds)`; their mean over seeds decides.
        target: which target.
        sizes: numbers of points to try, ascending; each is one retraining for every seed, all trained together.

    Raises:
        ValueError: sizes that do not ascend, or exceed the order.
    """
    _check_sizes(sizes, len(order))
    search = _Search(order.expand(len(sizes) + 1, -1), f, [f.rows(target)] * (len(sizes) + 1))
    before, *tried = search.outputs(dict(enumerate([0, *sizes]))).values()
    flipped = next((i for i, value in enumerate(tried) if value < 0), None)
    if flipped is None:
        return Flip(None, before, tried[-1])
    return Flip(sizes[flipped], before, tried[flipped])


@dataclass(frozen=True, eq=False)
class _Search:
    """Outputs after removing the first points of an order, many orders at once."""

    orders: Tensor
    f: OutputFunction
    rows: list[slice]

    def outputs(self, sizes: dict[int, int]) -> dict[int, float]:
        """The output of each order's target without its first `sizes[i]` points."""
        if not sizes:
            return {}
        weights = torch.ones(len(sizes), self.f.n)
        for row, (i, size) in zip(weights, sizes.items(), strict=True):
            row[self.orders[i, :size]] = 0
        with torch.no_grad():
            found = self.f(weights)
        return {i: float(row[self.rows[i]].mean()) for row, i in zip(found, sizes, strict=True)}


def _check_sizes(sizes: Sequence[int], longest: int) -> None:
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1 or sizes[-1] > longest:
        raise ValueError(f"sizes must ascend from at least 1 to at most {longest}; got {list(sizes)}.")
