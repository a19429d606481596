"""What every feasible set promises, against brute force over all subsets or sampling. A new set is one line here."""

import itertools
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest
import torch

import recipe.feasible
import recipe.subset
from recipe.feasible import Ball, Box, Free, Subset

N = 8
GROUPS = torch.tensor([0, 0, 1, 1, 1, 7, 7, 7])
COSTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0, 1.5, 2.5, 1.0], dtype=torch.float64)
QUOTAS = {0: (1, 2), 7: 2}
HALVES = torch.tensor([4, 5, 4, 5, 4, 5, 4, 5])
BOTH = {"groups": (GROUPS, HALVES), "quotas": (QUOTAS, {4: (0, 2), 5: 2})}

# each with the same rule in numpy, written independently
SUBSETS = {
    "any": (Subset(N), lambda x: True),
    "size": (Subset(N, size=3), lambda x: x.sum() == 3),
    "none": (Subset(N, size=0), lambda x: x.sum() == 0),
    "all": (Subset(N, size=N), lambda x: x.sum() == N),
    "range": (Subset(N, size=(2, 5)), lambda x: 2 <= x.sum() <= 5),
    "quotas": (
        Subset(N, groups=GROUPS, quotas=QUOTAS),
        lambda x: x[:2].sum() >= 1 and x[5:].sum() == 2,
    ),
    "size and quotas": (
        Subset(N, size=5, groups=GROUPS, quotas=QUOTAS),
        lambda x: x.sum() == 5 and x[:2].sum() >= 1 and x[5:].sum() == 2,
    ),
    "range and quotas": (
        Subset(N, size=(4, 5), groups=GROUPS, quotas={0: 1, 1: (0, 2)}),
        lambda x: 4 <= x.sum() <= 5 and x[:2].sum() == 1 and x[2:5].sum() <= 2,
    ),
    "two groupings": (
        Subset(N, **BOTH),
        lambda x: x[:2].sum() >= 1 and x[5:].sum() == 2 and x[::2].sum() <= 2 and x[1::2].sum() == 2,
    ),
    "three groupings": (
        Subset(N, size=4, groups=[GROUPS, HALVES, torch.arange(N) // 4], quotas=[{1: 1}, {4: 3}, {1: (2, 3)}]),
        lambda x: x.sum() == 4 and x[2:5].sum() == 1 and x[::2].sum() == 3 and 2 <= x[4:].sum() <= 3,
    ),
    "costs": (Subset(N, costs=COSTS, budget=3.0), lambda x: COSTS.numpy() @ x <= 3),
    "everything": (
        Subset(N, size=(3, 5), groups=GROUPS, quotas=QUOTAS, costs=COSTS, budget=5.5),
        lambda x: 3 <= x.sum() <= 5 and x[:2].sum() >= 1 and x[5:].sum() == 2 and COSTS.numpy() @ x <= 5.5,
    ),
}
CENTER = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
CONVEX = {
    "box": Box(CENTER, 0.5),
    "box, a radius an entry": Box(CENTER, CENTER.abs()),
    "box between": Box.between(CENTER - 0.1, CENTER + 2),
    "ball": Ball(CENTER, 1.5),
    "point": Ball(CENTER, 0.0),
}
ALL = {**{name: feasible for name, (feasible, _) in SUBSETS.items()}, **CONVEX, "free": Free((2, 3))}

VERTICES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=N)), dtype=torch.float64)

subsets = pytest.mark.parametrize(("feasible", "rule"), SUBSETS.values(), ids=SUBSETS)
convex = pytest.mark.parametrize("feasible", CONVEX.values(), ids=CONVEX)
every = pytest.mark.parametrize("feasible", ALL.values(), ids=ALL)


def allowed(rule):
    return VERTICES[[bool(rule(x)) for x in VERTICES.numpy()]]


def shape_of(feasible):
    return feasible.sample(torch.Generator()).shape


