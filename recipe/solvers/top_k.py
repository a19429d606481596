"""Top-k: one gradient, and the best feasible decision for it.

    decision = argmax over feasible x of  sense * grad objective(start) @ x,      sense = 1 to maximise, -1 to minimise.

Exact for objectives that are linear in the decision, such as the mean of a linear datamodel's outputs; the selection
step of Engstrom, Feldmann & Madry, "DsDm: Model-Aware Dataset Selection with Datamodels", 2024, arXiv:2401.12926.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.problem import Problem
from recipe.subset import Subset


@dataclass(frozen=True)
class TopK:
    """Optimise the objective's tangent at the start; any feasible set that is bounded.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> from recipe.feasible import Subset
        >>> from recipe.problem import Minimize
        >>> effects = torch.tensor([0.3, -0.2, 0.1, -0.5])
        >>> problem = Problem(Minimize(lambda w: effects @ w), torch.ones(4), Subset(4, size=2), lambda w: (w, None))
        >>> TopK().solve(problem)
        tensor([0., 1., 0., 1.])
        >>> TopK().solve(replace(problem, start=torch.ones(4, dtype=torch.bool)))  # less memory
        tensor([False,  True, False,  True])
    """

    def solve(self, problem: Problem) -> Tensor:
        """A decision of `problem.start`'s shape.

        Raises:
            ValueError: the objective is not differentiable, or the feasible set is unbounded.
        """
        score = problem.gradient(problem.start).mul_(problem.objective.sense)
        if problem.start.dtype == torch.bool and isinstance(problem.feasible, Subset):
            return problem.feasible.mask(score)
        return problem.feasible.best(score).to(problem.start)
