"""Whole numbers by rounding: solve without them, round many times at random, keep the best.

Reference: Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741, section 4.3: a relaxation with randomised rounding, which keeps the mean of every entry.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from recipe.example_sets import Integers
from recipe.problem import Problem, Solver


@dataclass(frozen=True)
class Rounded:
    """Solve over `Integers(within)` by solving over `within` with another solver.

    Leaves in `problem.notes` what the solver does, `relaxed value` before rounding and `value` after.

    Args:
        solver: of the relaxed problem.
        draws: how many roundings are compared by the objective; the first is the nearest one.

    Example:
        >>> import torch
        >>> from recipe import Box, GradientAscent, Minimize
        >>> start = torch.zeros(1, 2)
        >>> bowl = Minimize(lambda x: ((x - torch.tensor([2.6, 9.0])) ** 2).sum())
        >>> whole = Integers(Box.between(start, torch.full((1, 2), 5.0)))
        >>> Rounded(GradientAscent(lr=0.5, steps=50)).solve(Problem(bowl, start, whole, lambda x: (x, None)))
        tensor([[3., 5.]])
    """

    solver: Solver
    draws: int = 10

    @property
    def refit(self) -> int | None:
        """The solver's own, so that who announces costs sees it."""
        return getattr(self.solver, "refit", None)

    def solve(self, problem: Problem) -> Tensor:
        """A decision of whole numbers.

        Raises:
            TypeError: the feasible set is none of `Integers`.
        """
        whole = problem.feasible
        if not isinstance(whole, Integers):
            raise TypeError(f"Rounded needs a feasible set of Integers; got {type(whole).__name__}. Drop Rounded.")
        relaxed = _within(problem, whole)
        answer = self.solver.solve(relaxed)
        last = problem.refit(answer) if problem.refit is not None else problem
        found = whole.roundings(answer, self.draws)
        values = [last.value(x) for x in found]
        best = max(range(self.draws), key=lambda i: last.objective.sense * values[i])
        problem.notes.update({**relaxed.notes, "relaxed value": last.value(answer), "value": values[best]})
        return found[best]


def _within(problem: Problem, whole: Integers) -> Problem:
    """The problem without the whole numbers, refits included."""
    refit = problem.refit
    relaxed_refit = None if refit is None else lambda x: _within(refit(x), whole)
    start = whole.within.project(problem.start)
    return replace(problem, start=start, feasible=whole.within, refit=relaxed_refit, notes={})
