"""Predictions that rest on few points: the smallest removal that flips one, verified by retraining.

    smallest k   with   f_target(all but the first k points of an order) < 0,

f a margin of the predicted label. The order comes from a datamodel, most helpful first. A removal is tried at growing
sizes and, between the last that did not flip and the first that did, by bisection, which takes flipping for monotone.
The k found is an upper bound: another set of points may do with fewer.

The search looks for a mean below zero over its seeds, and finds some that are so by the luck of these. So what it found
is retrained once more with seeds that it has not seen: what still flips there is no accident of initialisation.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recipe.datamodel import OutputFunction
from recipe.findings import Card, Curves, Examples, Finding, Grid, Strip, Term
from recipe.findings.words import counted
from recipe.retrain import Retrain

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
        fresh: the same with seeds that the search did not see; None where it was not tried.
    """

    size: int | None
    before: float
    after: float
    fresh: float | None = None


@dataclass(frozen=True, eq=False)
class Brittleness:
    """How few removals flip each of many predictions.

    Args:
        targets: which predictions.
        flips: what was found for each.
        limit: the largest removal that was tried.
        seeds: how many retrainings the mean output is of.
        n: how many training points there are.
        fresh: how many further retrainings looked at what was found; 0 for none.
    """

    targets: tuple[int, ...]
    flips: tuple[Flip, ...]
    limit: int
    seeds: int
    n: int
    fresh: int = 0

    @property
    def confirmed(self) -> int:
        """How many predictions were still flipped when retrained with fresh seeds."""
        return sum(flip.size is not None and flip.fresh is not None and flip.fresh < 0 for flip in self.flips)

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
        """A row a prediction: `target`, `removed` (infinite where it never flipped), `before`, `after`, `fresh`."""
        import pandas as pd

        rows = [
            (j, size, flip.before, flip.after, flip.fresh)
            for j, size, flip in zip(self.targets, self.sizes.tolist(), self.flips, strict=True)
        ]
        return pd.DataFrame(rows, columns=["target", "removed", "before", "after", "fresh"])

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
            Term("median", "The median number of points that flips a prediction, by retraining."),
            Term("flipped", f"Predictions of {len(self.flips)} that a removal of at most {self.limit} points flips."),
            Term("fresh seeds", "How many of these still flip when retrained with seeds that the search did not see."),
        ]
        rows = [
            (k, b._middle(), sum(flip.size is not None for flip in b.flips), b.confirmed if b.fresh else None)
            for k, b in curves.items()
        ]
        middle = f"half of them by {self.median:.0f} or fewer" if self.median < float("inf") else "less than half"
        seeds, fresh = counted(self.seeds, "seed"), counted(self.fresh, "seed")
        how = f"by retraining with {seeds}" if self.seeds else "as a datamodel predicts, not by retraining"
        again = f" With {fresh} that the search had not seen, {self.confirmed} of the {within} still flip."
        return Finding(
            "Predictions that rest on few points",
            "How many training points have to go until the retrained model says something else?",
            f"Removing at most {self.limit} of {self.n} points flips {within} of {len(self.flips)} predictions, "
            f"{middle}, {how}.{again if self.fresh and within else ''}",
            [
                Curves(
                    "Brittleness", REMOVED, FLIPPED, {name: b.curve for name, b in curves.items()}, logarithmic=True
                ),
                Strip("The most brittle predictions", cards, REMOVED),
                *([Grid("Beside other orders of removal", columns, rows, best=0)] if others else []),
            ],
            frame=self.to_pandas,
        )

    def _middle(self) -> str:
        return f"{self.median:.0f}" if self.median < float("inf") else f"> {self.limit}"

    def _said(self, i: int) -> str:
        size = self.flips[i].size
        return f"> {self.limit} points" if size is None else counted(size, "point")


def brittleness(
    orders: Tensor,
    f: OutputFunction,
    targets: Sequence[int],
    sizes: Sequence[int],
    refine: bool = True,
    fresh: Sequence[int] | None = None,
) -> Brittleness:
    """The smallest removal that flips each prediction, by retraining, and whether it does so with fresh seeds.

    Args:
        orders: `(targets, k)` training points, the first to be removed first, as `removal_orders` gives them.
        f: true outputs of a margin, `Retrain(setting, seeds)` on `as_predicted` targets; their mean over seeds decides.
            A datamodel in its place finds what is only predicted to flip.
        targets: which predictions; one that is wrong with everything (a margin below zero) flips with 0 points.
        sizes: numbers of points to try, ascending; each is a retraining a seed for who has not flipped, all together.
        refine: whether to bisect between the last size that did not flip and the first that did.
        fresh: seeds for a second look at what was found; default as many others as `f` has, `()` for none.

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
    again, others = {}, tuple(fresh or ())
    if isinstance(f, Retrain):
        others = _others(f.seeds) if fresh is None else others
        again = replace(search, f=f.with_seeds(others)).outputs(high) if others else {}
    flips = tuple(Flip(high.get(i), before[i], after[i], again.get(i)) for i in everything)
    return Brittleness(tuple(int(j) for j in targets), flips, sizes[-1], len(f.seeds), f.n, len(others))


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


def _others(seeds: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(max(seeds) + 1, max(seeds) + 1 + len(seeds)))


def _check_sizes(sizes: Sequence[int], longest: int) -> None:
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1 or sizes[-1] > longest:
        raise ValueError(f"sizes must ascend from at least 1 to at most {longest}; got {list(sizes)}.")
