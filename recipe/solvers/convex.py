"""Convex programming: the task's own objective, traced with a cvxpy variable, under any convex constraints.

A linear objective needs only its gradient `(n,)`, however many outputs there are. It is found to be linear by asking
for the gradient at several points. Otherwise the objective is called with the variable and cvxpy sees what it computes:
the stand-in of a linear datamodel, its squares, means and maxima.

Subsets are relaxed to weights between 0 and 1, which bounds what any subset can reach, and rounded back; the gap
between the bound and the answer is reported. Or, with `integer=True`, they are solved as they are.

Reference: Diamond & Boyd, "CVXPY: A Python-Embedded Modeling Language for Convex Optimization", 2016, arXiv:1603.00943.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recipe.feasible import Free, Subset
from recipe.problem import Problem

PASSES = 3  # over all swaps, to improve a rounded answer
MAX_SWAPS = 10_000  # a pass with more than these is left out
TOLERANCE = 1e-6  # of extra constraints


@dataclass(frozen=True)
class Convex:
    """Solve the problem to optimality if it is convex, relaxed over subsets unless `integer`.

    Leaves in `problem.notes`: `value`, the objective at the answer; `cvxpy solver` and `cvxpy status`; and, unless
    `integer`, `relaxed value`, which no feasible decision can beat, and the `gap` between the two, never negative.

    Args:
        constraints: extra ones, `variable -> list of cvxpy constraints`; the variable has the decision's shape.
        integer: search subsets themselves (mixed-integer, by HiGHS; objectives that are linear or whose epigraph is).

    Example:
        >>> from recipe.problem import Minimize
        >>> effects = torch.tensor([3.0, 2.0, 2.0, -1.0])
        >>> problem = Problem(
        ...     Minimize(lambda w: (effects @ w - 4) ** 2), torch.ones(4), Subset(4, size=2), lambda w: (w, None))
        >>> Convex(constraints=lambda w: [w[0] == 0]).solve(problem)
        tensor([0., 1., 1., 0.])
        >>> round(problem.notes["gap"], 4)
        0.0
    """

    constraints: Callable[[Any], Sequence[Any]] | None = None
    integer: bool = False

    def solve(self, problem: Problem) -> Tensor:
        """A decision of `problem.start`'s shape and type.

        Raises:
            TypeError: `integer` without a `Subset`.
            ValueError: the objective is not differentiable, not traceable or not convex, the decision has more than two
                dimensions, the problem is infeasible or unbounded, or no rounded subset keeps the extra constraints.
        """
        if self.integer and not isinstance(problem.feasible, Subset):
            raise TypeError(f"integer=True needs a Subset; got {type(problem.feasible).__name__}. Use integer=False.")
        if problem.start.ndim not in (1, 2):
            raise ValueError(
                f"Expected a decision of one or two dimensions; got the shape {tuple(problem.start.shape)}. "
                "Use GradientAscent, or reshape it in the task."
            )
        variable = cp.Variable(tuple(problem.start.shape), integer=self.integer)
        extra = list(self.constraints(variable)) if self.constraints else []
        constraints = problem.feasible.constraints(variable) + extra
        points = _points(problem)
        gradients = [problem.gradient(point) for point in points]
        # Solvers' tolerances are absolute, so the objective gets a slope of about 1.
        scale = problem.objective.sense / (max(float(g.abs().max()) for g in gradients) or 1.0)
        # Over Free a linear objective has no optimum, so one that only looks linear at these points is traced at once.
        gradient = None if isinstance(problem.feasible, Free) else _common(gradients)
        if gradient is not None:
            objective = cp.sum(cp.multiply(_array(gradient) * scale, variable))
            # The best subset for these scores is known without the program, which only bounds it: an interior point is
            # enough, and fifty times faster than the simplex method's vertex at 100 000 points.
            relaxed = self._optimum(problem, objective, variable, constraints, vertex=self.integer or bool(extra))
            # An objective that is linear only in pieces, such as a maximum, shows itself at the answer.
            gradient = _common([gradient, problem.gradient(relaxed)])
        if gradient is None:
            objective = scale * _trace(problem, variable, points[0], atol=1e-5 / abs(scale))
            relaxed = self._optimum(problem, objective, variable, constraints, vertex=True)
        return self._finish(problem, relaxed, gradient, _Extra(variable, extra))

    def _optimum(self, problem: Problem, objective: Any, variable: Any, constraints: list[Any], vertex: bool) -> Tensor:
        """Maximise and read the answer off the variable: of linear programs a vertex or any optimum."""
        program = cp.Problem(cp.Maximize(objective), constraints)
        if not program.is_dcp():
            raise ValueError(
                "The objective is not convex in the direction that is asked for, or the extra constraints are not "
                "convex, so Convex cannot solve it. Use Greedy(refresh=k) for subsets or GradientAscent for others."
            )
        linear = program.is_lp()
        if self.integer and not linear:
            raise ValueError(
                "HiGHS solves linear mixed-integer problems; this objective or its constraints are not linear. "
                "Use integer=False, which rounds and reports the gap."
            )
        solver, options = (cp.HIGHS, {"mip_rel_gap": 0.0}) if linear and vertex else (cp.CLARABEL, {})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about an inaccurate solution: a warning of ours says what to do
                program.solve(solver=solver, **options)
        except cp.error.SolverError as error:
            raise ValueError(
                f"{solver} could not solve the problem: {error} Loosen or rescale it, or use {_another(problem)}."
            ) from error
        if program.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            raise ValueError(
                f"Expected an optimal solution; {solver} says {program.status}. If it is infeasible, loosen the extra "
                "constraints or the feasible set; if unbounded, bound the decision with Box or Ball; if it is neither, "
                f"use {_another(problem)}."
            )
        if program.status == cp.OPTIMAL_INACCURATE:
            warnings.warn(
                f"{solver} ends with the status {program.status}: the answer is feasible, but may not be the best. "
                f"Compare with {_another(problem)}.",
                stacklevel=2,
            )
        problem.notes.update({"cvxpy solver": solver, "cvxpy status": program.status})
        return torch.from_numpy(np.asarray(variable.value)).to(problem.start)

    def _finish(self, problem: Problem, relaxed: Tensor, gradient: Tensor | None, extra: "_Extra") -> Tensor:
        feasible, sense = problem.feasible, problem.objective.sense
        if self.integer:
            answer = feasible.project(relaxed)  # drops the solver's tolerance
        elif isinstance(feasible, Subset):
            score = sense * (problem.gradient(relaxed) if gradient is None else gradient)
            candidates = [feasible.project(relaxed), feasible.best(score)]
            candidates = [candidate for candidate in candidates if extra.allow(candidate)]
            if not candidates:
                raise ValueError(
                    "The relaxed answer keeps the extra constraints, but rounded to a subset it does not. "
                    "Use integer=True, or loosen them."
                )
            answer = max(candidates, key=lambda candidate: sense * problem.value(candidate))
            if gradient is None or extra.constraints:  # else the best subset of a linear score is exact
                answer = _improve(problem, feasible, answer, extra)
        else:
            answer = feasible.project(relaxed)
        value = problem.value(answer)
        problem.notes["value"] = value
        if not self.integer:
            # Both are feasible for the relaxation; the solver's tolerance may put the answer in front.
            best = max(sense * problem.value(relaxed), sense * value)
            problem.notes.update({"relaxed value": sense * best, "gap": best - sense * value})
        return answer


@dataclass(frozen=True)
class _Extra:
    """The user's constraints, for decisions that cvxpy did not find."""

    variable: Any
    constraints: list[Any]

    def allow(self, decision: Tensor) -> bool:
        self.variable.value = _array(decision)
        return all(bool(np.all(constraint.value(TOLERANCE))) for constraint in self.constraints)


