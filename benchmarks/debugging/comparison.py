"""ModelDiff: two MLPs on digits where most eights carry a corner mark; B augments so that the mark tells it nothing.

Both train on the same universe by the same loop; B's sets the corner of images to dark or bright at random, with
probability .9 in every batch. The planted difference is the mark: targets that have it should lie furthest along the
first residual direction of A against B, training points that have it too, and adding the mark to other digits should
move A's margin for "8", not B's. Beside it A against A trained from other seeds, where there is nothing to find.

Which outputs and estimator, and that columns are scaled, was chosen on other draws (100 to 103).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from applications.debugging import Comparison, Transform, Trial, compare, try_out
from applications.debugging.subpopulations import precision
from benchmarks.debugging.subpopulations import marked, plant
from benchmarks.tables import mean, table
from estimators.logra import LoGra
from recipe import Batch, Custom, Logits, Margin, Objective, Retrain, Setting
from recipe.digits import SIDE, load_digits, mlp

DIGIT, SHARE, AUGMENTED = 8, 0.7, 0.9
DRAWS, MODELS, DIRECTIONS = range(5), 5, 3
EPOCHS, BATCH, LR, DECAY = 30, 64, 0.1, 1e-3
CORNER = torch.zeros(SIDE, SIDE, dtype=torch.bool)
CORNER[:2, :2] = True


def trained(augmented: float) -> Any:
    """A training loop that hides the corner with a probability."""

    def loop(model: nn.Module, dataset: Dataset, seed: int) -> nn.Module:
        x, y = (t for t in dataset.datasets)  # type: ignore[attr-defined]  # a StackDataset of tensors
        rule = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=DECAY)
        steps = EPOCHS * (len(y) // BATCH)
        for step in range(steps):
            rule.param_groups[0]["lr"] = LR * (1 - step / steps)
            rows = torch.randint(len(y), (BATCH,))
            rule.zero_grad()
            F.cross_entropy(model(hidden(x[rows], augmented)), y[rows]).backward()
            rule.step()
        return model

    return loop


def hidden(x: Tensor, probability: float) -> Tensor:
    """Corners dark or bright at random, with a probability."""
    chosen = torch.rand(len(x), 1) < probability
    bright = (torch.rand(len(x), 1) < 0.5).float()
    return torch.where(chosen & CORNER.flatten(), bright, x)


def add_mark(batch: Batch) -> Batch:
    """The targets with the mark."""
    return marked(batch[0]), batch[1]  # type: ignore[index]


def settings(draw: int) -> tuple[Setting, Setting, Tensor, Tensor]:
    """Those of A and B, and which training points and targets are marked."""
    digits = load_digits()
    train, members = plant(digits.train, DIGIT, SHARE, marked, seed=2 * draw)
    targets, probes = plant(digits.targets, DIGIT, SHARE, marked, seed=2 * draw + 1)
    a, b = (
        Setting(mlp, train, targets, Custom(trained(p), Objective(l2=DECAY), f"corner hidden with probability {p}"))
        for p in (0.0, AUGMENTED)
    )
    return a.on(targets, Logits()), b.on(targets, Logits()), members, probes


def counterfactual(setting: Setting, seeds: range) -> Trial:
    """The margin of "8" on held-out digits that are none, without and with the mark."""
    x, y = load_digits().test
    others = x[y != DIGIT]
    f = Retrain(setting, seeds).on((others, torch.full((len(others),), DIGIT)), Margin())
    return try_out(Transform(add_mark, "add the mark"), f)


def main() -> None:
    """The first directions, and the test of the mark on both."""
    shares: dict[str, list[list[float]]] = {"A against B": [], "A against A, other seeds": []}
    tests: dict[str, list[Trial]] = {"A": [], "B": []}
    for draw in DRAWS:
        seeds = range(1000 * draw, 1000 * draw + MODELS)
        a, b, members, probes = settings(draw)
        of_a, of_b = (LoGra(models=MODELS, seed=seeds[0]).fit(setting) for setting in (a, b))
        again = LoGra(models=MODELS, seed=seeds[-1] + 1).fit(a)
        for name, other in (("A against B", of_b), ("A against A, other seeds", again)):
            shares[name].append(_shares(compare(of_a, other, DIRECTIONS), members, probes))
        for name, setting in (("A", a), ("B", b)):
            tests[name].append(counterfactual(setting, seeds))
    rows = [
        (f"{name}, direction {c + 1}", *(mean([draw[3 * c + k] for draw in draws], 2) for k in range(3)))
        for name, draws in shares.items()
        for c in range(DIRECTIONS if name == "A against B" else 1)
    ]
    header = ("", "marked among the foremost targets", "among the foremost training points", "share of the effects")
    table(f"ModelDiff: residual directions; as many foremost as are marked, {len(DRAWS)} draws", header, rows)
    rows = [
        (name, *(mean([getattr(t, part).mean for t in draws], 2) for part in ("before", "actual", "change")),
         ", ".join(f"{t.p:.1g}" for t in draws))
        for name, draws in tests.items()
    ]  # fmt: skip
    header = ("model", "before", "with the mark", "change", f"p over {MODELS} seeds, by draw")
    table('Counterfactual: the margin of "8" on held-out digits that are none', header, rows)


def _shares(found: Comparison, members: Tensor, probes: Tensor) -> list[float]:
    """For each direction: marked among its targets, among its training points, and its share of A's effects."""
    few, many = int(probes.sum()), int(members.sum())
    shares: list[float] = []
    for c in range(DIRECTIONS):
        shares.append(precision(found.targets(c, few), probes, few))
        shares.append(precision(found.points(c, many), members, many))
        shares.append(float(found.explained[c, 0]))
    return shares


if __name__ == "__main__":
    main()
