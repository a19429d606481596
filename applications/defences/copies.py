"""Points that stand for one: identical or nearly so, whereupon taking one away and leaving the rest changes little.

An attacker loses nothing by adding the same poison many times (two distinct points suffice for two classes), and each
of the copies vouches for the others: alone, none seems to matter. A defence that asks what points do *together* is not
taken in. Points form a group where chains of pairs of one label, each pair closer than

    within * median over the label's points of the distance to the nearest other one,

connect them: with `within` at .1, among k random points in d dimensions about k 10^-d such pairs are there by chance.

Reference: Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741, for concentrated attacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from applications.defences._features import Features
from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Setting

BLOCK = 1024  # points whose distances to the others are held at once
ROUNDING = 1e-6  # of the largest length: distances below are zero


@dataclass(frozen=True)
class Copies:
    """Groups of points that are copies of each other, or nearly so.

    Args:
        within: how close, in distances to the nearest other point; 0 for identical ones.
        features: what is compared; default all of an example but its label.

    Raises:
        ValueError: `within` below 0, or not below 1: then points that are all different would be copies.

    Example:
        >>> from recipe import SGD
        >>> data = (torch.tensor([[0.0], [5.0], [5.1], [9.0], [12.0], [5.0]]), torch.tensor([0, 0, 0, 0, 0, 1]))
        >>> setting = Setting(torch.nn.Linear(1, 2), data, data, SGD(epochs=1, batch_size=1, lr=0.1))
        >>> Copies().groups(setting)
        tensor([0, 1, 1, 2, 3, 4])
    """

    within: float = 0.1
    features: Features | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.within < 1:
            raise ValueError(f"Copies are closer than the nearest other points: 0 <= within < 1; got {self.within}.")

    def groups(self, setting: Setting) -> Tensor:
        """The group of each training point, `(n,)` whole numbers from 0 without a gap."""
        x = _contents(setting.pool) if self.features is None else self.features.of(setting)
        y = batches.labels(setting.pool).reshape(setting.n, -1).unique(dim=0, return_inverse=True)[1]
        x, groups, count = x.detach().cpu().double(), torch.empty(setting.n, dtype=torch.long), 0
        for label in range(int(y.max()) + 1):
            index = (y.cpu() == label).nonzero().squeeze(1)
            own = self._connected(x[index])
            groups[index] = own + count
            count += int(own.max()) + 1
        return groups

    def _connected(self, x: Tensor) -> Tensor:
        """Of points `(k, d)` of one label."""
        if len(x) == 1:
            return torch.zeros(1, dtype=torch.long)
        nearest = torch.cat([block.amin(1) for _, block in _distances(x)])
        reach = self.within * float(nearest.median()) + ROUNDING * float(x.norm(dim=1).max())
        pairs = torch.cat([(block <= reach).nonzero() + torch.tensor([first, 0]) for first, block in _distances(x)])
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0].numpy(), pairs[:, 1].numpy())), shape=(len(x), len(x)))
        return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def groups_of(copies: Copies | None, setting: Setting) -> Tensor:
    """The groups `(n,)` that a defence looks at; without copies every point is one."""
    return torch.arange(setting.n) if copies is None else copies.groups(setting)


def _contents(batch: Batch) -> Tensor:
    """All of each example but its label, `(n, d)`."""
    named = batch.items() if not isinstance(batch, tuple) else enumerate(batch[:-1])
    return torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for k, t in named if k != batches.LABELS], 1)


def _distances(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of the distances between points, none to itself: the first row's index and `(b, k)`."""
    for first in range(0, len(x), BLOCK):
        rows = x[first : first + BLOCK]
        block = torch.cdist(rows, x)
        block[torch.arange(len(rows)), torch.arange(first, first + len(rows))] = torch.inf
        yield first, block