def _points(problem: Problem) -> list[Tensor]:
    """A few feasible decisions, the last in the middle of the others."""
    generator = torch.Generator().manual_seed(0)
    samples = [problem.feasible.sample(generator).to(problem.start) for _ in range(3)]
    return [*samples, torch.stack(samples).mean(0)]


def _common(gradients: Sequence[Tensor]) -> Tensor | None:
    """The gradient, if all are the same up to rounding, else None."""
    first, *others = gradients
    tolerance = torch.finfo(first.dtype).eps ** 0.5 * first.abs().max()
    return first if all(bool(((other - first).abs() <= tolerance).all()) for other in others) else None


class _Readable(TorchFunctionMode):
    """Within: cvxpy may read tensors that lie on a GPU or have a graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__array__:
            return _array(args[0])
        return func(*args, **(kwargs or {}))


def _trace(problem: Problem, variable: Any, point: Tensor, atol: float) -> Any:
    """The objective as a cvxpy expression, checked against torch at a point."""
    try:
        with warnings.catch_warnings(), _Readable():
            warnings.filterwarnings("error", message=r"\s*This use of ``\*`` has resulted in matrix multiplication")
            expression = problem.objective.fn(variable)
    except UserWarning as warning:
        raise ValueError(
            "The objective writes `*` between a vector and the decision or the outputs, which cvxpy reads as a matrix "
            "product. Write `@` with a diagonal matrix, or subtract and square, or use Greedy or GradientAscent."
        ) from warning
    except Exception as error:  # the task's and the datamodel's own code: anything may be raised
        raise ValueError(
            f"The objective cannot be traced with a cvxpy variable ({type(error).__name__}: {error}). Only linear "
            "datamodels and `@ + - ** [] .sum .mean .max` trace: measure losses (`f.on(output=Loss())`) rather than "
            "margins where the task makes losses of them, or use Greedy(refresh=k) or GradientAscent."
        ) from error
    if not isinstance(expression, cp.Expression) or expression.size != 1:
        raise ValueError(f"Expected a scalar cvxpy expression from the objective; got {expression!r}. Average it.")
    variable.value = _array(point)
    traced, expected = float(np.asarray(expression.value).item()), problem.value(point)
    if not np.isclose(traced, expected, rtol=1e-3, atol=atol):
        raise ValueError(
            f"Traced by cvxpy the objective is {traced:g} where torch computes {expected:g}: an operator means "
            "something else there. Write it with `@ + - ** [] .sum .mean .max`, or use Greedy or GradientAscent."
        )
    return cp.sum(expression)  # a scalar of shape () for any of (), (1,), (1, 1)


def _improve(problem: Problem, subset: Subset, current: Tensor, extra: _Extra) -> Tensor:
    """Drop, add or swap points while that improves: the first improvement found is taken, for a few passes."""
    value = problem.value(current)
    for _ in range(PASSES):
        before = value
        for move in _moves(current, subset):
            moved = current.clone()
            for i, step in move:
                moved[i] += step
            if not subset.contains(moved) or not problem.objective.better(problem.value(moved), value):
                continue
            if extra.allow(moved):
                current, value = moved, problem.value(moved)
        if value == before:
            break
    return current


def _moves(current: Tensor, subset: Subset) -> Iterator[list[tuple[int, int]]]:
    """One unit less or more of a point, and one less of one and more of another; none at all if they are too many."""
    less = [(i, -1) for i in (current > subset.least.to(current)).nonzero().flatten().tolist()]
    more = [(i, 1) for i in (current < subset.most.to(current)).nonzero().flatten().tolist()]
    if len(less) * len(more) > MAX_SWAPS:
        return
    yield from ([move] for move in (*less, *more))
    yield from map(list, itertools.product(less, more))


def _another(problem: Problem) -> str:
    """A solver to try instead."""
    return "Greedy(refresh=10)" if isinstance(problem.feasible, Subset) else "GradientAscent(lr, steps)"


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
