"""Gradients of every example, and random features of them, beside `vmap(grad(...))` as one writes it without layers."""

from collections.abc import Callable

import torch
from torch.func import grad, vmap

from benchmarks.estimators.settings import SETTINGS, MissingDataError
from benchmarks.tables import Clock, table
from estimators._projections import projection
from recipe import Setting, calculus
from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Parameters

EXAMPLES, BLOCK, ROUNDS = 500, 125, 5
FEATURES = 1024


def by_vmap(setting: Setting, at: Parameters, batch: Batch) -> torch.Tensor:
    """Gradients `(b, p)`."""

    def loss(theta: torch.Tensor, one: Batch) -> torch.Tensor:
        return setting.losses(setting.unflat(theta, at), batches.example(one)).squeeze(0)

    return vmap(grad(loss), in_dims=(None, 0))(setting.flat(at), batch)


def ways(setting: Setting, at: Parameters) -> list[Callable[[Batch], object]]:
    """Our gradients and features, theirs, and a plain backward pass, which has the gradient of the sum alone."""
    phi, theta = projection(setting, FEATURES, seed=0), setting.flat(at).requires_grad_()
    dense = torch.randn(setting.p, FEATURES)

    def plain(batch: Batch) -> object:
        return torch.autograd.grad(setting.losses(setting.unflat(theta, at), batch).sum(), theta)

    return [
        lambda batch: calculus.loss_gradients(setting, at, batch),
        lambda batch: by_vmap(setting, at, batch),
        lambda batch: phi.gradients(at, batch, setting.loss),
        lambda batch: by_vmap(setting, at, batch) @ dense,
        plain,
    ]


def main() -> None:
    """Examples a second, median of interleaved rounds."""
    rows = []
    for name in ("digits MLP", "MNIST MLP", "CIFAR-2 CNN", "TOFU GPT"):
        try:
            setting = SETTINGS[name]().setting
        except MissingDataError as error:
            print(f"\n{name} is left out: {error}")
            continue
        at = setting.initial(0)
        parts = [batches.take(setting.pool, slice(i, i + BLOCK)) for i in range(0, EXAMPLES, BLOCK)]
        found = [calculus.loss_gradients(setting, at, parts[0]), by_vmap(setting, at, parts[0])]
        error = float((found[0] - found[1]).abs().max() / found[1].abs().max())
        every, seconds = ways(setting, at), []
        for _ in range(ROUNDS):
            seconds.append([])
            for way in every:
                clock = Clock()
                for part in parts:
                    way(part)
                seconds[-1].append(clock())
        ours, theirs, features, projected, plain = torch.tensor(seconds).median(0).values.tolist()
        counts = [f"{EXAMPLES / s:.0f}" for s in (ours, theirs, features, projected, plain)]
        ratios = [f"{theirs / ours:.1f} x", f"{projected / features:.1f} x", f"{theirs / plain:.1f} x"]
        rows.append((name, *counts, *ratios, f"{error:.0e}"))
    header = (
        *("model", "gradients by factors, a second", "by vmap(grad)", f"{FEATURES} features of them"),
        *("vmap(grad) and a dense projection", "a plain backward pass"),
        *("gradients faster", "features faster", "a plain pass faster", "largest relative difference"),
    )
    table(f"Per-example gradients in blocks of {BLOCK}", header, rows)
