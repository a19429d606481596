"""Quotas: groups of points, and how many of each may be chosen.

    fewest_g <= sum of x over group g <= most_g

for every group of a grouping: classes, domains, sources. Several groupings may hold at once (so many of each class and
so many from each source); see `Subset`, which takes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

Limit = int | tuple[int, int]  # exactly k, or (fewest, most)


class Named(int):
    """A group's number, which errors call by its name.

    >>> group = Named(2, "web")
    >>> f"Group {group}", group == 2
    ("Group 'web'", True)
    """

    name: object

    def __new__(cls, value: int, name: object = None) -> "Named":
        """The number with its name."""
        number = super().__new__(cls, value)
        number.name = name
        return number

    def __str__(self) -> str:
        return repr(self.name)


@dataclass(frozen=True, eq=False)
class Grouping:
    """The groups of one grouping with all that limits them, in the order of their values.

    Args:
        groups: `(n,)` integers, the group of each point.
        quotas: how many points of a group, `{group: k}` or `{group: (fewest, most)}`; groups left out are free.
        least: `(n,)`, how often each point must be in at least.
        most: `(n,)`, how often it may be in at most.
        name: of the grouping in errors, such as " of grouping 1".

    Raises:
        ValueError: groups that are not `(n,)` integers, and quotas that no subset of a group keeps.

    Example:
        >>> one = torch.ones(3, dtype=torch.long)
        >>> grouping = Grouping(torch.tensor([5, 7, 7]), {7: 1}, least=0 * one, most=one)
        >>> grouping.values, grouping.fewest, grouping.highest
        ([5, 7], tensor([0, 1]), tensor([1, 1]))
    """

    groups: Tensor
    quotas: Mapping[int, Limit]
    least: Tensor
    most: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        n = len(self.least)
        if self.groups.shape != (n,) or self.groups.is_floating_point():
            raise ValueError(
                f"Expected groups ({n},) of integers, one a point; got {tuple(self.groups.shape)} of "
                f"{self.groups.dtype}."
            )
        position = {value: i for i, value in enumerate(self._unique[0])}
        for value, quota in self.quotas.items():
            low, high = pair(quota, f"quota of group {value}")
            if value not in position:
                raise ValueError(f"There is a quota for group {value}, which has no points; groups: {self.values}.")
            room, needed = int(self.room[position[value]]), int(self.needed[position[value]])
            group = f"Group {value}{self.name}"
            if low < 0 or low > room:
                left = "" if room == int((self.rows == position[value]).sum()) else " that exclude and repeats leave"
                raise ValueError(f"{group} has {room} points{left}; got the quota {quota}. Ask for 0 to that.")
            if high < needed:
                raise ValueError(f"{group} has {needed} points in include; its quota is {quota}. Raise it.")

    @cached_property
    def _unique(self) -> tuple[list[int], Tensor]:
        values, rows = self.groups.cpu().unique(return_inverse=True)
        return values.tolist(), rows

    @property
    def values(self) -> list[int]:
        """The groups `(g,)`, sorted; those with quotas as these name them."""
        named = {value: value for value in self.quotas}
        return [named.get(value, value) for value in self._unique[0]]

    @property
    def rows(self) -> Tensor:
        """Each point's group as a position among `values`, `(n,)`."""
        return self._unique[1]

    @cached_property
    def needed(self) -> Tensor:
        """How many of each group must be in because their points must, `(g,)`."""
        return self.counts(self.least)

    @cached_property
    def room(self) -> Tensor:
        """How many of each group there are, `(g,)`."""
        return self.counts(self.most)

    @cached_property
    def fewest(self) -> Tensor:
        """How many of each group must be in, `(g,)`."""
        return torch.maximum(self._asked[0], self.needed)

    @cached_property
    def highest(self) -> Tensor:
        """How many of each group may be in, `(g,)`."""
        return torch.minimum(self._asked[1], self.room)

    @cached_property
    def _asked(self) -> Tensor:
        free = (0, int(self.most.sum()))
        return torch.tensor([pair(self.quotas.get(value, free), "quota") for value in self.values]).T

    def counts(self, x: Tensor) -> Tensor:
        """How much of `x (n,)` lies in each group, `(g,)`."""
        return torch.zeros(len(self.values), dtype=x.dtype).index_add_(0, self.rows, x)

    def matrix(self) -> csr_array:
        """`A (g, n)` with `A @ x = counts(x)`."""
        n = len(self.rows)
        return csr_array((np.ones(n), (self.rows.numpy(), np.arange(n))), shape=(len(self.values), n))

    def fill(self, score: Tensor, chosen: Tensor, owner: Tensor) -> Tensor:
        """Add the fewest of each group to the units `chosen`, by their score.

        Args:
            score: `(units,)`.
            chosen: `(units,)` booleans, those that must be in; the others of the fewest are added in place.
            owner: `(units,)`, the point that each is a unit of.

        Returns:
            The units that the most of each group leave to choose from.
        """
        free = (~chosen).nonzero().squeeze(1)
        order = free[score[free].argsort(descending=True, stable=True)]
        rows = self.rows[owner[order]]
        by_group = rows.argsort(stable=True)
        order, rows = order[by_group], rows[by_group]  # by group, and by score within
        counts = rows.bincount(minlength=len(self.values))
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[rows]  # of a unit within its group
        first = rank < (self.fewest - self.needed)[rows]
        chosen[order[first]] = True
        return order[~first & (rank < (self.highest - self.needed)[rows])].sort().values


def pair(limit: Limit, name: str) -> tuple[int, int]:
    """Fewest and most of a limit.

    Raises:
        ValueError: parts of points, or more at least than at most.

    >>> pair(3, "size"), pair((1, 2), "size")
    ((3, 3), (1, 2))
    """
    ends = limit if isinstance(limit, (tuple, list)) else (limit, limit)
    if len(ends) != 2:
        raise ValueError(f"Expected a {name} as k or (fewest, most); got {limit}.")
    low, high = ends
    if low != int(low) or high != int(high):
        raise ValueError(f"Expected a {name} in whole points; got {limit!r}. Multiply a fraction by n.")
    if low > high:
        raise ValueError(f"Expected a {name} (fewest, most); got {limit}. Swap the two.")
    return int(low), int(high)
