"""The same numbers on an accelerator, pretended or a GPU where there is one; mixed precision close to them anywhere."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from applications.defences import ActivationClustering, SpectralSignatures, TrainingLoss
from applications.poisoning import Sanitation, ThreatModel, chosen_label_flips, evaluate
from applications.unlearning import CertifiedRemoval, Deployed, GradDiff, NoisyDescent, ParameterUpdate, wasserstein
from estimators.ekfac import EKFAC
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.regression import Regression
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.tracin import GradDot
from recipe import (
    SGD,
    AdamW,
    Checkpoint,
    Greedy,
    Loss,
    MixedPrecision,
    Newton,
    Retrain,
    Setting,
    Stored,
    random_subsets,
    solve,
)
from recipe import batch as batches
from recipe.digits import flip_labels
from tests.estimators.test_conformance import STEPS
from tests.pretend import THERE, PretendedDevice
from tests.worlds import DOUBLE, ESTIMATORS, blobs, logistic, small_mlp, tasks

W = random_subsets(40, r=3, alpha=0.5, seed=0)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=gpu)])
def there(request):
    """An accelerator, and how often the CPU waited for it so far."""
    if request.param == "cuda":
        yield torch.device("cuda"), None
        return
    with PretendedDevice() as pretended:
        yield THERE, pretended.looks


def agree(actual, expected, rtol=1e-4, atol=1e-5):
    assert actual.device.type != "cpu"
    torch.testing.assert_close(actual.detach().cpu(), expected.detach(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "algorithm", [SGD(5, 8, 0.1), AdamW(5, 8, 0.01), Newton(l2=0.05)], ids=lambda a: type(a).__name__
)
def test_algorithms_train_the_same(algorithm, there):
    setting = replace(logistic(), algorithm=algorithm)
    agree(Retrain(replace(setting, device=there[0]), seeds=(0, 1))(W), Retrain(setting, seeds=(0, 1))(W), 1e-5, 1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_estimators_fit_the_same(estimator, there):
    setting = small_mlp() if isinstance(estimator, STEPS) else logistic()
    here, elsewhere = estimator.fit(setting), estimator.fit(replace(setting, device=there[0]))
    agree(elsewhere(W.to(there[0])), here(W))
    if not isinstance(estimator, Simfluence):  # which knows the outputs that it logged, and no others
        agree(elsewhere.on(output=Loss())(W.to(there[0])), here.on(output=Loss())(W))
    if here.effect is not None:
        added = batches.take(setting.pool, slice(0, 2))
        agree(elsewhere.effect(added), here.effect(added))


@pytest.mark.parametrize("index", range(4), ids=["select", "unlearn", "poison", "debug"])
def test_tasks_are_solved_the_same(index, there):
    setting = logistic(Loss())
    elsewhere = replace(setting, device=there[0])
    (task, solver), (its_task, _) = tasks(setting)[index], tasks(elsewhere)[index]
    here = solve(task, Influence().fit(setting), solver)
    solution = solve(its_task, Influence().fit(elsewhere), solver)
    torch.testing.assert_close(solution.decision.cpu(), here.decision, rtol=1e-4, atol=1e-5)
    agree(solution.outputs, here.outputs)


def test_a_selection_in_stages_is_the_same(there):
    setting, solver = logistic(Loss()), Greedy(refit=2)
    task = tasks(setting)[0][0]
    here = solve(task, Influence().fit(setting), solver, Influence(), setting)
    elsewhere = replace(setting, device=there[0])
    solution = solve(task, Influence().fit(elsewhere), solver, Influence(), elsewhere)
    assert torch.equal(solution.decision.cpu(), here.decision)


@pytest.mark.parametrize(
    "method",
    [ParameterUpdate(), CertifiedRemoval(seed=0), GradDiff(epochs=2, lr=0.05), NoisyDescent(epochs=1, lr=0.02)],
    ids=lambda method: type(method).__name__,
)
def test_models_forget_the_same(method, there):
    keep = torch.ones(40).index_fill(0, torch.tensor([0, 7, 33]), 0.0)

    def forgotten(setting):
        deployed = Deployed.trained(setting, NewtonStep())
        return setting.outputs(method.forget(deployed, method.start(deployed), keep).parameters)

    here, elsewhere = forgotten(logistic()), forgotten(replace(logistic(), device=there[0]))
    agree(elsewhere, here)
    agree(wasserstein(elsewhere.view(2, -1), elsewhere.view(2, -1) + 1), torch.ones(3, dtype=DOUBLE))


def test_poisons_are_made_and_caught_the_same(there):
    defences = {"loss": TrainingLoss(), "signatures": SpectralSignatures(), "clusters": ActivationClustering()}

    def attacked(setting):
        task = ThreatModel(4, passes=Sanitation()).task(setting)
        found = evaluate(setting, task, task.start[0], setting.probe, seeds=(0,), defences=defences)
        return torch.tensor([found.victims["poison"].loss.mean, *(d.poison for d in found.defences.values())])

    torch.testing.assert_close(attacked(replace(logistic(), device=there[0])), attacked(logistic()))
    here, elsewhere = logistic(Loss()), replace(logistic(Loss()), device=there[0])
    agree(chosen_label_flips(elsewhere, 3, Influence())[0], chosen_label_flips(here, 3, Influence())[0])
    agree(flip_labels(elsewhere.pool, 0.3, seed=0)[0][1], flip_labels(here.pool, 0.3, seed=0)[0][1])


def test_training_does_not_wait_at_every_step(there):
    """An epoch of many steps waits no more often than one of few."""
    device, looks = there

    def waits(batch_size: int) -> int:
        setting = replace(small_mlp(), algorithm=SGD(1, batch_size, 0.1), device=device)
        Retrain(setting)(torch.ones(40))  # what only the first call does
        if looks is not None:
            before = looks.total()
            Retrain(setting, seeds=(1,))(torch.ones(40))
            return looks.total() - before
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            Retrain(setting, seeds=(1,))(torch.ones(40))
        return sum(e.count for e in profiled.key_averages() if "Synchronize" in e.key or "_local_scalar" in e.key)

    assert waits(batch_size=1) <= waits(batch_size=20)


@pytest.mark.parametrize("estimator", [Influence(), EKFAC(), GradDot(), Similarity()], ids=lambda e: type(e).__name__)
def test_effects_do_not_wait_for_every_example(estimator):
    def waits(n: int) -> int:
        with PretendedDevice() as pretended:
            universe, targets = blobs(n)
            f_hat = estimator.fit(replace(small_mlp(), universe=universe, targets=targets, device=THERE))
            before = pretended.looks.total()
            f_hat.effect(universe) if f_hat.effect is not None else f_hat.effects
            return pretended.looks.total() - before

    assert waits(160) <= waits(40)


def test_effects_on_disk_are_used_there(tmp_path, there):
    setting = replace(logistic(), device=there[0])
    for name, estimator in (("blocks", EKFAC()), ("whole", Regression(subsets=10))):
        f_hat = Stored(estimator, tmp_path / name).fit(setting)
        agree(f_hat(W.to(there[0])), estimator.fit(logistic())(W), 1e-4, 1e-4)


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
