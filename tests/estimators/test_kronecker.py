"""Kronecker-factored curvature against what it stands for."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from estimators import _kronecker
from estimators._factored_queries import ACCURACY
from estimators._fisher import NEGLIGIBLE, ExactFisher, SampledFisher
from estimators._kronecker import Kronecker, sample
from estimators.ekfac import EKFAC
from estimators.influence import Influence
from recipe import CG, SGD, GaussNewton, Newton, Setting, SquaredError, calculus
from recipe import batch as batches
from recipe.calculus import Operator, Point
from tests.recipe.test_layers import WORLDS
from tests.worlds import DOUBLE, SETTINGS, line, ridge, small_mlp, value


def point(setting, weights=None):
    theta = setting.algorithm.train(setting, torch.ones(setting.n), 0)
    weights = torch.rand(setting.n, generator=torch.Generator().manual_seed(1)) if weights is None else weights
    return Point(setting, theta, weights.to(setting.dtype), setting.pool)


def gradients(fisher, here):
    """All weighted cotangents' gradients, `(k * n, p)`."""
    run = here.setting.layers.forward(here.parameters, here.data)
    cotangents = fisher.cotangents(here.setting, run.prediction.detach(), here.data, torch.Generator().manual_seed(0))
    return torch.cat([run.flat(run.pull(v)) * here.shares.sqrt()[:, None] for v in cotangents])


@pytest.mark.parametrize("setting", [SETTINGS["mlp"], SETTINGS["ridge"]], ids=["mlp", "ridge"])
def test_fisher_is_the_gauss_newton_matrix(setting):
    here = point(setting)
    expected = GaussNewton().at(here).dense() - setting.algorithm.objective.l2 * torch.eye(setting.p)
    exact, sampled = (gradients(fisher, here) for fisher in (ExactFisher(), SampledFisher(samples=3000)))
    torch.testing.assert_close(exact.T @ exact, expected)
    assert (sampled.T @ sampled - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 10.0, 1000.0])
