"""GradientAscent: senses, the best iterate, refits, what cannot be climbed. Optima are in `test_conformance.py`."""

from dataclasses import replace

import pytest
import torch

from recipe.example_sets import Integers
from recipe.feasible import Ball, Box, Free, Subset
from recipe.problem import Maximize, Minimize, Problem
from recipe.solvers import GradientAscent
from tests.recipe.solvers.problems import BOWL, CENTER, HILL, TARGET, continuous_problem, fresh


@pytest.mark.parametrize("sign", [True, False])
def test_the_first_step_moves_each_entry_by_lr_downhill(sign):
    problem = continuous_problem(BOWL, Free((3, 2)))
    decision = GradientAscent(lr=0.01, steps=1, sign=sign).solve(problem)
    torch.testing.assert_close(decision, CENTER + 0.01 * (TARGET - CENTER).sign())


@pytest.mark.parametrize("sign", [True, False])
def test_both_senses_take_the_same_path(sign):
    solver = GradientAscent(lr=0.1, steps=20, sign=sign)
    down = solver.solve(continuous_problem(BOWL, Ball(CENTER, 1.0)))
    up = solver.solve(continuous_problem(Maximize(lambda x: -BOWL.fn(x)), Ball(CENTER, 1.0)))
    torch.testing.assert_close(down, up)


@pytest.mark.parametrize("objective", [BOWL, HILL], ids=["min", "max"])
@pytest.mark.parametrize("sign", [True, False])
def test_the_best_iterate_is_kept_when_steps_overshoot(objective, sign):
    problem = continuous_problem(objective, Free((3, 2)))
    decision = GradientAscent(lr=3.0, steps=15, sign=sign).solve(problem)
    values = problem.notes["values"]
    scores = [objective.sense * value for value in values]
    assert len(values) == 16
    assert problem.value(decision) == values[problem.notes["best step"]]
    assert scores[problem.notes["best step"]] == max(scores) > scores[-1]


def test_the_start_is_an_iterate():
    problem = fresh(continuous_problem(BOWL, Free((3, 2))), start=TARGET)
    assert torch.equal(GradientAscent(lr=1.0, steps=5).solve(problem), TARGET)
    assert problem.notes["best step"] == 0


def test_a_start_outside_is_projected_first():
    feasible = Box(CENTER, 0.5)
    problem = fresh(continuous_problem(BOWL, feasible), start=CENTER + 100)
    with pytest.warns(UserWarning, match="begins at its projection"):
        assert feasible.contains(GradientAscent(lr=1e-6, steps=1).solve(problem))
    assert problem.notes["values"][0] == pytest.approx(float(BOWL.fn(CENTER + 0.5)))


def test_decay_settles_closer_to_the_optimum():
    distances = []
    for decay in (False, True):
        decision = GradientAscent(0.3, 100, sign=True, decay=decay).solve(continuous_problem(BOWL, Free((3, 2))))
        distances.append(float((decision - TARGET).norm()))
    assert distances[1] < 0.1 * distances[0]


def refittable(offsets):
    """Each refit is another bowl: the wanted point and the level move; where they were asked is recorded."""
    asked = []

    def bowl(level, shift):
        return Minimize(lambda x: ((x - TARGET - shift) ** 2).sum() + level)

    def refit(at):
        asked.append(at)
        return replace(problem, objective=bowl(*offsets[len(asked) - 1]))

    problem = replace(continuous_problem(BOWL, Free((3, 2))), refit=refit)
    return problem, asked


def test_refits_are_spread_and_the_incumbent_is_valued_anew():
    problem, asked = refittable([(100.0, 0.0), (200.0, 1.0)])
    decision = GradientAscent(lr=0.2, steps=240, refit=2).solve(problem)
    values, refits = problem.notes["values"], problem.notes["refits"]
    assert list(refits) == [80, 160]
    assert len(asked) == 2
    assert float(BOWL.fn(asked[0])) + 100 == pytest.approx(values[80])  # asked at the iterate of that step
    before, after = refits[80]
    assert before == min(values[:80])
    assert after == pytest.approx(before + 100)
    # values of the first datamodel are all below those of the last, yet the answer is one of the last
    assert problem.notes["best step"] > 160
    torch.testing.assert_close(decision, TARGET + 1, atol=0.1, rtol=0)


def test_an_incumbent_that_no_later_iterate_beats_stays():
    """The last refit says that things get worse from here; the iterate that it values most is an old one."""
    problem, _ = refittable([(0.0, 0.0)])
    start = fresh(problem, start=TARGET)
    assert torch.equal(GradientAscent(lr=0.5, steps=10, refit=1).solve(start), TARGET)


@pytest.mark.parametrize(
    ("solver", "problem", "error", "message"),
    [
        (
            GradientAscent(0.1, 5),
            Problem(BOWL, torch.ones(3), Subset(3, size=1), lambda w: (w, None)),
            TypeError,
            "TopK, Greedy or Convex",
        ),
        (GradientAscent(0.1, 5, refit=1), continuous_problem(BOWL, Free((3, 2))), ValueError, "estimator and setting"),
        (
            GradientAscent(0.1, 5),
            continuous_problem(BOWL, Integers(Box(CENTER, 2.0))),
            TypeError,
            r"whole numbers .* Rounded\(GradientAscent",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_climbed_is_refused(solver, problem, error, message):
    with pytest.raises(error, match=message):
        solver.solve(problem)


@pytest.mark.parametrize(
    ("lr", "objective", "message"),
    [
        (2.0, lambda x: (3 - x).sqrt().sum() + 9 * x.sum(), r"stopped at step 2 of 5: .*gradient is not finite"),
        (400.0, lambda x: x.sum() + x.detach().exp().sum(), r"objective is inf at step 2 of 5. Lower lr=400.0"),
    ],
)
def test_a_diverging_ascent_ends_at_its_best_iterate(lr, objective, message):
    problem = Problem(Maximize(objective), torch.zeros(1, dtype=torch.float64), Free((1,)), lambda x: x)
    with pytest.warns(UserWarning, match=message):
        found = GradientAscent(lr, 5, sign=True).solve(problem)
    assert found.tolist() == [lr]
    assert "step 2 of 5" in problem.notes["stopped"]


def test_measured_keeps_the_best_of_the_refitted_iterates():
    """The datamodel promises more and more; what retraining gives, known at refits only, has a top at 3."""
    true = lambda x: -((x - 3) ** 2).sum()  # noqa: E731

    def around(x):
        value = float(true(x))
        return Problem(Maximize(lambda z: value + (z - x).sum()), x, Free((1,)), lambda z: z, refit=around)

    problem = around(torch.zeros(1, dtype=torch.float64))
    steps = dict(lr=1.0, steps=6, sign=True, refit=5)
    assert GradientAscent(**steps).solve(problem).tolist() != [3.0]
    assert GradientAscent(**steps, measured=True).solve(problem).tolist() == [3.0]
    with pytest.raises(ValueError, match="refit=k"):
        GradientAscent(lr=1.0, steps=6, measured=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lr=0.0, steps=1), "positive lr"),
        (dict(lr=float("nan"), steps=1), "positive lr"),
        (dict(lr=0.1, steps=0), "at least one step"),
        (dict(lr=0.1, steps=3, refit=3), "1 to steps - 1 = 2 refits"),
        (dict(lr=0.1, steps=3, refit=0), "got refit=0"),
    ],
)
def test_bad_hyperparameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientAscent(**arguments)
