"""Several starts, the best answer: for objectives with many local optima."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recipe.problem import Problem, Solver


@dataclass(frozen=True)
class Restarts:
    """Run a solver from the problem's start and from random feasible decisions, and keep the best answer.

    Answers are compared by one datamodel, or, where the problem can be refitted, each by the one fitted around it,
    which for a tangent to retraining is what retraining gives. Leaves in `problem.notes` those of the best run, all
    values as `restarts`, and which one it was as `best start` (0 is the problem's own).

    Args:
        solver: that starts from `problem.start`.
        count: of all starts.
        seed: of the random ones.

    Example:
        >>> from recipe import Box, GradientAscent, Maximize
        >>> start = torch.zeros(1)
        >>> hills = Maximize(lambda x: torch.where(x > 0, 2 * x, -x).sum())
        >>> Restarts(GradientAscent(lr=0.1, steps=30), count=6).solve(
        ...     Problem(hills, start - 0.1, Box(start, 1.0), lambda x: (x, None)))
        tensor([1.])
    """

    solver: Solver
    count: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"Expected at least one start; got count={self.count}.")

    @property
    def refit(self) -> int | None:
        """Of all starts together, so that who announces costs sees it."""
        own = getattr(self.solver, "refit", None)
        return None if own is None else self.count * (own + 1)

    def solve(self, problem: Problem) -> Tensor:
        """The best answer of all starts."""
        generator = torch.Generator().manual_seed(self.seed)
        starts = [problem.start] + [problem.feasible.sample(generator) for _ in range(self.count - 1)]
        runs = [replace(problem, start=start, notes={}) for start in starts]
        answers = [self.solver.solve(run) for run in runs]
        values = [(problem.refit(x) if problem.refit else problem).value(x) for x in answers]
        best = max(range(self.count), key=lambda i: problem.objective.sense * values[i])
        problem.notes.update({**runs[best].notes, "restarts": values, "best start": best})
        if problem.refit is not None:
            problem.refit(answers[best])  # so that predictions are those of the datamodel around the answer
        return answers[best]
