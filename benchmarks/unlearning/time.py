"""What one request for 1 % of the data costs on the CIFAR-2 CNN, and a thousand at once."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from applications.unlearning import DatamodelMatching, Deployed
from benchmarks.data import cifar2
from benchmarks.tables import table
from estimators.ekfac import EKFAC
from recipe import SGD, AdamW, Setting

TRAINING = SGD(epochs=15, batch_size=64, lr=0.05, momentum=0.9, weight_decay=5e-4)
MATCHING = AdamW(epochs=5, batch_size=32, lr=5e-4)
MANY = 1000


def cnn() -> nn.Module:
    """Three convolutions and a linear layer: 23 906 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a run, and what it gives."""
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def main() -> None:
    """CPU seconds after the fit, as fractions of a retraining."""
    torch.set_num_threads(1)
    train, test = cifar2("train"), cifar2("test")
    setting = Setting(cnn, train, test, TRAINING)
    retraining, theta = seconds(lambda: TRAINING.train(setting, torch.ones(setting.n), 0))
    fit, f_hat = seconds(lambda: EKFAC().fit(setting))
    deployed = Deployed(setting, theta, f_hat)
    sets = [torch.randperm(setting.n)[: setting.n // 100].sort().values for _ in range(MANY)]
    deployed.outputs(sets[0])
    singles, one_by_one = seconds(lambda: torch.stack([deployed.outputs(s) for s in sets]))
    single = singles / MANY
    together, outputs = seconds(lambda: deployed.outputs(sets))
    torch.testing.assert_close(outputs, one_by_one, rtol=1e-3, atol=1e-3)
    # Matching asks for logits on a few points after one change of the weights: lazily, that is one solve.
    lazy = Deployed(setting, theta, EKFAC(lazy=True).fit(setting))
    model, _ = seconds(lambda: DatamodelMatching(MATCHING).unlearn(lazy, lazy.kept(sets[0])))
    rows = [
        ("a retraining", f"{retraining:.2f}", ""),
        ("the fit (EKFAC), once", f"{fit:.2f}", f"{fit / retraining:.1%}"),
        ("one request as outputs", f"{single:.4f}", f"{single / retraining:.2%}"),
        (f"{MANY} requests as outputs, together", f"{together:.3f}", f"{together / singles:.1%} of single calls"),
        ("one request as a model (DMM)", f"{model:.2f}", f"{model / retraining:.1%}"),
    ]
    table("CIFAR-2 CNN, requests for 1 % of 2 000 images", ("", "CPU seconds", "of a retraining"), rows)
