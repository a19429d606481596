"""Metagradient: steps towards what helps, limits kept, stopped by the validation split."""

from dataclasses import replace

import pytest
import torch

from applications.data_selection import DataSelection
from estimators.magic import MAGIC
from recipe import SGD, Box, Correct, Loss, Metagradient, Retrain, Setting, Subset, solve
from recipe.digits import flip_labels
from recipe.problem import Minimize, Problem
from tests.worlds import small_mlp

WORTH = torch.tensor([1.0, -2.0, 3.0, -4.0, 0.5, -0.1])


def linear(feasible, **changes):
    problem = Problem(Minimize(lambda w: -(WORTH @ w)), torch.ones(6), feasible, lambda w: (w, None), **changes)
    return replace(problem, refit=lambda w: problem)


def test_counts_rise_where_it_helps_and_fall_where_it_hurts():
    problem = linear(Subset(6, repeats=3))
    counts = Metagradient(steps=60, share=0.5).solve(problem)
    assert counts.tolist() == [3, 0, 3, 0, 3, 0]
    assert problem.notes["values"][0] == pytest.approx(-float(WORTH.sum()))


def test_limits_are_kept_on_the_way():
    seen = []
    feasible = Subset(6, size=6, repeats=2, include=torch.tensor([3]))

    def validate(counts):
        seen.append(feasible.contains(counts))
        return -float(WORTH @ counts)

    counts = Metagradient(steps=40, share=0.5, validate=validate, patience=40).solve(linear(feasible))
    assert all(seen)
    assert counts.tolist() == [2, 0, 2, 1, 1, 0]


def test_it_stops_where_the_validation_split_gets_no_better():
    validate = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    problem = linear(Subset(6, repeats=3))
    fitted = []
    problem = replace(problem, refit=lambda counts: fitted.append(counts) or problem)
    best = Metagradient(steps=50, validate=lambda counts: next(validate), patience=2).solve(problem)
    assert torch.equal(fitted[-1], best)  # what predictions come from
    assert problem.notes["validation"] == [3.0, 2.0, 2.5, 2.5]
    assert problem.notes["best step"] == 1


def test_through_real_training_mislabelled_points_lose_weight():
    """MAGIC at every step, a validation split apart from the targets, and a test split apart from both."""
    clean = small_mlp()
    train, flipped = flip_labels(clean.pool, 0.3, seed=1)
    x, y = clean.probe
    algorithm = SGD(epochs=10, batch_size=8, lr=0.1, momentum=0.9, weight_decay=1e-2, replay=True)
    setting = Setting(clean.model, train, (x[:3], y[:3]), algorithm, output=Loss())
    f = Retrain(setting)
    validation = f.on((x[3:], y[3:]), Loss())
    solver = Metagradient(steps=5, share=0.4, validate=lambda w: float(validation(w).mean()), patience=5)
    magic = MAGIC(check=None)
    solution = solve(DataSelection(size=(10, 80), repeats=2), magic.fit(setting), solver, magic, setting)
    notes = solution.provenance["notes"]
    assert min(notes["validation"]) <= notes["validation"][0]
    counts = solution.decision
    assert counts[flipped].mean() < counts[~flipped].mean()
    assert f.on(output=Correct())(counts).shape == (3,)


@pytest.mark.parametrize(
    ("solver", "problem", "error", "message"),
    [
        (Metagradient(), Problem(Minimize(lambda w: w.sum()), torch.ones(2), Box(torch.ones(2), 1.0), lambda w: w),
         TypeError, "GradientAscent"),
        (Metagradient(), replace(linear(Subset(6)), refit=None), ValueError, "estimator .*MAGIC"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(solver, problem, error, message):
    with pytest.raises(error, match=message):
        solver.solve(problem)


@pytest.mark.parametrize("arguments", [dict(steps=0), dict(share=0.0), dict(share=1.5), dict(patience=0)])
def test_bad_hyperparameters_are_refused(arguments):
    with pytest.raises(ValueError, match="at least one step"):
        Metagradient(**arguments)
