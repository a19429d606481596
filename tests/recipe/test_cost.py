"""Costs: arithmetic, counting, and lines against closed forms."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from estimators.ekfac import EKFAC
from estimators.regression import Regression
from recipe import SGD, Cost, Custom, Ensembling, Margin, Objective, Retrain, Setting, Work, cost_of, work
from recipe.calculus import GaussNewton
from recipe.cost import Machine, along, measured, metered
from recipe.setting import Checkpoint
from recipe.work import Products

B, D, H, C = 4, 3, 5, 2  # batch, inputs, hidden, classes
FORWARD = 2 * (D * H + H * C)  # of an example
BACKWARD = 2 * (D * H + 2 * H * C)  # both weights' gradients, and what goes on to the first layer


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, C))


def setting(n: int = 40, targets: int = 6, algorithm=None, **changes) -> Setting:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n + targets, D, generator=generator), torch.arange(n + targets) % C
    algorithm = algorithm or SGD(epochs=7, batch_size=B, lr=0.1, weight_decay=1e-2)
    return Setting(mlp, (x[:n], y[:n]), (x[n:], y[n:]), algorithm, **changes)


@pytest.fixture
def _few(monkeypatch):
    """Pieces are measured at sizes that are below those of these settings."""
    for name, sizes in {"EXAMPLES": (2, 8), "TARGETS": (2, 3), "VECTORS": (2, 3)}.items():
        monkeypatch.setattr(work, name, sizes)
    monkeypatch.setattr(work, "measured", metered)  # seconds are for benchmarks


# ---- arithmetic ------------------------------------------------------------------------------------------------------
def test_costs_add_up():
    a, b = Cost(1.0, 2.0, 30.0), Cost(10.0, 20.0, 3.0)
    assert a + b == Cost(11.0, 22.0, 30.0)  # one after the other: memory is given back
    assert 3 * a == Cost(3.0, 6.0, 30.0)
    assert 0 * a == Cost()
    assert a.holding(5.0) == Cost(1.0, 2.0, 35.0)
    assert sum([a, b, a], Cost()) == Cost(12.0, 24.0, 30.0)


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (Cost(), "0.0 ms, 0 FLOP, 0 B of memory"),
        (Cost(2.5e12, 90.0, 3 * 2**30), "90.0 s, 2.5 TFLOP, 3.0 GiB of memory"),
        (Cost(1e6, 7200.0, 2**20), "2.0 h, 1.0 MFLOP, 1.0 MiB of memory"),
        (Cost(999.0, 150.0, 1023.0), "2.5 min, 999 FLOP, 1023 B of memory"),
    ],
)
def test_costs_read_well(cost, text):
    assert str(cost) == text


def test_a_line_is_exact_and_noise_of_the_clock_does_not_bend_it_far():
    sizes = []

    def at(n: int) -> Cost:
        sizes.append(n)
        return Cost(5.0 + 3 * n, {2: 4.0, 10: 1.0}[n], {2: 0.0, 10: 10.0}[n])

    found = along(at, 100, 2, 10)
    assert (found.flops, found.bytes) == (305.0, 100.0)
    assert 305 / 35 / 2 < found.seconds <= 305 / 35  # more examples took less time: they will not
    assert sizes == [2, 10]
    assert along(lambda n: Cost(7.0 * n), 5, 2, 10) == Cost(35.0)  # small enough to be measured


# ---- counting --------------------------------------------------------------------------------------------------------
def test_matrix_products_and_convolutions_are_counted():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert metered(lambda: a @ b).flops == 2 * 3 * 4 * 5
    layer, image = nn.Conv2d(2, 3, 3, bias=False), torch.ones(1, 2, 8, 8)
    assert metered(lambda: layer(image)).flops == 2 * 3 * (2 * 3 * 3) * 6 * 6


def test_memory_is_that_of_tensors_that_are_alive_at_once():
    kibibyte = torch.ones(256)

    def piece():
        one = kibibyte + 1
        two = one * 2
        del one
        return (two + 1).sum()

    assert metered(piece).bytes == 2 * 1024 + 4  # and the sum, before its operand goes
    assert metered(lambda: kibibyte.add_(1)).bytes == 0  # in place
    assert metered(lambda: kibibyte.view(16, 16).T).bytes == 0  # a view


def test_measuring_draws_no_random_numbers_of_the_caller():
    torch.manual_seed(0)
    wanted = torch.randn(1)
    torch.manual_seed(0)
    measured(lambda: torch.randn(5))
    assert torch.equal(torch.randn(1), wanted)


def test_the_machine_is_measured_once():
    like = torch.ones(1)
    assert Machine.of(like) is Machine.of(like)
    assert Machine.of(like).product(2, 3, 4).flops == 48
    assert Machine.of(like).cholesky(30).flops == 30**3 / 3


# ---- training --------------------------------------------------------------------------------------------------------
def test_training_is_its_steps():
    """Every example of every step goes there and back; several runs at once are tried on a step before."""
    for n in (40, 400):
        steps = 7 * (n // B)
        wanted = steps * B * (FORWARD + BACKWARD)
        assert Work(setting(n)).training().flops == pytest.approx(wanted)
        assert Work(setting(n)).training(3).flops == pytest.approx(3 * wanted + 3 * B * FORWARD)


def test_training_on_fewer_points_takes_fewer_steps():
    whole, half = (Work(setting(80)).training(1, points).flops for points in (80, 40))
    assert half == pytest.approx(whole / 2)
    replay = SGD(epochs=7, batch_size=B, lr=0.1, replay=True)
    whole, half = (Work(setting(80, algorithm=replay)).training(1, points).flops for points in (80, 40))
    assert half == pytest.approx(whole)  # the batches of the whole universe, whatever the weights


def test_other_algorithms_are_tried_on_a_few_points():
    def loop(model, dataset, seed):
        for x, _ in dataset:
            model(x[None])
        return model

    custom = Work(setting(400, algorithm=Custom(loop, Objective(), "once"))).training(2)
    assert custom.flops == pytest.approx(2 * 400 * FORWARD)


def test_retraining_measures_every_model_on_the_targets():
    s = setting()
    f = Retrain(s, seeds=range(3))
    training, outputs = Work(s).training(6).flops, 6 * s.m * FORWARD
    assert f.cost(sets=2).flops == pytest.approx(training + outputs)


@pytest.mark.usefixtures("_few")
def test_products_with_the_curvature():
    """Two passes forwards and one back, or so, for each example and vector."""
    s = setting(400, 30)
    products = Products(Work(s), GaussNewton())
    five, ten, fifteen = (products.product(k).flops for k in (5, 10, 15))
    assert fifteen - ten == pytest.approx(ten - five)
    assert 2 * FORWARD < (ten - five) / (5 * 400) < 4 * FORWARD


# ---- estimators ------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_few")
def test_checkpoints_cost_no_training_and_members_count():
    s = setting()
    theta = s.initial(0)
    given = [replace(s, checkpoints=tuple(Checkpoint(theta, member=k) for k in range(count))) for count in (1, 3)]
    one, three = (EKFAC(models=9).cost(g).flops for g in given)
    assert three == pytest.approx(3 * one)
    assert EKFAC(models=3).cost(s).flops == pytest.approx(three + Work(s).training(3).flops)


@pytest.mark.usefixtures("_few")
def test_parts_of_an_estimator_add_up():
    s = setting()
    one, other = EKFAC().cost(s).flops, Regression(20).cost(s).flops
    assert Ensembling([EKFAC(), Regression(20)]).cost(s).flops == pytest.approx(one + other)
    assert Regression(20, prior=EKFAC()).cost(s).flops == pytest.approx(one + other)


def test_an_estimator_that_does_not_say_is_named():
    @dataclass(frozen=True)
    class Theirs:
        def fit(self, setting, at=None): ...

    with pytest.raises(NotImplementedError, match=r"Theirs does not say what it costs. Give it a method `cost\(self"):
        cost_of(Theirs(), setting())


def test_a_setting_is_left_as_it_was():
    s = setting(output=Margin())
    before = Retrain(s)(torch.ones(s.n))
    cost_of(EKFAC(), s)
    assert torch.equal(Retrain(s)(torch.ones(s.n)), before)
    assert re.match(r"[\d.]+ m?s, ", str(cost_of(EKFAC(), s)))
