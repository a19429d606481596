"""What looking at a tenth of the data finds of the poison: MNIST 1-vs-7, logistic regression, 3 % added.

Every defence ranks all training points; the share of the poison among the most suspicious tenth is printed. The
datamodel's clean digits are others than those at which the attack aims. "Alone" leaves out what copies do together.
"""

import sys

from applications.defences import (
    ActivationClustering,
    CentroidDistance,
    Defence,
    Inputs,
    Neighbours,
    Selection,
    SelfInfluence,
    Slab,
    SpectralSignatures,
    TrainingLoss,
    inspect,
    poisoned,
)
from benchmarks.poisoning.linear import SPLITS, ones_and_sevens, setting
from benchmarks.poisoning.mnist import L2, attacks_on
from benchmarks.tables import mean, table
from estimators.influence import Influence
from recipe import CG, CrossEntropy, Greedy, TopK
from recipe.batch import Batch

SHARE = 0.1
INFLUENCE = Influence(inverse=CG(1e-3))


def defences(clean: Batch) -> dict[str, Defence]:
    """All, by name."""
    return {
        "self-influence": SelfInfluence(INFLUENCE),
        "self-influence, points alone": SelfInfluence(INFLUENCE, copies=None),
        "datamodel: `Selection`, `TopK()`": Selection(INFLUENCE, TopK(), SHARE, clean),
        "datamodel: the same, points alone": Selection(INFLUENCE, TopK(), SHARE, clean, copies=None),
        "datamodel: `Selection`, `Greedy(refit=5)`": Selection(INFLUENCE, Greedy(refit=5), SHARE, clean),
        "training loss": TrainingLoss(),
        "l2": CentroidDistance(),
        "slab": Slab(),
        "k nearest neighbours": Neighbours(),
        "spectral signatures": SpectralSignatures(Inputs()),
        "activation clustering": ActivationClustering(Inputs()),
    }


def main(splits: int = SPLITS) -> None:
    """A row a defence, a column an attack."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(splits):
        parts = ones_and_sevens(seed)
        victim = setting(parts, CrossEntropy(), L2)
        for attack, added in attacks_on("logistic", seed).items():
            if added is None:
                continue
            mixed, poison = poisoned(victim, added)
            for name, defence in defences(parts.test).items():
                seen = inspect(defence, mixed, poison, SHARE, per_class=False)
                found.setdefault(name, {}).setdefault(attack, []).append(seen.poison)
            print(seed, attack, {n: round(v[attack][-1], 2) for n, v in found.items()}, file=sys.stderr, flush=True)
    attacks = list(found["self-influence"])
    rows = [(name, *(mean(columns[attack], 2) for attack in attacks)) for name, columns in found.items()]
    table(f"The share of the poison in the most suspicious tenth, {splits} splits", ("defence", *attacks), rows)


if __name__ == "__main__":
    main()
