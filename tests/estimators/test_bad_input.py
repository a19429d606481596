"""What estimators say to broken runs and data: what it is, how much of it, and where."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from estimators._anchored import check_effects
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.gas import GAS
from estimators.influence import Influence
from estimators.less import LESS
from estimators.logra import LoGra
from estimators.source import SOURCE
from estimators.tracin import TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from recipe import SGD, Arnoldi, Correct, calculus
from recipe import batch as batches
from recipe.setting import Checkpoint
from tests.worlds import small_mlp

SETTING = small_mlp()
START = SETTING.initial(0)


@dataclass(frozen=True)
class _Untrainable(SGD):
    def train_many(self, *args, **kwargs):
        raise AssertionError("trained before the arguments were checked")


class Mended(nn.Module):
    """Missing values as zeros."""

    def forward(self, x):
        return x.nan_to_num()


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


@pytest.mark.parametrize("estimator", [*WHITE_BOX, SOURCE()], ids=lambda e: type(e).__name__)
def test_points_that_hold_nan_are_named_before_any_work(estimator):
    x = SETTING.pool[0].clone()
    x[[3, 5]] = torch.nan
    setting = replace(SETTING, universe=(x, SETTING.pool[1]), algorithm=_Untrainable(epochs=1, batch_size=8, lr=0.1))
    with pytest.raises(ValueError, match=r"2 of 40 training points hold NaN or infinity, the first of them point 3"):
        estimator.fit(setting)


def test_models_that_know_what_to_do_with_nan_are_left_alone():
    x = SETTING.pool[0].clone()
    x[3] = torch.nan
    model = lambda: nn.Sequential(Mended(), *small_mlp().module(START))  # noqa: E731
    setting = replace(SETTING, model=model, universe=(x, SETTING.pool[1]))
    assert EKFAC().fit(setting).effects.isfinite().all()


def test_effects_that_are_not_finite_are_counted():
    effects = torch.zeros(6, 40)
    effects[2:, [3, 5]] = torch.nan
    with pytest.raises(ValueError, match=r"The effects of 2 of 40 training points on 4 of 6 outputs.*of point 3"):
        check_effects(effects)


@pytest.mark.parametrize(
    "estimator",
    [EKFAC(), EKFAC(lazy=True), EKFACCG(), Influence(), LoGra(), TRAK(dimension=5), GAS(), TracIn(), SOURCE(), LESS()],
    ids=repr,
)
def test_outputs_that_jump_are_refused_before_any_work(estimator):
    setting = replace(SETTING, output=Correct(), algorithm=_Untrainable(epochs=1, batch_size=8, lr=0.1))
    with pytest.raises(ValueError, match=r"The gradient of Correct\(\) is zero on every target.*Use Margin or Loss"):
        estimator.fit(setting)


@pytest.mark.parametrize(
    "estimator", [EKFAC(), EKFACCG(), SOURCE(segments=1), Influence()], ids=lambda e: type(e).__name__
)
def test_a_model_that_is_certain_of_a_part_of_its_data(estimator, monkeypatch):
    monkeypatch.setattr(calculus, "CACHE_BYTES", 2**7)  # parts of a few examples, some of them certain throughout
    f_hat = estimator.fit(_certain(SETTING, 20))
    assert f_hat.effects.isfinite().all()


def test_a_model_that_is_certain_of_all_its_data_has_no_curvature():
    setting = _certain(replace(SETTING, algorithm=SGD(epochs=2, batch_size=10, lr=0.1)), 40)
    with pytest.raises(ValueError, match="certain of all 40 training points.*Pass a damping"):
        EKFAC().fit(setting)
    assert EKFAC(damping=1e-3).fit(setting).effects.isfinite().all()


def _certain(setting, count):
    """A linear model, and the first points so far out that one label has all the probability."""
    x = setting.pool[0].clone()
    x[:count] *= 1e6
    setting = replace(setting, model=lambda: nn.Linear(2, 3).double(), universe=(x, setting.pool[1]))
    return replace(setting, checkpoints=(Checkpoint(setting.initial(0), lr=0.1, step=10),))


def test_a_layer_without_any_gradient_does_not_move():
    """Behind units that are all saturated, and without weight decay."""
    x, y = SETTING.pool
    setting = replace(given(START), universe=(1e6 * x, y), algorithm=SGD(epochs=2, batch_size=10, lr=0.1))
    assert EKFAC().fit(setting).effects.isfinite().all()


@pytest.mark.parametrize("estimator", [EKFAC(), EKFACCG(), Influence(), LoGra(), TRAK(dimension=5)], ids=repr)
def test_without_weight_decay_a_damping_is_chosen_and_noted(estimator):
    f_hat = estimator.fit(replace(SETTING, algorithm=SGD(epochs=2, batch_size=10, lr=0.1)))
    assert f_hat.effects.isfinite().all()
    assert f_hat.origin.notes["damping"]


def test_no_examples_have_no_effect():
    nothing = batches.take(SETTING.pool, slice(0, 0))
    for estimator in (EKFAC(), LoGra(), TRAK(dimension=5), Influence(), TracIn()):
        assert estimator.fit(given(START)).effect(nothing).shape == (6, 0)


@pytest.mark.parametrize("estimator", [TRAK(dimension=5), TracIn(), GAS(), Influence()], ids=lambda e: type(e).__name__)
def test_layers_that_torch_cannot_differentiate_example_by_example_are_named(estimator):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.RNN(2, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.cell(x.unsqueeze(1))[0][:, -1])

    setting = replace(SETTING, model=lambda: Recurrent().double())
    with pytest.raises(
        ValueError, match=r"cannot be taken through cell\.weight_ih_l0 \(of RNN\).*Freeze it.*Regression"
    ):
        estimator.fit(setting)
