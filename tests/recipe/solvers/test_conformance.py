"""What every solver promises, against brute force and closed forms: the products of the lists in `problems.py`."""

import itertools
import re

import pytest
import torch

import recipe.solvers
from recipe.feasible import Box
from recipe.problem import Minimize, Problem
from recipe.solvers import Convex
from tests.recipe.solvers.problems import (
    CONTINUOUS,
    CONTINUOUS_SOLVERS,
    FEASIBLE,
    PROBLEMS,
    SOLVERS,
    continuous_problem,
    optimum,
    weights_problem,
)

NO_GRADIENT = ("Greedy", "Greedy, adding", "Metagradient")  # these never ask for one, or want a refit first
PAIRS = [(s, p) for s, p in itertools.product(SOLVERS, PROBLEMS) if p in SOLVERS[s].solves]
OTHERS = [(s, p) for s, p in itertools.product(SOLVERS, PROBLEMS) if p not in SOLVERS[s].solves]
STEPPING = [name for name, solver in CONTINUOUS_SOLVERS.items() if not isinstance(solver, Convex)]


@pytest.mark.parametrize(("name", "about"), PAIRS, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_subset_problems(name, about):
    promise, (objective, feasible) = SOLVERS[name], PROBLEMS[about]
    problem = weights_problem(objective, feasible)
    before = problem.start.clone()
    decision = promise.solver.solve(problem)
    assert feasible.contains(decision)
    assert decision.dtype == problem.start.dtype
    assert torch.equal(problem.start, before)
    assert torch.equal(decision, promise.solver.solve(weights_problem(objective, feasible)))
    value = problem.value(decision)
    assert objective.sense * value <= objective.sense * optimum(*about) + 1e-9
    if about in promise.reaches:
        assert value == pytest.approx(optimum(*about), abs=1e-9)


@pytest.mark.parametrize(("name", "about"), OTHERS, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_what_a_solver_cannot_solve_is_refused_and_another_named(name, about):
    """Or solved: an objective of linear pieces may be linear over all that is allowed."""
    problem = weights_problem(*PROBLEMS[about])
    try:
        decision = SOLVERS[name].solver.solve(problem)
    except ValueError as error:
        assert re.search(r"[Uu]se (Greedy|integer=False|.* or use Greedy)", str(error))  # noqa: PT017
    else:
        assert problem.feasible.contains(decision)
        assert problem.value(decision) == pytest.approx(optimum(*about), abs=1e-9)


@pytest.mark.parametrize("feasible", FEASIBLE)
@pytest.mark.parametrize("name", STEPPING)
def test_small_steps_do_not_reach_subsets(name, feasible):
    with pytest.raises(TypeError, match="Use TopK, Greedy or Convex"):
        CONTINUOUS_SOLVERS[name].solve(weights_problem(PROBLEMS["min mean", feasible][0], FEASIBLE[feasible]))


@pytest.mark.parametrize("case", CONTINUOUS)
@pytest.mark.parametrize("name", CONTINUOUS_SOLVERS)
def test_continuous_problems(name, case):
    objective, feasible, best = CONTINUOUS[case]
    problem = continuous_problem(objective, feasible)
    decision = CONTINUOUS_SOLVERS[name].solve(problem)
    assert feasible.contains(decision)
    assert decision.dtype == problem.start.dtype
    assert torch.equal(decision, CONTINUOUS_SOLVERS[name].solve(continuous_problem(objective, feasible)))
    torch.testing.assert_close(decision, best, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("solver", "start", "feasible"),
    [(SOLVERS[name].solver, torch.ones(8), FEASIBLE["size"]) for name in SOLVERS if name not in NO_GRADIENT]
    + [(solver, torch.zeros(3), Box(torch.zeros(3), 1.0)) for solver in CONTINUOUS_SOLVERS.values()],
    ids=repr,
)
def test_an_objective_without_gradient_is_refused_with_the_remedy(solver, start, feasible):
    problem = Problem(Minimize(lambda w: w.detach().sum()), start, feasible, lambda w: (w, None))
    with pytest.raises(ValueError, match=r"not differentiable.*differentiable datamodel"):
        solver.solve(problem)


def test_all_is_sorted_and_complete():
    assert recipe.solvers.__all__ == sorted(recipe.solvers.__all__)
    assert {type(promise.solver).__name__ for promise in SOLVERS.values()} | {
        type(solver).__name__ for solver in CONTINUOUS_SOLVERS.values()
    } | {"Rounded", "Metagradient"} == set(recipe.solvers.__all__)  # whole numbers only; problems with a replay only
