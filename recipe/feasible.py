"""Feasible sets: which decisions are allowed.

Those for every example of a batch by itself, balls, slabs and intersections, are in `example_sets.py`.

All know whether they contain a decision, its projection, the best decision for a linear score, a random decision,
and themselves as cvxpy constraints, written with plain operators so that cvxpy is not imported here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe.subset import Subset

__all__ = ["Ball", "Box", "Free", "Subset"]


@dataclass(frozen=True, eq=False)
class Box:
    """All `x` with `|x - center| <= radius` in every entry.

    Args:
        center: the middle, of the decision's shape.
        radius: not negative; one number, or a tensor that broadcasts to `center`.

    Raises:
        ValueError: a center that is not floating, a negative radius, or shapes that do not fit.

    Example:
        >>> Box(torch.zeros(2), 0.5).project(torch.tensor([2.0, -0.1]))
        tensor([ 0.5000, -0.1000])
    """

    center: Tensor
    radius: float | Tensor

    def __post_init__(self) -> None:
        _check_center(self.center)
        radius = torch.as_tensor(self.radius)
        if not bool((radius >= 0).all()):
            raise ValueError(f"Expected a radius of at least 0; got {float(radius.min()):g}. Is low above high?")
        if torch.broadcast_shapes(radius.shape, self.center.shape) != self.center.shape:
            raise ValueError(f"A radius {tuple(radius.shape)} does not broadcast to {tuple(self.center.shape)}.")

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> "Box":
        """All `x` with `low <= x <= high` in every entry, up to rounding."""
        return cls((low + high) / 2, (high - low) / 2)

    def intersect(self, other: "Box") -> "Box":
        """What lies in both boxes: a step of at most so much in pixel range, say.

        Raises:
            ValueError: they have nothing in common.
        """
        low = torch.maximum(self.center - self.radius, other.center - other.radius)
        high = torch.minimum(self.center + self.radius, other.center + other.radius)
        if apart := int((low > high).sum()):
            raise ValueError(
                f"The boxes have nothing in common in {apart} of {low.numel()} entries; widen one of them."
            )
        return Box.between(low, high)

    def whole(self) -> "Box":
        """From the least to the largest whole number in the box.

        Raises:
            ValueError: an entry without one.

        Example:
            >>> box = Box.between(torch.tensor([0.2]), torch.tensor([5.7])).whole()
            >>> box.project(torch.tensor([9.0])), box.project(torch.tensor([0.0]))
            (tensor([5.]), tensor([1.]))
        """
        slack = _rounding(self.center) * (self.center.abs() + self.radius)
        low, high = (self.center - self.radius - slack).ceil(), (self.center + self.radius + slack).floor()
        if apart := int((low > high).sum()):
            raise ValueError(f"There is no whole number in {apart} of {low.numel()} entries of the box; widen it.")
        return Box.between(low, high)

    def contains(self, decision: Tensor) -> bool:
        """Whether every entry is within the radius, up to rounding."""
        if decision.shape != self.center.shape:
            return False
        slack = _rounding(decision) * (self.center.abs() + self.radius)
        return bool(((decision - self.center).abs() <= self.radius + slack).all())

    def excess(self, decision: Tensor) -> Tensor:
        """How far outside the farthest entry of every example lies, `(b,)`; see `example_sets.py`."""
        outside = torch.maximum(decision - (self.center + self.radius), (self.center - self.radius) - decision)
        return outside.flatten(1).amax(1)

    def project(self, decision: Tensor) -> Tensor:
        """Every entry clamped to the box."""
        _check_shape(decision, self.center.shape)
        return torch.clamp(decision, self.center - self.radius, self.center + self.radius)

    def best(self, score: Tensor) -> Tensor:
        """The corner `center + radius * sign(score)`; entries with score zero stay in the middle."""
        _check_shape(score, self.center.shape)
        return self.center + self.radius * score.sign()

    def sample(self, generator: torch.Generator) -> Tensor:
        """Uniform in the box."""
        return self.center + self.radius * (2 * _random(torch.rand, self.center, generator) - 1)

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""
        low, high = self.center - self.radius, self.center + self.radius
        return [variable >= _array(low), variable <= _array(high)]


@dataclass(frozen=True, eq=False)
class Ball:
    """All `x` with `|x - center|_2 <= radius`, the norm taken over the whole decision.

    Args:
        center: the middle, of the decision's shape.
        radius: not negative.

    Raises:
        ValueError: a center that is not floating or a negative radius.

    Example:
        >>> Ball(torch.zeros(2), 1.0).project(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """

    center: Tensor
    radius: float

    def __post_init__(self) -> None:
        _check_center(self.center)
        if not self.radius >= 0:
            raise ValueError(f"Expected a radius of at least 0; got {self.radius}.")

    def contains(self, decision: Tensor) -> bool:
        """Whether the decision is within the radius, up to rounding."""
        if decision.shape != self.center.shape:
            return False
        slack = _rounding(decision) * (float(self.center.norm()) + self.radius)
        return float((decision - self.center).norm()) <= self.radius + slack

    def project(self, decision: Tensor) -> Tensor:
        """The decision itself, or the point of the sphere on its way to the center."""
        _check_shape(decision, self.center.shape)
        step = decision - self.center
        length = float(step.norm())
        return decision.clone() if length <= self.radius else self.center + step * (self.radius / length)

    def best(self, score: Tensor) -> Tensor:
        """`center + radius * score / |score|`; the center if all scores are zero."""
        _check_shape(score, self.center.shape)
        if not bool((score != 0).any()):
            return self.center.clone()
        score = score / score.abs().max()  # squares of tiny gradients underflow
        return self.center + self.radius * score / score.norm()

    def sample(self, generator: torch.Generator) -> Tensor:
        """Uniform in the ball."""
        direction = _random(torch.randn, self.center, generator)
        length = float(torch.rand((), generator=generator, device=generator.device)) ** (1 / max(1, direction.numel()))
        return self.center + self.radius * length * direction / direction.norm()

    def constraints(self, variable: Any) -> list[Any]:
        """See `Feasible.constraints`."""
        return [((variable - _array(self.center)) ** 2).sum() <= self.radius**2]


@dataclass(frozen=True)
class Free:
    """Every real decision of a shape.

    Example:
        >>> Free((2,)).contains(torch.tensor([1e9, -3.0]))
        True
    """

    shape: tuple[int, ...]

    def contains(self, decision: Tensor) -> bool:
        """Whether the decision has the shape and is finite."""
        return decision.shape == self.shape and bool(decision.isfinite().all())

    def project(self, decision: Tensor) -> Tensor:
        """The decision itself."""
        _check_shape(decision, self.shape)
        return decision.clone()

    def best(self, score: Tensor) -> Tensor:
        """Zero if all scores are zero.

        Raises:
            ValueError: a score is not zero, so that no decision is the best.
        """
        _check_shape(score, self.shape)
        if bool((score != 0).any()):
            raise ValueError("A linear score has no best decision over Free(); bound the decision with Box or Ball.")
        return torch.zeros_like(score)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Standard normal."""
        return torch.randn(self.shape, generator=generator, device=generator.device)

    def constraints(self, variable: Any) -> list[Any]:
        """None at all."""
        return []


def _rounding(decision: Tensor) -> float:
    return 16 * torch.finfo(decision.dtype if decision.is_floating_point() else torch.float32).eps


def _random(draw: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return draw(like.shape, generator=generator, device=generator.device).to(like)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _check_center(center: Tensor) -> None:
    if not center.is_floating_point() or not bool(center.isfinite().all()):
        raise ValueError(f"Expected a center of finite floating numbers; got {center.dtype}. Call .float() on it.")


def _check_shape(decision: Tensor, shape: tuple[int, ...]) -> None:
    if decision.shape != shape:
        raise ValueError(f"Expected a tensor of shape {tuple(shape)}; got {tuple(decision.shape)}.")
