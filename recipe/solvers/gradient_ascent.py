"""Projected gradient steps for any decision: poison inputs, weights between 0 and 1, parameters.

    x <- project(x + lr * sense * direction(gradient)),      sense = 1 to maximise, -1 to minimise.

The direction is Adam's (Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980), or the
gradient's sign (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv:1706.06083).
Deviations: Adam's epsilon is the smallest number of the type, so that the objective's scale does not matter. Over a
`Ball`, whose projection mixes the entries, a scale for each entry would pull to a wrong point of the sphere: there all
entries share one, the root of the mean square, and signs become the gradient divided by it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.feasible import Ball, Subset
from recipe.problem import Problem

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999  # Adam's beta_1 and beta_2


@dataclass(frozen=True)
class GradientAscent:
    """Steps of about `lr` an entry, uphill or downhill as the objective asks; returns the best iterate.

    The start, projected, is an iterate too, so the answer is never worse than the start. Leaves in `problem.notes`:
    `values`, the objective at each iterate; `best step`, whose iterate is returned (0 is the start); with refits,
    `refits`, a mapping `step -> (value before, value after)` of the best iterate so far, since values of two datamodels
    do not compare.

    Args:
        lr: the size of a step, in units of the decision.
        steps: how many.
        sign: take the gradient's sign instead of Adam's direction.
        refit: how many times, evenly spread over the steps, a new datamodel is fitted around the current iterate.
        decay: let steps shrink linearly to zero, which lets them settle.

    Raises:
        ValueError: hyperparameters that are not positive, or not fewer refits than steps.

    Example:
        >>> from recipe.feasible import Box
        >>> from recipe.problem import Minimize
        >>> start = torch.zeros(2)
        >>> bowl = Minimize(lambda x: ((x - torch.tensor([0.5, 3.0])) ** 2).sum())
        >>> problem = Problem(bowl, start, Box(start, 1.0), lambda x: (torch.ones(1), None))
        >>> GradientAscent(lr=0.25, steps=10, sign=True).solve(problem)
        tensor([0.5000, 1.0000])
        >>> problem.notes["best step"]
        4
    """

    lr: float
    steps: int
    sign: bool = False
    refit: int | None = None
    decay: bool = False

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)) or self.steps < 1:
            raise ValueError(f"Expected a positive lr and at least one step; got lr={self.lr}, steps={self.steps}.")
        if self.refit is not None and not 1 <= self.refit < self.steps:
            raise ValueError(f"Expected 1 to steps - 1 = {self.steps - 1} refits; got refit={self.refit}.")

    def solve(self, problem: Problem) -> Tensor:
        """A decision of `problem.start`'s shape.

        Raises:
            TypeError: the feasible set is a `Subset`.
            ValueError: the objective or its gradient is not finite, is not differentiable, or cannot be refitted.
        """
        self._check(problem)
        refits = {round(i * self.steps / (self.refit + 1)) for i in range(1, self.refit + 1)} if self.refit else set()
        shared = isinstance(problem.feasible, Ball)
        step_direction = _Sign(shared) if self.sign else _Adam(shared)
        here = problem
        x = best = here.feasible.project(problem.start)
        values: list[float] = []
        best_step, best_value, refitted = 0, math.nan, {}
        for step in range(self.steps + 1):
            if step in refits and problem.refit is not None:
                here = problem.refit(x)
                refitted[step] = (best_value, here.value(best))
                best_value = refitted[step][1]
            value, gradient = self._evaluate(here, x, step)
            values.append(value)
            if step == 0 or here.objective.better(value, best_value):
                best, best_step, best_value = x, step, value
            lr = self.lr * (1 - step / self.steps if self.decay else 1)
            x = here.feasible.project(x + lr * here.objective.sense * step_direction(gradient))
        problem.notes.update({"values": values, "best step": best_step} | ({"refits": refitted} if refitted else {}))
        return best

    def _check(self, problem: Problem) -> None:
        if isinstance(problem.feasible, Subset):
            raise TypeError(
                "GradientAscent moves in small steps, which rounding to a Subset undoes. Use TopK, Greedy or Convex."
            )
        if self.refit is not None and problem.refit is None:
            raise ValueError("This problem cannot be refitted: pass estimator and setting to solve(), or drop refit.")

    def _evaluate(self, problem: Problem, x: Tensor, step: int) -> tuple[float, Tensor]:
        try:
            value, gradient = problem.value_and_gradient(x)
        except ValueError as error:
            if step == 0:
                raise
            raise ValueError(f"At step {step} of {self.steps}: {error} Or lower lr={self.lr}.") from error
        if not math.isfinite(value):
            raise ValueError(
                f"The objective is {value} at step {step} of {self.steps}. Lower lr={self.lr}, or bound the decision "
                "with Box or Ball."
            )
        return value, gradient


class _Sign:
    def __init__(self, shared: bool) -> None:
        self.shared = shared

    def __call__(self, gradient: Tensor) -> Tensor:
        if not self.shared:
            return gradient.sign()
        return gradient / ((gradient**2).mean().sqrt() + torch.finfo(gradient.dtype).tiny)


class _Adam:
    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0
        self.count = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        self.count += 1
        squared = (gradient**2).mean() if self.shared else gradient**2
        self.mean = MEAN_DECAY * self.mean + (1 - MEAN_DECAY) * gradient
        self.square = SQUARE_DECAY * self.square + (1 - SQUARE_DECAY) * squared
        mean = self.mean / (1 - MEAN_DECAY**self.count)
        square = self.square / (1 - SQUARE_DECAY**self.count)
        return mean / (square.sqrt() + torch.finfo(gradient.dtype).tiny)
