"""Problems: a task written as something to minimise or maximise over a decision, given outputs `f` or `f_hat`.

The decision may be training weights, poison inputs, wanted outputs: the task owns how it becomes the arguments of `f`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.setting import Setting
from recipe.values import all_finite

Arguments = tuple[Tensor, Batch | None]  # (weights, added) of an output function


@dataclass(frozen=True)
class Minimize:
    """Make `fn(decision) -> scalar` small."""

    fn: Callable[[Any], Any]
    sense = -1.0  # the score of a point is sense * gradient: larger is better

    def better(self, a: float, b: float) -> bool:
        """Whether value `a` beats value `b`."""
        return a < b


@dataclass(frozen=True)
class Maximize:
    """Make `fn(decision) -> scalar` large."""

    fn: Callable[[Any], Any]
    sense = 1.0

    def better(self, a: float, b: float) -> bool:
        """Whether value `a` beats value `b`."""
        return a > b


class Feasible(Protocol):
    """The decisions that are allowed. Decisions are floating tensors; those of a `Subset` hold zeros and ones."""

    def contains(self, decision: Tensor) -> bool:
        """Whether a decision is allowed, up to rounding."""

    def project(self, decision: Tensor) -> Tensor:
        """The nearest allowed decision."""

    def best(self, score: Tensor) -> Tensor:
        """The allowed decision with the largest `(score * decision).sum()`."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """A random allowed decision."""

    def constraints(self, variable: Any) -> list[Any]:
        """The same as cvxpy constraints on a variable (relaxed for subsets), written with plain operators."""


Baseline = Tensor | Sequence[Tensor] | Callable[[OutputFunction], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Problem:
    """An objective, where to start, what is allowed, what to compare with.

    Args:
        objective: `Minimize(fn)` or `Maximize(fn)`; `fn(decision)` is a scalar, differentiable for most solvers.
        start: the decision that solvers start from.
        feasible: the set of allowed decisions.
        arguments: `decision -> (weights, added)`, where the output function is asked; `refit` linearises there.
        baselines: what to compare with: a decision, several (their values are averaged), or a function of the true
            outputs, for a baseline that itself needs training. Always has "do nothing".
        refit: `decision -> Problem`, the same problem with a datamodel fitted around that decision; None where `solve`
            was not given an estimator and a setting.
        setting: what is trained, for solvers that look at the data themselves; None where `solve` does not know it.
        notes: what a solver says about how it ended, by name.
    """

    objective: Minimize | Maximize
    start: Tensor
    feasible: Feasible
    arguments: Callable[[Tensor], Arguments]
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    refit: Callable[[Tensor], "Problem"] | None = None
    setting: Setting | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def value(self, decision: Tensor) -> float:
        """The objective at a decision."""
        with torch.no_grad():
            return float(self.objective.fn(decision))

    def gradient(self, decision: Tensor) -> Tensor:
        """The objective's gradient at a decision, of the decision's shape.

        Raises:
            ValueError: the objective does not depend on the decision differentiably, or its gradient is not finite.
        """
        return self.value_and_gradient(decision)[1]

    def value_and_gradient(self, decision: Tensor) -> tuple[float, Tensor]:
        """Objective and gradient at a decision; raises as `gradient`."""
        x = _floating(decision).requires_grad_()
        with torch.enable_grad():
            value = self.objective.fn(x)
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ValueError(
                "The objective is not differentiable in the decision, so this solver cannot use it. Plug in a "
                "differentiable datamodel instead of retraining, or use Greedy() on a small problem."
            )
        if value.numel() != 1:
            raise ValueError(f"An objective must be a scalar; got the shape {tuple(value.shape)}. Average it.")
        (gradient,) = torch.autograd.grad(value.reshape(()), x)
        if not all_finite(gradient):
            raise ValueError(
                f"The objective's gradient is not finite at {int((~gradient.isfinite()).sum())} of "
                f"{gradient.numel()} entries of the decision; look at the datamodel's effects and the objective."
            )
        return float(value.detach()), gradient


def _floating(decision: Tensor) -> Tensor:
    """A copy of a decision that can have a gradient; a mask of all points takes the memory of one number."""
    if decision.is_floating_point():
        return decision.detach().clone()
    if decision.dtype == torch.bool and int(decision.count_nonzero()) == decision.numel():
        return torch.ones((), device=decision.device).expand(decision.shape)
    return decision.to(torch.get_default_dtype())


class Task(Protocol):
    """What we want, as a frozen dataclass with `problem(f)`."""

    def problem(self, f: OutputFunction) -> Problem:
        """The task as a problem over given outputs, true or predicted."""


class Solver(Protocol):
    """A frozen dataclass with `solve(problem) -> decision`."""

    def solve(self, problem: Problem) -> Tensor:
        """A feasible decision."""
