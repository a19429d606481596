"""Methods against retraining; every one of them changes the model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from applications.unlearning import (
    SCRUB,
    CertifiedRemoval,
    DatamodelMatching,
    Deployed,
    DoNothing,
    FineTune,
    GradAscent,
    GradDiff,
    NoisyDescent,
    OracleMatching,
    ParameterUpdate,
    RetrainFromScratch,
    stream,
)
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from recipe import SGD, AdamW, DivergedError, Logits, Retrain
from tests.worlds import blobs, logistic, ridge, small_mlp

RULE = SGD(epochs=100, batch_size=16, lr=0.2, momentum=0.9)
LOGISTIC, MLP = logistic(), small_mlp()
FORGET = torch.tensor([0, 7, 14, 33])
KEEP = torch.ones(40).index_fill(0, FORGET, 0.0)

BASELINES = [
    FineTune(SGD(epochs=2, batch_size=8, lr=0.1)),
    GradAscent(epochs=3, lr=0.05),
    GradDiff(epochs=3, lr=0.05),
    SCRUB(epochs=3, ascent=2, lr=1e-2, batch_size=8),
    NoisyDescent(epochs=1, lr=0.02, batch_size=8),
]
METHODS = [
    *BASELINES,
    DatamodelMatching(replace(RULE, epochs=20)),
    OracleMatching(Retrain(MLP, range(3)), replace(RULE, epochs=20)),
    RetrainFromScratch(),
]


@pytest.fixture(scope="module")
def mlp():
    return Deployed.trained(MLP, Influence(damping=0.1, models=2))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_method_changes_the_model_and_not_the_deployed_one(method, mlp):
    before = MLP.flat(mlp.parameters).clone()
    after = method.unlearn(mlp, KEEP)
    assert (MLP.flat(after) - before).abs().max() > 1e-4
    torch.testing.assert_close(MLP.flat(mlp.parameters), before)
    assert not any(t.requires_grad for t in after.values())
    torch.testing.assert_close(MLP.flat(method.unlearn(mlp, KEEP)), MLP.flat(after))  # one seed repeats


def test_doing_nothing_does_nothing(mlp):
    assert torch.equal(MLP.flat(DoNothing().unlearn(mlp, KEEP)), MLP.flat(mlp.parameters))


@pytest.mark.parametrize("method", BASELINES[1:4], ids=lambda m: type(m).__name__)
def test_ascent_raises_the_loss_of_the_forget_set(method, mlp):
    def loss(theta):
        return MLP.losses(theta, tuple(t[FORGET] for t in MLP.pool)).mean()

    assert loss(method.unlearn(mlp, KEEP)) > loss(mlp.parameters)


def test_fine_tuning_and_noise_descend_on_what_is_retained(mlp):
    rest = tuple(t[KEEP.bool()] for t in MLP.pool)
    for method in (FineTune(SGD(epochs=20, batch_size=8, lr=0.1)), NoisyDescent(epochs=20, lr=0.1, noise=1e-4)):
        assert MLP.losses(method.unlearn(mlp, KEEP), rest).mean() < MLP.losses(mlp.parameters, rest).mean()


def test_noise_has_the_size_that_was_asked_for(mlp):
    quiet, loud = (NoisyDescent(epochs=1, lr=1e-4, noise=s, batch_size=40).unlearn(mlp, KEEP) for s in (1e-9, 10.0))
    assert float((MLP.flat(loud) - MLP.flat(quiet)).std()) == pytest.approx((2e-4) ** 0.5 * 10, rel=0.3)


def test_ascent_that_diverges_says_so(mlp):
    with pytest.raises(DivergedError, match="not finite; lower its learning rate"):
        GradAscent(epochs=50, lr=1e308).unlearn(mlp, KEEP)


def error(setting, theta):
    """Mean error of the logits on the pool to those of the retrained model."""
    oracle = Retrain(setting.on(setting.pool, Logits()))(KEEP)
    return float((setting.on(setting.pool, Logits()).outputs(theta) - oracle).abs().mean())


def test_steps_and_matching_come_near_the_retrained_model():
    """Newton << influence < doing nothing; matching comes near what it matches."""
    deployed = Deployed.trained(LOGISTIC)
    newton = error(LOGISTIC, ParameterUpdate().unlearn(deployed.fitted(NewtonStep()), KEEP))
    influence = error(LOGISTIC, ParameterUpdate().unlearn(deployed.fitted(Influence()), KEEP))
    matched = error(LOGISTIC, DatamodelMatching(RULE).unlearn(deployed.fitted(NewtonStep()), KEEP))
    oracle = error(LOGISTIC, OracleMatching(Retrain(LOGISTIC), RULE).unlearn(deployed, KEEP))
    nothing = error(LOGISTIC, deployed.parameters)
    assert newton < 0.2 * nothing
    assert newton < influence < 0.5 * nothing
    assert matched < 0.3 * nothing
    assert oracle < 0.2 * nothing
    assert error(LOGISTIC, RetrainFromScratch().unlearn(deployed, KEEP)) < 1e-8


def test_a_step_of_other_models_is_refused(mlp):
    with pytest.raises(ValueError, match=r"of 2 other model\(s\). Use deployed.fitted"):
        ParameterUpdate().unlearn(mlp, KEEP)
    other = Deployed.trained(MLP, Influence(damping=0.1, seed=3))
    with pytest.raises(ValueError, match="holds for the model that it was computed for"):
        ParameterUpdate().unlearn(other, KEEP)


def test_logits_of_another_number_of_classes(mlp):
    four = replace(LOGISTIC, model=lambda: nn.Linear(2, 4).double())
    with pytest.raises(ValueError, match=r"shape \(16, 4\) where the deployed model has \(16, 3\)"):
        DatamodelMatching(AdamW(epochs=1, batch_size=8, lr=1e-3)).unlearn(
            Deployed(MLP, mlp.parameters, Influence().fit(four)), KEEP
        )


# ---- certified removal -----------------------------------------------------------------------------------------------
def many_blobs():
    return replace(LOGISTIC, universe=blobs(n=1100, seed=1)[0])


def test_the_residual_never_exceeds_its_bound_in_a_thousand_requests():
    """Budget as published: spent sums up, and what would leave the budget trains anew, with a residual of zero."""
    setting, method = many_blobs(), CertifiedRemoval(noise=0.1, seed=0)
    deployed = Deployed(setting, setting.initial(0))
    now, keep = method.start(deployed), torch.ones(1100)
    ratios, retrained = [], 0
    for forget in stream(1100, 1000, 1, seed=3):
        before, keep = now, keep.index_fill(0, forget, 0.0)
        now = method.forget(deployed, now, keep)
        assert now.residual <= now.spent <= method.budget
        if now.retrainings > before.retrainings:
            retrained += 1
            assert now.residual < 1e-9
            assert not torch.equal(now.b, before.b)
        else:
            assert now.spent > before.spent
            ratios.append(now.residual / now.spent)
    assert retrained == now.retrainings > 0
    assert max(ratios) > 1e-4  # the bound is not idle
    assert now.report["epsilon"] == 1.0


def test_certified_removal_is_near_training_on_the_same_perturbed_objective():
    setting, method = many_blobs(), CertifiedRemoval(noise=5.0, seed=0)
    deployed = Deployed(setting, setting.initial(0))
    keep = torch.ones(1100).index_fill(0, torch.arange(20), 0.0)
    start = method.start(deployed)
    now = method.forget(deployed, start, keep)
    truth = now.objective.minimum(keep.double(), start.b)
    assert (now.theta - truth).norm() < 0.02 * (start.theta - truth).norm()
    torch.testing.assert_close(setting.flat(now.parameters), now.theta)


def test_a_quadratic_loss_costs_no_budget():
    setting, method = ridge(), CertifiedRemoval(seed=0)
    deployed = Deployed(setting, setting.initial(0))
    now = method.forget(deployed, method.start(deployed), torch.ones(30).index_fill(0, torch.tensor([3]), 0.0))
    assert now.spent < 1e-9
    assert now.residual < 1e-9


def test_noise_without_a_seed_is_nobodys():
    deployed = Deployed(LOGISTIC, LOGISTIC.initial(0))
    assert not torch.equal(CertifiedRemoval().start(deployed).b, CertifiedRemoval().start(deployed).b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CertifiedRemoval().start(Deployed(MLP, MLP.initial(0))), "linear in their parameters.*Freeze"),
        (
            lambda: CertifiedRemoval().start(Deployed(logistic(l2=0.0), LOGISTIC.initial(0))),
            "needs a mean loss with weight decay",
        ),
        (
            lambda: CertifiedRemoval().start(
                Deployed(replace(LOGISTIC, loss=lambda z, b: z.square().sum(1)), LOGISTIC.initial(0))
            ),
            "pass gamma=",
        ),
        (lambda: CertifiedRemoval(delta=1.0), "0 < delta < 1"),
        (
            lambda: CertifiedRemoval().forget(
                Deployed(LOGISTIC, LOGISTIC.initial(0)),
                DoNothing().start(Deployed(LOGISTIC, LOGISTIC.initial(0))),
                KEEP,
            ),
            "begin with method.start",
        ),
    ],
)
def test_certificates_that_cannot_be_given(make, message):
    with pytest.raises(ValueError, match=message):
        make()
