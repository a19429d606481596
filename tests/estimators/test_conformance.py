"""What every estimator promises, checked against retraining. A new estimator is one line in `tests/worlds.py`.

Four are held elsewhere, since these worlds do not suit them: `BM25` wants texts (its own tests run this suite on some),
`ExactShapley` a dozen points, `GradientMatching` answers for added data alone, and `Unrolled` is retraining itself.
"""

from dataclasses import replace

import pytest
import torch
from torch.autograd.functional import jacobian

from estimators.banzhaf import Banzhaf
from estimators.data_shapley import DataShapley
from estimators.empirical_influence import EmpiricalInfluence
from estimators.influence import Influence
from estimators.kernel_regression import KernelRegression
from estimators.knn import KNN
from estimators.knn_shapley import KNNShapley
from estimators.last_layer import LastLayer
from estimators.less import LESS
from estimators.magic import MAGIC
from estimators.random import Random
from estimators.regression import Regression
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.source import SOURCE
from estimators.tangent_kernel import TangentKernel
from estimators.tracin import GradDot, TracIn
from recipe import Calibrated, Hessian, LiSSA, Loss, Newton, Objective, Retrain, TopMargin, random_subsets
from recipe import batch as batches
from tests.worlds import CONVEX_SETTINGS, DOUBLE, ESTIMATORS, SETTINGS, TANGENT, logistic, ridge

DRAWN = (Regression, KernelRegression, EmpiricalInfluence, Banzhaf, DataShapley)  # subsets, by the position of points
STEPS = (MAGIC, TracIn, GradDot, SOURCE, Simfluence, LESS)  # of a run by SGD or AdamW
CLASSIFIERS = {name: s for name, s in SETTINGS.items() if name != "ridge"}


def effects(f_hat):
    """The gradient in the weights at full weights, `(m, n)`: what `effects` holds for a linear datamodel."""
    return jacobian(f_hat, torch.ones(f_hat.n, dtype=DOUBLE))


def suited(estimator, setting):
    """The estimator with what this world needs, or a skip."""
    if isinstance(estimator, (Similarity, KNN, KNNShapley, TangentKernel)) and setting not in CLASSIFIERS.values():
        pytest.skip("compares classes; this world is a regression")
    if isinstance(estimator, STEPS) and isinstance(setting.algorithm, Newton):
        pytest.skip("follows the steps of a run; this world is solved exactly")
    if setting is SETTINGS["mlp"] and getattr(estimator, "curvature", None) == Hessian():
        return replace(estimator, damping=1.0)  # the Hessian of a network is indefinite
    if setting is SETTINGS["mlp"] and isinstance(getattr(estimator, "inverse", None), LiSSA):
        return replace(estimator, damping=1.0)  # without, the series takes more than a thousand products
    return estimator


