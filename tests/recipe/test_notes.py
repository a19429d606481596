"""What a fit decides by itself stands in the origin and in the provenance."""

import pytest
import torch

from applications.data_selection import DataSelection
from estimators.ekfac import EKFAC
from estimators.logra import LoGra
from estimators.regression import Regression, Ridge
from estimators.trak import TRAK
from recipe import SGD, Ensemble, Loss, TopK, solve
from recipe.notes import note, taking_notes
from tests.worlds import small_mlp

CHOOSE = [EKFAC(), LoGra(rank=2), TRAK(dimension=4)]


def world(l2: float):
    return small_mlp(SGD(epochs=3, batch_size=8, lr=0.2, weight_decay=l2), output=Loss())


def numbers(damping) -> list[float]:
    """One for each block of parameters, or one."""
    return list(damping.values()) if isinstance(damping, dict) else torch.tensor(damping).flatten().tolist()


@pytest.mark.parametrize("estimator", CHOOSE, ids=lambda e: type(e).__name__)
def test_the_damping_that_was_chosen_is_in_the_origin(estimator):
    (chosen,) = estimator.fit(world(l2=0.0)).origin.notes["damping"]
    assert min(numbers(chosen)) > 0
    (none,) = estimator.fit(world(l2=0.01)).origin.notes["damping"]
    assert max(numbers(none)) == 0  # the weight decay is enough


def test_every_model_of_an_ensemble_has_its_own():
    first, second = TRAK(dimension=4, models=2).fit(world(l2=0.0)).origin.notes["damping"]
    assert first != second


def test_a_chosen_damping_gives_what_the_same_damping_gives_when_passed():
    chosen = TRAK(dimension=4).fit(world(l2=0.0))
    passed = TRAK(dimension=4, damping=chosen.origin.notes["damping"][0]).fit(world(l2=0.0))
    torch.testing.assert_close(chosen.effects, passed.effects)
    assert passed.origin.notes == {}  # nothing was left to choose


def test_a_prior_s_notes_are_under_its_name():
    f_hat = Regression(4, penalty=Ridge(), prior=TRAK(dimension=4)).fit(world(l2=0.0))
    (prior,) = f_hat.origin.notes["TRAK"]
    assert prior["damping"][0] > 0
    both = Ensemble([f_hat, f_hat])
    assert both.origin.notes["member 1"] == f_hat.origin.notes


def test_the_provenance_of_a_solution_has_them():
    f_hat = TRAK(dimension=4).fit(world(l2=0.0))
    solution = solve(DataSelection(size=20), f_hat, TopK())
    assert solution.provenance["decided by the fit"] == {"damping": f_hat.origin.notes["damping"]}


def test_notes_without_a_fit_are_lost():
    note(damping=1.0)
    with taking_notes("nobody") as notes:
        pass
    assert notes == {}
