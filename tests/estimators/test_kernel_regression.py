"""Kernel regression is ridge in the kernel's space, and follows forgetting where no linear datamodel does."""

from dataclasses import replace

import pytest
import torch

from applications.data_selection import DataSelection
from estimators.kernel_regression import KernelRegression, RandomRemovals, RemovalKernel, Varying, _Runs
from estimators.regression import Regression, Ridge
from recipe import Convex, Logits, Loss, Retrain, solve
from recipe import batch as batches
from tests.worlds import DOUBLE, logistic, small_mlp

ONES = torch.ones(40, dtype=DOUBLE)


def test_targets_of_the_universe_have_a_kernel_of_their_own():
    """Against the dense kernel, output by output."""
    generator = torch.Generator().manual_seed(0)
    X, Q = ((torch.rand(r, 12, generator=generator) < 0.3).double() for r in (60, 7))
    Y, own, noise = torch.randn(60, 3, generator=generator, dtype=DOUBLE), torch.tensor([2, -1, 5]), 0.1
    varying = Varying()
    K, k, level = varying(X, X), varying(Q, X), varying(X, X).diagonal().mean()
    of_runs = _Runs.of(varying, noise, X).coefficients(Y, own)
    found = k @ of_runs.shared + Q[:, own.clamp_min(0)] * ((k + level) @ of_runs.if_left_out)
    for j, place in enumerate(own.tolist()):
        here, there = (X[:, place], Q[:, place]) if place >= 0 else (X[:, 0] * 0, Q[:, 0] * 0)
        dense, between = K + torch.outer(here, here) * (K + level), k + torch.outer(there, here) * (k + level)
        inverse = torch.linalg.inv(dense + noise * level * torch.eye(60, dtype=DOUBLE))
        torch.testing.assert_close(found[:, j], between @ inverse @ Y[:, j])
        exact = here > 0 if place >= 0 else here == 0  # the others' diagonal is the shared kernel's, which is near
        torch.testing.assert_close(of_runs.diagonal[exact, j], inverse.diagonal()[exact])


def test_a_class_that_goes_is_predicted_better_than_by_a_linear_datamodel():
    setting = logistic()
    members = (setting.pool[1] == 0).nonzero()[:, 0]  # 14 points

    def parts(setting, seed=0):
        generator = torch.Generator().manual_seed(seed)
        keep = torch.ones(300, setting.n)
        for row in keep:
            count = int(torch.randint(1, len(members), (), generator=generator))
            row[members[torch.randperm(len(members), generator=generator)[:count]]] = 0
        return keep

    f, asked = Retrain(setting), parts(setting, seed=1)[:50].double()
    kernel = KernelRegression(parts).fit(setting)
    linear = KernelRegression(parts, kernel=lambda a, b: a @ b.T).fit(setting)
    uniform = Regression(subsets=300, alpha=0.8, penalty=Ridge()).fit(setting)
    errors = [(g(asked) - g(ONES) - f(asked) + f(ONES)).abs().mean() for g in (kernel, linear, uniform)]
    assert errors[0] < 0.5 * errors[1] < errors[2]


def test_seeds_are_shared_with_the_full_runs():
    """Nothing left out is the mean of the seeds on all points, exactly; other outputs cost no training."""
    setting = small_mlp()
    f_hat = KernelRegression(RandomRemovals(sets=20), seeds=3, seed=7).fit(setting)
    torch.testing.assert_close(f_hat(ONES), Retrain(setting, seeds=(7, 8, 9))(ONES))
    logits = f_hat.on(setting.probe, Logits())
    assert logits.output_shape == (6, 3)
    torch.testing.assert_close(logits(ONES), Retrain(setting.on(setting.probe, Logits()), seeds=(7, 8, 9))(ONES))


def test_points_that_are_out_stay_out():
    setting = logistic()
    at = (torch.arange(40) < 30).double()
    f_hat = KernelRegression(RandomRemovals(sets=100, share=0.3)).fit(setting, (at, None))
    torch.testing.assert_close(f_hat(at), Retrain(setting)(at))


