"""Sets that a provider may be asked to forget: what a datamodel of forgetting is trained on.

Random sets; random parts of a class; ends of a random direction among the first twenty principal components of the
effects; neighbours by their effects. One in ten is two such sets together, and half of the ends and neighbourhoods are
thinned: random points of up to twice as many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from recipe import Setting
from recipe import batch as batches

COMPONENTS = 20


@dataclass(frozen=True, eq=False)
class Removals:
    """Draws `setting -> (r, n)` weights.

    Args:
        effects: `(m, n)`, by which points are alike.
        sets: how many.
        seed: decides which.
        sizes: the fewest points and the most.
        shares: how many are random, parts of a class, ends; the others are neighbours.
    """

    effects: Tensor
    sets: int
    seed: int
    sizes: tuple[int, int] = (10, 100)
    shares: tuple[float, float, float] = (0.10, 0.42, 0.38)

    def __call__(self, setting: Setting) -> Tensor:
        """The sets."""
        columns = self.effects.double().T
        columns = columns - columns.mean(0)
        U, S, _ = torch.linalg.svd(columns, full_matrices=False)
        draw = torch.Generator().manual_seed(self.seed)
        kinds = Kinds(
            batches.labels(setting.pool), columns, U[:, :COMPONENTS] * S[:COMPONENTS], S[:COMPONENTS], draw, self.shares
        )
        keep = torch.ones(self.sets, setting.n)
        for row in keep:
            size = int(torch.randint(self.sizes[0], self.sizes[1] + 1, (), generator=draw))
            if kinds.chance(0.1):
                for _ in range(2):
                    row[kinds.one(size // 2)] = 0
            else:
                row[kinds.one(size)] = 0
        return keep


@dataclass(frozen=True, eq=False)
class Kinds:
    """One set at a time: of `labels (n,)`, `columns (n, m)` of effects, their `projections (n, c)` and `sizes (c,)`."""

    labels: Tensor
    columns: Tensor
    projections: Tensor
    sizes: Tensor
    draw: torch.Generator
    shares: tuple[float, float, float]

    def one(self, size: int) -> Tensor:
        """Indices of a set of about that size."""
        u = float(torch.rand((), generator=self.draw))
        kind: Callable[[int], Tensor]
        kind = (self.random, self.part, self.end, self.neighbours)[sum(u >= edge for edge in accumulate(self.shares))]
        return kind(size)

    def random(self, size: int) -> Tensor:
        """Any points."""
        return torch.randperm(len(self.labels), generator=self.draw)[:size]

    def part(self, size: int) -> Tensor:
        """Random points of a class, at most all of them."""
        label = torch.randint(int(self.labels.max()) + 1, (), generator=self.draw)
        members = (self.labels == label).nonzero()[:, 0]
        return members[torch.randperm(len(members), generator=self.draw)[:size]]

    def end(self, size: int) -> Tensor:
        """The end of a random direction, half of them mostly along the first components."""
        direction = torch.randn(len(self.sizes), generator=self.draw).double()
        direction = direction * (self.sizes if self.chance(0.5) else self.sizes.sqrt())
        return self.thinned((self.projections @ direction).argsort(descending=True), size)

    def neighbours(self, size: int) -> Tensor:
        """The points nearest to a random one."""
        point = int(torch.randint(len(self.labels), (), generator=self.draw))
        return self.thinned((self.columns - self.columns[point]).square().sum(1).argsort(), size)

    def thinned(self, order: Tensor, size: int) -> Tensor:
        """The first points, or random ones of up to twice as many."""
        wide = float(torch.rand((), generator=self.draw)) * self.chance(0.5)
        among = order[: round(size * (1 + wide))]
        return among[torch.randperm(len(among), generator=self.draw)[:size]]

    def chance(self, share: float) -> bool:
        """A coin."""
        return bool(torch.rand((), generator=self.draw) < share)
