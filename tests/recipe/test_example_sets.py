"""Sets that hold for every example: exactness, projections against cvxpy, whole numbers."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from recipe import Balls, Box, GradientAscent, Integers, Intersection, Maximize, Problem, Rounded, Slabs
from recipe.example_sets import common_point

B, D = 3, 5
CENTER = torch.randn(B, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NORMAL = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MIDDLE = (NORMAL * CENTER).sum(1)
BALLS = Balls(CENTER, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
SLABS = Slabs(NORMAL, MIDDLE - 0.3, MIDDLE + 0.5)
HALF = Slabs(-NORMAL, -MIDDLE - 0.2, torch.full((B,), torch.inf, dtype=torch.float64))
BOX = Box(CENTER, 0.6)
ALL = {
    "balls": BALLS,
    "slabs": SLABS,
    "half-spaces": HALF,
    "two": Intersection((BALLS, SLABS), CENTER),
    "four": Intersection((BOX, BALLS, SLABS, HALF), CENTER),
}
sets = pytest.mark.parametrize("feasible", ALL.values(), ids=ALL)


def far(seed, scale=3.0):
    return CENTER + scale * torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@sets
def test_projections_are_those_of_a_convex_program(feasible):
    for seed in range(3):
        x = far(seed)
        variable = cp.Variable((B, D))
        program = cp.Problem(cp.Minimize(cp.sum_squares(variable - x.numpy())), feasible.constraints(variable))
        program.solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(feasible.project(x).numpy(), variable.value, atol=2e-3)


@sets
def test_what_is_returned_is_feasible_and_stays(feasible):
    rounding = 0.0 if isinstance(feasible, Intersection) else 1e-14
    for x in (feasible.project(far(5)), feasible.sample(torch.Generator().manual_seed(6))):
        assert bool((feasible.excess(x) <= rounding).all())
        assert feasible.contains(x)
        torch.testing.assert_close(feasible.project(x), x, atol=1e-12, rtol=0)
    outside = CENTER + 100 * NORMAL * torch.tensor([1.0, 0.0, 0.0])[:, None]
    assert not feasible.contains(outside)
    assert feasible.excess(outside)[0] > 1 > feasible.excess(outside)[1:].max()
    assert not feasible.contains(CENTER[:2])


def test_a_common_point_is_in_all_sets_and_what_is_inside_stays():
    for seed in range(5):
        start = torch.cat([CENTER[:1], far(seed)[1:]])
        met = common_point((BOX, BALLS, SLABS, HALF), start)
        assert all(bool((s.excess(met) <= 0).all()) for s in (BOX, BALLS, SLABS, HALF))
        assert torch.equal(met[0], CENTER[0])
    fixed = Box(CENTER, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64))  # a patch that is worn
    assert torch.equal(common_point((fixed, BALLS), far(9))[:, :2], CENTER[:, :2])
    apart = common_point((BALLS, Balls(CENTER + 9, 1.0)), far(1))
    with pytest.raises(ValueError, match="a common point"):
        Intersection((BALLS, Balls(CENTER + 9, 1.0)), apart)


def test_float32_is_exact_too():
    low = [Balls(BALLS.center.float(), BALLS.radius.float()), Box(CENTER.float(), 0.6)]
    both = Intersection(tuple(low), CENTER.float())
    assert bool((both.excess(both.project(far(7).float())) <= 0).all())


def test_the_best_of_a_ball():
    score = far(8) - CENTER
    best = BALLS.best(score)
    torch.testing.assert_close((best - CENTER).norm(dim=1), BALLS.radius)
    assert torch.equal(BALLS.best(torch.zeros(B, D, dtype=torch.float64)), CENTER)
    for unbounded in (SLABS, ALL["two"]):
        with pytest.raises(ValueError, match="linear score"):
            unbounded.best(score)


def test_boxes_meet():
    one, other = Box(torch.zeros(2), 1.0), Box(torch.tensor([0.5, 0.0]), 1.0)
    met = one.intersect(other)
    assert met.project(torch.tensor([-9.0, 9.0])).tolist() == [-0.5, 1.0]
    with pytest.raises(ValueError, match="nothing in common in 2 of 2 entries"):
        one.intersect(Box(torch.full((2,), 5.0), 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Balls(CENTER, -1.0), "radius of at least 0"),
        (lambda: Balls(CENTER, torch.ones(2)), "one for each of 3 examples"),
        (lambda: Slabs(NORMAL * 0, MIDDLE, MIDDLE), "normals that are not zero"),
        (lambda: Slabs(NORMAL, MIDDLE + 1, MIDDLE), "low <= high"),
        (lambda: Intersection((BALLS, BOX), CENTER + 0.55), "outside of Balls"),
    ],
)
def test_bad_sets(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def whole():
    center = torch.full((2, 6), 1.4, dtype=torch.float64)
    inside = Intersection((Box.between(torch.zeros_like(center), center + 6), Balls(center, 4.0)), center)
    return Integers(inside)


def test_whole_numbers_are_exactly_allowed():
    numbers = whole()
    for seed in range(4):
        x = numbers.within.inside + 5 * torch.randn(2, 6, generator=torch.Generator().manual_seed(seed)).double()
        for found in numbers.roundings(x, 4):
            assert torch.equal(found, found.round())
            assert bool((numbers.excess(found) <= 0).all())
            assert numbers.contains(found)
    assert not numbers.contains(numbers.within.inside)
    nothing = Integers(Intersection((Box(torch.full((1, 2), 0.5), 0.1),), torch.full((1, 2), 0.5)))
    with pytest.raises(ValueError, match="No rounding"):
        nothing.project(torch.full((1, 2), 0.5))


def test_rounded_solvers_are_never_below_their_start():
    numbers = whole()
    start = numbers.project(numbers.within.inside)
    direction = torch.arange(12.0, dtype=torch.float64).reshape(2, 6) - 4
    problem = Problem(Maximize(lambda x: (direction * x).sum()), start, numbers, lambda x: (x, None))
    found = Rounded(GradientAscent(lr=0.3, steps=30)).solve(problem)
    assert numbers.contains(found)
    assert problem.value(found) == problem.notes["value"] > problem.value(start)
    with pytest.raises(TypeError, match="Drop Rounded"):
        Rounded(GradientAscent(lr=0.3, steps=3)).solve(Problem(problem.objective, start, BALLS, lambda x: (x, None)))
