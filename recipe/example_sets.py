"""Feasible sets that hold for every example of a decision `(b, ...)` by itself, and what several of them share.

A ball around a point, a slab between two parallel planes, whole numbers, an intersection. All say how far outside each
example lies (`excess`, not positive inside), so that a decision can be checked exactly, without a tolerance.

References: Boyle & Dykstra, "A Method for Finding Projections onto the Intersection of Convex Sets in Hilbert Spaces",
1986; Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741, for balls and slabs as what a defender lets through, and for randomised rounding. Deviation: Dykstra's
algorithm converges in the limit only, so its answer is pulled towards a point inside until it is feasible exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from recipe.feasible import Box, _array, _check_center, _check_shape, _random, _rounding

HALVINGS = 60  # of the way to a point inside
OVERSHOT = 1.5  # projections are so much longer where a common point is looked for, so that they end inside


class ExampleSet(Protocol):
    """A feasible set that also says how far outside each example is."""

    def contains(self, decision: Tensor) -> bool:
        """See `Feasible.contains`."""

    def project(self, decision: Tensor) -> Tensor:
        """See `Feasible.project`."""

    def excess(self, decision: Tensor) -> Tensor:
        """`(b,)`, above zero for an example that is outside."""

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""


@dataclass(frozen=True, eq=False)
class Balls:
    """All `x` with `|x_k - center_k|_2 <= radius_k` for every example k.

    Args:
        center: `(b, ...)`.
        radius: `(b,)`, or one number for all.

    Example:
        >>> Balls(torch.zeros(2, 2), 1.0).project(torch.tensor([[3.0, 4.0], [0.1, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.1000, 0.0000]])
    """

    center: Tensor
    radius: float | Tensor

    def __post_init__(self) -> None:
        _check_center(self.center)
        radius = torch.as_tensor(self.radius)
        if not bool((radius >= 0).all()) or radius.shape not in ((), self.center.shape[:1]):
            raise ValueError(
                f"Expected one radius of at least 0, or one for each of {len(self.center)} examples; got "
                f"{tuple(radius.shape)} with the least {float(radius.min()):g}."
            )

    def excess(self, decision: Tensor) -> Tensor:
        """How much farther than the radius, `(b,)`."""
        return _norms(decision - self.center) - self.radius

    def contains(self, decision: Tensor) -> bool:
        """Whether every example is within its radius, up to rounding."""
        slack = _rounding(decision) * (_norms(self.center) + self.radius)
        return decision.shape == self.center.shape and bool((self.excess(decision) <= slack).all())

    def project(self, decision: Tensor) -> Tensor:
        """Every example itself, or the point of its sphere on the way to the center."""
        _check_shape(decision, self.center.shape)
        step = decision - self.center
        share = torch.as_tensor(self.radius).to(step) / _norms(step).clamp_min(torch.finfo(step.dtype).tiny)
        return torch.where(_wide(share >= 1, step), decision, self.center + _wide(share, step) * step)

    def best(self, score: Tensor) -> Tensor:
        """`center + radius * score / |score|` for every example; the center where all its scores are zero."""
        _check_shape(score, self.center.shape)
        length = _norms(score)
        unit = score / _wide(torch.where(length > 0, length, 1), score)
        return self.center + _wide(torch.as_tensor(self.radius).to(score).expand(len(score)), score) * unit

    def sample(self, generator: torch.Generator) -> Tensor:
        """Uniform in every ball."""
        direction = _random(torch.randn, self.center, generator)
        b, d = len(direction), max(1, direction[0].numel())
        length = _random(torch.rand, direction.new_empty(b), generator) ** (1 / d) * self.radius
        return self.center + _wide(length / _norms(direction), direction) * direction

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""
        radius = torch.as_tensor(self.radius).expand(len(self.center))
        rows = zip(range(len(self.center)), radius.tolist(), strict=True)
        return [((variable[k] - _array(self.center[k])) ** 2).sum() <= r**2 for k, r in rows]


@dataclass(frozen=True, eq=False)
class Slabs:
    """All `x` with `low_k <= <normal_k, x_k> <= high_k` for every example k; infinite bounds make half-spaces.

    Args:
        normal: `(b, ...)`, none zero.
        low: `(b,)`.
        high: `(b,)`.

    Example:
        >>> slab = Slabs(torch.tensor([[2.0, 0.0]]), torch.tensor([-2.0]), torch.tensor([2.0]))
        >>> slab.project(torch.tensor([[5.0, 3.0]]))
        tensor([[1., 3.]])
    """

    normal: Tensor
    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        _check_center(self.normal)
        if not bool((_norms(self.normal) > 0).all()) or not bool((self.low <= self.high).all()):
            raise ValueError("Expected normals that are not zero and low <= high for every example.")

    def excess(self, decision: Tensor) -> Tensor:
        """How far outside, in units of the inputs, `(b,)`."""
        along = _inner(self.normal, decision)
        return torch.maximum(along - self.high, self.low - along) / _norms(self.normal)

    def contains(self, decision: Tensor) -> bool:
        """Whether every example is between its planes, up to rounding."""
        slack = _rounding(decision) * (1 + _norms(decision))
        return decision.shape == self.normal.shape and bool((self.excess(decision) <= slack).all())

    def project(self, decision: Tensor) -> Tensor:
        """Every example moved along its normal to the nearer plane, if it is not between them."""
        _check_shape(decision, self.normal.shape)
        along = _inner(self.normal, decision)
        move = torch.clamp(along, self.low.to(along), self.high.to(along)) - along
        return decision + _wide(move / _norms(self.normal) ** 2, decision) * self.normal

    def best(self, score: Tensor) -> Tensor:
        """Not bounded. Raises `ValueError`, as `Free` does, unless all scores are zero."""
        if bool((score != 0).any()):
            raise ValueError("A linear score has no best decision between planes; intersect them with Box or Balls.")
        return self.project(torch.zeros_like(self.normal))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Standard normal, projected."""
        return self.project(_random(torch.randn, self.normal, generator))

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""
        found = []
        for k, (low, high) in enumerate(zip(self.low.tolist(), self.high.tolist(), strict=True)):
            along = variable[k] @ _array(self.normal[k])
            found += [along >= low] * (low > -torch.inf) + [along <= high] * (high < torch.inf)
        return found


@dataclass(frozen=True, eq=False)
class Intersection:
    """What lies in all of several sets.

    Args:
        sets: convex ones with `excess`: `Box`, `Balls`, `Slabs`.
        inside: a decision in all of them, best well inside; rounding errors are removed towards it.
        sweeps: of Dykstra's algorithm, at most.
        tolerance: of the corrections' change, relative to the distance to `inside`, at which the sweeps stop (Birgin &
            Raydan, "Robust Stopping Criteria for Dykstra's Algorithm", 2005).

    Raises:
        ValueError: `inside` is not in every set.

    Example:
        >>> from recipe.feasible import Box
        >>> square, disc = Box(torch.zeros(1, 2), 1.0), Balls(torch.zeros(1, 2), 1.2)
        >>> corner = Intersection((square, disc), torch.zeros(1, 2)).project(torch.tensor([[5.0, 2.0]]))
        >>> corner, float(disc.excess(corner)) <= 0
        (tensor([[1.0000, 0.6634]]), True)
    """

    sets: tuple[ExampleSet, ...]
    inside: Tensor
    sweeps: int = 500
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        excess = self.excess(self.inside)
        if not bool((excess <= 0).all()):
            worst = int(excess.argmax())
            names = [type(s).__name__ for s in self.sets if float(s.excess(self.inside)[worst]) > 0]
            raise ValueError(
                f"The sets need a common point `inside`; example {worst} is outside of {', '.join(names)} by "
                f"{float(excess[worst]):.3g}. Widen the sets, or pass another point."
            )

    def excess(self, decision: Tensor) -> Tensor:
        """Of the set that each example is farthest outside of, `(b,)`."""
        return torch.stack([s.excess(decision) for s in self.sets]).amax(0)

    def contains(self, decision: Tensor) -> bool:
        """Whether every set contains it, up to rounding."""
        return all(s.contains(decision) for s in self.sets)

    def project(self, decision: Tensor) -> Tensor:
        """The nearest decision, up to the tolerance, and exactly inside every set.

        A decision that is inside already is returned as it is.
        """
        _check_shape(decision, self.inside.shape)
        if bool((self.excess(decision) <= 0).all()):
            return decision.clone()
        x, corrections = decision, [torch.zeros_like(decision) for _ in self.sets]
        scale = self.tolerance * float((decision - self.inside).norm())
        for _ in range(self.sweeps):
            change = 0.0  # of the corrections: x itself can rest for many sweeps far from the answer
            for k, s in enumerate(self.sets):
                moved = s.project(x + corrections[k])
                correction = x + corrections[k] - moved
                change += float((correction - corrections[k]).norm()) ** 2
                corrections[k], x = correction, moved
            if change**0.5 <= scale:
                break
        return self._pulled(x)

    def _pulled(self, decision: Tensor) -> Tensor:
        """Every example moved towards `inside` as little as it takes to be inside every set."""
        low, high = decision.new_zeros(len(decision)), decision.new_ones(len(decision))  # shares of the way out
        step = decision - self.inside
        for share in [high] + [None] * HALVINGS:  # the whole way first
            middle = (low + high) / 2 if share is None else share
            fits = self.excess(self.inside + _wide(middle, step) * step) <= 0
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return self.inside + _wide(low, step) * step

    def best(self, score: Tensor) -> Tensor:
        """Raises `ValueError`: the best decision for a linear score is a convex program here."""
        raise ValueError("A linear score over an Intersection is a convex program: use Convex(), or GradientAscent.")

    def sample(self, generator: torch.Generator) -> Tensor:
        """A standard normal step from `inside`, as long as its distance to the sets' edge allows, projected."""
        return self.project(self.inside + _random(torch.randn, self.inside, generator))

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""
        return [c for s in self.sets for c in s.constraints(variable)]


@dataclass(frozen=True, eq=False)
class Integers:
    """The whole-numbered decisions of a set, such as bags of words.

    Continuous solvers refuse it; `Rounded(GradientAscent(...))` climbs in `within` and rounds the answer.

    Args:
        within: the set whose integer points are allowed; one with `inside`, an `Intersection`, can always be rounded.
        draws: of roundings at each of `draws` shares of the way to `within.inside`.
        seed: of the roundings.

    Example:
        >>> from recipe.feasible import Box
        >>> whole = Integers(Box.between(torch.zeros(1, 3), torch.full((1, 3), 9.0)))
        >>> whole.project(torch.tensor([[1.2, 7.9, 40.0]]))
        tensor([[1., 8., 9.]])
    """

    within: Any
    draws: int = 20
    seed: int = 0

    def contains(self, decision: Tensor) -> bool:
        """Whether all entries are whole and the set contains them."""
        return bool((decision == decision.round()).all()) and self.within.contains(decision)

    def excess(self, decision: Tensor) -> Tensor:
        """Of the set; infinite for an example with a broken number."""
        broken = (decision != decision.round()).flatten(1).any(1)
        return torch.where(broken, torch.inf, self.within.excess(decision))

    def project(self, decision: Tensor) -> Tensor:
        """A near decision: the projection rounded, to the nearest if that is allowed, else at random.

        Random rounding keeps each entry's mean. Examples that no draw brings inside move on towards `within.inside`.

        Raises:
            ValueError: no rounding is allowed.
        """
        return self.roundings(decision, 1)[0]

    def roundings(self, decision: Tensor, count: int) -> list[Tensor]:
        """`count` allowed roundings, the first as near as `project` can; raises as that."""
        relaxed = self.within.project(decision)
        nearest = relaxed.round()
        generator = torch.Generator().manual_seed(self.seed)
        found = [self._rounded(relaxed, generator, nearest)]
        return found + [self._rounded(relaxed, generator, None) for _ in range(count - 1)]

    def _rounded(self, relaxed: Tensor, generator: torch.Generator, first: Tensor | None) -> Tensor:
        answer = relaxed.clone()
        left = torch.ones(len(relaxed), dtype=torch.bool)
        if first is not None:
            fits = self.within.excess(first) <= 0
            answer[fits], left = first[fits], ~fits
        inside = getattr(self.within, "inside", relaxed)
        for step in range(self.draws):
            share = 1 - step / self.draws
            around = inside + share * (relaxed - inside)
            for _ in range(self.draws):
                if not left.any():
                    return answer
                down = around.floor()
                drawn = down + (_random(torch.rand, around, generator) < around - down)
                fits = left & (self.within.excess(drawn) <= 0)
                answer[fits], left = drawn[fits], left & ~fits
        if not left.any():
            return answer
        raise ValueError(
            f"No rounding of {int(left.sum())} of {len(left)} examples is allowed. Widen the set, or raise "
            f"draws={self.draws}."
        )

    def best(self, score: Tensor) -> Tensor:
        """The set's best decision, rounded."""
        return self.project(self.within.best(score))

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random decision of the set, rounded."""
        return self.project(self.within.sample(generator))

    def constraints(self, variable: Any) -> list[Any]:
        """Those of the set, without the whole numbers."""
        return self.within.constraints(variable)


def examples_of(feasible: Any, index: Tensor) -> Any:
    """The same set for some of the examples, `(k, ...)` of `(b, ...)`.

    Args:
        feasible: a `Box`, or one of the sets here.
        index: `(k,)`.

    Raises:
        TypeError: another set.

    Example:
        >>> examples_of(Balls(torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0])), torch.tensor([2])).radius
        tensor([3.])
    """
    if isinstance(feasible, Box):
        radius = torch.as_tensor(feasible.radius).expand_as(feasible.center)
        return Box(feasible.center[index], radius[index])
    if isinstance(feasible, Balls):
        radius = torch.as_tensor(feasible.radius).expand(len(feasible.center))
        return Balls(feasible.center[index], radius[index])
    if isinstance(feasible, Slabs):
        return Slabs(feasible.normal[index], feasible.low[index], feasible.high[index])
    if isinstance(feasible, Intersection):
        parts = tuple(examples_of(s, index) for s in feasible.sets)
        return replace(feasible, sets=parts, inside=feasible.inside[index])
    if isinstance(feasible, Integers):
        return replace(feasible, within=examples_of(feasible.within, index))
    raise TypeError(
        f"Only Box, Balls, Slabs, Intersection and Integers hold for every example by itself; got "
        f"{type(feasible).__name__}."
    )


def common_point(sets: Sequence[ExampleSet], start: Tensor, sweeps: int = 500) -> Tensor:
    """A decision `(b, ...)` in all of several convex sets, or what is left of the search where there is none.

    By projections in turn, each half as far again (relaxation, Agmon 1954), which end after finitely many sweeps where
    the sets share more than an edge. Examples of `start` that are inside already stay.

    Args:
        sets: convex ones; the first is met exactly.
        start: of the search.
        sweeps: at most.

    Example:
        >>> sets = (Balls(torch.zeros(1, 2), 1.0), Balls(torch.tensor([[1.5, 0.0]]), 1.0))
        >>> common_point(sets, torch.tensor([[0.0, 5.0]])).norm() <= 1
        tensor(True)
    """
    x = tried = start
    for _ in range(sweeps):
        tried = sets[0].project(x)
        fits = torch.stack([s.excess(tried) for s in sets]).amax(0) <= 0
        if bool(fits.all()):
            break
        x = torch.where(_wide(fits, x), tried, x)
        for s in sets:
            x = x + OVERSHOT * (s.project(x) - x)
    return tried


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _wide(value: Tensor, like: Tensor) -> Tensor:
    """`(b,)` values with as many axes as `like`."""
    return value.expand(len(like)).reshape(-1, *[1] * (like.ndim - 1))