@pytest.mark.parametrize("setting", CONVEX_SETTINGS.values(), ids=CONVEX_SETTINGS)
@pytest.mark.parametrize("estimator", TANGENT, ids=repr)
def test_gradient_in_the_weights_is_that_of_retraining(estimator, setting):
    """Pins sign and scale: d f_hat[j] / d w[i] at w = 1 is a central difference of retraining."""
    f_hat, f = estimator.fit(setting), Retrain(setting)
    ones, h = torch.ones(setting.n, dtype=DOUBLE), 1e-4
    steps = h * torch.eye(setting.n, dtype=DOUBLE)
    retrained = ((f(ones + steps) - f(ones - steps)) / (2 * h)).T  # (m, n)
    torch.testing.assert_close(effects(f_hat), retrained, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("setting", CONVEX_SETTINGS.values(), ids=CONVEX_SETTINGS)
@pytest.mark.parametrize("estimator", TANGENT, ids=repr)
def test_gradient_in_added_inputs_is_that_of_retraining(estimator, setting):
    """Pins what poisoning needs: the derivative of the outputs in an added example, and its value, to first order.

    An added example has weight 1, which is no small step, so the linearisation is taken where it is added already.
    """
    added = batches.take(setting.pool, slice(0, 1))
    at = (torch.ones(setting.n, dtype=DOUBLE), added)
    f_hat, f = estimator.fit(setting, at), Retrain(setting)

    def outputs(function, x):
        return function(at[0], (x, *added[1:]))

    predicted = jacobian(lambda x: outputs(f_hat, x), added[0])[:, 0]  # (m, d)
    h = 1e-4
    steps = h * torch.eye(added[0].shape[1], dtype=DOUBLE)
    retrained = torch.stack([outputs(f, added[0] + e) - outputs(f, added[0] - e) for e in steps], 1) / (2 * h)
    torch.testing.assert_close(predicted, retrained, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(f_hat(*at), f(*at), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", TANGENT, ids=repr)
def test_follows_leave_one_out_retraining(estimator):
    setting = logistic()
    f_hat, f = estimator.fit(setting), Retrain(setting)
    weights = 1 - torch.eye(setting.n, dtype=DOUBLE)
    predicted, actual = f_hat(weights) - f_hat(weights[0] * 0 + 1), f(weights) - f(torch.ones(setting.n))
    assert torch.corrcoef(torch.stack([predicted.flatten(), actual.flatten()]))[0, 1] > 0.98


def test_newton_step_is_exact_on_a_quadratic():
    setting = ridge()
    f_hat, f = TANGENT[3].fit(setting), Retrain(setting)
    weights = random_subsets(setting.n, r=10, alpha=0.4, seed=0).double()
    torch.testing.assert_close(f_hat(weights), f(weights))
    poisons = (3 * torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, 1, dtype=DOUBLE))
    torch.testing.assert_close(f_hat(weights[0], poisons), f(weights[0], poisons))


def test_newton_step_predicts_subsets_better_than_the_tangent():
    setting = logistic()
    f, weights = Retrain(setting), random_subsets(setting.n, r=20, alpha=0.8, seed=0)
    tangent, step = TANGENT[0].fit(setting), TANGENT[3].fit(setting)
    assert (step(weights) - f(weights)).abs().mean() < 0.5 * (tangent(weights) - f(weights)).abs().mean()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_effect_of_a_known_point_is_its_column(estimator, setting):
    estimator = suited(estimator, setting)
    f_hat = estimator.fit(setting)
    if f_hat.effect is None:
        pytest.skip("not linear, or does not value added examples")
    if isinstance(estimator, LastLayer):
        pytest.skip("takes whole steps of a weight: a point's second copy is worth less than its first")
    if isinstance(estimator, Regression):
        pytest.skip("values added examples by its prior alone: retraining corrects the points of the universe")
    index = torch.tensor([3, 0, 7])
    torch.testing.assert_close(f_hat.effect(batches.take(setting.pool, index)), f_hat.effects[:, index])


@pytest.mark.parametrize("estimator", [*TANGENT, Similarity()], ids=repr)
def test_added_examples_are_checked(estimator):
    setting = logistic()
    f_hat, (x, y) = estimator.fit(setting), batches.take(setting.pool, slice(0, 2))
    with pytest.raises(ValueError, match=r"added examples must lie in 0\.\.2"):
        f_hat(torch.ones(40), (x, y + 7))
    with pytest.raises(ValueError, match="must look like the universe"):
        f_hat(torch.ones(40), (x[:, :1], y))
    torch.testing.assert_close(f_hat(torch.ones(40), (x.float(), y)), f_hat(torch.ones(40), (x, y)), atol=1e-5, rtol=0)


def test_influence_on_an_algorithm_that_minimises_a_sum():
    """Without the division by the weights, leaving a point out is the derivative's experiment all the same."""
    mean = logistic()

    class Sum(Newton):
        objective = Objective(l2=0.05 * 40, mean=False)

        def train_many(self, setting, weights, seeds, added=None):
            stacked = []
            for w in weights:  # sum w l + l2/2 |theta|^2 has the minimum of the mean with l2 / sum w
                exact = Newton(l2=float(self.objective.l2 / w.sum()))
                stacked.append(exact.train(replace(setting, algorithm=exact), w, 0))
            return {name: torch.stack([s[name] for s in stacked]) for name in stacked[0]}

    setting = replace(mean, algorithm=Sum())
    f_hat, f = Influence().fit(setting), Retrain(setting)
    h, ones = 1e-4 * torch.eye(40, dtype=DOUBLE), torch.ones(40, dtype=DOUBLE)
    torch.testing.assert_close(effects(f_hat), ((f(ones + h) - f(ones - h)) / 2e-4).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_agrees_with_itself(estimator, setting):
    """Sizes, batched weights, determinism, other targets, and the record of where the datamodel comes from."""
    estimator = suited(estimator, setting)
    f_hat = estimator.fit(setting)
    assert (f_hat.n, f_hat.m, f_hat.output_shape) == (setting.n, setting.m, setting.output_shape)
    weights = random_subsets(setting.n, r=4, alpha=0.5, seed=1).double().view(2, 2, -1)
    torch.testing.assert_close(f_hat(weights)[1, 0], f_hat(weights[1, 0]))
    assert torch.equal(f_hat(weights), estimator.fit(setting)(weights))
    assert f_hat.origin.estimator == estimator
    assert f_hat.origin.setting is setting


@pytest.mark.parametrize("setting", CLASSIFIERS.values(), ids=CLASSIFIERS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_on_other_targets_is_a_fit_to_them(estimator, setting):
    """`f.on` measures the same training: nothing else may change."""
    estimator = suited(estimator, setting)
    if isinstance(estimator, Simfluence):
        pytest.skip("other outputs need other logs")
    targets = batches.take(setting.pool, slice(0, 4))
    other = estimator.fit(setting).on(targets, TopMargin())
    weights = random_subsets(setting.n, r=3, alpha=0.9, seed=1).double()
    torch.testing.assert_close(other(weights), estimator.fit(setting.on(targets, TopMargin()))(weights))
    assert other.origin.setting.output == TopMargin()


@pytest.mark.parametrize(
    "estimator", [e for e in ESTIMATORS if not isinstance(e, (*DRAWN, *STEPS, Calibrated, Random))], ids=repr
)
def test_permuted_data_permute_effects(estimator):
    setting = logistic()
    order = torch.randperm(setting.n)
    permuted = replace(setting, universe=batches.take(setting.pool, order))
    torch.testing.assert_close(effects(estimator.fit(permuted)), effects(estimator.fit(setting))[:, order])


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_predicts_the_trained_model_at_full_weights(estimator):
    """Where the tangent touches; regression and calibration extrapolate there and random knows nothing."""
    setting = SETTINGS["mlp"]
    if isinstance(estimator, (*DRAWN, Calibrated, Random, Simfluence)):
        pytest.skip("does not look at the fully trained model")
    estimator = suited(estimator, setting)
    actual = Retrain(setting)(torch.ones(setting.n))
    torch.testing.assert_close(estimator.fit(setting)(torch.ones(setting.n, dtype=DOUBLE)), actual)


@pytest.mark.parametrize("estimator", [TANGENT[1], TANGENT[4]], ids=repr)
def test_parameters_give_the_outputs(estimator):
    """Predicted parameters, put into the model, move the outputs as predicted: exactly, or to first order."""
    setting = logistic()
    f_hat = estimator.fit(setting)
    weights = torch.ones(setting.n, dtype=DOUBLE)
    weights[4] = 1 + 1e-4
    theta = {name: t[0] for name, t in f_hat.parameters(weights).items()}
    torch.testing.assert_close(setting.outputs(theta), f_hat(weights), rtol=0, atol=1e-8)
    moved = setting.flat(theta) - setting.flat({k: t[0] for k, t in f_hat.parameters(weights * 0 + 1).items()})
    assert moved.norm() > 1e-7


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if not isinstance(e, (*STEPS, Random))], ids=repr)
def test_margins_and_losses_have_opposite_signs(estimator):
    """What raises a margin lowers the loss of the same target, in total over the training points' own classes."""
    margins, losses = (effects(estimator.fit(logistic(output))) for output in (TopMargin(), Loss()))
    assert torch.corrcoef(torch.stack([margins.flatten(), losses.flatten()]))[0, 1] < -0.5


@pytest.mark.parametrize("estimator", [TANGENT[0], TANGENT[2]], ids=repr)
def test_ensembles_average_members(estimator):
    setting = SETTINGS["mlp"]
    estimator = suited(estimator, setting)
    both = replace(estimator, models=2, seed=5).fit(setting)
    single = [replace(estimator, seed=s).fit(setting) for s in (5, 6)]
    torch.testing.assert_close(both.effects, (single[0].effects + single[1].effects) / 2)
    assert not torch.allclose(single[0].effects, single[1].effects)
