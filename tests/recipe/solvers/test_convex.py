"""Convex: bounds and gaps, extra constraints and integers against brute force, and what cannot be traced."""

import itertools

import pytest
import torch

from recipe.datamodel import LinearDatamodel
from recipe.feasible import Box, Free, Subset
from recipe.problem import Maximize, Minimize, Problem
from recipe.solvers import Convex, Greedy, TopK
from tests.recipe.solvers.problems import (
    AS_INTEGERS,
    BOWL,
    CENTER,
    CONTINUOUS,
    CURVED,
    F_HAT,
    FEASIBLE,
    LINEAR,
    OBJECTIVES,
    PROBLEMS,
    TRACED,
    continuous_problem,
    optimum,
    subsets,
    weights_problem,
)

names = pytest.mark.parametrize("about", sorted(TRACED), ids="-".join)


@names
def test_the_relaxed_value_bounds_brute_force_and_the_gap_is_right(about):
    objective, feasible = PROBLEMS[about]
    problem = weights_problem(objective, feasible)
    value = problem.value(Convex().solve(problem))
    notes = problem.notes
    assert notes["value"] == value
    assert notes["gap"] == pytest.approx(objective.sense * (notes["relaxed value"] - value))
    assert notes["gap"] >= 0
    assert objective.sense * notes["relaxed value"] >= objective.sense * optimum(*about) - 1e-6
    # the promise in words: nobody is farther from the optimum than the gap says
    assert objective.sense * (optimum(*about) - value) <= notes["gap"] + 1e-6
    assert notes["cvxpy solver"] in ("HIGHS", "CLARABEL")


@pytest.mark.parametrize("objective", CURVED)
def test_the_scale_of_an_objective_does_not_matter(objective):
    """Solvers' tolerances are absolute."""
    plain, tiny = (
        weights_problem(type(OBJECTIVES[objective])(lambda w, s=s: OBJECTIVES[objective].fn(w) * s), FEASIBLE["size"])
        for s in (1.0, 1e-9)
    )
    assert torch.equal(Convex().solve(tiny), Convex().solve(plain))
    assert tiny.notes["relaxed value"] == pytest.approx(1e-9 * plain.notes["relaxed value"], rel=1e-4, abs=1e-15)


def test_a_relaxation_without_gap_is_the_optimum():
    problem = weights_problem(LINEAR["min mean"], FEASIBLE["size"])
    Convex().solve(problem)
    assert problem.notes["gap"] == pytest.approx(0, abs=1e-7)
    assert problem.notes["cvxpy solver"] == "CLARABEL"


@pytest.mark.parametrize("feasible", FEASIBLE)
def test_rounding_comes_close_to_brute_force_on_squares(feasible):
    """Nothing promises the optimum here; at most one subset in fifty may be better."""
    problem = weights_problem(OBJECTIVES["min squares"], FEASIBLE[feasible])
    value = problem.value(Convex().solve(problem))
    values = torch.stack([problem.objective.fn(x) for x in subsets(FEASIBLE[feasible])])
    assert (values < value - 1e-9).double().mean() <= 0.02


EXTRA = {
    "not both": (lambda w: [w[0] + w[3] <= 1, w[1] == w[2]], lambda x: x[0] + x[3] <= 1 and x[1] == x[2]),
    "a capacity": (lambda w: [w[:5].sum() <= 2], lambda x: x[:5].sum() <= 2),
    "outputs": (lambda w: [F_HAT(w)[0] >= 0.2], lambda x: F_HAT(x)[0] >= 0.2),
}


@pytest.mark.parametrize("about", sorted(AS_INTEGERS), ids="-".join)
@pytest.mark.parametrize("extra", EXTRA)
def test_integer_with_extra_constraints_is_brute_force(about, extra):
    objective, feasible = PROBLEMS[about]
    constraints, rule = EXTRA[extra]
    problem = weights_problem(objective, feasible)
    values = [objective.sense * float(objective.fn(x)) for x in subsets(feasible) if rule(x)]
    if not values:
        with pytest.raises(ValueError, match="infeasible"):
            Convex(constraints, integer=True).solve(problem)
        return
    decision = Convex(constraints, integer=True).solve(problem)
    assert rule(decision)
    assert objective.sense * problem.value(decision) == pytest.approx(max(values), abs=1e-9)
    assert problem.notes["value"] == problem.value(decision)


@pytest.mark.parametrize(("extra", "objective"), list(itertools.product(EXTRA, [*LINEAR, *CURVED])))
def test_a_rounded_answer_keeps_the_extra_constraints_or_says_that_it_cannot(extra, objective):
    constraints, rule = EXTRA[extra]
    problem = weights_problem(OBJECTIVES[objective], FEASIBLE["range"])
    try:
        decision = Convex(constraints).solve(problem)
    except ValueError as error:
        assert "integer=True" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert rule(decision)
    sense = OBJECTIVES[objective].sense
    values = [sense * float(OBJECTIVES[objective].fn(x)) for x in subsets(FEASIBLE["range"]) if rule(x)]
    assert sense * problem.notes["relaxed value"] >= max(values) - 1e-6
    assert max(values) - sense * problem.value(decision) <= problem.notes["gap"] + 1e-6


@pytest.mark.parametrize("feasible", FEASIBLE)
@pytest.mark.parametrize("objective", CURVED)
def test_no_flip_or_swap_improves_a_rounded_answer(objective, feasible):
    problem = weights_problem(OBJECTIVES[objective], FEASIBLE[feasible])
    decision = Convex().solve(problem)
    for moved in subsets(FEASIBLE[feasible]):
        change = moved - decision
        if change.abs().sum() == 1 or (change.abs().sum() == 2 and change.sum() == 0):
            assert not problem.objective.better(problem.value(moved), problem.notes["value"])


