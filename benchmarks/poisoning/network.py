"""An MLP on digits: 2.5 % added in pixel range, by unrolled training, influence and gradient matching."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from applications.poisoning import ThreatModel
from benchmarks.tables import mean, table
from estimators.gradient_matching import GradientMatching
from estimators.influence import Influence
from estimators.unrolled import Unrolled
from recipe import CG, Correct, GradientAscent, Loss, Retrain, Setting, solve
from recipe.batch import Batch
from recipe.digits import MLP_SGD, load_digits

SEEDS = range(100, 108)  # of victims; the attacker's runs have others
ALGORITHM = replace(MLP_SGD, epochs=10)


def smooth() -> nn.Module:
    """64, 128 GELU, 10."""
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10))


def deep() -> nn.Module:
    """Another architecture: 64, 64 ReLU, 64 ReLU, 10."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def attack(setting: Setting, estimator: object, solver: GradientAscent, seed: int) -> Batch:
    """Poisons of the threat model, found through an estimator."""
    task = ThreatModel(0.025).task(setting, seed)
    return task.batch(solve(task, estimator.fit(setting), solver, estimator, setting).decision)  # type: ignore


def main() -> None:
    """Accuracy of victims with fresh seeds, and of another architecture."""
    digits = load_digits()

    def made(model: Callable[[], nn.Module]) -> Setting:
        return Setting(model, digits.train, digits.targets, ALGORITHM, output=Loss())

    setting = made(smooth)
    ascent = GradientAscent(lr=0.1, steps=24, decay=True)
    refitted = replace(ascent, refit=5)
    attacks: dict[str, Batch | None] = {
        "clean": None,
        "random flips": ThreatModel(0.025).task(setting).start,
        "influence": attack(setting, Influence(inverse=CG(1e-2), damping=1e-3), refitted, 0),
        "gradient matching": attack(setting, GradientMatching(), refitted, 0),
        "unrolled (metagradient)": attack(setting, Unrolled(seed=1000), ascent, 0),
    }
    rows, ones = [], torch.ones(setting.n)
    for name, added in attacks.items():
        row = [name]
        for victim in (setting, made(deep)):
            f = Retrain(victim.on(digits.test), SEEDS)
            row += [
                mean(f.per_seed(ones, added).mean(1)),
                mean(f.on(digits.test, Correct()).per_seed(ones, added).mean(1)),
            ]
        rows.append(tuple(row))
    header = ("attack", "test loss", "test accuracy", "loss, other architecture", "accuracy, other architecture")
    table("Digits MLP (GELU, 10 epochs), 2.5 % added in pixel range, 8 fresh seeds", header, rows)
