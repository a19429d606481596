"""What the datamodels of `klom.py` predict of a digits MLP without some points, and how to fine-tune towards that.

Both are fitted once for all forget sets. The linear one is EK-FAC, corrected by a regression on 6 000 retrainings; what
the mere size of the training set does is measured by itself, on 200 random sets of 95 % and 100 of all points.
The other is a kernel regression on 25 000 sets of 41 to 60 points of the kinds that are asked for
(`removals.py`); none is in the tables, and how much the nearest of them overlaps with each forget set is printed. It
starts from what retraining in the tangent space predicts (`TangentKernel`), and its kernel, learned on 1 500 of
these runs, knows removals for alike that move such a surrogate alike. It predicts the mean of the logits and their
spread over seeds: a deployed model keeps its place among the seeds,

    wanted = mean without the set + spread (logits - mean on all points),

and margins are taken of that. Fine-tuning towards it takes all points, the forgotten ones ten times. All of this was
chosen on the halves of classes 1, 3, 5, 7 and 9 and on other ends of components, which are not in the tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor

from applications.unlearning.matching import sampled
from benchmarks.unlearning.removals import Removals
from estimators.ekfac import EKFAC
from estimators.kernel_regression import KernelDatamodel, KernelRegression, RemovalKernel
from estimators.regression import Regression, Ridge
from estimators.tangent_kernel import TangentKernel, TangentKernelDatamodel
from recipe import (
    AdamW,
    Logits,
    Margin,
    OutputFunction,
    Retrain,
    Setting,
    TopMargin,
    effects_of,
    random_subsets,
)
from recipe import batch as batches
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters
from recipe.shards import outputs_of, train_runs

ESTIMATOR = Regression(subsets=6000, alpha=0.9, penalty=Ridge(), prior=EKFAC(models=5), seed=7000)
PRIOR = EKFAC(models=5)
TANGENT = TangentKernel(models=5, seed=20_000)
REMOVALS = tuple(
    partial(Removals, sets=1000, seed=seed, sizes=(41, 60), shares=(0.04, 0.46, 0.44))
    for seed in range(900_000, 900_025)
)  # of fewer than 41 points, and an epoch would have a step more
SEEDS = range(5000, 6000)  # of the runs without them
LEARNED = 1500  # runs, by which the kernel is chosen
BLOCK = 200  # points, whose logits are regressed at once
SIZED = 200  # random sets of the retained size
MATCHING = AdamW(epochs=100, batch_size=64, lr=1e-3, weight_decay=0.0, schedule="cosine")
RETAINED = 3.0
STRONGER = AdamW(epochs=40, batch_size=64, lr=3e-3, weight_decay=0.0, schedule="cosine")
REPEATED = 10  # how often a forgotten point is among all points

Predicted = Callable[[Tensor], Tensor]  # weights (n,) -> changes of outputs (m,)


def train(setting: Setting, weights: Tensor, seeds: Sequence[int]) -> list[Parameters]:
    """Models of these seeds."""
    stacked = setting.algorithm.train_many(setting, weights.expand(len(seeds), -1), seeds)
    return [{name: t[i].clone() for name, t in stacked.items()} for i in range(len(seeds))]


@dataclass(frozen=True, eq=False)
class Change:
    """Predicted changes of outputs when points are forgotten, and what their number alone changes.

    Args:
        f_hat: the datamodel.
        sets: random sets of the retained size, `(r, n)`.
    """

    f_hat: OutputFunction
    sets: Tensor

    @classmethod
    def fitted(cls, setting: Setting) -> "Change":
        """Fit everything that does not depend on the forget set."""
        return cls(ESTIMATOR.fit(setting), random_subsets(setting.n, r=SIZED, alpha=0.95, seed=77))

    @cached_property
    def sized(self) -> list[Parameters]:
        """Models of the random sets."""
        setting = cast(Setting, self.f_hat.setting)
        return train_runs(setting, self.sets, range(8000, 8000 + SIZED))

    @cached_property
    def full(self) -> list[Parameters]:
        """Other models of all points."""
        setting = cast(Setting, self.f_hat.setting)
        return train(setting, torch.ones(setting.n), range(900, 1000))

    def on(self, data: Batch, output: Measure) -> Predicted:
        """What predicts the change of an output on some data, `keep (n,) -> (m,)`."""
        there = self.f_hat.on(data, output)
        setting = cast(Setting, there.setting)
        sized, full = (outputs_of(setting, models).mean(0) for models in (self.sized, self.full))
        size = (sized - full) - there(self.sets).mean(0)
        return lambda keep: there(keep) + size


@dataclass(frozen=True, eq=False)
class Fitted:
    """A datamodel that is there already, as an estimator: the prior of another one, with what it remembers."""

    f_hat: OutputFunction

    def cost(self, setting: Setting) -> Cost:
        """Nothing."""
        return Cost()

    def fit(self, setting: Setting, at: Arguments | None = None) -> OutputFunction:
        """The datamodel, measured as the setting says."""
        return self.f_hat.on(setting.probe, setting.output)


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Outputs predicted by a kernel regression, with the tangent kernel's retraining as prior and as a geometry.

    Args:
        f_hat: the datamodel.
        sets: that it was trained on, `(r, n)`.
    """

    f_hat: KernelDatamodel
    sets: Tensor

    @classmethod
    def fitted(cls, setting: Setting, held_out: Batch) -> "Interpolated":
        """Draw, learn the kernel from some of the runs, train and regress."""
        effects = effects_of(PRIOR.fit(setting))
        sets = torch.cat([draw(effects)(setting) for draw in REMOVALS])
        everywhere = setting.on(batches.concatenate(setting.pool, held_out), Margin())
        tangent = TANGENT.fit(everywhere)
        kernel, noise = learned(everywhere, effects, tangent, sets[:LEARNED])
        estimator = KernelRegression(
            lambda _: sets, kernel, noise, Fitted(tangent), len(SEEDS), SEEDS[0], own=False, precision=torch.float32
        )
        return cls(estimator.fit(setting), sets)

    def on(self, data: Batch, output: Measure) -> "Moves":
        """What moves an output on some data."""
        blocks = torch.arange(batches.size(data)).split(BLOCK)
        return Moves([self.f_hat.on(batches.take(data, block), output) for block in blocks])

    def overlap(self, forget: Tensor) -> float:
        """The largest share that the forget set and one of the sets have in common of what is in either."""
        out = 1 - self.sets
        both = out[:, forget].sum(1)
        return float((both / (out.sum(1) + len(forget) - both)).max())