def test_many_outputs_of_a_linear_objective_do_not_reach_cvxpy():
    """Only its gradient does: traced, the objective would be refused, since `exp` and `log` do not trace."""
    effects = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    problem = Problem(
        Minimize(lambda w: (effects @ w).exp().log().mean()), torch.ones(6), Subset(6, size=2), lambda w: (w, None)
    )
    assert torch.equal(Convex().solve(problem), TopK().solve(problem))


def test_an_objective_that_only_looks_linear_is_traced():
    """In most of the box the first piece is the larger one; at its optimum, 0, the second is."""
    pieces = LinearDatamodel(torch.tensor([0.0, 0.1]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    feasible = Box.between(torch.zeros(2), torch.ones(2))
    problem = Problem(Minimize(lambda x: pieces(x).max()), torch.ones(2), feasible, lambda x: (x, None))
    assert float(Convex().solve(problem).sum()) == pytest.approx(0.05, abs=1e-6)
    assert problem.notes["value"] == pytest.approx(0.05, abs=1e-6)


def test_least_squares_over_everything_is_that_of_torch():
    A, b = F_HAT.effects[:, :2], F_HAT.bias

    def residual(x):
        return A @ x - b if isinstance(x, torch.Tensor) else A.numpy() @ x - b.numpy()

    problem = Problem(
        Minimize(lambda x: (residual(x) ** 2).sum()),
        torch.zeros(2, dtype=torch.float64),
        Free((2,)),
        lambda x: (x, None),
    )
    torch.testing.assert_close(Convex().solve(problem), torch.linalg.lstsq(A, b).solution, atol=1e-6, rtol=0)
    assert problem.notes["gap"] == pytest.approx(0, abs=1e-9)


def test_extra_constraints_on_a_matrix():
    objective, feasible, _ = CONTINUOUS["bowl, box"]
    problem = continuous_problem(objective, feasible)
    decision = Convex(constraints=lambda x: [x[:, 0].sum() == 1]).solve(problem)
    assert float(decision[:, 0].sum()) == pytest.approx(1)
    assert problem.value(decision) > problem.value(Convex().solve(problem))


SIZE = FEASIBLE["size"]
REFUSED = {
    "not convex": (Convex(), weights_problem(Maximize(OBJECTIVES["min squares"].fn), SIZE), r"not convex.*Greedy"),
    "not traceable": (
        Convex(),
        weights_problem(Minimize(lambda w: F_HAT(w).logsumexp(0)), SIZE),
        r"cannot be traced.*logsumexp.*Greedy",
    ),
    "an elementwise product": (
        Convex(),
        weights_problem(Minimize(lambda w: (torch.ones(3, dtype=torch.float64) * F_HAT(w)) @ F_HAT(w)), SIZE),
        r"`\*`.*matrix product",
    ),
    "another meaning": (
        Convex(),
        weights_problem(Minimize(lambda w: (F_HAT(w) ** 2).sum() + (isinstance(w, torch.Tensor))), SIZE),
        "Traced by cvxpy",
    ),
    "not a scalar": (
        Convex(),
        weights_problem(Minimize(lambda w: (F_HAT(w) ** 2).sum() if isinstance(w, torch.Tensor) else F_HAT(w)), SIZE),
        "scalar cvxpy expression",
    ),
    "integer squares": (Convex(integer=True), weights_problem(OBJECTIVES["min squares"], SIZE), "integer=False"),
    "infeasible": (Convex(lambda w: [w.sum() <= 1]), weights_problem(LINEAR["min mean"], SIZE), "infeasible"),
    "unbounded": (
        Convex(),
        Problem(Minimize(lambda x: x[0] + x[1]), torch.zeros(2), Free((2,)), lambda x: (x, None)),
        r"unbounded.*Box or Ball",
    ),
    "halves only": (
        Convex(lambda w: [w[0] == 0.5]),
        weights_problem(LINEAR["min mean"], SIZE),
        "integer=True, or loosen",
    ),
    "three dimensions": (
        Convex(),
        Problem(Minimize(lambda x: (x**2).sum()), torch.zeros(1, 1, 1), Free((1, 1, 1)), lambda x: (x, None)),
        r"two dimensions; got the shape \(1, 1, 1\).*GradientAscent",
    ),
}


@pytest.mark.parametrize(("solver", "problem", "message"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_do_is_refused_with_the_remedy(solver, problem, message):
    with pytest.raises(ValueError, match=message):
        solver.solve(problem)


def test_integers_need_a_subset():
    with pytest.raises(TypeError, match="needs a Subset; got Box"):
        Convex(integer=True).solve(continuous_problem(BOWL, Box(CENTER, 1.0)))


def test_convex_is_no_worse_than_greedy_on_a_larger_problem():
    """Forty points, squares of linear outputs: gap and value are consistent with an independent solver's answer."""
    generator = torch.Generator().manual_seed(1)
    f_hat = LinearDatamodel(torch.zeros(4), torch.randn(4, 40, generator=generator))
    feasible = Subset(40, size=10)
    wanted = f_hat(feasible.sample(generator))  # so that the optimum is zero
    problem = Problem(
        Minimize(lambda w: ((f_hat(w) - wanted) ** 2).sum()), torch.ones(40), feasible, lambda w: (w, None)
    )
    value, greedy = problem.value(Convex().solve(problem)), problem.value(Greedy().solve(problem))
    assert problem.notes["relaxed value"] <= min(value, greedy) + 1e-6
    assert value <= greedy
