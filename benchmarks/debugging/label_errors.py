"""Label errors: 10 % of the labels flipped at random; how well do scores tell them from the others?

All scores of one draw are of the same five trained models. Confident learning, ours and cleanlab's, has five models a
fold; cleanlab runs on the same out-of-fold probabilities in an environment of its own, whose interpreter
`CLEANLAB_PYTHON` names.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from applications.debugging import label_errors
from applications.debugging.label_errors import out_of_fold
from benchmarks import data
from benchmarks.tables import mean, table
from estimators.logra import LoGra
from recipe import SGD, Checkpoint, Margin, Retrain, Setting
from recipe.digits import flip_labels

DRAWS, MODELS, POINTS = range(10), 5, 5000
OURS = "held-out margin"
PEER = Path(__file__).parent / "peers" / "cleanlab_scores.py"


def mnist_mlp() -> nn.Module:
    """784 pixels, 64 hidden units, 10 logits."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cases() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[Tensor, Tensor], SGD]]:
    """Data sets with a model and how it is trained."""
    rule = SGD(epochs=10, batch_size=64, lr=0.1, momentum=0.9, weight_decay=1e-3)
    yield "MNIST-5k, MLP", mnist_mlp, data.mnist(), rule
    x, y = data.adult()
    width = x.shape[1]
    adult = lambda: nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 2))  # noqa: E731
    yield "Adult (5 000 rows), MLP", adult, (x[:POINTS], y[:POINTS]), replace(rule, lr=0.05, weight_decay=1e-2)


def scores(setting: Setting, seed: int) -> dict[str, Tensor]:
    """Suspicion by every method."""
    seeds = range(seed, seed + MODELS)
    f = Retrain(setting, seeds)
    ones = torch.ones(setting.n)
    stacked = f.parameters(ones)
    models = [{name: t[k] for name, t in stacked.items()} for k in range(MODELS)]
    trained = replace(setting, checkpoints=tuple(Checkpoint(theta, member=k) for k, theta in enumerate(models)))
    itself = LoGra(models=MODELS).fit(trained.on(setting.pool, Margin()))
    found = dict(label_errors(f, on_itself=itself, folds=5).scores)
    return found | cleanlab(out_of_fold(f, 5), setting.pool[1])


def cleanlab(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cleanlab's label quality scores, turned round; nothing without its interpreter."""
    python = os.environ.get("CLEANLAB_PYTHON")
    if not python:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.npz"
        np.savez(path, p=probabilities.numpy(), y=labels.numpy())
        subprocess.run([python, str(PEER), str(path), f"{folder}/out.npz"], check=True)
        with np.load(f"{folder}/out.npz") as out:
            return {f"cleanlab 2.9, {name}": -torch.from_numpy(out[name]) for name in out.files}


def main() -> None:
    """A column a data set."""
    found: dict[str, dict[str, list[float]]] = {}
    names = []
    for name, model, universe, rule in cases():
        names.append(name)
        for draw in DRAWS:
            train, wrong = flip_labels(universe, 0.1, seed=draw)
            probe = tuple(t[:1] for t in universe)
            setting = Setting(model, train, probe, rule)
            for method, score in scores(setting, 100 * draw).items():
                auroc = float(roc_auc_score(wrong.numpy(), score.detach().double().numpy()))
                found.setdefault(method, {}).setdefault(name, []).append(auroc)
    rows: list[Any] = [(method, *(mean(by[name], 4) for name in names)) for method, by in found.items()]
    rows += [
        (
            f"{OURS} minus {method}",
            *(mean(torch.tensor(found[OURS][name]) - torch.tensor(by[name]), 5) for name in names),
        )
        for method, by in found.items()
        if method == "training loss" or "cleanlab" in method
    ]
    table(
        f"Label errors: AUROC with 10 % of the labels flipped, {len(DRAWS)} draws, {MODELS} models",
        ("score", *names),
        rows,
    )


if __name__ == "__main__":
    main()
