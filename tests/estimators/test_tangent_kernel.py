"""The tangent kernel: of a model that is linear in its parameters it is retraining itself."""

import pytest
import torch

from estimators.tangent_kernel import TangentKernel
from recipe import Retrain, random_subsets
from tests.worlds import logistic, ridge

SETTING = logistic()
W = random_subsets(SETTING.n, r=5, alpha=0.6, seed=0).double()


def exact(**changes):
    """The same objective: features are in units of the kernel's mean diagonal, and so is the weight decay."""
    unit = float((SETTING.pool[0].square().sum(1) + 1).mean())
    return TangentKernel(l2=SETTING.algorithm.objective.l2 / unit, **changes)


def test_a_linear_model_is_retrained():
    f_hat, f = exact(steps=3000).fit(SETTING), Retrain(SETTING)
    torch.testing.assert_close(f_hat(W), f(W), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(f_hat(torch.ones(SETTING.n)), f(torch.ones(SETTING.n)), rtol=1e-6, atol=1e-6)


def test_a_few_steps_come_near():
    there, f = exact().fit(SETTING)(W), Retrain(SETTING)
    start = f(torch.ones(SETTING.n))
    assert (there - f(W)).norm() < 0.2 * (start - f(W)).norm()


def test_what_moves_alike_is_near():
    f_hat = exact().fit(SETTING)
    one, other = torch.zeros(2, 3, SETTING.n).double()
    one[0, :5], one[1, :6], one[2, 20:25] = 1.0, 1.0, 1.0
    near, far = (f_hat.embedding(one)[0] - f_hat.embedding(one)[1:]).norm(dim=1)
    assert near < far
    assert f_hat.embedding(other).abs().max() == 0


@pytest.mark.parametrize("changes", [{"rank": 0}, {"steps": 0}, {"l2": -1.0}])
def test_bad_arguments(changes):
    with pytest.raises(ValueError, match="TangentKernel needs"):
        TangentKernel(**changes)


def test_other_losses_are_refused():
    with pytest.raises(ValueError, match="needs logits"):
        TangentKernel().fit(ridge())
