"""Random projections against the matrices that they stand for, on layers of all kinds."""

import math

import pytest
import torch
from torch import nn

from estimators import _projections
from estimators._projections import ByLayers, Dense, Numbers, Projection, projection
from recipe import Logits, Setting, calculus
from recipe import batch as batches
from tests.recipe.test_layers import IMAGES, TRAINING, WORLDS
from tests.worlds import DOUBLE, small_mlp


class Bare(nn.Module):
    """A parameter of its own, which no layer knows."""

    def __init__(self):
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.ones(72)), nn.Linear(72, 3)

    def forward(self, x):
        return self.layer(x.flatten(1) * self.shift)


def uncovered() -> Setting:
    return Setting(lambda: Bare().double(), IMAGES, IMAGES, TRAINING)


def matrix(phi: Projection) -> torch.Tensor:
    """P itself, `(p, k)`."""
    return phi.vectors(torch.eye(phi.setting.p, dtype=DOUBLE))


def features(phi: Projection, at, batch) -> torch.Tensor:
    return phi.gradients(at, batch, phi.setting.loss)[:, 0]


ALL = {**WORLDS, "no layers": uncovered()}


@pytest.mark.parametrize("setting", ALL.values(), ids=ALL)
def test_features_are_the_gradients_times_one_matrix(setting):
    at, phi = setting.initial(1), projection(setting, 7, seed=3)
    assert type(phi) is (ByLayers if setting.layers.covered else Dense)
    gradients = calculus.loss_gradients(setting, at, setting.pool)
    torch.testing.assert_close(features(phi, at, setting.pool), gradients @ matrix(phi))


@pytest.mark.parametrize("setting", ALL.values(), ids=ALL)
def test_blocks_and_batches_change_nothing(setting, monkeypatch):
    at, whole = setting.initial(1), features(projection(setting, 7, seed=3), setting.initial(1), setting.pool)
    monkeypatch.setattr(_projections, "CACHE_BYTES", 100)  # an example at a time
    monkeypatch.setattr(_projections, "BLOCK_BYTES", 100)  # and no number kept
    monkeypatch.setattr(calculus, "BLOCK_BYTES", 100)
    phi = projection(setting, 7, seed=3)
    parts = phi.blocks(setting.pool)
    assert len(parts) == setting.n
    torch.testing.assert_close(torch.cat([features(phi, at, part) for part in parts]), whole)


@pytest.mark.parametrize("setting", [WORLDS["convolutions"], ALL["no layers"]], ids=["factored", "dense"])
def test_inner_products_are_kept_in_expectation(setting):
    """`E[P P^T] = 1`, with the error of one projection that the docstring promises."""
    at, k, draws = setting.initial(1), 50, 60
    gradients = calculus.loss_gradients(setting, at, setting.pool)
    lengths = gradients.norm(dim=1)
    gradients, true = gradients / lengths[:, None], (gradients @ gradients.T) / lengths[:, None] / lengths
    found = torch.stack([projection(setting, k, seed).vectors(gradients) for seed in range(draws)])
    errors = found @ found.transpose(1, 2) - true
    assert errors.mean(0).abs().max() < 5 * math.sqrt(8 / k / draws)  # 8 / k: of a square, in products of two normals
    assert 0.5 < float(errors.square().mean().sqrt()) * math.sqrt(k) < math.sqrt(8)


def test_products_are_summed_over_positions(monkeypatch):
    rows, cols = torch.randn(4, 3, 5).double(), torch.randn(4, 3, 2).double()
    u, v = torch.randn(5, 6).double(), torch.randn(2, 6).double()
    expected = torch.einsum("btr,btc,rk,ck->bk", rows, cols, u, v)
    torch.testing.assert_close(_projections._products(rows, cols, u, v), expected)
    monkeypatch.setattr(_projections, "BLOCK_BYTES", 1)
    torch.testing.assert_close(_projections._products(rows, cols, u, v), expected)


def test_numbers_depend_on_seed_and_name_alone():
    one, other = Numbers(1), Numbers(2)
    first = one.normal("a", 5, 4)
    assert torch.equal(one.normal("a", 5, 4), first)
    assert torch.equal(Numbers(1).normal("a", 5, 4), first)
    assert not torch.equal(one.normal("b", 5, 4), first)
    assert not torch.equal(other.normal("a", 5, 4), first)


def test_types_share_their_numbers():
    double = WORLDS["convolutions"]
    data = (IMAGES[0].float(), IMAGES[1])
    single = Setting(lambda: double.module(double.initial(0)).float(), data, data, TRAINING)
    vectors = torch.randn(3, double.p)
    expected = projection(double, 9, seed=0).vectors(vectors.double()).float()
    torch.testing.assert_close(projection(single, 9, seed=0).vectors(vectors), expected, rtol=1e-4, atol=1e-5)


def test_no_fewer_dimensions_than_parameters_is_the_identity():
    setting = small_mlp()
    at = setting.initial(0)
    for k in (setting.p, setting.p + 1):
        phi = projection(setting, k, seed=0)
        assert phi.k == setting.p
        found = features(phi, at, setting.pool)
        torch.testing.assert_close(found, calculus.loss_gradients(setting, at, setting.pool))


@pytest.mark.parametrize(
    "setting", [small_mlp(output=Logits()), uncovered().on(output=Logits())], ids=["layers", "none"]
)
def test_outputs_of_several_columns(setting):
    at, phi = setting.initial(0), projection(setting, 8, seed=0)
    found = phi.gradients(at, setting.probe, setting.output)
    expected = calculus.output_gradients(setting, at) @ matrix(phi)
    torch.testing.assert_close(found.flatten(0, 1), expected)
    assert found.shape == (*setting.output_shape, 8)


@pytest.mark.parametrize("setting", [WORLDS["convolutions"], uncovered()], ids=["layers", "none"])
def test_features_can_be_followed_to_the_inputs(setting):
    at, (x, y) = setting.initial(0), batches.take(setting.pool, slice(0, 2))
    phi = projection(setting, 3, seed=0)
    assert torch.autograd.gradcheck(lambda x: features(phi, at, (x, y)), x.clone().requires_grad_(), nondet_tol=1e-10)


def test_features_have_full_rank():
    setting = small_mlp()
    found = features(projection(setting, 30, seed=0), setting.initial(0), setting.pool)
    assert torch.linalg.matrix_rank(found) == 30
