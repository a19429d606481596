"""What estimators say to broken runs and data: what it is, how much of it, and where."""

from dataclasses import replace

import pytest
import torch

from estimators.ekfac import EKFAC
from estimators.gas import GAS
from estimators.influence import Influence
from estimators.logra import LoGra
from estimators.tracin import GradDot, TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from recipe import Arnoldi
from recipe.setting import Checkpoint
from tests.worlds import small_mlp

SETTING = small_mlp()
START = SETTING.initial(0)
WHITE_BOX = [EKFAC(), LoGra(), TRAK(dimension=5), Influence(inverse=Arnoldi(rank=5)), GAS(), TracIn(), TrainLoss()]


def given(*runs) -> object:
    """The setting with the last checkpoints of runs."""
    points = tuple(Checkpoint(theta, lr=0.1, step=1, member=member) for member, theta in enumerate(runs))
    return replace(SETTING, checkpoints=points)


@pytest.mark.parametrize("estimator", WHITE_BOX, ids=lambda e: type(e).__name__)
def test_an_ensemble_whose_members_disagree_in_parameters(estimator):
    wider = {**START, "0.weight": torch.zeros(9, 2, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"member 1, step 1, does not fit the model.*another shape.*0\.weight"):
        estimator.fit(given(START, wider))
    shorter = {name: t for name, t in START.items() if name != "2.bias"}
    with pytest.raises(ValueError, match=r"member 1, .*missing \['2\.bias'\].*state_dict"):
        estimator.fit(given(START, shorter))


@pytest.mark.parametrize("estimator", WHITE_BOX, ids=lambda e: type(e).__name__)
def test_a_member_that_has_diverged(estimator):
    broken = {**START, "0.bias": START["0.bias"].clone()}
    broken["0.bias"][:2] = torch.nan
    with pytest.raises(
        ValueError, match=r"member 1, step 1, has values that are not finite: 2 of 0\.bias.*leave this member"
    ):
        estimator.fit(given(START, broken))


@pytest.mark.parametrize("estimator", [GAS(), GradDot(), TrainLoss()], ids=lambda e: type(e).__name__)
def test_points_whose_gradients_are_not_finite_are_counted(estimator):
    x = SETTING.pool[0].clone()
    x[[3, 5]] = torch.nan
    setting = replace(given(START), universe=(x, SETTING.pool[1]))
    with pytest.raises(ValueError, match=r"The effects of \d+ of 40 training points on 6 of 6 outputs are not finite"):
        estimator.fit(setting)
