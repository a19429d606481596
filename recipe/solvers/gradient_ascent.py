"""Projected gradient steps for any decision: poison inputs, weights between 0 and 1, parameters.

    x <- project(x + lr * sense * direction(gradient)),      sense = 1 to maximise, -1 to minimise.

The direction is Adam's (Kingma & Ba, "Adam: A Method for Stochastic Optimization", 2015, arXiv:1412.6980), or the
gradient's sign (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018, arXiv:1706.06083).
Deviations: Adam's epsilon is the smallest number of the type, so that the objective's scale does not matter. Over a
`Ball`, or another set whose projection mixes the entries, a scale for each entry would pull to a wrong point: there all
entries share one, the root of the mean square, and signs become the gradient divided by it.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.example_sets import Balls, Integers, Intersection, Slabs
from recipe.feasible import Ball, Subset
from recipe.problem import Problem

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999  # Adam's beta_1 and beta_2
MIXING = (Ball, Balls, Slabs, Intersection)  # sets whose projection mixes the entries of a decision


@dataclass(frozen=True)
class GradientAscent:
    """Steps of about `lr` an entry, uphill or downhill as the objective asks; returns the best iterate.

    The start, projected, is an iterate too, so the answer is never worse than the start. An objective that is no
    longer finite ends the ascent at the best iterate so far, with a warning. Leaves in `problem.notes`: `values`, those
    at each iterate; `best step`, whose iterate is returned (0 is the start); with refits, `refits`, a mapping `step ->
    (value before, value after)` of the best iterate so far, since values of two datamodels do not compare; `stopped`,
    why the ascent ended early.

    Args:
        lr: the size of a step, in units of the decision.
        steps: how many.
        sign: take the gradient's sign instead of Adam's direction.
        refit: how many times, evenly spread over the steps, a new datamodel is fitted around the current iterate.
        decay: let steps shrink linearly to zero, which lets them settle.
        measured: only compare iterates where a datamodel was fitted, by that datamodel: a tangent to retraining says
            there what retraining gave, so that the best is the best by really retraining. The last one is refitted too.

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
    measured: bool = False

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)) or self.steps < 1:
            raise ValueError(f"Expected a positive lr and at least one step; got lr={self.lr}, steps={self.steps}.")
        if self.refit is not None and not 1 <= self.refit < self.steps:
            raise ValueError(f"Expected 1 to steps - 1 = {self.steps - 1} refits; got refit={self.refit}.")
        if self.measured and self.refit is None:
            raise ValueError("measured=True compares iterates where a datamodel was fitted; say how often: refit=k.")

    def solve(self, problem: Problem) -> Tensor:
        """A decision of `problem.start`'s shape.

        Raises:
            TypeError: the feasible set is a `Subset`, or of whole numbers.
            ValueError: the objective or its gradient is not finite at the start, is not differentiable, or cannot be
                refitted.

        Warns:
            UserWarning: the start is not allowed and is projected, or the ascent diverged.
        """
        self._check(problem)
        refits = {round(i * self.steps / (self.refit + 1)) for i in range(1, self.refit + 1)} if self.refit else set()
        refits |= {self.steps} if self.measured else set()
        shared = isinstance(problem.feasible, MIXING)
        step_direction = _Sign(shared) if self.sign else _Adam(shared)
        here = problem
        x = best = here.feasible.project(problem.start)
        values: list[float] = []
        best_step, best_value, refitted, stopped = 0, math.nan, {}, {}
        for step in range(self.steps + 1):
            try:
                if step in refits and problem.refit is not None:
                    here = problem.refit(x)
                    refitted[step] = (best_value, best_value if self.measured else here.value(best))
                    best_value = refitted[step][1]
                value, gradient = self._evaluate(here, x, step)
            except (ValueError, ArithmeticError) as error:
                if step == 0:
                    raise
                stopped = {"stopped": f"at step {step} of {self.steps}: {error}"}
                warnings.warn(f"The ascent stopped {stopped['stopped']} Its best iterate is kept.", stacklevel=2)
                break
            values.append(value)
            counts = step == 0 or step in refits or not self.measured
            if step == 0 or (counts and here.objective.better(value, best_value)):
                best, best_step, best_value = x, step, value
            lr = self.lr * (1 - step / self.steps if self.decay else 1)
            x = here.feasible.project(x + lr * here.objective.sense * step_direction(gradient))
        notes = {"values": values, "best step": best_step, **({"refits": refitted} if refitted else {}), **stopped}
        problem.notes.update(notes)
        return best

    def _check(self, problem: Problem) -> None:
        if isinstance(problem.feasible, Subset):
            raise TypeError(
                "GradientAscent moves in small steps, which rounding to a Subset undoes. Use TopK, Greedy or Convex."
            )
        if isinstance(problem.feasible, Integers) or not problem.start.is_floating_point():
            raise TypeError(
                "GradientAscent moves in small steps, which whole numbers (counts, tokens) undo. Use "
                "Rounded(GradientAscent(...)) with floating inputs in Integers(...), or label flips."
            )
        if not problem.feasible.contains(problem.start):
            warnings.warn("The start lies outside the feasible set; the ascent begins at its projection.", stacklevel=3)
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
