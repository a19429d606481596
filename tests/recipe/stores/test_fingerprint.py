"""What identifies a function, a loss or a model: all that decides its numbers, and nothing that differs by process."""

import functools
import operator
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from recipe import SGD, Bank, CrossEntropy, Retrain, Setting
from recipe.stores.fingerprint import identity

SOURCE = """
    from dataclasses import dataclass
    import torch.nn.functional as F

    SCALE = {scale}
    NAMES = ("a", "b")

    def helper(z):
        return inner(z) * SCALE

    def inner(z):
        return z {operation} 2 if "a" in {{"a", "b", "c"}} else z

    def loss(z, batch):
        return helper(F.relu(z)).sum(1)

    def recursive(z, batch):
        return recursive(z - SCALE, batch) if len(NAMES) > 3 else z

    class Loss:
        def __init__(self, power):
            self.power = power

        def __call__(self, z, batch):
            return self.of(z)

        def of(self, z):
            return helper(z)

    @dataclass(frozen=True)
    class Frozen:
        power: int = 2

        def __call__(self, z, batch):
            return z {operation} self.power

    REGISTRY = (loss, recursive)

    def listed(z, batch):
        return REGISTRY[0](z, batch)
"""
KINDS = ("loss", "Loss(1)", "Frozen()", "listed")


def module(**changes):
    """The names of a user's module."""
    names = {"__name__": "mine.losses"}
    exec(textwrap.dedent(SOURCE.format(**{"scale": 1.0, "operation": "+", **changes})), names)
    return names


def known(names, kind):
    """The identity of an expression in a module."""
    return identity(eval(kind, names))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_calls_identifies_it(kind):
    assert known(module(), kind) == known(module(), kind)
    if kind != "listed":  # what is found in a container is not followed
        assert known(module(), kind) != known(module(operation="-"), kind)


@pytest.mark.parametrize("kind", ["loss", "recursive", "Loss(1)"])
def test_constants_that_it_names_identify_it(kind):
    assert known(module(), kind) != known(module(scale=2.0), kind)


def test_attributes_identify_an_object():
    names = module()
    assert known(names, "Loss(1)") != known(names, "Loss(2)")
    assert identity(operator.itemgetter(1)) != identity(operator.itemgetter(2))
    assert identity(operator.itemgetter(1)) == identity(operator.itemgetter(1))
    assert identity(operator.attrgetter("a")) != identity(operator.attrgetter("b"))
    assert identity(functools.partial(max, 1)) != identity(functools.partial(max, 2))


class Body(nn.Module):
    """A model of the user's own."""

    scale: float = 1.0

    def __init__(self, act=torch.relu, scale=1.0):
        super().__init__()
        self.layer, self.act, self.scale = nn.Linear(2, 2), act, scale

    def forward(self, x):
        return self.body(x) * self.scale

    def body(self, x):
        return self.act(self.layer(x))


class Other(Body):
    def body(self, x):
        return self.act(self.layer(x)) - x


class Focal(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def forward(self, z, batch):
        return z.sum(1) ** self.gamma


MODELS = {
    "heads": (lambda: nn.MultiheadAttention(8, 2), lambda: nn.MultiheadAttention(8, 4)),
    "activation": (
        lambda: nn.TransformerEncoderLayer(8, 2, 8, activation="relu"),
        lambda: nn.TransformerEncoderLayer(8, 2, 8, activation="gelu"),
    ),
    "attribute": (Body, lambda: Body(scale=0.1)),
    "function": (Body, lambda: Body(act=torch.tanh)),
    "method": (Body, Other),
    "loss": (lambda: Focal(2.0), lambda: Focal(3.0)),
    "pooling": (lambda: nn.AvgPool2d(2), lambda: nn.AvgPool2d(2, stride=1)),
}


@pytest.mark.parametrize("pair", MODELS.values(), ids=MODELS)
def test_modules_are_known_by_all_that_they_compute(pair):
    def known(make):
        torch.manual_seed(0)
        return identity(make())

    first, second = pair
    assert known(first) == known(first)
    assert known(first) != known(second)


def test_a_bank_refuses_another_model_of_the_same_parameters(tmp_path):
    data = (torch.randn(8, 2), torch.arange(8) % 2)

    def setting(**kinds):
        return Setting(lambda: Body(**kinds), data, data, SGD(epochs=1, batch_size=4, lr=0.1))

    Retrain(setting(), bank=Bank(tmp_path / "bank"))
    for kinds in ({"scale": 0.1}, {"act": torch.tanh}):
        with pytest.raises(ValueError, match="belongs to another setting. Model: the bank has"):
            Retrain(setting(**kinds), bank=Bank(tmp_path / "bank"))


def test_defaults_identify_a_function():
    def made(**default):
        names = {"__name__": "mine.losses"}
        exec(f"def loss(z, batch, *, power={default['power']}):\n    return z**power", names)
        return names["loss"]

    assert identity(made(power=2)) != identity(made(power=3))
    assert identity(made(power=2)) == identity(made(power=2))


def test_what_the_package_brings_stands_for_itself():
    assert identity(CrossEntropy()) == "CrossEntropy()"
    assert identity(torch.nn.Linear(2, 2)).startswith("Linear")


def test_it_is_the_same_in_every_process():
    """Sets have another order in every process."""
    script = (
        "from tests.recipe.stores.test_fingerprint import module, known, KINDS\n"
        "print([known(module(), kind) for kind in KINDS])"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
