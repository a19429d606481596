"""Every inverse against the dense one, and against its own formula by brute force."""

import math
from dataclasses import replace

import pytest
import torch

from recipe import CG, SGD, Dense, GaussNewton, Objective, calculus
from recipe.calculus import Operator, Point
from recipe.inverses import Arnoldi, DataInf, LiSSA, Nystroem, Woodbury, dense
from tests.worlds import DOUBLE, logistic, ridge, small_mlp

EYE = torch.eye(3, dtype=DOUBLE)
SETTINGS = {"least squares": ridge(), "network": small_mlp()}


def point(setting):
    weights = torch.rand(setting.n, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    weights[4] = 0
    return Point(setting, setting.algorithm.train(setting, torch.ones(setting.n), 0), weights, setting.pool)


OPERATORS = {name: GaussNewton().at(point(setting), damping=0.01) for name, setting in SETTINGS.items()}


def diagonal(*values, **known):
    entries = torch.tensor(values, dtype=DOUBLE)
    return Operator(lambda v: v * entries, len(values), EYE, **known)


def spread(p=200, leading=20, shift=1e-3):
    """A few eigenvalues from 1 to 10 000 and many of `shift`, in a random basis; and how often it was multiplied."""
    basis = torch.linalg.qr(torch.randn(p, p, dtype=DOUBLE)).Q
    values = torch.cat([torch.logspace(0, 4, leading, dtype=DOUBLE), torch.zeros(p - leading, dtype=DOUBLE)])
    matrix, products = basis * (values + shift) @ basis.T, []

    def product(vectors):
        products.append(len(vectors))
        return vectors @ matrix

    return Operator(product, p, EYE, damping=shift), products


def error(inverse, operator):
    """Relative error on random vectors."""
    b = torch.randn(5, operator.p, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    exact = torch.linalg.solve(operator.dense(), b.T).T
    return float((inverse.of(operator)(b) - exact).norm() / exact.norm())


# ---- what all promise ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize(
    "inverse",
    [
        Dense(),
        CG(tolerance=1e-6),
        CG(tolerance=1e-6, preconditioner=Nystroem(rank=5)),
        CG(tolerance=1e-6, preconditioner=Arnoldi(rank=5)),
        CG(tolerance=1e-6, preconditioner=DataInf()),
        LiSSA(tolerance=1e-6),
        Arnoldi(rank=51),
        Nystroem(rank=51),
    ],
    ids=repr,
)
def test_equals_the_dense_inverse(inverse, operator):
    assert error(inverse, operator) <= 1e-5
    assert inverse.of(operator)(torch.zeros(1, operator.p, dtype=DOUBLE)).eq(0).all()


@pytest.mark.filterwarnings("ignore:LiSSA did not converge")
@pytest.mark.parametrize(
    "budgets",
    [
        [LiSSA(iterations=k) for k in (10, 50, 200)],
        [Arnoldi(rank=k) for k in (5, 15, 30)],
        [Nystroem(rank=k) for k in (5, 15, 30)],
    ],
    ids=["LiSSA", "Arnoldi", "Nystroem"],
)
def test_approaches_the_dense_inverse_as_its_budget_grows(budgets):
    few, some, many = (error(inverse, OPERATORS["network"]) for inverse in budgets)
    assert few > 1.5 * some > 1.5**2 * many
    assert many < 0.05


@pytest.mark.parametrize("inverse", [CG(), LiSSA(), Arnoldi(rank=2), Nystroem(rank=2)], ids=repr)
def test_products_that_are_not_finite_are_named(inverse):
    with pytest.raises(ValueError, match=r"not finite: the model has diverged"):
        inverse.of(diagonal(1.0, math.nan, 2.0, damping=0.1))(EYE)


# ---- dense -----------------------------------------------------------------------------------------------------------
def test_dense_refuses_what_is_not_positive_definite():
    with pytest.raises(ValueError, match=r"minor of order 2.*GaussNewton.*damping"):
        Dense().of(diagonal(1.0, -1.0, 2.0))


def test_dense_refuses_what_does_not_fit_before_it_computes(monkeypatch):
    def product(vectors):
        raise AssertionError("computed")

    with pytest.raises(ValueError, match=r"needs 2\.24e\+06 GiB for .* 10,000,000 parameters.*free on cpu.*CG.*EKFAC"):
        Dense().of(Operator(product, 10**7, EYE))
    monkeypatch.setattr(dense, "available", lambda device: 3 * 8 * 9 - 1)
    with pytest.raises(ValueError, match="needs"):
        Dense().of(diagonal(1.0, 1.0, 1.0))
    monkeypatch.setattr(dense, "available", lambda device: 3 * 8 * 9)
    torch.testing.assert_close(
        Dense().of(diagonal(1.0, 2.0, 4.0))(EYE), torch.diag(1 / torch.tensor([1.0, 2, 4])).double()
    )


# ---- conjugate gradients ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preconditioner", [Nystroem(rank=40), Arnoldi(rank=30)], ids=repr)
def test_a_preconditioner_saves_iterations_and_changes_no_answer(preconditioner):
    operator, products = spread()
    b = torch.randn(1, operator.p, dtype=DOUBLE)
    plain = CG(tolerance=1e-10).of(operator)(b)
    without = len(products)
    solve = CG(tolerance=1e-10, preconditioner=preconditioner).of(operator)
    products.clear()
    torch.testing.assert_close(solve(b), plain, rtol=1e-5, atol=1e-5 * float(plain.norm()))
    assert len(products) < without / 4


def test_conjugate_gradients_say_when_they_cannot():
    with pytest.raises(ValueError, match=r"negative curvature.*GaussNewton"):
        CG().of(diagonal(1.0, -1.0, 2.0))(EYE[1:2])
    with pytest.warns(UserWarning, match=r"did not converge: relative residual .* after 1 iterations.*Nystroem"):
        CG(iterations=1).of(diagonal(1.0, 10.0, 100.0))(torch.stack([EYE.sum(0), 0 * EYE[0]]))  # the second is solved


# ---- LiSSA -----------------------------------------------------------------------------------------------------------
def test_lissa_is_the_neumann_series():
    operator = OPERATORS["network"]
    b, step = torch.randn(2, operator.p, dtype=DOUBLE), torch.eye(operator.p) - operator.dense() / 3
    with pytest.warns(UserWarning, match=r"LiSSA did not converge: relative residual .* after 3 iterations.*CG\(\)"):
        found = LiSSA(iterations=3, scale=3.0).of(operator)(b)
    torch.testing.assert_close(found, (b + b @ step + b @ step @ step) / 3)


def test_lissa_scales_by_the_largest_eigenvalue():
    """A scale above half of it converges; from below it cannot be far."""
    for operator in OPERATORS.values():
        largest = float(torch.linalg.eigvalsh(operator.dense()).max())
        assert 0.9 * largest < LiSSA().of(operator).keywords["scale"] <= largest * (1 + 1e-9)


def test_lissa_says_that_it_diverges():
    with pytest.raises(ValueError, match=r"LiSSA diverges.*scale=1.*GaussNewton.*larger scale"):
        LiSSA(scale=1.0).of(diagonal(1.0, 2.1, 0.5))(EYE)
    with pytest.raises(ValueError, match=r"LiSSA diverges"):
        LiSSA().of(diagonal(1.0, -0.1, 0.5))(EYE)
    with pytest.raises(ValueError, match=r"largest magnitude is -2.*not positive definite.*GaussNewton"):
        LiSSA().of(diagonal(1.0, -2.0, 0.5))


# ---- low rank --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [3, 10])
def test_arnoldi_inverts_the_leading_eigenpairs(rank):
    operator, b = OPERATORS["network"], torch.randn(4, 51, dtype=DOUBLE)
    values, vectors = (t[..., -rank:] for t in torch.linalg.eigh(operator.dense()))
    inner = (b @ vectors / values) @ vectors.T
    rest = (b - b @ vectors @ vectors.T) / values.min()
    torch.testing.assert_close(Arnoldi(rank, complement=False, tolerance=1e-9).of(operator)(b), inner)
    torch.testing.assert_close(Arnoldi(rank, tolerance=1e-9).of(operator)(b), inner + rest)


def test_arnoldi_goes_on_where_its_space_is_invariant():
    repeated = diagonal(2.0, 2.0, 2.0, 5.0, 5.0)
    b = torch.randn(2, 5, dtype=DOUBLE)
    torch.testing.assert_close(Arnoldi(rank=5, complement=False).of(repeated)(b), b / repeated.dense().diagonal())


def test_arnoldi_says_when_it_cannot():
    with pytest.raises(ValueError, match=r"Of the 3 largest eigenvalues of the curvature, one is -1.*smaller rank"):
        Arnoldi(rank=3).of(diagonal(1.0, -1.0, 2.0))
    with pytest.warns(UserWarning, match=r"eigenpairs did not converge: relative residual .* after 5 iterations"):
        Arnoldi(rank=4, iterations=5).of(OPERATORS["network"])


def test_nystroem_is_the_sketch_by_its_definition():
    """`C Omega (Omega^T C Omega)^-1 Omega^T C`, of which the eigenvalues never exceed those of the curvature."""
    operator, rank = OPERATORS["network"], 7
    C = operator.dense() - operator.shift * torch.eye(operator.p)
    noise = torch.randn(operator.p, rank, generator=torch.Generator().manual_seed(3)).to(DOUBLE)
    sketch = C @ noise @ torch.linalg.solve(noise.T @ C @ noise, noise.T @ C)
    values, vectors = (t[..., -rank:] for t in torch.linalg.eigh(sketch))
    b, values = torch.randn(4, operator.p, dtype=DOUBLE), values + operator.shift
    expected = (b @ vectors / values) @ vectors.T + (b - b @ vectors @ vectors.T) / values.min()
    torch.testing.assert_close(Nystroem(rank, seed=3).of(operator)(b), expected, rtol=1e-5, atol=1e-5)
    assert torch.linalg.eigvalsh(C - sketch).min() > -1e-12


def test_nystroem_says_when_it_cannot():
    with pytest.raises(ValueError, match=r"rank below 3, and without weight decay or damping.*Pass a damping"):
        Nystroem(rank=3).of(diagonal(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"negative eigenvalues.*GaussNewton\(\).*CG\(\)"):
        Nystroem(rank=3).of(diagonal(1.0, -1.0, 2.0))


@pytest.mark.parametrize("low_rank", [Arnoldi, Nystroem])
def test_a_rank_is_at_least_one(low_rank):
    with pytest.raises(ValueError, match=r"at least one eigenvector; got rank=0\. Try 100"):
        low_rank(rank=0)


@pytest.mark.parametrize("low_rank", [Arnoldi(rank=51), Nystroem(rank=51)], ids=repr)
def test_single_precision_is_enough(low_rank):
    double = OPERATORS["network"]
    single = replace(double, product=lambda v: double.product(v.double()).float(), like=torch.eye(1))
    b = torch.randn(5, 51)
    torch.testing.assert_close(low_rank.of(single)(b).double(), Dense().of(double)(b.double()), rtol=1e-3, atol=1e-2)


# ---- DataInf ---------------------------------------------------------------------------------------------------------
class Sum(SGD):
    """SGD that says it minimises a sum."""

    objective = Objective(l2=0.3, mean=False)


def mean_of_inverses(at, shifts):
    """The formula by brute force: layer by layer, the mean over weights of the inverses of every example's matrix."""
    gradients = calculus.loss_gradients(at.setting, at.parameters, at.data)
    total, found, start = at.shares.sum(), [], 0
    for size, shift in zip((24, 27), shifts, strict=True):  # of a layer's weight and bias
        g = gradients[:, start : start + size]
        own = total * g[:, :, None] * g[:, None, :] + shift * torch.eye(size, dtype=DOUBLE)
        found.append(torch.einsum("i,ijk->jk", at.shares / total, torch.linalg.inv(own)))
        start += size
    return torch.block_diag(*found)


@pytest.mark.parametrize("block", [calculus.BLOCK_BYTES, 8 * 51 * 7], ids=["whole", "in blocks"])
@pytest.mark.parametrize("algorithm", [small_mlp().algorithm, Sum(epochs=1, batch_size=8, lr=0.1)], ids=["mean", "sum"])
def test_datainf_is_the_mean_of_inverses_layer_by_layer(algorithm, block, monkeypatch):
    monkeypatch.setattr(calculus, "BLOCK_BYTES", block)
    operator = GaussNewton().at(point(replace(small_mlp(), algorithm=algorithm)), damping=0.2)
    expected = mean_of_inverses(operator.point, 2 * [operator.shift])
    torch.testing.assert_close(DataInf().of(operator)(torch.eye(51, dtype=DOUBLE)), expected)


def test_datainf_without_weight_decay_or_damping_takes_the_shift_of_the_paper():
    algorithm = replace(small_mlp().algorithm, weight_decay=0.0)
    operator = GaussNewton().at(point(replace(small_mlp(), algorithm=algorithm)))
    at = operator.point
    squares = at.shares @ calculus.loss_gradients(at.setting, at.parameters, at.data).square()
    expected = mean_of_inverses(at, [0.1 * squares[:24].mean(), 0.1 * squares[24:].mean()])
    torch.testing.assert_close(DataInf().of(operator)(torch.eye(51, dtype=DOUBLE)), expected)


def test_datainf_is_exact_for_one_example():
    setting = logistic()
    at = replace(point(setting), weights=torch.eye(setting.n, dtype=DOUBLE)[3])
    g = calculus.loss_gradients(setting, at.parameters, setting.pool)[3]
    fisher = g[:, None] * g + (0.05 + 0.1) * torch.eye(9, dtype=DOUBLE)
    inverse = DataInf().of(GaussNewton().at(at, damping=0.1))
    torch.testing.assert_close(inverse(fisher), torch.eye(9, dtype=DOUBLE))


def test_datainf_says_when_it_cannot():
    with pytest.raises(ValueError, match=r"DataInf\(\) looks at the examples.*Use CG\(\)"):
        DataInf().of(diagonal(1.0, 2.0, 3.0))
    setting = replace(small_mlp(), algorithm=replace(small_mlp().algorithm, weight_decay=0.0))
    dead = {name: 0 * t for name, t in setting.initial(0).items()}  # no gradient reaches the first layer
    with pytest.raises(ValueError, match=r"layer has no gradient on any example.*Pass a damping"):
        DataInf().of(GaussNewton().at(Point(setting, dead, torch.ones(40, dtype=DOUBLE), setting.pool)))


# ---- Woodbury --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("algorithm", [small_mlp().algorithm, Sum(epochs=1, batch_size=8, lr=0.1)], ids=["mean", "sum"])
def test_woodbury_is_the_inverse_of_the_second_moment(algorithm):
    operator = GaussNewton().at(point(replace(small_mlp(), algorithm=algorithm)), damping=0.2)
    at = operator.point
    g = calculus.loss_gradients(at.setting, at.parameters, at.data)
    fisher = (at.shares[:, None] * g).T @ g + operator.shift * torch.eye(51, dtype=DOUBLE)
    torch.testing.assert_close(Woodbury().of(operator)(fisher), torch.eye(51, dtype=DOUBLE))


def test_woodbury_without_weight_decay_or_damping_takes_a_tenth_of_the_mean_eigenvalue():
    algorithm = replace(small_mlp().algorithm, weight_decay=0.0)
    at = point(replace(small_mlp(), algorithm=algorithm))
    weights = at.weights.clone()
    weights[:5] = 0  # points without weight have no eigenvalue
    at = replace(at, weights=weights)
    g = at.shares.sqrt()[5:, None] * calculus.loss_gradients(at.setting, at.parameters, at.data)[5:]
    fisher = g.T @ g + 0.1 * g.square().sum(1).mean() * torch.eye(51, dtype=DOUBLE)
    torch.testing.assert_close(Woodbury().of(GaussNewton().at(at))(fisher), torch.eye(51, dtype=DOUBLE))


def test_woodbury_says_when_it_cannot():
    with pytest.raises(ValueError, match=r"Woodbury\(\) looks at the examples.*Use CG\(\)"):
        Woodbury().of(diagonal(1.0, 2.0, 3.0))
    algorithm = replace(small_mlp().algorithm, weight_decay=0.0)
    flat = replace(small_mlp(), algorithm=algorithm, loss=lambda prediction, batch: 0 * prediction.sum(-1))
    with pytest.raises(ValueError, match=r"gradients are zero.*Pass a damping"):
        Woodbury().of(GaussNewton().at(point(flat)))
