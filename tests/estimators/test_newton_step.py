"""Newton steps: more than one on a convex problem that moves far."""

import pytest
import torch

from estimators.newton_step import NewtonStep
from recipe import Newton, Retrain, Setting


def test_every_step_brings_the_prediction_nearer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator).double()
    data = (x, (x[:, 0] + torch.randn(60, generator=generator) > 0).long())
    setting = Setting(lambda: torch.nn.Linear(3, 2).double(), data, data, Newton(l2=0.1))
    w = (x[:, 0] > 0.5).double()  # far from all points
    truth = Retrain(setting)(w)
    errors = [float((NewtonStep(steps=k).fit(setting)(w) - truth).abs().max()) for k in (1, 2, 3)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.1 * errors[1]


def test_there_is_at_least_one_step():
    with pytest.raises(ValueError, match="at least one step; got steps=0"):
        NewtonStep(steps=0)