def test_a_learned_kernel_knows_which_points_are_alike():
    """Outputs that depend on how many of a class are left out, and not on which: noise and classes are found."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.nn.functional.one_hot(torch.arange(20) % 2).double()
    X = (torch.rand(200, 20, generator=generator) < 0.3).double()
    counts = X @ classes
    Y = counts**2 @ torch.tensor([[1.0], [-0.5]], dtype=DOUBLE) + torch.randn(200, 1, generator=generator, dtype=DOUBLE)
    kernel, noise = RemovalKernel.learned((torch.eye(20, dtype=DOUBLE), classes), X, Y)
    sizes = torch.stack([(X @ F).square().sum(1).mean() for F in kernel.features])
    shares = kernel.inner.sum(0) * sizes
    assert shares[1] > 10 * shares[0]
    assert 0.3 < noise * kernel(X, X).diagonal().mean() < 3


def test_the_spread_over_seeds_is_predicted():
    """Runs of no training at all: seeds are noise, which halves as the first point goes."""
    generator = torch.Generator().manual_seed(0)
    X = (torch.rand(800, 12, generator=generator) < 0.3).double()
    start, again = (torch.randn(800, 3, generator=generator, dtype=DOUBLE) for _ in range(2))
    gone = X[:, :1]
    outputs = X @ torch.randn(12, 3, generator=generator, dtype=DOUBLE) + torch.where(gone > 0, 0.5 * again, again)
    runs = _Runs.of(Varying(rate=0.0), 0.05, X)
    coefficients = runs.spread(runs.coefficients(outputs - start, torch.full((3,), -1)), start)
    variance = 1 + runs.K @ coefficients
    assert (variance[X[:, 0] > 0] < 0.7 * variance[X[:, 0] == 0].mean()).double().mean() > 0.9
    setting = small_mlp()
    f_hat = KernelRegression(RandomRemovals(sets=60), seeds=20).fit(setting)
    torch.testing.assert_close(f_hat.spread(ONES), torch.ones(f_hat.m, dtype=DOUBLE))
    assert f_hat.spread(torch.stack([ONES, 1 - 0.1 * ONES])).shape == (2, f_hat.m)
    with pytest.raises(ValueError, match="needs several of them"):
        KernelRegression(RandomRemovals(sets=20)).fit(setting).spread(ONES)


def test_a_geometry_may_be_a_function_of_what_is_left_out():
    generator = torch.Generator().manual_seed(0)
    F, X = torch.randn(12, 3, generator=generator), (torch.rand(600, 12, generator=generator) < 0.3).float()
    weights = (torch.rand(2, 1, generator=generator), torch.rand(2, 1, generator=generator))
    by_points, by_sets = RemovalKernel((F,), *weights), RemovalKernel((lambda r: r @ F,), *weights)
    torch.testing.assert_close(by_sets(X, X), by_points(X, X))  # more than one tile
    torch.testing.assert_close(by_sets(X[:5], X), by_points(X, X)[:5])


def test_refusals():
    setting = logistic()
    f_hat = KernelRegression(RandomRemovals(sets=20)).fit(setting)
    with pytest.raises(NotImplementedError, match="cannot value examples from outside the universe"):
        f_hat(ONES, batches.take(setting.pool, slice(0, 1)))
    with pytest.raises(ValueError, match=r"must give zeros and ones \(r, 40\)"):
        replace(KernelRegression(), draw=lambda _: torch.ones(3, 39)).fit(setting)
    with pytest.raises(ValueError, match="needs noise above 0 and a seed"):
        KernelRegression(noise=0.0)


def test_convex_does_not_take_it_for_linear():
    f_hat = KernelRegression(RandomRemovals(sets=20)).fit(logistic(Loss()))
    with pytest.raises(ValueError, match="cannot be traced with a cvxpy variable"):
        solve(DataSelection(size=30), f_hat, Convex())
