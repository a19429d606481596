"""TRAK against its closed formula, influence functions where the margin says all, and the paper's average."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from estimators import _projected, trak
from estimators._ensemble import members
from estimators.influence import Influence
from estimators.trak import TRAK
from recipe import SGD, Checkpoint, Correct, CrossEntropy, Loss, Margin, Newton, Setting, SquaredError, calculus
from recipe import batch as batches
from tests.estimators.test_projections import uncovered
from tests.recipe.test_layers import WORLDS
from tests.worlds import DOUBLE, blobs, logistic, ridge, small_mlp

N = 40


def two_classes(output=Margin(), **changes) -> Setting:
    universe, targets = blobs()
    universe, targets = ((x, (y == 0).long()) for x, y in (universe, targets))
    return Setting(lambda: nn.Linear(2, 2).double(), universe, targets, Newton(l2=0.05), output=output, **changes)


def one_logit(prediction: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    return F.binary_cross_entropy_with_logits(prediction[:, 0], batch[-1].to(prediction), reduction="none")


def logit(prediction: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    return prediction[:, 0]


def binary() -> Setting:
    """One logit with a loss that the recipe does not know."""
    (x, y), (tx, ty) = blobs()
    data = ((x, (y == 0).long()), (tx, (ty == 0).long()))
    return Setting(lambda: nn.Linear(2, 1).double(), *data, Newton(l2=0.05), loss=one_logit, output=logit)


EXACT = {"two classes": two_classes(), "their losses": two_classes(Loss()), "ridge": ridge(), "one logit": binary()}


@pytest.mark.parametrize("setting", EXACT.values(), ids=EXACT)
def test_without_a_projection_it_is_influence_where_the_margin_says_all(setting):
    """Sign, scale and unit: influence is pinned by retraining."""
    weights = torch.rand(setting.n, dtype=DOUBLE)
    for at in (None, (weights, batches.take(setting.pool, slice(0, 3)))):
        torch.testing.assert_close(TRAK().fit(setting, at).effects, Influence().fit(setting, at).effects)
        torch.testing.assert_close(TRAK().fit(setting, at).bias, Influence().fit(setting, at).bias)


def _margins(setting: Setting, theta, batch) -> tuple[Tensor, Tensor]:
    """Gradients of the margins by autograd, one after the other, and the probabilities."""
    model, rows = setting.module(theta), []
    for x, y in zip(*batch, strict=True):
        p = model(x).softmax(0)[y]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad((p / (1 - p)).log(), model.parameters())]))
    with torch.no_grad():
        return torch.stack(rows), model(batch[0]).softmax(1).gather(1, batch[1][:, None])[:, 0]


def test_closed_formula():
    setting = logistic()
    theta = members(setting, 1, 0)[0]
    phi, p = _margins(setting, theta, setting.pool)
    psi, _ = _margins(setting, theta, setting.probe)
    kernel = (phi * (p * (1 - p))[:, None]).T @ phi / N + (0.05 + 0.1) * torch.eye(9, dtype=DOUBLE)
    moves = (1 - p)[:, None] * phi - 0.05 * setting.flat(theta)
    expected = psi @ torch.linalg.solve(kernel, moves.T) / N
    torch.testing.assert_close(TRAK(damping=0.1).fit(setting).effects, expected)


def test_the_papers_kernel():
    setting = logistic()
    theta = members(setting, 1, 0)[0]
    phi, p = _margins(setting, theta, setting.pool)
    psi, _ = _margins(setting, theta, setting.probe)
    lengths = phi.square().sum(1)
    mean = (p * (1 - p) * lengths).sum() / lengths.sum()
    paper = psi @ torch.linalg.pinv(phi.T @ phi) @ phi.T * (1 - p)  # margins leave three directions out: rank 6 of 9
    f_hat = TRAK(reweighted=False, damping=1e-9).fit(setting)
    torch.testing.assert_close(f_hat.effects, paper / mean, rtol=1e-5, atol=1e-7)


def test_an_ensemble_averages_kernels_and_probabilities_apart():
    setting = small_mlp()
    points = [Checkpoint(setting.initial(seed), member=seed) for seed in (0, 1)]
    estimator = TRAK(reweighted=False, damping=0.1)
    products, residuals = [], []
    for point in points:
        p = (-setting.losses(point.parameters, setting.pool)).exp()
        residuals.append(1 - p)
        products.append(estimator.fit(replace(setting, checkpoints=(point,))).effects / (1 - p))
    both = estimator.fit(replace(setting, checkpoints=tuple(points))).effects
    torch.testing.assert_close(both, torch.stack(products).mean(0) * torch.stack(residuals).mean(0))


@pytest.mark.parametrize("estimator", [TRAK(dimension=20), TRAK(dimension=20, reweighted=False)], ids=repr)
def test_more_dimensions_come_closer_to_all(estimator):
    setting = small_mlp()
    setting = replace(setting, checkpoints=(Checkpoint(members(setting, 1, 0)[0]),))
    exact = replace(estimator, dimension=setting.p, damping=0.1).fit(setting).effects
    errors = [
        (replace(estimator, dimension=k, damping=0.1, seed=seed).fit(setting).effects - exact).norm()
        for k in (5, 45)
        for seed in (0, 1)
    ]
    assert sum(errors[2:]) < 0.7 * sum(errors[:2])


def test_features_that_are_not_kept_give_the_same(monkeypatch):
    setting = small_mlp()
    kept = TRAK(dimension=10, models=2).fit(setting)
    monkeypatch.setattr(_projected, "KEPT_BYTES", 0)
    streamed = TRAK(dimension=10, models=2).fit(setting)
    torch.testing.assert_close(streamed.effects, kept.effects)
    torch.testing.assert_close(streamed.on(output=Loss()).effects, kept.on(output=Loss()).effects)


def test_on_computes_nothing_of_the_universe_again(monkeypatch):
    setting = small_mlp()
    f_hat = TRAK(dimension=10).fit(setting)
    monkeypatch.setattr(trak._Margin, "features", None)
    monkeypatch.setattr(trak, "members", None)
    f_hat.on(batches.take(setting.pool, slice(0, 2)))


def test_models_without_known_layers():
    setting = uncovered()
    f_hat = TRAK(dimension=5, damping=0.1).fit(setting)
    few = torch.tensor([2, 0])
    torch.testing.assert_close(f_hat.effect(batches.take(setting.pool, few)), f_hat.effects[:, few])


def test_effect_is_differentiable_in_the_inputs():
    f_hat = TRAK(dimension=10, models=2).fit(small_mlp())
    x = small_mlp().pool[0][:2].clone().requires_grad_()
    assert gradcheck(lambda x: f_hat.effect((x, torch.tensor([0, 2]))), (x,))


def test_a_sequences_number_is_a_shift_of_its_margins():
    """Its loss's derivatives are those along the labels' logits, which shift every margin by as much."""
    z, y = torch.randn(3, 4, 5, dtype=DOUBLE), torch.tensor([[0, 1, 2, -100], [1, -100, -100, -100], [4, 3, 0, 1]])
    up = F.one_hot(y.clamp_min(0), 5).to(z)
    margin, labelled = trak._LogOdds(logistic()), (z, y)
    torch.testing.assert_close(margin(z + 0.5 * up, labelled), margin(z, labelled) + 0.5)

    def slope(shift: Tensor) -> Tensor:
        return torch.func.grad(lambda s: CrossEntropy()(z + s[:, None, None] * up, labelled).sum())(shift)

    zero = torch.zeros(3, dtype=DOUBLE)
    residual, curvature = margin.derivatives(z, labelled)
    torch.testing.assert_close(residual, -slope(zero))
    torch.testing.assert_close(curvature, torch.func.grad(lambda s: slope(s).sum())(zero))
    nothing = (z, torch.full_like(y, -100))
    assert all(float(t.abs().max()) == 0 for t in (margin(z, nothing), *margin.derivatives(z, nothing)))


def test_a_sequences_loss_is_a_function_of_its_margins():
    setting = WORLDS["text"].on(output=Loss())
    f_hat = TRAK(dimension=10, damping=0.1).fit(setting)
    z = setting.predict(members(setting, 1, 0)[0], setting.probe)
    wrong = 1 - z.softmax(-1).gather(-1, setting.probe[1].unsqueeze(-1)).squeeze(-1).mean(1)
    torch.testing.assert_close(f_hat.effects, -wrong[:, None] * f_hat.on(output=Margin()).effects)


@dataclass(frozen=True)
class _Untrainable(SGD):
    def train_many(self, *args, **kwargs):
        raise AssertionError("trained before the arguments were checked")


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (TRAK(dimension=0), "at least one dimension; got dimension=0"),
        (TRAK(dimension=45, reweighted=False), r"40 training points in 45 dimensions.*fewer dimensions"),
        (TRAK(dimension=45, damping=0.0), r"40 training points in 45 dimensions.*damping"),
    ],
    ids=repr,
)
def test_what_cannot_work_is_said_before_training(estimator, message):
    setting = replace(small_mlp(), algorithm=_Untrainable(epochs=1, batch_size=8, lr=0.1))
    with pytest.raises(ValueError, match=message):
        estimator.fit(setting)


def test_a_kernel_without_full_rank_is_refused():
    with pytest.raises(ValueError, match=r"rank 6 of 9 in torch.float64\. Project to fewer dimensions.*damping="):
        TRAK(reweighted=False).fit(logistic())


def test_points_without_a_gradient_are_counted():
    """A dead layer: no input reaches the second."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    nn.init.constant_(model[0].weight, 1.0)
    x = torch.randn(20, 2, dtype=DOUBLE).abs()
    x[:7] *= -1
    data = (x, torch.arange(20) % 3)
    algorithm = SGD(epochs=1, batch_size=20, lr=1e-6)
    with pytest.raises(ValueError, match="and 7 points have no gradient at all"):
        TRAK(reweighted=False).fit(Setting(model, data, data, algorithm))


