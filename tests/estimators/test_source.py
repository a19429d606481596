"""Approximate unrolling against exact unrolling, its two limits, and its formula with dense matrices."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from estimators._draws import generator
from estimators._fisher import ExactFisher
from estimators._kronecker import Kronecker, MatrixBlock
from estimators.influence import Influence
from estimators.source import SOURCE
from estimators.tracin import TracIn
from recipe import SGD, AdamW, Checkpoint, Loss, Newton, Retrain
from recipe.calculus import Point, loss_gradients, output_gradients
from tests.recipe.test_layers import WORLDS
from tests.worlds import DOUBLE, logistic, ridge, small_mlp

N = 30
ONES = torch.ones(N, dtype=DOUBLE)


def quadratic(algorithm, start=None):
    """Least squares with one output, in which Kronecker factors are exact, trained by full batches from a start."""
    model = nn.Linear(3, 1, bias=False).double()
    theta = torch.zeros(1, 3, dtype=DOUBLE) if start is None else start
    model.load_state_dict({"weight": theta})
    return replace(ridge(), model=model, algorithm=algorithm)


def optimum():
    """Of ridge with l2 = .1."""
    return Newton(l2=0.1).train(ridge(), ONES, 0)["weight"]


def finite_differences(setting, h=1e-3):
    """Of retraining at the same seed, on the same batches, `(m, n)`."""
    f, steps = Retrain(setting), h * torch.eye(N, dtype=DOUBLE)
    return ((f(ONES + steps) - f(ONES - steps)) / (2 * h)).T


def hessian(setting):
    """Of the losses."""
    return setting.pool[0].T @ setting.pool[0] / N


def test_at_an_optimum_it_is_exact_unrolling_to_first_order_in_a_step() -> None:
    """There nothing moves, so that all that separates it from retraining is `exp(-lr h)` in place of `1 - lr h`."""
    errors = []
    for epochs, lr in ((20, 0.02), (200, 0.002)):
        algorithm = SGD(epochs, N, lr, weight_decay=0.1, schedule="linear", replay=True)
        setting = quadratic(algorithm, optimum())
        exact = finite_differences(setting)
        errors.append((SOURCE().fit(setting).effects - exact).norm() / exact.norm())
    assert errors[0] < 0.02
    assert errors[1] < 0.11 * errors[0]


def test_closed_forms_at_an_optimum() -> None:
    """`(1 - lr h)^K` is exact; `exp(-lr h K)` is what it is taken for, however the run is cut into segments."""
    setting = quadratic(SGD(40, N, 0.05, weight_decay=0.1, schedule="constant", replay=True), optimum())
    theta = setting.initial(0)
    values, basis = torch.linalg.eigh(hessian(setting) + 0.1 * torch.eye(3, dtype=DOUBLE))
    reach = basis @ ((1 - (1 - 0.05 * values) ** 40) / values).diag() @ basis.T
    gradients = loss_gradients(setting, theta, setting.pool)
    closed = -output_gradients(setting, theta) @ reach @ (gradients - gradients.mean(0)).T / N
    torch.testing.assert_close(finite_differences(setting), closed, rtol=1e-6, atol=1e-8)
    source = basis @ ((1 - (-2.0 * values).exp()) / values).diag() @ basis.T
    expected = -output_gradients(setting, theta) @ source @ (gradients - gradients.mean(0)).T / N
    torch.testing.assert_close(SOURCE(segments=4).fit(setting).effects, expected, rtol=1e-6, atol=1e-8)


def test_more_segments_follow_a_run_that_moves() -> None:
    setting = quadratic(SGD(200, N, 0.01, weight_decay=0.1, schedule="constant", replay=True))
    exact = finite_differences(setting)
    errors = [(SOURCE(k, checkpoints=1).fit(setting).effects - exact).norm() / exact.norm() for k in (1, 4, 16)]
    assert errors[0] > 4 * errors[1] > 8 * errors[2]
    assert errors[2] < 0.002  # the `exp` for steps of this size


def test_long_segments_at_an_optimum_are_influence() -> None:
    setting = quadratic(SGD(200, N, 0.4, weight_decay=0.1, schedule="constant"), optimum())
    at_optimum = replace(ridge(), algorithm=Newton(l2=0.1))
    f_hat, tangent = SOURCE(segments=1, checkpoints=1).fit(setting), Influence().fit(at_optimum)
    torch.testing.assert_close(f_hat.effects, tangent.effects, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(f_hat(ONES), tangent(ONES))


@pytest.mark.parametrize("coupled", [True, False])
def test_short_segments_are_tracin(coupled: bool) -> None:
    """Where nothing is carried on: a rate so small that the parameters stay where they are."""
    setting = replace(small_mlp(), algorithm=SGD(4, 40, lr=1e-7, momentum=0.9, weight_decay=0.1))
    found, expected = (e.fit(setting).effects / 1e-7 for e in (SOURCE(coupled=coupled), TracIn()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_outputs_are_those_of_the_end_and_moves_those_of_the_segment() -> None:
    """To first order in the rate, 1e-8 over fifteen steps of which momentum makes ten each."""
    setting = small_mlp()
    first, last = (setting.initial(seed) for seed in (0, 1))
    given = replace(setting, checkpoints=(Checkpoint(first, lr=1e-8, step=10), Checkpoint(last, lr=0.0, step=20)))
    gradients = loss_gradients(setting, first, setting.pool)
    expected = -output_gradients(setting, last) @ (gradients - gradients.mean(0)).T / setting.n
    found = SOURCE(segments=1).fit(given).effects / (1e-8 * 15 * 10)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def matrix(values, basis):
    return basis @ values.diag() @ torch.linalg.inv(basis)


@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "AdamW"])
def test_formula_with_dense_matrices(adam: bool) -> None:
    """Two segments, the second with two checkpoints: each with its own moves and, for Adam, preconditioner."""
    algorithm = AdamW(1, N, 0.3, weight_decay=0.2) if adam else SGD(1, N, 0.3, momentum=0.5, weight_decay=0.2)
    setting = quadratic(algorithm)
    generator = torch.Generator().manual_seed(0)
    points, plan = [], [(10, 0.3), (20, 0.2), (40, 0.1)]
    for step, lr in plan:
        theta = torch.randn(1, 3, generator=generator, dtype=DOUBLE)
        v = torch.rand(1, 3, generator=generator, dtype=DOUBLE)
        moments = {"weight": v * (1 - 0.999**step)} if adam else None
        points.append((v[0].sqrt() + 1e-8, Checkpoint({"weight": theta}, lr, step, second_moments=moments)))
    f_hat = SOURCE(segments=2).fit(replace(setting, checkpoints=tuple(c for _, c in points)))

    edges, gain = [0, 15, 30, 40], 1 if adam else 2
    rates = [gain * lr * (b - a) for (_, lr), (a, b) in zip(plan, pairwise(edges), strict=True)]
    preconditioners = [(1 / d if adam else torch.ones(3, dtype=DOUBLE)) for d, _ in points]
    moves = []
    for _, point in points:
        g = loss_gradients(setting, point.parameters, setting.pool)
        moves.append(-(g - g.mean(0)).T / N)  # (p, n)

    def segment(parts):
        rate = sum(rates[i] for i in parts)
        P = rate / sum(rates[i] / preconditioners[i] for i in parts)
        values, basis = torch.linalg.eig(P.diag() @ hessian(setting) + 0.2 * torch.eye(3, dtype=DOUBLE))
        values, basis = values.real, basis.real
        reach = matrix((1 - (-rate * values).exp()) / values, basis) @ P.diag()
        return matrix((-rate * values).exp(), basis), reach @ sum(rates[i] / rate * moves[i] for i in parts)

    (_, first), (carried, second) = segment([0]), segment([1, 2])
    expected = output_gradients(setting, points[-1][1].parameters) @ (carried @ first + second)
    torch.testing.assert_close(f_hat.effects, expected)


def test_without_curvature_a_segment_is_as_long_as_its_rates() -> None:
    """Weights that no gradient reaches and no decay pulls: 0 / 0 in the formula."""
    setting = replace(logistic(Loss()), algorithm=SGD(3, 40, lr=0.1))
    x, y = setting.pool
    dead = replace(setting, universe=(torch.cat([x[:, :1], 0 * x[:, 1:]], 1), y))
    assert SOURCE().fit(dead).effects.isfinite().all()


def test_curvatures_are_averaged_by_their_portions() -> None:
    setting = small_mlp()
    points = [Point(setting, setting.initial(seed), torch.ones(40, dtype=DOUBLE), setting.pool) for seed in (0, 1)]
    v = torch.eye(setting.p, dtype=DOUBLE)
    traces = [Kronecker(coupled=False).decompose([(1.0, p)]).apply(v, lambda h: h).trace() for p in points]
    both = Kronecker(coupled=False).decompose([(0.3, points[0]), (0.7, points[1])]).apply(v, lambda h: h)
    torch.testing.assert_close(both.trace(), 0.3 * traces[0] + 0.7 * traces[1])


@pytest.mark.parametrize("name", ["mlp", "convolutions", "text", "text, head of its own"])
def test_a_rescaled_decomposition_has_the_traces_of_the_rescaled_matrix(name: str) -> None:
    """Block by block, where the scale of a weight is a product of rows and columns; no basis changes a trace."""
    setting = {"mlp": small_mlp(), **WORLDS}[name]
    here = Point(setting, setting.initial(0), torch.ones(setting.n, dtype=DOUBLE), setting.pool)
    torch.manual_seed(0)
    parts = {}
    for block in Kronecker(fisher=ExactFisher()).decompose([(1.0, here)]).blocks:
        scale = 0.5 + torch.rand(block.spectrum.shape[0], 1, dtype=DOUBLE)
        if not isinstance(block, MatrixBlock):
            parts |= zip(block.names, scale.split([setting.initial(0)[n].numel() for n in block.names]), strict=True)
            continue
        scale = scale * (0.5 + torch.rand(block.spectrum.shape[1], dtype=DOUBLE))
        shape = block.shape
        parts[block.weight] = scale[: shape[0], : shape[1]]
        if block.bias is not None:
            parts[block.bias] = scale[-1] if block.input_first else scale[:, -1]
    scale = torch.cat([parts[name].flatten() for name in setting.trained])
    run = setting.layers.forward(here.parameters, here.data)
    traces = []
    for stage in (0, 1):  # of the labels' signs, which a sequence draws
        draws = generator(0, here.number, stage, 0)
        labels = ExactFisher().cotangents(setting, run.prediction.detach(), here.data, draws)
        squares = sum(run.flat(run.pull(v)).square().mean(0) for v in labels)
        traces.append({n: t.sum() for n, t in setting.split((scale.square() * squares)[None]).items()})
    for block in Kronecker(fisher=ExactFisher()).decompose([(1.0, here)], scale).blocks:
        expected = sum(traces[isinstance(block, MatrixBlock)][name] for name in block.names)
        torch.testing.assert_close(block.spectrum.sum(), expected)


def test_stands_where_training_ended() -> None:
    setting = replace(small_mlp(), algorithm=AdamW(20, 8, lr=0.02, weight_decay=0.1))
    f_hat = SOURCE(models=2, seed=3).fit(setting)
    torch.testing.assert_close(f_hat(torch.ones(40, dtype=DOUBLE)), Retrain(setting, seeds=(3, 4))(torch.ones(40)))


def test_effect_is_differentiable_in_the_inputs() -> None:
    f_hat = SOURCE(segments=2, checkpoints=1).fit(small_mlp())
    x = small_mlp().pool[0][:2].clone().requires_grad_()
    assert gradcheck(lambda x: f_hat.effect((x, torch.tensor([0, 2]))), (x,))


def test_too_few_checkpoints_for_the_segments_are_refused() -> None:
    setting = quadratic(SGD(1, N, 0.3))
    point = Checkpoint(setting.initial(0), lr=0.1, step=10)
    given = replace(setting, checkpoints=(point, replace(point, lr=0.0, step=20)))
    with pytest.raises(ValueError, match=r"SOURCE with 3 segments.*there are 1.*SOURCE\(segments=1\)"):
        SOURCE().fit(given)
    with pytest.raises(ValueError, match="at least one segment with one checkpoint"):
        SOURCE(segments=0)
