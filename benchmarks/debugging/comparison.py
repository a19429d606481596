"""ModelDiff: two MLPs on digits where most eights carry a corner mark; B augments so that the mark tells it nothing.

Both train on the same universe by the same loop; B's sets the corner of images to dark or bright at random, with
probability .9 in every batch. The planted difference is the mark: training points that have it should lie furthest
along the first residual direction of A against B, and adding the mark to other digits should move A's margin for "8",
not B's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from applications.debugging import Comparison, Transform, Trial, compare, try_out
from applications.debugging.subpopulations import precision
from benchmarks.debugging.subpopulations import marked, plant
from benchmarks.tables import table
from estimators.ekfac import EKFAC
from recipe import Batch, Custom, Margin, Objective, Retrain, Setting
from recipe.digits import SIDE, load_digits, mlp

DIGIT, SHARE, SEEDS, AUGMENTED = 8, 0.7, range(5), 0.9
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


def run() -> tuple[Comparison, Tensor, dict[str, Trial]]:
    """The comparison, which training points are marked, and the test of the mark on both."""
    digits = load_digits()
    train, members = plant(digits.train, DIGIT, SHARE, marked, seed=0)
    targets, _ = plant(digits.targets, DIGIT, SHARE, marked, seed=1)
    datamodels, tests = [], {}
    others = digits.test[0][digits.test[1] != DIGIT]
    as_eight = (others, torch.full((len(others),), DIGIT))
    for name, augmented in (("A", 0.0), ("B", AUGMENTED)):
        rule = Custom(trained(augmented), Objective(l2=DECAY), f"corner hidden with probability {augmented}")
        setting = Setting(mlp, train, targets, rule, output=Margin())
        datamodels.append(EKFAC(models=len(SEEDS)).fit(setting))
        tests[name] = try_out(Transform(add_mark, "add the mark"), Retrain(setting, SEEDS).on(as_eight, Margin()))
    return compare(*datamodels, components=3), members, tests


def main() -> None:
    """The first directions, and the test."""
    found, members, tests = run()
    size = int(members.sum())
    rows = []
    for c in range(len(found.directions)):
        share = precision(found.points(c, size), members, size)
        rows.append((str(c + 1), *(f"{float(v):.3f}" for v in found.explained[c]), f"{share:.2f}"))
    header = ("direction", "share of A's effects", "of B's", f"marked among the first {size} points")
    table(f"ModelDiff: residual directions of A against B ({size} of {len(members)} points are marked)", header, rows)
    rows = [(name, str(t.before), str(t.actual), str(t.change), f"{t.p:.1g}") for name, t in tests.items()]
    header = ("model", "before", "with the mark", "change", "p over 5 seeds")
    table('Counterfactual: the margin of "8" on digits that are none', header, rows)


if __name__ == "__main__":
    main()
