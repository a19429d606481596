"""Greedy: exact steps against an independent loop, stages against where a single tangent goes wrong."""

from dataclasses import replace

import pytest
import torch

from recipe.feasible import Box, Subset
from recipe.problem import Maximize, Minimize, Problem
from recipe.solvers import Greedy, TopK
from tests.recipe.solvers.problems import CURVED, FEASIBLE, subsets, weights_problem

# Points 0 to 2 all bring the first of three goods, which soon is enough of; the others bring less of the other two.
GOODS = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.9, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.8]])
COVER = Maximize(lambda w: (1 + GOODS @ w).log().sum())


def cover(feasible, start=None, **changes):
    return Problem(COVER, torch.ones(6) if start is None else start, feasible, lambda w: (w, None), **changes)


@pytest.mark.parametrize("adding", [True, False])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", CURVED)
def test_each_step_is_the_best_one(name, size, adding):
    objective = CURVED[name]
    problem = weights_problem(objective, Subset(8, size=size))
    w = torch.zeros(8, dtype=torch.float64) if adding else torch.ones(8, dtype=torch.float64)
    path = []
    for _ in range(size if adding else 8 - size):
        moves = [w + (1 if adding else -1) * e for e in torch.eye(8, dtype=torch.float64)]
        w = max((x for x in moves if ((x == 0) | (x == 1)).all()), key=lambda x: objective.sense * objective.fn(x))
        path.append(float(objective.fn(w)))
    assert torch.equal(Greedy(adding=adding).solve(problem), w)
    assert problem.notes["values"] == pytest.approx(path)


@pytest.mark.parametrize("adding", [True, False])
@pytest.mark.parametrize("name", CURVED)
def test_within_a_range_it_stops_where_no_step_improves(name, adding):
    objective, feasible = CURVED[name], FEASIBLE["range"]
    w = Greedy(adding=adding).solve(weights_problem(objective, feasible))
    moves = [w + (1 if adding else -1) * e for e in torch.eye(8, dtype=torch.float64)]
    for moved in moves:
        assert not feasible.contains(moved) or not objective.better(float(objective.fn(moved)), float(objective.fn(w)))


def test_a_point_that_blocks_the_quotas_is_not_dropped():
    """Point 0 is the worst, but the only one of its group."""
    problem = Problem(
        Maximize(lambda w: torch.tensor([-5.0, 1.0, 2.0, 3.0]) @ w),
        torch.ones(4),
        Subset(4, size=2, groups=torch.tensor([0, 1, 1, 1]), quotas={0: 1}),
        lambda w: (w, None),
    )
    for solver in (Greedy(), Greedy(adding=True), Greedy(refresh=2)):
        assert solver.solve(problem).tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("adding", [True, False])
def test_refreshing_the_gradient_reaches_the_optimum_where_top_k_does_not(adding):
    feasible = Subset(6, size=3)
    best = max(float(COVER.fn(x.to(GOODS))) for x in subsets(feasible))
    start = torch.zeros(6) if adding else torch.ones(6)
    assert COVER.fn(TopK().solve(cover(feasible, start))) < 0.9 * best  # all of the first good, or none
    problem = cover(feasible)
    decision = Greedy(refresh=3, adding=adding).solve(problem)
    assert float(COVER.fn(decision)) == pytest.approx(best)
    assert problem.notes["values"][-1] == pytest.approx(best)
    assert len(problem.notes["values"]) == 4  # before each stage, and at the end


@pytest.mark.parametrize("adding", [True, False])
def test_one_stage_is_top_k_from_there(adding):
    start = torch.zeros(6) if adding else torch.ones(6)
    for feasible in (Subset(6, size=3), Subset(6, size=(1, 4), costs=torch.arange(1.0, 7.0), budget=8.0)):
        staged = Greedy(refresh=1, adding=adding).solve(cover(feasible))
        assert torch.equal(staged, TopK().solve(cover(feasible, start)))


def test_refits_get_the_current_subset_and_count():
    """With tangents as datamodels, refitting is refreshing, except that the old datamodel is never asked again."""
    asked = []

    def tangent(at):
        asked.append(at.clone())
        slope = torch.autograd.functional.jacobian(COVER.fn, at)
        return replace(problem, objective=Maximize(lambda w: COVER.fn(at) + slope @ (w - at)))

    feasible = Subset(6, size=3)
    problem = cover(feasible, refit=tangent)
    first = replace(tangent(torch.ones(6)), notes={})
    asked.clear()
    assert torch.equal(Greedy(refit=3).solve(first), Greedy(refresh=3).solve(cover(feasible)))
    assert [int(at.sum()) for at in asked] == [5, 4]
    assert bool((asked[1] <= asked[0]).all())


def test_values_are_enough_for_exact_steps():
    """No gradient, as with really retraining."""
    problem = replace(cover(Subset(6, size=3)), objective=Maximize(lambda w: float(COVER.fn(w))))
    assert Greedy().solve(problem).tolist() == Greedy().solve(cover(Subset(6, size=3))).tolist()


@pytest.mark.parametrize(
    ("solver", "problem", "error", "message"),
    [
        (Greedy(), Problem(COVER, torch.ones(6), Box(torch.ones(6), 1.0), lambda w: (w, None)), TypeError, "got Box"),
        (Greedy(refit=2), cover(Subset(6, size=3)), ValueError, "pass estimator and setting"),
        (
            Greedy(adding=True),
            Problem(Minimize(lambda w: w.sum().log() / 0), torch.ones(2), Subset(2, size=1), lambda w: (w, None)),
            ValueError,
            "finite objective; got nan with 1 of 2 points",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(solver, problem, error, message):
    with pytest.raises(error, match=message):
        solver.solve(problem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(dict(refresh=2, refit=2), "got both"), (dict(refresh=0), "one stage"), (dict(refit=-1), "one stage")],
)
def test_bad_hyperparameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Greedy(**arguments)
