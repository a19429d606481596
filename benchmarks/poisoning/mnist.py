"""MNIST 1-vs-7: what 3 % of added points do to a linear classifier, and what the defences see of them."""

import torch

from applications.defences import CentroidDistance, SelfInfluence, Slab, TrainingLoss, inspect, poisoned
from applications.poisoning import Sanitation, random_label_flips
from benchmarks.poisoning.linear import LOSSES, SPLITS, influence_attack, ones_and_sevens, setting, two_points
from benchmarks.tables import mean, table
from estimators.influence import Influence
from recipe import CG, Correct, Retrain, Setting
from recipe.batch import Batch, size

SHARE, L2, STEPS = 0.03, 0.01, 24
CONSTRAINTS = {"box": (None, 0.3), "sphere and slab": (Sanitation(), 0.1)}  # with the length of a step
DEFENCES = {
    "l2": CentroidDistance(),
    "slab": Slab(),
    "loss": TrainingLoss(),
    "self-influence": SelfInfluence(Influence(inverse=CG(1e-3))),
}


def measured(victim: Setting, test: Batch, added: Batch | None) -> tuple[float, float]:
    """Test loss and test error of the retrained victim, which is convex: one run is all runs."""
    f = Retrain(victim.on(test))
    ones = torch.ones(victim.n)
    return float(f(ones, added).mean()), 1 - float(f.on(test, Correct())(ones, added).mean())


def removed(victim: Setting, added: Batch) -> list[float]:
    """The share of the poison among the 5 % of each class that a defence throws away."""
    mixed, poison = poisoned(victim, added)
    return [inspect(defence, mixed, poison).poison for defence in DEFENCES.values()]


def show(name: str, splits: int = SPLITS) -> None:
    """One loss: clean, random flips and both attacks, over random splits of the data."""
    victims_loss, attackers_loss = LOSSES[name]
    found: dict[str, list[tuple]] = {}
    for seed in range(splits):
        parts = ones_and_sevens(seed)
        victim, surrogate = setting(parts, victims_loss, L2), setting(parts, attackers_loss, L2)
        attacks: dict[str, Batch | None] = {"clean": None}
        for constraint, (sanitation, lr) in CONSTRAINTS.items():
            attacks[constraint], _ = influence_attack(two_points(parts, SHARE, sanitation), surrogate, STEPS, lr)
        attacks["random flips"] = random_label_flips(victim, size(attacks["box"]), seed)  # type: ignore[arg-type]
        for attack, added in attacks.items():
            caught = removed(victim, added) if added is not None else [float("nan")] * len(DEFENCES)
            found.setdefault(attack, []).append((*measured(victim, parts.test, added), *caught))
    rows = []
    for attack, values in found.items():
        columns = list(zip(*values, strict=True))
        shares = ["" if c[0] != c[0] else f"{100 * sum(c) / len(c):.0f} %" for c in columns[2:]]
        rows.append((attack, mean(columns[0]), mean(columns[1], 4), *shares))
    header = ("attack", "test loss", "test error", *(f"removed by {d}" for d in DEFENCES))
    table(f"MNIST 1-vs-7, {name} loss, 3 % added, {splits} splits", header, rows)
