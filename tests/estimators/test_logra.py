"""LoGra against the exact blocks of the curvature, and its features against the gradients."""

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from estimators import _projected, _projections
from estimators._ensemble import members
from estimators._fisher import ExactFisher, SampledFisher
from estimators._layer_projections import LayerProjection, MatrixSketch, PrincipalBasis, RandomBasis
from estimators._projections import Numbers
from estimators.influence import Influence
from estimators.logra import EmpiricalFisher, LoGra
from recipe import Checkpoint, Correct, GaussNewton, Logits, Setting, calculus
from recipe import batch as batches
from recipe.calculus import Point
from tests.estimators.test_projections import uncovered
from tests.recipe.test_layers import WORLDS
from tests.worlds import DOUBLE, logistic, ridge, small_mlp

LAYERS = (slice(0, 24), slice(24, 51))  # of the parameters of `small_mlp`
ALL = 100  # more columns than any side has


def point(setting: Setting, theta) -> Point:
    return Point(setting, theta, torch.ones(setting.n, dtype=DOUBLE), setting.pool)


@pytest.mark.parametrize("setting", [logistic(), logistic(Logits()), ridge()], ids=["logistic", "logits", "ridge"])
def test_one_layer_in_full_is_influence(setting):
    """Sign, scale and unit: influence is pinned by retraining."""
    weights = torch.rand(setting.n, dtype=DOUBLE)
    for at in (None, (weights, batches.take(setting.pool, slice(0, 3)))):
        f_hat, exact = LoGra(rank=ALL).fit(setting, at), Influence().fit(setting, at)
        torch.testing.assert_close(f_hat.effects, exact.effects)
        torch.testing.assert_close(f_hat.bias, exact.bias)


@pytest.mark.parametrize("fisher", [ExactFisher(), EmpiricalFisher()], ids=repr)
@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "independent"])
def test_two_layers_in_full_are_the_blocks_of_the_curvature(fisher, coupled):
    setting, l2 = small_mlp(), 1e-2
    theta = members(setting, 1, 0)[0]
    g = calculus.loss_gradients(setting, theta, setting.pool)
    exact = GaussNewton().at(point(setting, theta)).dense() - l2 * torch.eye(setting.p, dtype=DOUBLE)
    F = exact if fisher == ExactFisher() else g.T @ g / setting.n
    q, moves = calculus.output_gradients(setting, theta), g + l2 * setting.flat(theta)
    expected = 0
    for layer in LAYERS:
        block = F[layer, layer]
        tau = block.trace() / F.trace() if coupled else 1.0
        shifted = block + tau * (l2 + 0.05) * torch.eye(len(block), dtype=DOUBLE)
        expected = expected - tau * q[:, layer] @ torch.linalg.solve(shifted, moves[:, layer].T) / setting.n
    f_hat = LoGra(rank=ALL, fisher=fisher, coupled=coupled, damping=0.05).fit(setting)
    torch.testing.assert_close(f_hat.effects, expected)


