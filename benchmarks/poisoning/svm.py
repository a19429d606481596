"""A linear support vector machine on MNIST 1-vs-7, 3 % added in pixel range, beside adversarial-robustness-toolbox.

Both start from the same flipped training points' budget and look at the same validation digits; the peer takes the best
of its step sizes in hindsight. Measured is the mean hinge loss on these digits after scikit-learn's SVC trained on all.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from applications.poisoning import random_label_flips
from benchmarks.poisoning.linear import LOSSES, influence_attack, ones_and_sevens, setting, split, two_points
from benchmarks.tables import mean, table
from recipe.batch import Batch

SHARE, L2, STEPS, SPLITS = 0.03, 0.01, 24, 8
TRAIN, VALIDATION = 200, 100
PEER_STEPS = (0.3, 1.0)
MOST = 30  # steps of each point
PEER = Path(__file__).parent / "peers" / "art_svm.py"


def hinge(train: Batch, validation: Batch, added: Batch | None) -> tuple[float, float]:
    """Hinge loss and error on validation digits after training on everything."""
    x, y = (t.numpy() for t in train)
    machine = SVC(kernel="linear", C=1 / (len(y) * L2))
    if added is not None:
        x, y = np.concatenate([x, added[0].detach().numpy()]), np.concatenate([y, added[1].numpy()])
    side = machine.fit(x, y).decision_function(validation[0].numpy()) * (2 * validation[1].numpy() - 1)
    return float(np.maximum(0, 1 - side).mean()), float((side <= 0).mean())


def by_peer(python: str, train: Batch, validation: Batch, start: Batch, step: float) -> Batch:
    """The peer's poisons."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        arrays = (t.double().numpy() if t.is_floating_point() else t.numpy() for t in (*train, *validation, *start))
        names = ("x", "y", "x_val", "y_val", "start", "labels")
        np.savez(source, **dict(zip(names, arrays, strict=True)), C=1 / (len(train[1]) * L2), step=step, steps=MOST)
        subprocess.run([python, "-W", "ignore", str(PEER), str(source), str(target)], check=True, capture_output=True)
        return torch.from_numpy(np.load(target)["poisons"]).float(), start[1]


def main() -> None:
    """Clean, random flips, ours and, where `ART_PYTHON` names its environment, the peer."""
    python = os.environ.get("ART_PYTHON")
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(SPLITS):
        parts = split(ones_and_sevens(seed).train, seed, TRAIN, VALIDATION)  # more take the peer hours
        surrogate = setting(parts, LOSSES["hinge"][1], L2)
        ours, _ = influence_attack(two_points(parts, SHARE, None), surrogate, STEPS, 0.3)
        flips = random_label_flips(surrogate, len(ours[1]), seed)
        attacks: dict[str, Batch | None] = {"clean": None, "random flips": flips, "`AdjointInfluence`, refitted": ours}
        for step in PEER_STEPS if python else ():
            attacks[f"PoisoningAttackSVM, step {step:g}"] = by_peer(python, parts.train, parts.targets, flips, step)
        for name, added in attacks.items():
            found.setdefault(name, []).append(hinge(parts.train, parts.targets, added))
        print(seed, {name: [round(v, 4) for v in values[-1]] for name, values in found.items()}, file=sys.stderr)
    rows = [(name, *(mean(column, 4) for column in zip(*values, strict=True))) for name, values in found.items()]
    table(
        f"SVM, MNIST 1-vs-7, 3 % added, {SPLITS} splits", ("attack", "validation hinge loss", "validation error"), rows
    )


if __name__ == "__main__":
    main()
