"""An MLP on MNIST: 2.5 % added in pixel range, by unrolled training, influence and gradient matching.

The attacker knows 1 000 training digits and aims at 500 others, with the probability of a wrong answer as the loss: it
does not grow without bounds on a few targets, as the cross-entropy does. Victims have fresh seeds and are measured on
digits that nobody has seen.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from applications.poisoning import ThreatModel
from benchmarks.data import mnist
from benchmarks.tables import mean, table
from estimators.adjoint_influence import AdjointInfluence
from estimators.gradient_matching import GradientMatching
from estimators.unrolled import Unrolled
from recipe import CG, SGD, Correct, GradientAscent, Loss, Retrain, Setting, solve
from recipe.batch import Batch, take

SEEDS = range(100, 108)  # of victims; the attacker's runs have others
ALGORITHM = SGD(epochs=40, batch_size=50, lr=0.05, momentum=0.9, weight_decay=1e-3)
ASCENT = GradientAscent(lr=0.15, steps=300, decay=True)
DRAWS = (0, 1)  # of the digits that poisons start from


def smooth() -> nn.Module:
    """784, 64 GELU, 10."""
    return nn.Sequential(nn.Linear(784, 64), nn.GELU(), nn.Linear(64, 10))


def deep() -> nn.Module:
    """Another architecture: 784, 64 ReLU, 64 ReLU, 10."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def wrong(prediction: Tensor, batch: Batch) -> Tensor:
    """The probability of another label, `(b,)`."""
    return 1 - prediction.softmax(-1).gather(1, batch[1][:, None])[:, 0]  # type: ignore[index]


def attack(setting: Setting, estimator: object, solver: GradientAscent, seed: int) -> Batch:
    """Poisons of the threat model, found through an estimator."""
    task = ThreatModel(0.025).task(setting, seed)
    return task.batch(solve(task, estimator.fit(setting), solver, estimator, setting).decision)  # type: ignore


def main() -> None:
    """Loss and accuracy of victims with fresh seeds, and of another architecture."""
    x, y = mnist()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, targets, test = (take((x.flatten(1), y), order[a:b]) for a, b in ((0, 1000), (1000, 1500), (1500, 5000)))

    def made(model: Callable[[], nn.Module]) -> Setting:
        return Setting(model, train, targets, ALGORITHM, output=wrong)

    setting, refitted = made(smooth), replace(ASCENT, refit=30)
    attacks: dict[str, Callable[[int], Batch | None]] = {
        "clean": lambda seed: None,
        "random flips": lambda seed: ThreatModel(0.025).task(setting, seed).start,
        "influence, refitted": lambda seed: attack(
            setting, AdjointInfluence(inverse=CG(1e-2), damping=1e-2), refitted, seed
        ),
        "gradient matching, refitted": lambda seed: attack(setting, GradientMatching(), refitted, seed),
        "unrolled (metagradient)": lambda seed: attack(setting, Unrolled(seed=1000, fresh=True), ASCENT, seed),
    }
    rows, ones = [], torch.ones(setting.n)
    for name, make in attacks.items():
        began, columns = time.perf_counter(), []
        poisons = [make(draw) for draw in DRAWS]
        for victim in (setting, made(deep)):
            for output in (Loss(), Correct()):
                f = Retrain(victim.on(test, output), SEEDS)
                columns.append(mean([float(v) for added in poisons for v in f.per_seed(ones, added).mean(1)], 4))
        rows.append((name, *columns))
        print(f"{rows[-1]}, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    header = ("attack", "test loss", "test accuracy", "loss, other architecture", "accuracy, other architecture")
    table(f"MNIST MLP, 2.5 % added in pixel range, {len(DRAWS)} draws x {len(SEEDS)} fresh seeds", header, rows)


if __name__ == "__main__":
    main()
