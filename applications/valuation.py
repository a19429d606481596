"""Data valuation: what is each training point worth, and is that so?

    value_i = sum_j effects[j, i]   over targets j, of an output that is better when larger,

from any datamodel: `DataShapley`, `Banzhaf`, `KNNShapley`, influence. Values are tested by removal curves: retrain
without the most, or the least, valuable share. Good values lose quickly from the top, and lose little, or gain, from
the bottom; random removal stands beside.

References: Ghorbani & Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning", 2019, arXiv:1904.02868
(removal curves); Wang & Jia, "Data Banzhaf", 2023, arXiv:2205.15466.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Curves, Finding, Grid, Term
from recipe.values import all_finite

RANDOM = "random"
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
REMOVED = Term("share removed", "The share of the training points that was left out before training anew.")


@dataclass(frozen=True, eq=False)
class Valuation:
    """Values by name, and what retraining without the most and the least valuable points gave.

    Args:
        values: `(n,)` by name.
        shares: which shares were removed.
        highest: the mean measure after removing the most valuable, by name, and by chance under "random".
        lowest: the same for the least valuable.
    """

    values: Mapping[str, Tensor]
    shares: tuple[float, ...]
    highest: Mapping[str, tuple[float, ...]]
    lowest: Mapping[str, tuple[float, ...]]

    def score(self, name: str) -> float:
        """The area between the curves of removing from the bottom and from the top; of random orders 0 is expected."""
        low, high = (torch.tensor(side[name], dtype=torch.float64) for side in (self.lowest, self.highest))
        return float(torch.trapezoid(low - high, torch.tensor(self.shares, dtype=torch.float64)))

    def to_pandas(self) -> Any:
        """A row a name, side and share."""
        import pandas as pd

        sides = (("highest", self.highest), ("lowest", self.lowest))
        rows = [
            (name, side, share, value)
            for side, found in sides
            for name, curve in found.items()
            for share, value in zip(self.shares, curve, strict=True)
        ]
        return pd.DataFrame(rows, columns=["values", "removed", "share", "measure"])

    def finding(self, points: Any = None, targets: Any = None, what: str = "accuracy") -> Finding:
        """A section of a report; `what` was measured."""
        y = Term(what, "After retraining without these points.")
        shares = list(self.shares)
        plots = [
            Curves(title, REMOVED, y, {name: (shares, list(curve)) for name, curve in side.items()})
            for title, side in (
                ("Without the most valuable", self.highest),
                ("Without the least valuable", self.lowest),
            )
        ]
        ranked = sorted(self.values, key=self.score, reverse=True)
        columns = [
            Term("values by", "The estimator whose effects are summed over the targets."),
            Term("area", f"Between the two curves of {what}: the larger, the better the values rank points."),
        ]
        rows = [(name, self.score(name)) for name in ranked]
        return Finding(
            "What data are worth",
            "Do the values tell which points training can do without?",
            f"{ranked[0]} ranks best: without the {shares[-1]:.0%} it values least, {what} is "
            f"{self.lowest[ranked[0]][-1]:.3g}; without the {shares[-1]:.0%} it values most, "
            f"{self.highest[ranked[0]][-1]:.3g}; by chance {self.lowest[RANDOM][-1]:.3g}.",
            [*plots, Grid("Areas", columns, rows, best=0)],
            frame=self.to_pandas,
        )


def value_points(f_hat: OutputFunction) -> Tensor:
    """The value of every training point: its effects summed over all outputs, `(n,)`.

    >>> from recipe import LinearDatamodel
    >>> value_points(LinearDatamodel(torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, -5.0]])))
    tensor([ 1., -3.])
    """
    return effects_of(f_hat).detach().sum(0)


def valuation(
    values: Mapping[str, Tensor], f: OutputFunction, shares: Sequence[float] = SHARES, draws: int = 3, seed: int = 0
) -> Valuation:
    """Removal curves by retraining.

    Args:
        values: `(n,)` by name, the larger the better, for example of `value_points`.
        f: true outputs of a measure that is better when larger, such as `Retrain(setting).on(test, Correct())`.
        shares: which shares to remove, ascending, from 0 to below 1.
        draws: random orders to average over.
        seed: of these.

    Raises:
        ValueError: no values, of another length or not finite, shares that do not ascend or leave nothing, "random" as
            a name, or no draws.
    """
    wrong = [name for name, v in values.items() if tuple(v.shape) != (f.n,) or not all_finite(v)]
    if not values or wrong or RANDOM in values:
        raise ValueError(
            f"Expected finite values ({f.n},) under names other than {RANDOM!r}; wrong: {wrong or list(values)}."
        )
    if list(shares) != sorted(set(shares)) or not shares or shares[0] < 0 or shares[-1] >= 1:
        raise ValueError(f"shares must ascend from at least 0 to below 1; got {list(shares)}.")
    if draws < 1:
        raise ValueError(f"Random removal needs at least one draw; got {draws}.")
    generator = torch.Generator().manual_seed(seed)
    orders = {name: v.argsort(descending=True, stable=True) for name, v in values.items()}
    chance = [torch.randperm(f.n, generator=generator) for _ in range(draws)]

    def curve(all_orders: list[Tensor]) -> tuple[float, ...]:
        weights = torch.ones(len(all_orders), len(shares), f.n)
        for row, order in zip(weights, all_orders, strict=True):
            for one, share in zip(row, shares, strict=True):
                one[order[: round(share * f.n)]] = 0
        with torch.no_grad():
            return tuple(f(weights).mean((0, 2)).tolist())

    by_chance = {RANDOM: curve(chance)}
    highest = {name: curve([order]) for name, order in orders.items()} | by_chance
    lowest = {name: curve([order.flip(0)]) for name, order in orders.items()} | by_chance
    return Valuation(dict(values), tuple(shares), highest, lowest)