@pytest.mark.parametrize("setting", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("basis", [RandomBasis(), PrincipalBasis()], ids=repr)
def test_features_are_the_gradients_between_the_sides(setting, basis, monkeypatch):
    """On convolutions, shared weights, embeddings and scales; in one block or an example at a time."""
    at = setting.initial(1)
    at = {name: t + 0.1 * torch.rand_like(t) if torch.is_floating_point(t) else t for name, t in at.items()}
    phi = LayerProjection(setting, basis.sketches(point(setting, at), ExactFisher(), 2, Numbers(0)))
    expected = phi.vectors(calculus.loss_gradients(setting, at, setting.pool))
    torch.testing.assert_close(phi.gradients(at, setting.pool, setting.loss)[:, 0], expected)
    assert expected.shape[1] < setting.p
    assert expected.any(0).all()
    monkeypatch.setattr(_projections, "CACHE_BYTES", 100)
    parts = [phi.gradients(at, part, setting.loss)[:, 0] for part in phi.blocks(setting.pool)]
    assert len(parts) == setting.n
    torch.testing.assert_close(torch.cat(parts), expected)


def test_random_sides_keep_inner_products_in_expectation():
    setting = WORLDS["convolutions"]
    at = setting.initial(1)
    gradients = calculus.loss_gradients(setting, at, setting.pool)
    gradients = gradients / gradients.norm(dim=1, keepdim=True)
    found = []
    for seed in range(200):
        phi = LayerProjection(setting, RandomBasis().sketches(point(setting, at), ExactFisher(), 3, Numbers(seed)))
        features = phi.vectors(gradients)
        found.append(features @ features.T)
    spread = torch.stack(found).std(0)
    assert ((torch.stack(found).mean(0) - gradients @ gradients.T).abs() < 5 * spread / 200**0.5).all()


@pytest.mark.parametrize("setting", [WORLDS["convolutions"], WORLDS["a layer used twice"]], ids=["bias", "used twice"])
def test_principal_sides_are_the_leading_eigenvectors(setting):
    """They keep more of the second moments of a layer's inputs and output gradients than any others of their number."""
    at, rank, fisher = setting.initial(1), 2, EmpiricalFisher()
    run = setting.layers.forward(at, setting.pool)
    factors = run.pull(next(fisher.cotangents(setting, run.prediction.detach(), setting.pool, torch.Generator())))
    sketches = PrincipalBasis().sketches(point(setting, at), fisher, rank, Numbers(0))
    for sketch in [sketch for sketch in sketches if isinstance(sketch, MatrixSketch)]:
        for side, columns in enumerate(sketch.sides):
            uses = [
                torch.cat([pair[side], torch.ones(*pair[side].shape[:2], 1)], 2)
                if sketch.block.bias is not None and side == 1  # these layers have their inputs second
                else pair[side]
                for _, pair in sketch.uses(factors)
            ]
            x = torch.cat([x.flatten(0, 1) for x in uses])
            leading = torch.linalg.eigvalsh(x.T @ x)[-rank:]
            torch.testing.assert_close((x @ columns).square().sum(), leading.sum())


def test_an_ensemble_averages_its_members():
    setting = small_mlp()
    both = LoGra(rank=3, basis=RandomBasis(), models=2, seed=5).fit(setting)
    single = [LoGra(rank=3, basis=RandomBasis(), seed=s).fit(setting) for s in (5, 6)]
    torch.testing.assert_close(both.effects, (single[0].effects + single[1].effects) / 2)
    assert not torch.allclose(single[0].effects, single[1].effects)


def test_more_columns_come_closer_to_all():
    setting = small_mlp()
    setting = replace(setting, checkpoints=(Checkpoint(members(setting, 1, 0)[0]),))
    exact = LoGra(rank=ALL).fit(setting).effects
    errors = [(LoGra(rank=rank).fit(setting).effects - exact).norm() / exact.norm() for rank in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    torch.testing.assert_close(LoGra(rank=9).fit(setting).effects, exact)  # 8 hidden units and a bias


def test_without_weight_decay_a_tenth_of_the_mean_eigenvalue():
    setting = small_mlp()
    setting = replace(setting, algorithm=replace(setting.algorithm, weight_decay=0.0))
    theta = members(setting, 1, 0)[0]
    F = GaussNewton().at(point(setting, theta)).dense()
    q, g = calculus.output_gradients(setting, theta), calculus.loss_gradients(setting, theta, setting.pool)
    expected = 0
    for layer in LAYERS:
        block = F[layer, layer]
        shifted = block + 0.1 * block.diagonal().mean() * torch.eye(len(block), dtype=DOUBLE)
        expected = expected - q[:, layer] @ torch.linalg.solve(shifted, g[:, layer].T) / setting.n
    torch.testing.assert_close(LoGra(rank=ALL, coupled=False).fit(setting).effects, expected)


def test_features_that_are_not_kept_give_the_same(monkeypatch):
    setting = small_mlp()
    kept = LoGra(rank=3, fisher=SampledFisher(2)).fit(setting)
    monkeypatch.setattr(_projected, "KEPT_BYTES", 0)
    torch.testing.assert_close(LoGra(rank=3, fisher=SampledFisher(2)).fit(setting).effects, kept.effects)


@pytest.mark.parametrize("setting", WORLDS.values(), ids=WORLDS)
def test_models_of_all_kinds(setting):
    f_hat = LoGra(rank=2, damping=0.1).fit(setting)
    few = torch.tensor([2, 0])
    torch.testing.assert_close(f_hat.effect(batches.take(setting.pool, few)), f_hat.effects[:, few])


def test_effect_is_differentiable_in_the_inputs():
    f_hat = LoGra(rank=3).fit(small_mlp())
    x = small_mlp().pool[0][:2].clone().requires_grad_()
    assert gradcheck(lambda x: f_hat.effect((x, torch.tensor([0, 2]))), (x,))


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="got rank=0"):
        LoGra(rank=0).fit(logistic())
    with pytest.raises(ValueError, match=r"do not cover shift \(of Bare\)"):
        LoGra().fit(uncovered())
    with pytest.raises(ValueError, match="gradient of Correct"):
        LoGra().fit(logistic(Correct()))
    singular = replace(small_mlp(), algorithm=replace(small_mlp().algorithm, weight_decay=0.0))
    with pytest.raises(ValueError, match=r"has rank \d+ of 24.*pass a \(larger\) damping"):
        LoGra(rank=ALL, damping=0.0, fisher=SampledFisher(1)).fit(batch_of(singular, 10))


def batch_of(setting: Setting, count: int) -> Setting:
    return replace(setting, universe=batches.take(setting.pool, slice(0, count)))