def normal(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@subsets
def test_contains_is_the_rule(feasible, rule):
    for x in VERTICES:
        assert feasible.contains(x) == feasible.contains(x.bool()) == bool(rule(x.numpy()))
    assert not feasible.contains(torch.full((N,), 0.5))
    assert not feasible.contains(torch.full((N,), torch.nan))
    assert not feasible.contains(torch.zeros(N + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@subsets
def test_best_is_that_of_brute_force(feasible, rule, dtype):
    for seed, scale in itertools.product(range(4), [1.0, 1e-10, 1e6]):  # the scale of a score does not matter
        score = scale * normal((N,), seed, dtype)
        best = feasible.best(score)
        assert best.dtype == dtype
        assert rule(best.double().numpy())
        value = (best * score).sum().double()
        torch.testing.assert_close(value, (allowed(rule) @ score.double()).max(), rtol=1e-6, atol=1e-6 * scale)


@subsets
def test_best_with_ties_is_that_of_brute_force_and_repeats(feasible, rule):
    score = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0])
    best = feasible.best(score)
    assert (best * score).sum() == (allowed(rule) @ score.double()).max()
    assert torch.equal(best, feasible.best(score))


def test_ties_go_to_the_first_points():
    assert Subset(5, size=2).best(torch.zeros(5)).tolist() == [1, 1, 0, 0, 0]
    grouped = Subset(4, groups=torch.tensor([3, 3, 0, 0]), quotas={3: 1, 0: 1})
    assert grouped.best(torch.zeros(4)).tolist() == [1, 0, 1, 0]


@subsets
def test_subset_projection_is_the_nearest(feasible, rule):
    for seed in range(4):
        decision = normal((N,), seed) + 0.5
        distance = (feasible.project(decision) - decision).norm()
        torch.testing.assert_close(distance, (allowed(rule) - decision).norm(dim=1).min())


@convex
def test_projection_is_the_nearest_of_many(feasible):
    decision = CENTER + 3 * normal(CENTER.shape, 0)
    projected = feasible.project(decision)
    samples = torch.stack([feasible.sample(torch.Generator().manual_seed(seed)) for seed in range(200)])
    # The variational inequality says "nearest" exactly: no sample lies beyond the plane through the projection.
    assert (((samples - projected) * (decision - projected)).sum((1, 2)) <= 1e-9).all()


@convex
def test_best_beats_many_and_is_contained(feasible):
    score = 1e-9 * normal(CENTER.shape, 1)
    best = feasible.best(score)
    assert feasible.contains(best)
    samples = torch.stack([feasible.sample(torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert ((samples * score).sum((1, 2)) <= (best * score).sum() + 1e-20).all()


@every
def test_projection_is_idempotent_and_contained(feasible):
    for seed in range(3):
        once = feasible.project(3 * normal(shape_of(feasible), seed))
        assert feasible.contains(once)
        torch.testing.assert_close(feasible.project(once), once)


@every
def test_samples_are_contained_and_belong_to_their_generator(feasible):
    for seed in range(5):
        first, again = (feasible.sample(torch.Generator().manual_seed(seed)) for _ in range(2))
        assert feasible.contains(first)
        assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["any", "size", "range", "size and quotas", "box", "ball", "free"])
def test_samples_differ_between_seeds(name):
    samples = [ALL[name].sample(torch.Generator().manual_seed(seed)) for seed in range(10)]
    assert any(not torch.equal(samples[0], sample) for sample in samples[1:])


@pytest.mark.parametrize("size", [2, (1, 3), None])
def test_samples_are_uniform(size):
    feasible = Subset(4, size=size)
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(feasible.sample(generator).int().tolist()) for _ in range(2000)]
    counts = [drawn.count(x) for x in itertools.product([0, 1], repeat=4) if feasible.contains(torch.tensor(x))]
    expected = 2000 / len(counts)
    # chi-squared has mean len - 1 and variance 2 (len - 1): five standard deviations above
    assert sum((c - expected) ** 2 / expected for c in counts) < len(counts) - 1 + 5 * (2 * (len(counts) - 1)) ** 0.5


@every
def test_constraints_describe_the_set_to_cvxpy(feasible):
    """Every contained decision satisfies them, and the nearest point of the relaxation is not farther."""
    shape = shape_of(feasible)
    variable = cp.Variable(tuple(shape))
    constraints = feasible.constraints(variable)
    variable.value = feasible.sample(torch.Generator().manual_seed(0)).double().numpy()
    assert all(np.all(constraint.value(1e-6)) for constraint in constraints)
    decision = normal(shape, 0).numpy()
    distance = cp.Problem(cp.Minimize(cp.sum_squares(variable - decision)), constraints).solve(solver=cp.CLARABEL)
    projected = float(((feasible.project(torch.from_numpy(decision)).numpy() - decision) ** 2).sum())
    if isinstance(feasible, Subset):
        assert distance <= projected + 1e-6
    else:
        assert distance == pytest.approx(projected, abs=1e-5)


@subsets
def test_constraints_on_a_boolean_variable_are_the_rule(feasible, rule):
    variable = cp.Variable(N, boolean=True)
    constraints = feasible.constraints(variable)
    for x in VERTICES[::3].numpy():
        variable.value = x
        assert all(np.all(constraint.value(1e-6)) for constraint in constraints) == bool(rule(x))


def test_a_large_universe_is_selected_from_without_sorting_it():
    n, k = 1_000_000, 300_000
    score = normal((n,), 0, torch.float32)
    best = Subset(n, size=k).best(score)
    assert int(best.sum()) == k
    assert score[best == 1].min() >= score[best == 0].max()


def test_cvxpy_is_not_imported():
    for module in (recipe.feasible, recipe.subset):
        assert "import cvxpy" not in Path(str(module.__file__)).read_text()


def test_free_has_no_best_decision():
    assert torch.equal(Free((2,)).best(torch.zeros(2)), torch.zeros(2))
    with pytest.raises(ValueError, match="Box or Ball"):
        Free((2,)).best(torch.ones(2))


def test_flat_scores_give_the_center():
    for feasible in (Box(CENTER, 1.0), Ball(CENTER, 1.0)):
        torch.testing.assert_close(feasible.best(torch.zeros_like(CENTER)), CENTER)


REFUSED = {
    "no points": (dict(n=0), "at least one point"),
    "larger than the universe": (dict(n=3, size=4), "at most n = 3 points; got size 4"),
    "range too large": (dict(n=3, size=(1, 4)), "at most n = 3"),
    "negative": (dict(n=3, size=-1), "at least 0"),
    "fraction": (dict(n=3, size=0.5), "whole points; got 0.5"),
    "reversed": (dict(n=3, size=(2, 1)), "Swap the two"),
    "groups without quotas": (dict(n=8, groups=GROUPS), "Pass both or neither"),
    "quotas without groups": (dict(n=8, quotas=QUOTAS), "Pass both or neither"),
    "groups of another length": (dict(n=9, groups=GROUPS, quotas=QUOTAS), r"groups \(9,\)"),
    "groups of floats": (dict(n=8, groups=GROUPS.float(), quotas=QUOTAS), "integers"),
    "no such group": (dict(n=8, groups=GROUPS, quotas={5: 1}), r"group 5, which has no points; groups: \[0, 1, 7\]"),
    "quota above its group": (dict(n=8, groups=GROUPS, quotas={0: 3}), "Group 0 has 2 points; got the quota 3"),
    "quotas above the size": (dict(n=8, size=3, groups=GROUPS, quotas={0: 2, 1: 2}), "4 to 7 points, the size 3 to 3"),
    "quotas below the size": (dict(n=8, size=7, groups=GROUPS, quotas={0: 0}), "0 to 6 points, the size 7 to 7"),
    "groupings and one quota": (dict(n=8, groups=[GROUPS, HALVES], quotas=QUOTAS), "as many mappings as there are"),
    "quotas of another number of groupings": (dict(n=8, groups=[GROUPS], quotas=[QUOTAS, QUOTAS]), "as many mappings"),
    "quota above its group in the second": (
        dict(n=8, groups=[GROUPS, HALVES], quotas=[QUOTAS, {4: 5}]),
        "Group 4 of grouping 1 has 4 points",
    ),
    "groupings in conflict": (
        dict(n=8, groups=[GROUPS, torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])], quotas=[{0: 2}, {0: 1}]),
        "group 0 of grouping (0|1) by 1",
    ),
    "costs without budget": (dict(n=8, costs=COSTS), "Pass both or neither"),
    "negative costs": (dict(n=8, costs=-COSTS, budget=1.0), "not negative"),
    "costs of another length": (dict(n=7, costs=COSTS, budget=1.0), r"costs \(7,\)"),
    "budget too small": (dict(n=8, size=4, costs=COSTS, budget=2.4), "costs 2.5; got the budget 2.4"),
    "budget is not a number": (dict(n=8, costs=COSTS, budget=float("nan")), "Raise the budget"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_subsets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Subset(**arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Box(CENTER, -1.0), "at least 0"),
        (lambda: Box.between(CENTER, CENTER - 1), "Is low above high"),
        (lambda: Box(torch.zeros(3, dtype=torch.long), 1.0), "floating"),
        (lambda: Box(torch.zeros(3), torch.ones(2, 3)), "does not broadcast"),
        (lambda: Ball(CENTER, -1.0), "at least 0"),
        (lambda: Ball(CENTER, 1.0).project(torch.zeros(3)), r"shape \(2, 3\); got \(3,\)"),
        (lambda: Subset(3, size=1).best(torch.zeros(2)), r"each of 3 points; got the shape \(2,\)"),
        (lambda: Subset(3, size=1).best(torch.tensor([0.0, torch.nan, 1.0])), "finite scores; got 1"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
