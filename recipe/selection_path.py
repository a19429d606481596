"""Selection paths: nested subsets, one for every size, so that accuracy can be seen against size.

The largest size is solved first, each smaller one within the larger: a point that has left stays out. With a solver
that looks at the gradient (`TopK`, `Greedy(refresh=)`), and with an estimator to refit, each step starts from the
datamodel around the subset before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recipe.datamodel import OutputFunction
from recipe.feasible import Subset
from recipe.problem import Solver, Task


@dataclass(frozen=True, eq=False)
class SelectionPath:
    """Nested subsets.

    Args:
        sizes: how many points each has, the largest first.
        decisions: `(sizes, n)`; each is contained in the one before.
        predicted: `(sizes,)`, the objective as the datamodel nearest to each predicts it.
    """

    sizes: tuple[int, ...]
    decisions: Tensor
    predicted: Tensor

    @property
    def stays(self) -> Tensor:
        """`(n,)`: the smallest size that still has the point; n + 1 for one that is in none."""
        sizes = torch.tensor(self.sizes)[:, None]
        out = self.decisions.shape[1] + 1
        return torch.where(self.decisions > 0, sizes, out).amin(0)

    def of(self, size: int) -> Tensor:
        """The subset of a size. Raises `ValueError` where it was not asked for."""
        if size not in self.sizes:
            raise ValueError(f"The path has the sizes {self.sizes}; got {size}.")
        return self.decisions[self.sizes.index(size)]


def selection_path(
    task: Task,
    f_hat: OutputFunction,
    solver: Solver,
    sizes: Sequence[int],
    refit: bool = False,
) -> SelectionPath:
    """Solve a task for many sizes at once, each within the larger one.

    Args:
        task: a task over subsets, such as `DataSelection`, whose own size is replaced; its other limits hold for all.
        f_hat: the datamodel.
        solver: `TopK()` or another that solves over a `Subset`.
        sizes: which.
        refit: fit the estimator behind `f_hat` anew around each subset, before the next smaller one.

    Raises:
        ValueError: no sizes, a size that the limits do not allow, a task over other decisions, or a refit without an
            estimator behind the datamodel.

    Example:
        >>> from applications.data_selection import DataSelection
        >>> from recipe import LinearDatamodel, TopK
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> selection_path(DataSelection(size=1), f_hat, TopK(), sizes=[1, 2]).stays
        tensor([2, 4, 1])
    """
    if not sizes:
        raise ValueError("A path needs at least one size.")
    origin = f_hat.origin
    if refit and (origin is None or origin.estimator is None):
        raise ValueError("A refit needs the estimator that the datamodel comes from; this one has none.")
    within: Tensor | None = None
    decisions, predicted = [], []
    for size in sorted(set(sizes), reverse=True):
        problem = _sized(task, size).problem(f_hat)
        problem = replace(problem, feasible=_narrowed(problem.feasible, size, within))
        if within is not None:
            problem = replace(problem, start=within)
        within = solver.solve(problem).detach()
        decisions.append(within)
        if refit and size > min(sizes):
            assert origin is not None
            f_hat = origin.estimator.fit(origin.setting, problem.arguments(within))
            predicted.append(_sized(task, size).problem(f_hat).value(within))
        else:
            predicted.append(problem.value(within))
    return SelectionPath(tuple(sorted(set(sizes), reverse=True)), torch.stack(decisions), torch.tensor(predicted))


def _sized(task: Any, size: int) -> Task:
    """The task of another size: what it pays for points that are alike depends on how many there are."""
    return replace(task, size=size) if hasattr(task, "size") else task  # tasks are frozen dataclasses


def _narrowed(feasible: Any, size: int, within: Tensor | None) -> Subset:
    if not isinstance(feasible, Subset):
        raise ValueError(f"A path is of subsets; the task decides over {type(feasible).__name__}.")
    sized = replace(feasible, size=size)
    return sized if within is None else sized.within(torch.zeros(feasible.n), within)
