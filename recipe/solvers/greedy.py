"""Greedy subset selection: towards a feasible subset in steps, dropping points from all or adding them to none.

A tangent is good near where it was taken. Top-k takes one at the start and goes all the way; here the way is walked in
stages, and each looks again: at the same datamodel (`refresh`) or at a new one fitted where we are (`refit`). Without
either, the marginal gain of every single point is evaluated exactly before each step (Nemhauser, Wolsey & Fisher, "An
analysis of approximations for maximizing submodular set functions", 1978).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.feasible import Subset
from recipe.problem import Problem


@dataclass(frozen=True)
class Greedy:
    """Drop points from all that are allowed, or add them to those that must be in, until nothing improves the subset.

    With `refresh=k` or `refit=k`, stage s of k takes the gradient at the current subset, finds the best feasible subset
    that can still be reached, and moves `1 / (k - s)` of the way, best points first; the last stage arrives. Otherwise
    one point at a time by its exact gain, at one evaluation of the objective for each candidate of each step (for small
    `n`, and for objectives without a gradient), until the subset is feasible and no step improves it.

    `problem.start` gives type and device only; `problem.notes["values"]` holds the objective after each step.

    Args:
        refresh: the number of stages, each with a new gradient of the same objective (matters if it is non-linear).
        refit: the number of stages, each after the first with a new datamodel, `problem.refit(current)`.
        adding: whether to add to the empty set instead of dropping from the full one.

    Raises:
        ValueError: both `refresh` and `refit`, or less than one stage.

    Example:
        >>> from recipe.problem import Minimize
        >>> outputs = lambda w: (w @ torch.tensor([3.0, 2.0, -2.0]) - 1) ** 2
        >>> problem = Problem(Minimize(outputs), torch.ones(3), Subset(3, size=2), lambda w: (w, None))
        >>> Greedy().solve(problem)
        tensor([1., 0., 1.])
    """

    refresh: int | None = None
    refit: int | None = None
    adding: bool = False

    def __post_init__(self) -> None:
        if self.refresh is not None and self.refit is not None:
            raise ValueError("Expected refresh or refit, got both. A refit brings a new gradient too.")
        if any(stages is not None and stages < 1 for stages in (self.refresh, self.refit)):
            raise ValueError(f"Expected at least one stage; got {self}.")

    def solve(self, problem: Problem) -> Tensor:
        """A feasible subset `(n,)`.

        Raises:
            TypeError: the feasible set is not a `Subset`.
            ValueError: the objective is not finite, not differentiable (stages only), or cannot be refitted.
        """
        feasible = problem.feasible
        if not isinstance(feasible, Subset):
            raise TypeError(
                f"Greedy chooses points, so it needs a Subset; got {type(feasible).__name__}. Use GradientAscent."
            )
        if self.refit is not None and problem.refit is None:
            raise ValueError("This problem cannot be refitted: pass estimator and setting to solve(), or use refresh.")
        current = (feasible.least if self.adding else feasible.most).to(problem.start)
        stages = self.refresh or self.refit
        if stages is None:
            return self._exact(problem, feasible, current)
        return self._staged(problem, feasible, current, stages)

    def _staged(self, problem: Problem, feasible: Subset, current: Tensor, stages: int) -> Tensor:
        here, start, values = problem, current, []
        for stage in range(stages):
            if stage and self.refit and problem.refit is not None:
                here = problem.refit(current)
            value, gradient = here.value_and_gradient(current)
            values.append(value)
            target, score = self._target(feasible, problem.objective.sense * gradient, start, current)
            moves = (target != current).nonzero().squeeze(1)
            count = math.ceil(len(moves) / (stages - stage))
            if count == 0:  # the current subset is the best that its own tangent can reach
                break
            gain = score[moves] if self.adding else -score[moves]
            current = current.clone()
            first = moves[gain.argsort(descending=True, stable=True)[:count]]
            current[first] = target[first]
        problem.notes["values"] = [*values, here.value(current)]
        return current

    def _target(self, feasible: Subset, score: Tensor, start: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """The best feasible subset that keeps all moves so far, and the scores.

        One exists, the target of the stage before. Counts that have moved move no further.
        """
        moved = current != start
        if self.adding:
            low, high = current, torch.where(moved, current, feasible.most.to(current))
        else:
            low, high = torch.where(moved, current, feasible.least.to(current)), current
        return feasible.best_between(score, low, high), score

    def _exact(self, problem: Problem, feasible: Subset, current: Tensor) -> Tensor:
        left = self._steps_left(feasible, current)
        value, values = problem.value(current) if left else _finite(problem, current), []
        while step := self._best_step(problem, feasible, current, value, left):
            value, left, current = step
            values.append(value)
        problem.notes["values"] = values
        return current

    def _best_step(
        self, problem: Problem, feasible: Subset, current: Tensor, value: float, left: float
    ) -> tuple[float, float, Tensor] | None:
        """The best single move that improves the objective or brings a feasible subset nearer, and never loses it.

        Other moves wait: a cheap one that no quota asks for could be made before a dear one that is inevitable.
        """
        candidates = []
        step = 1 if self.adding else -1
        for i in (
            (current != (feasible.most if self.adding else feasible.least).to(current)).nonzero().flatten().tolist()
        ):
            moved = current.clone()
            moved[i] += step
            candidates.append((_finite(problem, moved), moved))
        candidates.sort(key=lambda candidate: -problem.objective.sense * candidate[0])
        for gained, moved in candidates:
            improves = problem.objective.better(gained, value)
            if not improves and left == 0:
                break
            remaining = self._steps_left(feasible, moved)
            if remaining < left or (improves and remaining < math.inf):
                return gained, remaining, moved
        return None

    def _steps_left(self, feasible: Subset, current: Tensor) -> float:
        """How many moves there are to the nearest feasible subset that can be reached, infinite if none can."""
        least, most = feasible.least.to(current), feasible.most.to(current)
        if self.adding:
            nearest = feasible.best_between(-torch.ones_like(current), current, most)
            reachable = bool((nearest >= current).all())
        else:
            nearest = feasible.best_between(torch.ones_like(current), least, current)
            reachable = bool((nearest <= current).all())
        return float((nearest - current).abs().sum()) if reachable else math.inf


def _finite(problem: Problem, decision: Tensor) -> float:
    value = problem.value(decision)
    if not math.isfinite(value):
        raise ValueError(
            f"Expected a finite objective; got {value} with {int(decision.sum())} of {len(decision)} points. Look at "
            "the datamodel's effects, or go the other way (adding), if it is not defined for so many points."
        )
    return value