def learned(
    setting: Setting, effects: Tensor, tangent: TangentKernelDatamodel, sets: Tensor
) -> tuple[RemovalKernel, float]:
    """The kernel that suits what the tangent kernel leaves unexplained of some runs, and its noise."""
    f = Retrain(setting)
    full = f.paired(torch.ones(len(SEEDS), setting.n), SEEDS)
    of_run = torch.arange(len(sets)) % len(SEEDS)
    changes = (f.paired(sets, [SEEDS[int(k)] for k in of_run]) - full[of_run]) / full.std(0)
    known = (tangent(sets) - tangent(torch.ones(setting.n))) / full.std(0)
    residual = changes - (known * changes).sum(0) / known.square().sum(0) * known
    columns = (effects.T - effects.T.mean(0)).double()
    classes = torch.nn.functional.one_hot(setting.pool[1]).double()
    alike = columns / columns.norm(dim=1, keepdim=True)
    features = (torch.eye(setting.n).double(), columns, alike, classes, tangent.embedding)
    return RemovalKernel.learned(features, 1 - sets, residual[:, 1::4])


@dataclass(frozen=True, eq=False)
class Moves:
    """What a kernel regression does to outputs of deployed models: their mean and their spread move.

    Args:
        parts: the datamodel, on one block of targets after the other.
    """

    parts: Sequence[KernelDatamodel]

    @torch.no_grad()
    def __call__(self, keep: Tensor, outputs: Tensor) -> Tensor:
        """Outputs `(models, m)` of models of all points, as they would be without some."""
        mean, wanted, spread = (
            torch.cat(parts)
            for parts in zip(*((f(torch.ones_like(keep)), f(keep), f.spread(keep)) for f in self.parts), strict=True)
        )
        return wanted + spread * (outputs - mean)


@dataclass(frozen=True, eq=False)
class Datamodel:
    """What is predicted on all points, and what to fine-tune towards.

    Args:
        margins: `keep, deployed models ->` margins `(models, points)` and those to the best other class.
        wanted: `keep, deployed models ->` points to fine-tune on and the logits `(models, b, C)` to get there.
        matching: the fine-tuning.
    """

    margins: Callable[[Tensor, Sequence[Parameters]], tuple[Tensor, Tensor]]
    wanted: Callable[[Tensor, Sequence[Parameters]], tuple[Batch, Tensor]]
    matching: AdamW

    @classmethod
    def of_margins(cls, change: Change, setting: Setting, data: Batch) -> "Datamodel":
        """Margins are predicted; fine-tuned on the forget set and a sample of the retained points."""
        settings = [setting.on(data, output) for output in (Margin(), TopMargin())]
        changes = [change.on(data, output) for output in (Margin(), TopMargin())]

        def margins(keep: Tensor, models: Sequence[Parameters]) -> tuple[Tensor, Tensor]:
            both = [outputs_of(s, list(models)) + move(keep) for s, move in zip(settings, changes, strict=True)]
            return both[0], both[1]

        def wanted(keep: Tensor, models: Sequence[Parameters]) -> tuple[Batch, Tensor]:
            points = sampled(setting, keep, RETAINED, 0)
            moved = change.on(points, Logits())(keep).view(batches.size(points), -1)
            return points, logits_on(setting, points, models) + moved

        return cls(margins, wanted, MATCHING)

    @classmethod
    def of_logits(cls, kernel: Interpolated, setting: Setting, data: Batch) -> "Datamodel":
        """Logits are predicted on data, which begins with the universe; fine-tuned on all of that."""
        moves = kernel.on(data, Logits())

        def moved(keep: Tensor, models: Sequence[Parameters]) -> Tensor:
            logits = logits_on(setting, data, models)
            return moves(keep, logits.flatten(1)).view_as(logits)

        def margins(keep: Tensor, models: Sequence[Parameters]) -> tuple[Tensor, Tensor]:
            logits = moved(keep, models)
            both = [torch.stack([output(z, data) for z in logits]) for output in (Margin(), TopMargin())]
            return both[0], both[1]

        def wanted(keep: Tensor, models: Sequence[Parameters]) -> tuple[Batch, Tensor]:
            points = torch.arange(setting.n).repeat_interleave(torch.where(keep == 0, REPEATED, 1))
            return batches.take(setting.pool, points), moved(keep, models)[:, points]

        return cls(margins, wanted, STRONGER)


def logits_on(setting: Setting, data: Batch, models: Sequence[Parameters]) -> Tensor:
    """Logits `(models, points, C)`."""
    with torch.no_grad():
        return torch.stack([setting.predict(theta, data) for theta in models])
