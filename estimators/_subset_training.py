"""Outputs after training on subsets of the points: what regression, empirical influence and game values are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.problem import Arguments
from recipe.random_subsets import random_subsets
from recipe.retrain import Retrain
from recipe.setting import Measure, Setting

STREAM = 20_220_202  # added to the seed of the subsets: random_subsets(seed=0) must not score a fit on its own subsets


@dataclass(frozen=True, eq=False)
class SubsetTraining:
    """The true outputs as a function of which of k points are in the training set.

    Args:
        f: retraining; examples that are always in stand at the end of its universe.
        points: `(k,)` the points that come and go; the others are out.
        n: the size of the universe, without the examples that are always in.

    Example:
        >>> from recipe import Newton
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> train = SubsetTraining.of(setting)
        >>> train(train.draw(r=5, alpha=0.5, seed=0), seeds=range(5)).shape
        torch.Size([5, 20])
    """

    f: Retrain
    points: Tensor
    n: int

    @classmethod
    def of(cls, setting: Setting, at: Arguments | None = None) -> "SubsetTraining":
        """Training as `fit(setting, at)` means it.

        Args:
            setting: what to train.
            at: `(weights, added)`: the points with positive weight, whatever it is, come and go, and the added examples
                are always in. Default: all points.

        Raises:
            ValueError: weights that do not fit the setting.
        """
        weights, added = at or (torch.ones(setting.n), None)
        w = setting.check_weights(weights).detach()
        f = Retrain(_with_added(setting, added))
        return cls(f, (w > 0).nonzero().squeeze(1), setting.n)

    @property
    def k(self) -> int:
        """The number of points that come and go."""
        return len(self.points)

    def __call__(self, subsets: Tensor, seeds: Sequence[int]) -> Tensor:
        """Outputs `(r, m)` after training on subsets `(r, k)` of the points, each with its own seed.

        A training set without any example leaves the model untrained: the outputs of the seed's initialisation.
        """
        runs = F.pad(self.spread(subsets.to(self.points.device)), (0, self.f.n - self.n), value=1.0)  # the added are in
        empty = ~runs.any(1)
        if not empty.any():
            return self.f.paired(runs, seeds)
        untrained = torch.stack([self._untrained(seed) for seed, out in zip(seeds, empty.tolist(), strict=True) if out])
        outputs = untrained.new_empty(len(runs), self.f.m)
        outputs[empty] = untrained
        if not empty.all():
            trained = [seed for seed, out in zip(seeds, empty.tolist(), strict=True) if not out]
            outputs[~empty] = self.f.paired(runs[~empty], trained)
        return outputs

    def draw(self, r: int, alpha: float, seed: int) -> Tensor:
        """Random subsets of `round(alpha k)` of the points, `(r, k)`: the same for every estimator that asks.

        Raises:
            ValueError: so few points that every subset is empty or full.
        """
        if not 0 < round(alpha * self.k) < self.k:
            raise ValueError(
                f"Subsets with a share {alpha} of {self.k} points are all empty or all full, so no two of them differ. "
                "Change alpha, or give more points a positive weight."
            )
        return random_subsets(self.k, r, alpha, seed + STREAM).to(self.points.device)

    def spread(self, values: Tensor) -> Tensor:
        """What belongs to the points, `(..., k)`, in its place in the universe, `(..., n)`; 0 for the other points."""
        return values.new_zeros(*values.shape[:-1], self.n).index_copy_(-1, self.points, values)

    def on(self, targets: Any = None, output: Measure | None = None) -> "SubsetTraining":
        """The same training, measured on other targets or by another output."""
        return replace(self, f=self.f.on(targets, output))

    def _untrained(self, seed: int) -> Tensor:
        with torch.no_grad():
            return self.f.setting.outputs(self.f.setting.initial(seed))


def _with_added(setting: Setting, added: Batch | None) -> Setting:
    """The setting with the added examples at the end of its universe."""
    if added is None or not batches.size(added):
        return setting
    examples = batches.apply(Tensor.detach, setting.check_added(added))
    return replace(setting, universe=batches.concatenate(setting.pool, examples))
