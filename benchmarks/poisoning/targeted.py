"""Cat or dog: one training point, or two, changed so that one prediction flips, as Koh & Liang 2017 did with pictures.

`python -m benchmarks.poisoning.targeted`. The changed points keep their labels and stay within every feature's observed
range; a datamodel is fitted around every iterate, and a flip counts only where the retrained victim gets it wrong.

Reference: Koh & Liang, "Understanding Black-box Predictions via Influence Functions", 2017, arXiv:1703.04730, section
5.2. Deviations: features of EfficientNet-Lite0 instead of Inception's, and they are changed themselves, not the pixels
behind them; each target gets the points with the largest first-order effect on it.
"""

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from applications.poisoning import Poisoning, Range, Targeted
from benchmarks.data import cat_dog_features
from benchmarks.poisoning.linear import Split, setting, split
from benchmarks.tables import mean, table
from estimators.adjoint_influence import AdjointInfluence
from recipe import CG, Correct, CrossEntropy, GradientAscent, Retrain, Setting, solve
from recipe.batch import labels, relabel, take

L2, TARGETS, STEPS, SPLITS = 0.001, 40, 6, 3
ESTIMATOR = AdjointInfluence(inverse=CG(1e-3))
ASCENT = GradientAscent(lr=1.0, steps=STEPS, sign=True, refit=STEPS - 1, measured=True, decay=True)

HEADER = ("attack", "points of 1 000", "flipped", "accuracy on the other targets", "median distance", "in spreads")


class Flip(NamedTuple):
    """What an attack on one target came to, by retraining.

    Args:
        flipped: whether the target is wrong now.
        others: accuracy on the other targets, all of them right without an attack.
        random: whether random inputs within the range, for the same points, flip the target too.
        moved: the mean distance of the points from where they were.
        share: of it in mean distances of the data from their mean.
    """

    flipped: bool
    others: float
    random: bool
    moved: float
    share: float


def strongest(aimed: Setting, count: int) -> Tensor:
    """Indices of the training points whose inputs have the largest first-order effect within their box."""
    x = aimed.pool[0].clone().requires_grad_()
    loss = ESTIMATOR.fit(aimed)(torch.ones(aimed.n), (x, labels(aimed.pool)))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    box = Range(each=True).box(aimed, x.detach(), 0)
    gain = (box.best(-gradient) - x.detach()) * -gradient
    return gain.sum(1).topk(count).indices


def attack(victim: Setting, target: int, count: int) -> Flip:
    """Change so many training points against one target, and retrain."""
    wrong = 1 - int(labels(victim.probe)[target])
    aimed = Targeted(target, wrong).aim(victim)
    index = strongest(aimed, count)
    start = take(aimed.pool, index)
    task = Poisoning(start, Range(each=True).box(aimed, start[0], 0), towards=True, replaces=tuple(index.tolist()))
    x = solve(task, ESTIMATOR.fit(aimed), ASCENT, ESTIMATOR, aimed).decision
    f, weights, rest = Retrain(victim.on(output=Correct())), task.weights(victim.n), torch.arange(TARGETS) != target
    right = f(weights, task.batch(x))
    noise = f(weights, task.batch(task.feasible.sample(torch.Generator().manual_seed(target))))  # type: ignore[union-attr]
    moved = (x - start[0]).norm(dim=1).mean()
    spread = (aimed.pool[0] - aimed.pool[0].mean(0)).norm(dim=1).mean()
    return Flip(
        bool(right[target] < 0.5),
        float(right[rest].mean()),
        bool(noise[target] < 0.5),
        float(moved),
        float(moved / spread),
    )


def relabelled(victim: Setting, target: int, count: int, seed: int) -> bool:
    """Whether random training points with the other label flip the target."""
    index = torch.randperm(victim.n, generator=torch.Generator().manual_seed(seed))[:count]
    flipped = take(victim.pool, index)
    task = Poisoning(relabel(flipped, 1 - labels(flipped)), replaces=tuple(index.tolist()))
    one = take(victim.probe, slice(target, target + 1))
    return bool(Retrain(victim.on(one, Correct()))(task.weights(victim.n), task.start) < 0.5)


def prepared(seed: int) -> Setting:
    """1 000 points to train on; the targets are the first correctly classified ones of the others."""
    parts = split(cat_dog_features(), seed, 1000, 0)
    victim = setting(Split(parts.train, parts.test, parts.test), CrossEntropy(), L2)
    right = Retrain(victim.on(output=Correct()))(torch.ones(victim.n)) > 0.5
    print(f"clean accuracy {float(right.double().mean()):.3f} of {len(right)}", flush=True)
    return victim.on(take(parts.test, right.nonzero()[:TARGETS, 0]))


def attacked(victim: Setting, count: int) -> dict[str, list[float]]:
    """By attack, on all targets: the share that flips, accuracy on the others, median distance, and in spreads."""
    flips = [attack(victim, t, count) for t in range(TARGETS)]
    others, moved, share = (torch.tensor(column) for column in (list(zip(*flips, strict=True))[k] for k in (1, 3, 4)))
    wrong = sum(relabelled(victim, t, count, t) for t in range(TARGETS))
    return {
        "random label flips": [wrong],
        "random inputs": [sum(f.random for f in flips)],
        "changed inputs": [
            sum(f.flipped for f in flips),
            float(others.mean()),
            float(moved.median()),
            float(share.median()),
        ],
    }


def main(splits: int = SPLITS) -> None:
    """How many of the targets flip, over random splits of the data."""
    found: dict[tuple[str, int], list[list[float]]] = {}
    for seed in range(splits):
        victim = prepared(seed)
        for count in (1, 2):
            for name, row in attacked(victim, count).items():
                found.setdefault((name, count), []).append(row)
                print(seed, count, name, row, file=sys.stderr, flush=True)
    rows = []
    for (name, count), values in found.items():
        flipped, *rest = (
            mean(column, digits) for column, digits in zip(zip(*values, strict=True), (1, 4, 1, 2), strict=False)
        )
        rows.append((name, str(count), f"{flipped} of {TARGETS}", *(rest or ("", "", ""))))
    table(f"Cat or dog, logistic regression on features, {splits} splits", HEADER, rows)


if __name__ == "__main__":
    main()
