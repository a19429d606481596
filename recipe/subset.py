"""Subsets of the training points: how many, of which groups, at what cost, which ones in any case, how often each.

    low <= sum x <= high,   fewest_g <= sum of x over group g <= most_g,   costs @ x <= budget,   least <= x <= most,

all at once, for integer x: zeros and ones, or counts where points may repeat. With one grouping and no costs the best
subset for a linear score is exact by sorting: take what must be in, then each group's fewest, then the others by score
(the greedy algorithm on a generalised polymatroid; Frank & Tardos, "Generalized Polymatroids and Submodular Flows",
1988). A point that may be taken r times counts as r units, so that the nearest counts to real numbers, a separable
concave objective, come from the same sort. With costs or several groupings it is a mixed-integer program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from recipe import integer_program
from recipe.quotas import Grouping, Limit, pair
from recipe.selection import largest
from recipe.values import all_finite

Groups = Tensor | Sequence[Tensor]
Quotas = Mapping[int, Limit] | Sequence[Mapping[int, Limit]]
SHOWN = 5  # points or limits named in an error


@dataclass(frozen=True, eq=False)
class Subset:
    """Subsets of `n` points, as vectors `(n,)` of zeros and ones, or of counts where `repeats` is above 1.

    Args:
        n: the size of the universe.
        size: how many points, repeats counted: `k`, `(fewest, most)`, or None for any number.
        groups: `(n,)` integers, the group of each point; or several such groupings, as a sequence.
        quotas: how many points of a group, `{group: k}` or `{group: (fewest, most)}`; groups left out are free. Of
            several groupings, a sequence of these.
        costs: `(n,)`, not negative; the costs of the chosen points sum to at most `budget`.
        budget: see `costs`.
        include: indices of points that must be in; one that stands there twice, at least twice.
        exclude: indices of points that must not be in.
        repeats: how often a point may be taken, one number or `(n,)`.

    Raises:
        ValueError: no subset satisfies all of this, and which parts conflict; or parts do not fit together.

    Example:
        >>> Subset(4, size=2).best(torch.tensor([0.1, 0.9, -1.0, 0.5]))
        tensor([0., 1., 0., 1.])
        >>> Subset(4, groups=torch.tensor([0, 0, 1, 1]), quotas={0: 1, 1: 1}).best(torch.tensor([3.0, 4.0, 1.0, 0.0]))
        tensor([0., 1., 1., 0.])
        >>> several = (torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
        >>> Subset(4, groups=several, quotas=({0: 1, 1: 1}, {0: 1, 1: 1})).best(torch.tensor([3.0, 4.0, 1.0, 0.0]))
        tensor([0., 1., 1., 0.])
        >>> Subset(4, size=3, include=torch.tensor([2]), repeats=2).best(torch.tensor([0.1, 0.9, -1.0, 0.5]))
        tensor([0., 2., 1., 0.])
    """

    n: int
    size: Limit | None = None
    groups: Groups | None = None
    quotas: Quotas | None = None
    costs: Tensor | None = None
    budget: float | None = None
    include: Tensor | None = None
    exclude: Tensor | None = None
    repeats: int | Tensor = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Expected a universe of at least one point; got n = {self.n}.")
        self._check_points()
        self._check_size()
        if (self.groups is None) != (self.quotas is None):
            raise ValueError("groups and quotas belong together; got one without the other. Pass both or neither.")
        self._check_quotas()
        if (self.costs is None) != (self.budget is None):
            raise ValueError("costs and budget belong together; got one without the other. Pass both or neither.")
        if self.costs is not None:
            self._check_costs(self.costs)

    @property
    def sizes(self) -> tuple[int, int]:
        """Fewest and most points."""
        return (0, int(self.most.sum())) if self.size is None else pair(self.size, "size")

    @cached_property
    def least(self) -> Tensor:
        """How often each point must be in at least, `(n,)` integers."""
        if self.include is None:
            return torch.zeros((), dtype=torch.long).expand(self.n)  # one number: there may be very many points
        points = self.include
        return points.cpu().long().bincount(minlength=self.n)

    @cached_property
    def most(self) -> Tensor:
        """How often each point may be in at most, `(n,)` integers."""
        most = torch.as_tensor(self.repeats).cpu().long().expand(self.n)
        return most if self.exclude is None else most.index_fill(0, self.exclude.cpu().long(), 0)

    @cached_property
    def groupings(self) -> tuple[Grouping, ...]:
        """The groupings with all that limits their groups."""
        if self.groups is None or self.quotas is None:
            return ()
        if isinstance(self.groups, Tensor) and isinstance(self.quotas, Mapping):
            return (Grouping(self.groups, self.quotas, self.least, self.most),)
        if isinstance(self.groups, Tensor) or isinstance(self.quotas, Mapping) or len(self.groups) != len(self.quotas):
            raise ValueError(
                "Expected quotas for each grouping: a mapping for groups (n,), as many mappings as there are groupings "
                f"for a sequence; got {type(self.groups).__name__} and {type(self.quotas).__name__}."
            )
        both = zip(self.groups, self.quotas, strict=True)
        return tuple(Grouping(g, q, self.least, self.most, f" of grouping {i}") for i, (g, q) in enumerate(both))

    def contains(self, decision: Tensor) -> bool:
        """Whether `decision (n,)` holds whole numbers and keeps all limits; a mask is zeros and ones."""
        if decision.shape != (self.n,):
            return False
        x = decision.detach().cpu().double()
        if not bool(((x == x.round()) & (x >= self.least) & (x <= self.most)).all()):
            return False
        low, high = self.sizes
        kept = low <= int(x.sum()) <= high
        for grouping in self.groupings:
            counts = grouping.counts(x)
            kept = kept and bool(((grouping.fewest <= counts) & (counts <= grouping.highest)).all())
        if kept and self.costs is not None and self.budget is not None:
            # HiGHS keeps its constraints up to 1e-6, in units of the dearest point (see `_limits`)
            slack = 1e-6 * max(self.budget, float(self.costs.max()))
            kept = float(self.costs.cpu().double() @ x) <= self.budget + slack
        return kept

    def project(self, decision: Tensor) -> Tensor:
        """The subset nearest to a real vector `(n,)` in L2.

        The unit that raises a point's count from c to c + 1 lowers `|x - d|^2 / 2` by `d - c - 1/2`: the nearest subset
        is the best one for these scores, which fall within a point, so that its units are taken in their order.
        """
        if not decision.is_floating_point():
            decision = decision.to(torch.get_default_dtype())
        self._check_score(decision)
        units = self._units
        return self._choose(decision.detach().cpu()[units.owner] - units.level - 0.5).to(decision)

    def best(self, score: Tensor) -> Tensor:
        """The subset with the largest sum of scores `(n,)`; ties go to the first points.

        By selection (size), sorting within groups (quotas: the fewest of each group first, the others by score), or
        mixed-integer programming (costs, several groupings: HiGHS, exact up to 1e-9 of the largest score). Between the
        fewest and the most points, points are taken while their score is positive.

        Raises:
            ValueError: scores of another shape, or not finite.
        """
        self._check_score(score)
        if self.groups is None and self.costs is None and self._plain:
            return largest(score.detach(), *self.sizes).to(score)
        return self._choose(score.detach().cpu()[self._units.owner]).to(score)

    def mask(self, score: Tensor) -> Tensor:
        """Where `best` has points, booleans `(n,)`: an eighth of the memory, where there are very many."""
        if self.groups is not None or self.costs is not None or not self._plain:
            return self.best(score) > 0
        self._check_score(score)
        return largest(score.detach(), *self.sizes)

    def best_between(self, score: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """As `best`, among the subsets x with `low <= x <= high` if there are any; else one of those nearest."""
        self._check_score(score)
        units = self._units
        owner, level = units.owner, units.level
        s = score.detach().cpu().double()
        s = s / s.abs().max().clamp(min=torch.finfo(s.dtype).tiny)  # a forced unit outweighs all others together
        force = 2.0 * len(owner)
        s = torch.where(level >= high.cpu()[owner], -force, torch.where(level < low.cpu()[owner], force, s[owner]))
        return self._choose(s).to(score)

    def within(self, low: Tensor, high: Tensor) -> "Subset":
        """The same limits for the subsets x with `low <= x <= high`, both `(n,)` counts. Raises where there is none."""
        include = torch.arange(self.n).repeat_interleave(torch.maximum(low.cpu().long(), self.least))
        most = torch.minimum(high.cpu().long(), self.most)
        return replace(self, include=include, exclude=None, repeats=most)

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random subset: uniform over all allowed ones if only the size is limited.

        With other limits it is the best subset for normally distributed scores: random and feasible, uniform for fixed
        size and fixed quotas, otherwise not uniform (cheap points are more likely).
        """
        noise = torch.randn(len(self._units.owner), generator=generator, device=generator.device)
        if self.groups is not None or self.costs is not None or not self._plain:
            return self._choose(noise.cpu()).to(noise)
        low, high = self.sizes
        if low < high:  # a size has probability n choose k; Gumbel noise and argmax draw from unnormalised logarithms
            k = torch.arange(low, high + 1, device=generator.device, dtype=torch.double)
            log_count = -torch.lgamma(k + 1) - torch.lgamma(self.n - k + 1)
            uniform = torch.rand(len(k), generator=generator, device=generator.device, dtype=torch.double)
            low += int((log_count - (-uniform.log()).log()).argmax())
        return largest(noise, low, low).to(noise)

    def constraints(self, variable: Any) -> list[Any]:
        """The relaxation, weights from the least to the most of each point, as constraints on a cvxpy variable."""
        A, low, high = self._limits
        # An equality written as two inequalities has no interior, which interior-point methods need.
        equal, below, above = low == high, (low < high) & np.isfinite(high), (low < high) & (low > 0)
        result = [variable >= self.least.numpy(), variable <= self.most.numpy()]
        result += [A[equal] @ variable == low[equal]] if equal.any() else []
        result += [A[below] @ variable <= high[below]] if below.any() else []
        result += [A[above] @ variable >= low[above]] if above.any() else []
        return result

    # ---- checks ----------------------------------------------------------------------------------------------------
    def _check_points(self) -> None:
        for name, points in (("include", self.include), ("exclude", self.exclude)):
            if points is None:
                continue
            if not isinstance(points, Tensor):
                raise ValueError(f"Expected {name} as a tensor of indices; got {type(points).__name__}. Convert it.")
            whole = not (points.is_floating_point() or points.dtype == torch.bool)
            if not whole or points.ndim != 1:
                raise ValueError(
                    f"Expected {name} as indices from 0 to {self.n - 1}; got {tuple(points.shape)} of {points.dtype}. "
                    "Of a mask, pass `mask.nonzero().squeeze(1)`."
                )
            if len(outside := points[(points < 0) | (points >= self.n)]):
                raise ValueError(
                    f"Expected {name} as indices from 0 to {self.n - 1}; got {_named(outside)}. Count from the start "
                    "of the universe."
                )
        repeats = torch.as_tensor(self.repeats)
        if repeats.is_floating_point() or repeats.shape not in ((), (self.n,)) or bool((repeats < 0).any()):
            raise ValueError(f"Expected repeats as a whole number, or ({self.n},) of them; got {self.repeats}.")
        if self.include is None:
            return
        clash = (self.least > self.most).nonzero().squeeze(1)
        if self.exclude is not None and len(both := clash[self.most[clash] == 0]):
            raise ValueError(f"Points {_named(both)} are in include and in exclude. Drop them from one of the two.")
        if len(clash):
            raise ValueError(f"Points {_named(clash)} must be in more often than repeats allows. Raise repeats.")

    def _check_size(self) -> None:
        low, high = self.sizes
        room, needed = int(self.most.sum()), int(self.least.sum())
        if high > self.n and self._plain:
            raise ValueError(f"Expected a subset of at most n = {self.n} points; got size {self.size}. Ask for fewer.")
        if low < 0:
            raise ValueError(f"Expected a size of at least 0; got {self.size}.")
        if low > room:
            raise ValueError(
                f"The size asks for {low} points; exclude and repeats leave {room} of {self.n}. Ask for fewer, exclude "
                "fewer, or allow repeats."
            )
        if needed > high:
            raise ValueError(f"include holds {needed} points, the size at most {high}. Ask for more or include fewer.")

    def _check_quotas(self) -> None:
        low, high = self.sizes
        for grouping in self.groupings:
            fewest, most = int(grouping.fewest.sum()), int(grouping.highest.sum())
            if fewest > high or most < low:
                others = "" if self._plain else ", with include, exclude and repeats,"
                raise ValueError(
                    f"The quotas{grouping.name}{others} allow {fewest} to {most} points, the size {low} to {high}: no "
                    "subset has both. Change one of them."
                )
        if len(self.groupings) > 1 and (conflict := self._conflict()):
            raise ValueError(
                "The quotas of all groupings and the size cannot be kept together: what misses least misses "
                f"{conflict}. Loosen one of them."
            )

    def _check_costs(self, costs: Tensor) -> None:
        if costs.shape != (self.n,) or not bool((costs >= 0).all()) or not bool(costs.isfinite().all()):
            raise ValueError(
                f"Expected costs ({self.n},) that are finite and not negative; got {tuple(costs.shape)} with the least "
                f"{float(costs.min()) if costs.numel() else None}. Shift or drop such points."
            )
        cheapest = replace(self, costs=None, budget=None).best(-costs.double())
        least = float((cheapest * costs.to(cheapest)).sum())
        if self.budget is None or not self.budget >= least:
            raise ValueError(
                f"The cheapest subset of this size and these quotas costs {least:g}; got the budget {self.budget}. "
                "Raise the budget or allow fewer points."
            )

    def _check_score(self, score: Tensor) -> None:
        if score.shape != (self.n,):
            raise ValueError(f"Expected a score for each of {self.n} points; got the shape {tuple(score.shape)}.")
        if not all_finite(score):
            raise ValueError(f"Expected finite scores; got {int((~score.isfinite()).sum())} that are not.")

    # ---- inside ----------------------------------------------------------------------------------------------------
    @cached_property
    def _plain(self) -> bool:
        """Whether every point may be in once or not at all."""
        if self.include is None and self.exclude is None and isinstance(self.repeats, int):
            return self.repeats == 1  # without looking at each of very many points
        return bool((self.least == 0).all() and (self.most == 1).all())

    @cached_property
    def _units(self) -> "_Units":
        if bool((self.most == 1).all()):
            return _Units(torch.arange(self.n), torch.zeros(self.n, dtype=torch.long), self.least > 0)
        most = self.most.clamp(max=max(self.sizes[1], 0))
        owner = torch.arange(self.n).repeat_interleave(most)
        level = torch.arange(len(owner)) - (most.cumsum(0) - most)[owner]
        return _Units(owner, level, level < self.least[owner])

    def _choose(self, score: Tensor) -> Tensor:
        """The counts `(n,)` of the best units, by a score of each."""
        units = self._units
        if self.costs is not None or len(self.groupings) > 1:
            A, *sides = self._limits
            limits = (A[:, units.owner.numpy()], *sides)
            found = integer_program.best(score.double().numpy(), limits, units.forced.double().numpy(), 1.0)
            chosen = torch.from_numpy(found == 1)
        else:
            chosen = units.forced.clone()
            others = (~chosen).nonzero().squeeze(1)
            for grouping in self.groupings:
                others = grouping.fill(score, chosen, units.owner)
            rest = score[others]
            low, high = (max(0, limit - int(chosen.sum())) for limit in self.sizes)
            chosen[others] = largest(rest, min(low, len(rest)), min(high, len(rest)))
        if len(units.owner) == self.n and bool((self.most == 1).all()):
            return chosen
        return torch.zeros(self.n, dtype=torch.long).index_add_(0, units.owner, chosen.long())

    @cached_property
    def _limits(self) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Size, quotas and budget as `low <= A @ x <= high`, A `(rows, n)`."""
        blocks = [csr_array(np.ones((1, self.n)))]
        limits: list[tuple[float, float]] = [self.sizes]
        for grouping in self.groupings:
            blocks.append(grouping.matrix())
            limits += list(zip(grouping.fewest.tolist(), grouping.highest.tolist(), strict=True))
        if self.costs is not None and self.budget is not None:
            costs = self.costs.double().cpu().numpy()
            unit = max(float(costs.max()), self.budget / self.n) or 1.0  # solvers' tolerances are absolute
            blocks.append(csr_array(costs[None] / unit))
            limits.append((0, self.budget / unit))
        low, high = np.array(limits, dtype=float).T
        return csr_array(vstack(blocks)), low, high

    def _conflict(self) -> str:
        """Which quotas, or the size, are missed by the subset that misses them by the fewest points."""
        names = ["the size"]
        names += [f"group {value}{grouping.name}" for grouping in self.groupings for value in grouping.values]
        A, low, high = (part[: len(names)] for part in self._limits)  # without the budget
        by = integer_program.missed((A, low, high), self.least.numpy(), self.most.numpy())
        return ", ".join([f"{name} by {miss:g}" for name, miss in zip(names, by, strict=True) if miss][:SHOWN])


class _Units(NamedTuple):
    """Single takings of points: unit u is the `level[u]`-th taking of point `owner[u]`, and `forced` or not."""

    owner: Tensor
    level: Tensor
    forced: Tensor


def _named(points: Tensor) -> str:
    return f"{points[:SHOWN].tolist()}" + (f" and {len(points) - SHOWN} more" if len(points) > SHOWN else "")
