"""Audits: the served model beside models that were really retrained without what was forgotten."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from applications.unlearning.deployed import Deployed, Method
from applications.unlearning.evaluation import SPLITS, Evaluation, evaluate, split
from recipe.outputs import Margin
from recipe.retrain import Retrain
from recipe.setting import Parameters, Setting

FIRST_SEED = 10_000  # of oracles: far from the seeds that models are deployed with


class Audited(Protocol):
    """What an audit looks at: a forgetter."""

    setting: Setting
    method: Method
    estimator: Any
    deployed: Deployed

    @property
    def keep(self) -> Tensor:
        """The weights without what was forgotten."""

    @property
    def parameters(self) -> Parameters:
        """Of the model as it is now."""

    def retrained(self, seeds: Any) -> Retrain:
        """Oracles of these seeds."""


@dataclass(frozen=True)
class Audit:
    """How far the model is from oracles, in units of the setting's output, on each split.

    Args:
        oracles: how many were retrained.
        distance: mean absolute difference of the model from the oracles' mean.
        nothing: that of the model before any request.
        floor: that of one oracle from the mean of the others; no single model comes closer in expectation.
        evaluation: KLoM and the rest, where there were enough oracles.
    """

    oracles: int
    distance: Mapping[str, float]
    nothing: Mapping[str, float]
    floor: Mapping[str, float]
    evaluation: Evaluation | None = None

    def json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{self.oracles} oracles", f"  {'split':<10}{'model':>9}{'nothing':>9}{'floor':>9}"]
        rows += [
            f"  {k:<10}{self.distance[k]:>9.4f}{self.nothing[k]:>9.4f}{self.floor[k]:>9.4f}" for k in self.distance
        ]
        return "\n".join(rows + ([] if self.evaluation is None else [str(self.evaluation)]))


def audit(forgetter: Audited, n: int, klom_from: int) -> Audit:
    """Retrain n oracles and compare; from `klom_from` on, with KLoM: see `Forgetter.audit`."""
    setting, keep = forgetter.setting, forgetter.keep
    forget = (keep == 0).nonzero().squeeze(1)
    f = forgetter.retrained(range(FIRST_SEED, FIRST_SEED + n))
    untouched = forgetter.method.start(forgetter.deployed).parameters
    found: dict[str, tuple[float, float, float]] = {}
    for name, data in zip(SPLITS, split(setting, forget), strict=True):
        oracles = f.on(data).per_seed(keep)  # (n, m)
        there = setting.on(data)
        with torch.no_grad():
            now, before = (there.outputs(theta) for theta in (forgetter.parameters, untouched))
        mean = oracles.mean(0)
        others = (n * mean - oracles) / (n - 1)
        found[name] = (
            float((now - mean).abs().mean()), float((before - mean).abs().mean()),
            float((oracles - others).abs().mean()),
        )  # fmt: skip
    distance, nothing, floor = ({name: values[i] for name, values in found.items()} for i in range(3))
    whole = _klom(forgetter, forget, n) if n >= klom_from else None
    return Audit(n, distance, nothing, floor, whole)


def _klom(forgetter: Audited, forget: Tensor, n: int) -> Evaluation:
    """Models of other seeds that unlearn, beside 2 n oracles."""
    setting, keep = forgetter.setting.on(output=Margin()), forgetter.keep
    seeds = [range(FIRST_SEED + i * n, FIRST_SEED + (i + 1) * n) for i in range(3)]
    oracles, others = (_runs(forgetter.retrained(s), keep, n) for s in seeds[:2])
    unlearned = []
    for seed, theta in zip(seeds[2], _runs(forgetter.retrained(seeds[2]), torch.ones(setting.n), n), strict=True):
        deployed = Deployed(forgetter.setting, theta, seed=seed)
        deployed = deployed if forgetter.estimator is None else deployed.fitted(forgetter.estimator)
        unlearned.append(forgetter.method.forget(deployed, forgetter.method.start(deployed), keep).parameters)
    return evaluate(setting, forget, unlearned, oracles, others)


def _runs(f: Retrain, weights: Tensor, n: int) -> list[Parameters]:
    stacked = f.parameters(weights)
    return [{name: t[i] for name, t in stacked.items()} for i in range(n)]
