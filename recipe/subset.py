"""Subsets of the training points, limited in size, by groups and by costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack
from torch import Tensor

Limit = int | tuple[int, int]  # exactly k, or (fewest, most)


@dataclass(frozen=True, eq=False)
class Subset:
    """Subsets of `n` points, as vectors `(n,)` of zeros and ones.

    Args:
        n: the size of the universe.
        size: how many points: `k`, `(fewest, most)`, or None for any number.
        groups: `(n,)` integers, the group of each point.
        quotas: how many points of a group, `{group: k}` or `{group: (fewest, most)}`; groups left out are free.
        costs: `(n,)`, not negative; the costs of the chosen points sum to at most `budget`.
        budget: see `costs`.

    Raises:
        ValueError: no subset satisfies all of this, or the parts do not fit together.

    Example:
        >>> Subset(4, size=2).best(torch.tensor([0.1, 0.9, -1.0, 0.5]))
        tensor([0., 1., 0., 1.])
        >>> Subset(4, groups=torch.tensor([0, 0, 1, 1]), quotas={0: 1, 1: 1}).best(torch.tensor([3.0, 4.0, 1.0, 0.0]))
        tensor([0., 1., 1., 0.])
    """

    n: int
    size: Limit | None = None
    groups: Tensor | None = None
    quotas: Mapping[int, Limit] | None = None
    costs: Tensor | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Expected a universe of at least one point; got n = {self.n}.")
        self._check_size()
        if (self.groups is None) != (self.quotas is None):
            raise ValueError("groups and quotas belong together; got one without the other. Pass both or neither.")
        if self.groups is not None:
            self._check_quotas(self.groups, self.quotas or {})
        if (self.costs is None) != (self.budget is None):
            raise ValueError("costs and budget belong together; got one without the other. Pass both or neither.")
        if self.costs is not None:
            self._check_costs(self.costs)

    @property
    def sizes(self) -> tuple[int, int]:
        """Fewest and most points."""
        return (0, self.n) if self.size is None else _pair(self.size, "size")

    def contains(self, decision: Tensor) -> bool:
        """Whether `decision (n,)` holds zeros and ones only and keeps size, quotas and budget."""
        if decision.shape != (self.n,) or not bool(((decision == 0) | (decision == 1)).all()):
            return False
        chosen = decision == 1
        low, high = self.sizes
        kept = low <= int(chosen.sum()) <= high
        if kept and self.groups is not None:
            fewest, most, rows = self._group_limits()
            counts = rows[chosen.to(rows.device)].bincount(minlength=len(fewest))
            kept = bool(((fewest <= counts) & (counts <= most)).all())
        if kept and self.costs is not None and self.budget is not None:
            # HiGHS keeps its constraints up to 1e-6, in units of the dearest point (see `_rows`)
            slack = 1e-6 * max(self.budget, float(self.costs.max()))
            kept = float(self.costs[chosen.to(self.costs.device)].double().sum()) <= self.budget + slack
        return kept

    def project(self, decision: Tensor) -> Tensor:
        """The subset nearest to a real vector `(n,)` in L2.

        For x of zeros and ones `|x - d|^2 = |d|^2 + sum(x - 2 d x) = |d|^2 - 2 sum((d - 1/2) x)`, so the nearest subset
        is the best one for the score `d - 1/2`.
        """
        if not decision.is_floating_point():
            decision = decision.to(torch.get_default_dtype())
        return self.best(decision - 0.5)

    def best(self, score: Tensor) -> Tensor:
        """The subset with the largest sum of scores `(n,)`; ties go to the first points.

        By selection (size), sorting within groups (quotas: the fewest of each group first, the others by score), or
        mixed-integer programming (costs: HiGHS, exact up to 1e-9 of the largest score). Between the fewest and the most
        points, points are taken while their score is positive.

        Raises:
            ValueError: scores of another shape, or not finite.
        """
        if score.shape != (self.n,):
            raise ValueError(f"Expected a score for each of {self.n} points; got the shape {tuple(score.shape)}.")
        if not bool(score.isfinite().all()):
            raise ValueError(f"Expected finite scores; got {int((~score.isfinite()).sum())} that are not.")
        if self.costs is not None:
            return self._solve_milp(score)
        if self.groups is not None:
            return self._best_with_quotas(score)
        return _largest(score, *self.sizes).to(score)

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random subset: uniform over all allowed ones if only the size is limited.

        With quotas or costs it is the best subset for normally distributed scores: random and feasible, uniform for
        fixed size and fixed quotas, otherwise not uniform (cheap points are more likely).
        """
        score = torch.randn(self.n, generator=generator, device=generator.device)
        if self.groups is not None or self.costs is not None:
            return self.best(score)
        low, high = self.sizes
        if low < high:  # a size has probability n choose k; Gumbel noise and argmax draw from unnormalised logarithms
            k = torch.arange(low, high + 1, device=generator.device, dtype=torch.double)
            log_count = -torch.lgamma(k + 1) - torch.lgamma(self.n - k + 1)
            uniform = torch.rand(len(k), generator=generator, device=generator.device, dtype=torch.double)
            low += int((log_count - (-uniform.log()).log()).argmax())
        return _largest(score, low, low).to(score)

    def constraints(self, variable: Any) -> list[Any]:
        """The relaxation, weights between 0 and 1, as constraints on a cvxpy variable `(n,)`."""
        A, low, high = self._rows()
        # An equality written as two inequalities has no interior, which interior-point methods need.
        equal, below, above = low == high, (low < high) & np.isfinite(high), (low < high) & (low > 0)
        result = [variable >= 0, variable <= 1]
        result += [A[equal] @ variable == low[equal]] if equal.any() else []
        result += [A[below] @ variable <= high[below]] if below.any() else []
        result += [A[above] @ variable >= low[above]] if above.any() else []
        return result

    def _check_size(self) -> None:
        low, high = self.sizes
        if high > self.n:
            raise ValueError(f"Expected a subset of at most n = {self.n} points; got size {self.size}. Ask for fewer.")
        if low < 0:
            raise ValueError(f"Expected a size of at least 0; got {self.size}.")

    def _check_quotas(self, groups: Tensor, quotas: Mapping[int, Limit]) -> None:
        if groups.shape != (self.n,) or groups.is_floating_point():
            raise ValueError(
                f"Expected groups ({self.n},) of integers, one a point; got {tuple(groups.shape)} of {groups.dtype}."
            )
        counts = dict(zip(*(part.tolist() for part in groups.unique(return_counts=True)), strict=True))
        for group, quota in quotas.items():
            least, _ = _pair(quota, f"quota of group {group}")
            if group not in counts:
                raise ValueError(f"There is a quota for group {group}, which has no points; groups: {sorted(counts)}.")
            if least < 0 or least > counts[group]:
                raise ValueError(f"Group {group} has {counts[group]} points; got the quota {quota}. Ask for 0 to that.")
        fewest, most, _ = self._group_limits()
        low, high = self.sizes
        if int(fewest.sum()) > high or int(most.sum()) < low:
            raise ValueError(
                f"The quotas allow {int(fewest.sum())} to {int(most.sum())} points, the size {low} to {high}: no "
                "subset has both. Change one of them."
            )

    def _check_costs(self, costs: Tensor) -> None:
        if costs.shape != (self.n,) or not bool((costs >= 0).all()) or not bool(costs.isfinite().all()):
            raise ValueError(
                f"Expected costs ({self.n},) that are finite and not negative; got {tuple(costs.shape)} with the least "
                f"{float(costs.min()) if costs.numel() else None}. Shift or drop such points."
            )
        cheapest = Subset(self.n, self.size, self.groups, self.quotas).best(-costs.double())
        least = float((cheapest * costs.to(cheapest)).sum())
        if self.budget is None or not self.budget >= least:
            raise ValueError(
                f"The cheapest subset of this size and these quotas costs {least:g}; got the budget {self.budget}. "
                "Raise the budget or allow fewer points."
            )

    def _group_limits(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fewest and most points of each group `(g,)`, and each point's group as a row of these `(n,)`."""
        assert self.groups is not None
        assert self.quotas is not None
        values, rows, counts = self.groups.unique(return_inverse=True, return_counts=True)
        limits = [_pair(self.quotas.get(int(value), (0, self.n)), "quota") for value in values]
        fewest, most = torch.tensor(limits, device=rows.device).T
        return fewest, torch.minimum(most, counts), rows

    def _best_with_quotas(self, score: Tensor) -> Tensor:
        fewest, most, rows = (part.to(score.device) for part in self._group_limits())
        order = score.argsort(descending=True, stable=True)
        order = order[rows[order].argsort(stable=True)]  # by group, and by score within
        counts = rows.bincount()
        rank = torch.empty_like(rows)  # of a point within its group
        rank[order] = torch.arange(self.n, device=score.device) - (counts.cumsum(0) - counts)[rows[order]]
        chosen = rank < fewest[rows]
        others = ((rank < most[rows]) & ~chosen).nonzero().squeeze(1)
        low, high = (max(0, limit - int(chosen.sum())) for limit in self.sizes)
        chosen[others] = _largest(score[others], low, min(high, len(others)))
        return chosen.to(score)

    def _rows(self) -> tuple[csr_array, np.ndarray, np.ndarray]:
        """Size, quotas and budget as `low <= A @ x <= high`, A `(rows, n)`."""
        blocks = [csr_array(np.ones((1, self.n)))]
        limits: list[tuple[float, float]] = [self.sizes]
        if self.groups is not None:
            fewest, most, rows = (part.cpu().numpy() for part in self._group_limits())
            blocks.append(csr_array((np.ones(self.n), (rows, np.arange(self.n))), shape=(len(fewest), self.n)))
            limits += list(zip(fewest, most, strict=True))
        if self.costs is not None and self.budget is not None:
            costs = self.costs.double().cpu().numpy()
            unit = max(float(costs.max()), self.budget / self.n) or 1.0  # solvers' tolerances are absolute
            blocks.append(csr_array(costs[None] / unit))
            limits.append((0, self.budget / unit))
        low, high = np.array(limits, dtype=float).T
        return csr_array(vstack(blocks)), low, high

    def _solve_milp(self, score: Tensor) -> Tensor:
        c = score.detach().double().cpu().numpy()
        c = c * (1e3 / (np.abs(c).max() or 1.0))  # HiGHS stops at an absolute gap of 1e-6
        result = milp(
            -c,
            integrality=np.ones(self.n),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(*self._rows()),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise ValueError(f"HiGHS found no subset: {result.message} Loosen the budget, the size or the quotas.")
        return torch.from_numpy(result.x.round()).to(score)


def _pair(limit: Limit, name: str) -> tuple[int, int]:
    low, high = limit if isinstance(limit, (tuple, list)) else (limit, limit)
    if low != math.floor(low) or high != math.floor(high):
        raise ValueError(f"Expected a {name} in whole points; got {limit}. Multiply a fraction by n.")
    if low > high:
        raise ValueError(f"Expected a {name} (fewest, most); got {limit}. Swap the two.")
    return int(low), int(high)


def _largest(score: Tensor, low: int, high: int) -> Tensor:
    """Where the largest scores are: as many as are positive, but `low` to `high` of them. By selection, not sorting."""
    count = min(max(int((score > 0).sum()), low), high)
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(len(score) - count + 1).values
    chosen = score > threshold
    ties = (score == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
