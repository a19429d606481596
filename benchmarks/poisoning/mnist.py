"""MNIST 1-vs-7: what 3 % of added points do to a linear classifier, and what the defences see of them.

Poisons are found by influence, refitted on the way, and by the KKT attack. Koh, Steinhardt & Liang's attacker knows the
examples that the victim will be measured on ("known"); beside it stands the error on examples that it has not seen.

Another attacker aims at examples that it has not seen. It takes all that it has for targets, training points too, and
within the box it raises a rounder loss than the victim's: a sharp hinge overfits the targets. How round, and what is
raised within spheres and slabs, was chosen on the splits 100 to 105.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

from applications.defences import CentroidDistance, SelfInfluence, Slab, TrainingLoss
from applications.poisoning import Sanitation, ThreatModel, label_flip_decoys, random_label_flips
from benchmarks.poisoning.linear import (
    LOSSES,
    SPLITS,
    aiming_widely,
    influence_attack,
    kkt_attack,
    measured,
    ones_and_sevens,
    removed,
    setting,
    two_points,
)
from benchmarks.tables import Clock, mean, table
from estimators.influence import Influence
from recipe import CG, CrossEntropy, Hinge, Loss, SoftError
from recipe.batch import Batch, size
from recipe.setting import Measure

SHARE, L2, STEPS, PARTS = 0.03, 0.01, 24, 2
CONSTRAINTS = {"box": None, "sphere and slab": Sanitation()}
DECOYS = {"shares": (0.04, 0.1), "repeats": (1, 2), "one_sided": False}
DEFENCES = {"l2": CentroidDistance(), "slab": Slab(), "loss": TrainingLoss()}
SELF_INFLUENCE = SelfInfluence(Influence(inverse=CG(1e-3)))  # of the logistic loss: a hinge has no curvature
NAMES = (*DEFENCES, "self-influence")


class Ascent(NamedTuple):
    """How an attacker climbs: through which loss in the victim's place, what it raises, and the length of a step."""

    surrogate: Callable
    raised: Measure
    lr: float


KNOWN = {
    name: {"box": Ascent(smooth, Loss(), 0.3), "sphere and slab": Ascent(smooth, Loss(), 0.1)}
    for name, (_, smooth) in LOSSES.items()
}
ROUND = Hinge(smooth=0.5)
UNSEEN = {
    "logistic": {
        "box": Ascent(CrossEntropy(), ROUND, 1.0),
        "sphere and slab": Ascent(CrossEntropy(), SoftError(0.5), 0.1),
    },
    "hinge": {"box": Ascent(ROUND, ROUND, 1.0), "sphere and slab": KNOWN["hinge"]["sphere and slab"]},
}


def attacks_on(name: str, seed: int, wide: bool = False) -> dict[str, Batch | None]:
    """Poisons by name, of one split, aimed at the attacker's targets or (`wide`) at what it has not seen."""
    parts = aiming_widely(ones_and_sevens(seed)) if wide else ones_and_sevens(seed)
    victim = setting(parts, LOSSES[name][0], L2)
    decoys = label_flip_decoys(victim, **DECOYS)  # type: ignore[arg-type]
    found: dict[str, Batch | None] = {"clean": None}
    for constraint, sanitation in CONSTRAINTS.items():
        climb = (UNSEEN if wide else KNOWN)[name][constraint]
        task = two_points(parts, SHARE, sanitation, L2)
        aim = setting(parts, climb.surrogate, L2).on(output=climb.raised)
        found[f"influence, {constraint}"], _ = influence_attack(task, aim, STEPS, climb.lr)
        tasks = ThreatModel(SHARE, passes=sanitation).splits(victim, PARTS, seed)
        unseen = [DEFENCES["l2"], DEFENCES["slab"]] if sanitation else []
        found[f"KKT, {constraint}"], _ = kkt_attack(victim, tasks, decoys, defences=unseen)
    found["random flips"] = random_label_flips(victim, size(found["KKT, box"]), seed)  # type: ignore[arg-type]
    return found


def show(name: str, splits: int = SPLITS, wide: bool = False) -> None:
    """One loss: clean, random flips and the attacks (`wide`: aimed at what is not seen), over random splits."""
    found: dict[str, list[tuple]] = {}
    clock = Clock()
    for seed in range(splits):
        parts = ones_and_sevens(seed)
        victim, smooth = setting(parts, LOSSES[name][0], L2), setting(parts, CrossEntropy(), L2)
        for attack, added in attacks_on(name, seed, wide).items():
            caught = [float("nan")] * len(NAMES)
            if added is not None:
                caught = removed(victim, added, list(DEFENCES.values())) + removed(smooth, added, [SELF_INFLUENCE])
            row = (measured(victim, parts.targets, added)[1], *measured(victim, parts.test, added), *caught)
            found.setdefault(attack, []).append(row)
            print(name, seed, attack, *(f"{value:.4g}" for value in row), file=sys.stderr, flush=True)
    rows = []
    for attack, values in found.items():
        columns = list(zip(*values, strict=True))
        shares = ["" if c[0] != c[0] else f"{100 * sum(c) / len(c):.0f} %" for c in columns[3:]]
        rows.append((attack, mean(columns[0], 4), mean(columns[1]), mean(columns[2], 4), *shares))
    header = ("attack", "known error", "test loss", "test error", *(f"removed by {d}" for d in NAMES))
    aim = "what is not seen" if wide else "what is known"
    table(f"MNIST 1-vs-7, {name} loss, 3 % added, aimed at {aim}, {splits} splits, {clock():.0f} s", header, rows)


if __name__ == "__main__":
    for loss in sys.argv[1:] or LOSSES:
        for wide in (False, True):
            show(loss, wide=wide)
