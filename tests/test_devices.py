"""The same numbers on a GPU, where there is one; mixed precision close to them anywhere."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from estimators.ekfac import EKFAC
from estimators.influence import Influence
from estimators.regression import Regression
from estimators.tracin import GradDot
from recipe import SGD, AdamW, Checkpoint, MixedPrecision, Newton, Retrain, Setting, Stored, random_subsets
from tests.worlds import ESTIMATORS, blobs, logistic, small_mlp

W = random_subsets(40, r=3, alpha=0.5, seed=0)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.parametrize(
    "algorithm", [SGD(5, 8, 0.1), AdamW(5, 8, 0.01), Newton(l2=0.05)], ids=lambda a: type(a).__name__
)
def test_algorithms_train_the_same_on_a_gpu(algorithm):
    setting = replace(logistic(), algorithm=algorithm)
    there = Retrain(replace(setting, device="cuda"), seeds=(0, 1))(W)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), Retrain(setting, seeds=(0, 1))(W), rtol=1e-5, atol=1e-6)


@gpu
@pytest.mark.parametrize("estimator", {type(e): e for e in ESTIMATORS}.values(), ids=lambda e: type(e).__name__)
def test_estimators_fit_the_same_on_a_gpu(estimator):
    setting = logistic()
    there = estimator.fit(replace(setting, device="cuda"))(W.cuda())
    torch.testing.assert_close(there.cpu(), estimator.fit(setting)(W), rtol=1e-4, atol=1e-5)


@gpu
def test_training_does_not_wait_for_the_gpu_at_every_step():
    """An epoch of many steps waits no more often than one of few."""

    def waits(batch_size: int) -> int:
        setting = replace(small_mlp(), algorithm=SGD(1, batch_size, 0.1), device="cuda")
        Retrain(setting)(torch.ones(40))  # what only the first call does
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            Retrain(setting, seeds=(1,))(torch.ones(40))
        return sum(e.count for e in profile.key_averages() if "Synchronize" in e.key or "_local_scalar" in e.key)

    assert waits(batch_size=1) <= waits(batch_size=20)


@gpu
def test_effects_on_disk_are_used_on_a_gpu(tmp_path):
    there = replace(logistic(), device="cuda")
    for name, estimator in (("blocks", EKFAC()), ("whole", Regression(subsets=10))):
        f_hat = Stored(estimator, tmp_path / name).fit(there)
        expected = estimator.fit(there)(W.cuda())
        assert f_hat(W.cuda()).device.type == "cuda"
        torch.testing.assert_close(f_hat(W.cuda()), expected, rtol=1e-4, atol=1e-4)


def single() -> Setting:
    (x, y), (u, v) = blobs()
    model = lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))  # noqa: E731
    return Setting(model, (x.float(), y), (u.float(), v), SGD(10, 8, 0.1, momentum=0.9))


def test_mixed_precision_trains_nearly_the_same():
    full = Retrain(single(), seeds=(0, 1))(W)
    mixed = Retrain(replace(single(), forward=MixedPrecision()), seeds=(0, 1))(W)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, full)
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("estimator", [Influence(damping=0.1), EKFAC(), GradDot()], ids=repr)
def test_effects_are_taken_in_full_precision(estimator):
    theta = tuple(Checkpoint(t, lr=0.1, step=1) for t in [single().algorithm.train(single(), torch.ones(40), 0)])
    full = estimator.fit(replace(single(), checkpoints=theta)).effects
    mixed = estimator.fit(replace(single(), checkpoints=theta, forward=MixedPrecision())).effects
    torch.testing.assert_close(mixed, full)