def test_without_weight_decay_a_tenth_of_the_mean_eigenvalue():
    setting = replace(small_mlp(), algorithm=replace(small_mlp().algorithm, weight_decay=0.0))
    theta = members(setting, 1, 0)[0]
    phi, p = _margins(setting, theta, setting.pool)
    psi, _ = _margins(setting, theta, setting.probe)
    kernel = (phi * (p * (1 - p))[:, None]).T @ phi / N
    kernel = kernel + 0.1 * kernel.diagonal().mean() * torch.eye(setting.p, dtype=DOUBLE)
    expected = psi @ torch.linalg.solve(kernel, phi.T) * (1 - p) / N
    torch.testing.assert_close(TRAK().fit(setting).effects, expected)


def test_gradients_that_are_not_finite_are_counted():
    setting = small_mlp()
    x = setting.pool[0].clone()
    x[[3, 5]] = 1e308
    broken = replace(setting, universe=(x, setting.pool[1]), checkpoints=(Checkpoint(setting.initial(0)),))
    with pytest.raises(ValueError, match="gradients of 2 training points are not finite"):
        TRAK(dimension=5).fit(broken)


def test_losses_of_many_numbers_are_refused():
    data = (torch.randn(6, 2), torch.randn(6, 3))
    with pytest.raises(ValueError, match=r"predictions of the shape \(3,\).*LoGra"):
        TRAK().fit(Setting(lambda: nn.Linear(2, 3), data, data, Newton(), SquaredError(), output=Loss()))


def test_outputs_without_a_gradient_are_refused():
    with pytest.raises(ValueError, match="gradient of Correct"):
        TRAK().fit(logistic(Correct()))


def test_gradients_of_margins_are_those_of_losses_over_the_residual():
    """What makes the paper's formula an influence function."""
    setting = small_mlp()
    theta = setting.initial(0)
    phi, p = _margins(setting, theta, setting.pool)
    torch.testing.assert_close(-(1 - p)[:, None] * phi, calculus.loss_gradients(setting, theta, setting.pool))
