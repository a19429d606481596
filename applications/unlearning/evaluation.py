"""How close did it come? Unlearned models beside retrained ones, on forgotten, retained and held-out points.

Evaluation
  klom         KLoM, 95th percentile and mean over points, beside its floor
  wasserstein  the same without histograms
  error        |mean margin - mean oracle margin|
  accuracy     of unlearned models and of oracles
and U-LiRA's advantage on the forgotten points, and the time as a fraction of retraining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from applications.unlearning.klom import DEFAULT, Direction, klom, margin_error, wasserstein
from applications.unlearning.membership import Advantage, u_lira
from recipe import batch as batches
from recipe.batch import Batch
from recipe.outputs import Correct, Margin
from recipe.setting import Parameters, Setting

SPLITS = ("forget", "retain", "held out")
PERCENTILE = 0.95


@dataclass(frozen=True)
class Distance:
    """How far unlearned models are from oracles on one split: 95th percentiles over the points, then means.

    Args:
        klom: 95th percentile of KLoM; `klom_floor` is that of other oracles against the oracles.
        klom_mean: its mean.
        wasserstein: 95th percentile, with its floor.
        error: mean margin error, with its floor.
        accuracy: of the unlearned models, `oracle_accuracy` of the oracles.
    """

    klom: float
    klom_floor: float
    klom_mean: float
    wasserstein: float
    wasserstein_floor: float
    error: float
    error_floor: float
    accuracy: float
    oracle_accuracy: float

    @property
    def ratio(self) -> float:
        """KLoM as a multiple of its floor."""
        return self.klom / self.klom_floor


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        splits: `"forget"`, `"retain"` and `"held out"`, a `Distance` each.
        membership: U-LiRA's advantage on the forget set, and what it is for other oracles (the floor).
        direction: of KLoM.
        models: unlearned and retrained.
        time: of unlearning as a fraction of retraining; None where it was not measured.
    """

    splits: Mapping[str, Distance]
    membership: tuple[Advantage, Advantage]
    direction: str
    models: tuple[int, int]
    time: float | None = None

    def __str__(self) -> str:
        rows = [
            f"{self.models[0]} unlearned models, {self.models[1]} oracles; KL({self.direction}), 95th percentiles",
            f"  {'split':<10}{'KLoM':>8}{'floor':>8}{'W1':>8}{'floor':>8}{'error':>8}{'accuracy':>10}{'oracle':>8}",
        ]
        for name, d in self.splits.items():
            numbers = (
                f"{d.klom:>8.2f}{d.klom_floor:>8.2f}{d.wasserstein:>8.3f}{d.wasserstein_floor:>8.3f}{d.error:>8.3f}"
            )
            rows.append(f"  {name:<10}{numbers}{d.accuracy:>10.3f}{d.oracle_accuracy:>8.3f}")
        rows.append(f"  membership advantage {self.membership[0]}, of oracles {self.membership[1]}")
        return "\n".join(rows + ([] if self.time is None else [f"  time: {self.time:.1%} of retraining"]))


def evaluate(
    setting: Setting,
    forget: Tensor,
    unlearned: Sequence[Parameters],
    oracles: Sequence[Parameters],
    others: Sequence[Parameters],
    held_out: Batch | None = None,
    direction: Direction = DEFAULT,
    time: float | None = None,
) -> Evaluation:
    """Compare unlearned models with oracles.

    Args:
        setting: of the models.
        forget: indices of the forget set.
        unlearned: parameters of unlearned models, each from a deployed model of another seed.
        oracles: parameters of models retrained without the forget set.
        others: as many more oracles, of other seeds, for the floor.
        held_out: examples that neither saw; default the setting's targets.
        direction: of KLoM.
        time: of unlearning as a fraction of retraining, to be kept with the result.
    """
    splits = dict(zip(SPLITS, split(setting, forget, held_out), strict=True))
    found = {
        name: tuple(margins_and_accuracy(setting, models, data) for models in (unlearned, oracles, others))
        for name, data in splits.items()
    }
    return compare(found, direction, time)


def compare(
    found: Mapping[str, tuple[tuple[Tensor, float], ...]], direction: Direction = DEFAULT, time: float | None = None
) -> Evaluation:
    """The evaluation of margins and accuracies that are there already.

    Args:
        found: of each split, `(margins (N, points), accuracy)` of the unlearned models, the oracles and other oracles.
        direction: of KLoM.
        time: as a fraction of retraining.
    """
    distances = {name: _distance(u, o, s, direction) for name, (u, o, s) in found.items()}
    unlearned, oracles, others = (margins for margins, _ in found["forget"])
    membership = (u_lira(oracles, unlearned), u_lira(oracles, others))
    return Evaluation(distances, membership, direction, (len(unlearned), len(oracles)), time)


def margins_and_accuracy(setting: Setting, models: Sequence[Parameters], data: Batch) -> tuple[Tensor, float]:
    """Margins `(N, points)` and mean accuracy of models on examples."""
    margin, correct = setting.on(data, Margin()), setting.on(data, Correct())
    with torch.no_grad():
        margins = torch.stack([margin.outputs(theta) for theta in models])
        return margins, float(torch.stack([correct.outputs(theta).mean() for theta in models]).mean())


def _distance(
    unlearned: tuple[Tensor, float], oracles: tuple[Tensor, float], others: tuple[Tensor, float], direction: Direction
) -> Distance:
    (u, accuracy), (o, oracle_accuracy), (s, _) = unlearned, oracles, others
    divergence, floor = klom(o, u, direction), klom(o, s, direction)
    return Distance(
        klom=_percentile(divergence),
        klom_floor=_percentile(floor),
        klom_mean=float(divergence.mean()),
        wasserstein=_percentile(wasserstein(o, u)),
        wasserstein_floor=_percentile(wasserstein(o, s)),
        error=float(margin_error(o, u).mean()),
        error_floor=float(margin_error(o, s).mean()),
        accuracy=accuracy,
        oracle_accuracy=oracle_accuracy,
    )


def split(setting: Setting, forget: Tensor, held_out: Batch | None = None) -> tuple[Batch, Batch, Batch]:
    """The forgotten, the retained and the held-out examples, the last of them by default the setting's targets."""
    keep = torch.ones(setting.n, dtype=torch.bool)
    keep[forget] = False
    pool = setting.pool
    return batches.take(pool, ~keep), batches.take(pool, keep), setting.probe if held_out is None else held_out


def _percentile(values: Tensor) -> float:
    return float(values.double().quantile(PERCENTILE))