def test_few_labels_are_gone_through_where_predictions_are_sure(sharpness):
    setting = SETTINGS["mlp"]
    z = sharpness * torch.randn(setting.n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = z.softmax(-1)
    roots = torch.stack(list(ExactFisher().cotangents(setting, z, setting.pool, torch.Generator())), -1)
    left = p.diag_embed() - p[:, :, None] * p[:, None] - roots @ roots.mT
    assert roots.isfinite().all()
    assert roots.shape[-1] <= 2
    assert left.diagonal(dim1=1, dim2=2).sum() <= NEGLIGIBLE * (p - p.square()).sum()
    assert torch.linalg.eigvalsh(left).min() > -1e-12


def test_curvature_is_that_of_enough_examples(monkeypatch):
    here = point(SETTINGS["mlp"])
    everything, whole = sample(here, 0)
    assert len(everything) == here.setting.n
    assert whole == 1
    monkeypatch.setattr(_kronecker, "ENOUGH", 5.5 * here.setting.layers.floats / here.setting.p)
    assert len(sample(here, 0)[0]) == here.setting.n  # however little they leave in the layers
    monkeypatch.setattr(_kronecker, "LEAST", 2)
    (basis, whole), (values, _) = sample(here, 0), sample(here, 1)
    assert len(basis) == len(values) == 5
    other, _ = sample(replace(here, number=1), 0)
    assert basis.tolist() != values.tolist()
    assert basis.tolist() != other.tolist()
    torch.testing.assert_close(whole * here.shares[basis].sum(), here.shares.sum())
    decomposed, most = (Kronecker().decompose([(1.0, here)]) for _ in range(2))
    torch.testing.assert_close(decomposed.blocks[0].spectrum, most.blocks[0].spectrum)  # the same draw every time


def test_directions_that_training_data_lack_are_not_left_out():
    """A trigger, say: targets and added data have it, and the inverse curvature is largest there."""
    setting = SETTINGS["mlp"]
    x, y = (t.clone() for t in setting.pool)
    x = torch.cat([x, torch.zeros(len(x), 6, dtype=x.dtype)], 1)
    model = lambda: nn.Sequential(nn.Linear(x.shape[1], 40), nn.ReLU(), nn.Linear(40, 3)).double()  # noqa: E731
    marked = x[:5].clone()
    marked[:, -1] = 1.0
    algorithm = SGD(epochs=5, batch_size=10, lr=0.1, weight_decay=1e-3)
    setting = Setting(model, (x, y), (marked, y[:5]), algorithm)
    f_hat = EKFAC().fit(setting)
    (tangent,) = f_hat._tangents
    assert f_hat._queries[0][0]._separated
    dense = tangent.inverse(calculus.output_gradients(setting, tangent.theta))
    for examples in ((marked, y[:5]), setting.pool):
        expected = dense @ tangent.moves(setting, examples).T
        assert (f_hat.effect(examples) - expected).norm() < ACCURACY * expected.norm()


@pytest.mark.parametrize("estimator", [EKFAC(), EKFAC(lazy=True), EKFAC(corrected=False)], ids=repr)
def test_layers_that_the_model_does_not_call(estimator):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.norm, self.linear = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(input=x)

    setting = replace(SETTINGS["mlp"], model=lambda: Idle().double())
    assert setting.layers.covered
    assert estimator.fit(setting)(torch.ones(setting.n)).isfinite().all()


def test_fisher_of_a_sequence_is_in_expectation_the_gauss_newton_matrix():
    setting = WORLDS["text"]
    here = point(setting)
    expected = GaussNewton().at(here).dense()
    sampled = gradients(SampledFisher(samples=3000), here)
    assert (sampled.T @ sampled - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("coupled", [True, False])
def test_exact_where_one_layer_has_one_output(coupled):
    """Least squares: the factor of the outputs is a number, and the eigenbasis that of the Hessian."""
    setting = ridge()
    torch.testing.assert_close(EKFAC(coupled=coupled).fit(setting).effects, Influence().fit(setting).effects)
    with_bias = Setting(lambda: nn.Linear(3, 1).double(), *line(), Newton(l2=0.1), loss=SquaredError(), output=value)
    torch.testing.assert_close(EKFAC().fit(with_bias).effects, Influence().fit(with_bias).effects)


@pytest.mark.parametrize("corrected", [True, False])
def test_blocks_by_their_definition(corrected):
    """Factors, eigenbasis and eigenvalues of one layer, from the gradients of all examples and labels."""
    setting = small_mlp()
    here, p1 = point(setting), 8 * 3  # the first layer: 8 outputs, 2 inputs and a bias
    inverse = Kronecker(corrected, coupled=False).at(here, damping=0.2)
    run = setting.layers.forward(here.parameters, here.data)
    z = run.prediction.detach()
    a = torch.cat([here.data[0], torch.ones(setting.n, 1, dtype=DOUBLE)], 1)
    gs = [run.pull(v)[0].outputs[:, 0] for v in ExactFisher().cotangents(setting, z, here.data, torch.Generator())]
    A = (a * here.shares[:, None]).T @ a
    G = sum((g * here.shares[:, None]).T @ g for g in gs)
    (la, QA), (lg, QG) = torch.linalg.eigh(A), torch.linalg.eigh(G)
    if corrected:
        spectrum = sum(((g @ QG).square() * here.shares[:, None]).T @ (a @ QA).square() for g in gs)
    else:
        spectrum = lg[:, None] * la[None, :]
    V = torch.randn(8, 3, dtype=DOUBLE)
    expected = QG @ ((QG.T @ V @ QA) / (spectrum + 0.2 + 1e-2)) @ QA.T
    vector = torch.zeros(1, setting.p, dtype=DOUBLE)
    vector[0, :p1] = torch.cat([V[:, :2].flatten(), V[:, 2]])
    torch.testing.assert_close(inverse(vector)[0, :p1], torch.cat([expected[:, :2].flatten(), expected[:, 2]]))


@pytest.mark.parametrize("setting", WORLDS.values(), ids=WORLDS)
def test_all_kinds_of_layers_make_a_symmetric_positive_inverse(setting):
    here = point(setting)
    inverse = Kronecker().at(here, damping=0.1)
    matrix = inverse(torch.eye(setting.p, dtype=DOUBLE))
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_points_without_weight_do_not_count():
    setting = small_mlp()
    weights = (torch.arange(setting.n) % 2).double()
    here = point(setting, weights)
    half = Point(setting, here.parameters, torch.ones(20, dtype=DOUBLE), batches.take(setting.pool, weights.bool()))
    v = torch.randn(2, setting.p, dtype=DOUBLE)
    torch.testing.assert_close(Kronecker().at(here)(v), Kronecker().at(half)(v))


def test_preconditions_conjugate_gradients():
    """The same answer in fewer products: in one, where the factors are exact."""
    here = point(ridge())
    counts, b = {}, torch.randn(3, here.setting.p, dtype=DOUBLE)
    for name, preconditioner in (("plain", None), ("preconditioned", Kronecker())):
        operator, count = GaussNewton().at(here), []

        def product(v, inner=operator.product, count=count):
            count.append(len(v))
            return inner(v)

        counted = Operator(product, operator.p, operator.like, operator.point)
        solution = CG(tolerance=1e-8, preconditioner=preconditioner).of(counted)(b)
        torch.testing.assert_close(operator.product(solution), b)
        counts[name] = sum(count)
    assert counts == {"plain": 9, "preconditioned": 3}


def test_layers_that_are_not_covered_are_named():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.ones(2)), nn.Linear(2, 3)

        def forward(self, x):
            return self.layer(x * self.scale)

    mlp = small_mlp()
    setting = Setting(Bare, (mlp.pool[0].float(), mlp.pool[1]), (mlp.probe[0].float(), mlp.probe[1]), mlp.algorithm)
    with pytest.raises(ValueError, match=r"do not cover scale \(of Bare\).*requires_grad_\(False\).*CG"):
        EKFAC().fit(setting)
    matrix = Operator(lambda v: v, 3, torch.eye(3))
    with pytest.raises(ValueError, match="only a matrix"):
        Kronecker().of(matrix)
