"""Calibration: the scale of a datamodel, found by a few true retrainings.

Ranks need no scale, but optimisers weigh predicted changes against each other and against constraints. Over r training
sets, with `x[k, j]` the predicted and `y[k, j]` the true output j (columns centred), the least-squares slopes are

    own[j]  =  sum_k x y / sum_k x^2,          pooled  =  sum_kj x y / sum_kj x^2,
    slope[j]  =  pooled + (own[j] - pooled) tau^2 / (tau^2 + sigma^2 / sum_k x^2),

`sigma^2` being the variance of the residuals and `tau^2` that of the outputs' true slopes (by the method of moments).
So slopes of single outputs count as far as the retrainings tell them apart; with few retrainings all are pooled. The
intercept makes predictions right on average over the training sets.

References: DerSimonian & Laird, "Meta-Analysis in Clinical Trials", 1986, for `tau^2`; Efron & Morris, "Data Analysis
Using Stein's Estimator and its Generalizations", 1975, for the shrinkage.
Cost: r retrainings. What is calibrated at subsets of one size is right at that size: the slope of a tangent at half of
the points is about twice that at nearly all of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.batch import Batch
from recipe.composition import Scaled
from recipe.cost import Cost, cost_of
from recipe.datamodel import OutputFunction, records_origin
from recipe.lds import check_comparable
from recipe.problem import Arguments
from recipe.random_subsets import random_subsets
from recipe.retrain import Retrain
from recipe.setting import Measure, Setting
from recipe.work import Work

STREAM = 19_860_901  # added to the seed of the subsets: random_subsets(seed=0) must not score a fit on its own subsets


def calibrated(f_hat: OutputFunction, f: Retrain, subsets: Tensor) -> Scaled:
    """The datamodel with slope and intercept fitted to true outputs.

    Args:
        f_hat: any datamodel, scores without a unit included (`from_scores`).
        f: the true outputs; retrains every subset once for each of its seeds.
        subsets: `(r, n)` of the size that matters, for example `random_subsets(n, r=20, alpha=0.5, seed=1)`; score the
            result on others.

    Returns:
        `Scaled(f_hat, slope, intercept)`; its `on` calibrates the other outputs on the same subsets.

    Raises:
        ValueError: fewer than two subsets, functions of other outputs, or predictions that are the same for all.

    Example:
        >>> from recipe import LinearDatamodel, Newton, lds
        >>> from estimators.influence import Influence
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2), torch.arange(30) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat, f = Influence().fit(setting), Retrain(setting)
        >>> right = calibrated(f_hat, f, random_subsets(30, r=20, alpha=0.5, seed=1))
        >>> test = random_subsets(30, r=20, alpha=0.5, seed=2)
        >>> abs(lds(right, f, test).slope - 1) < 0.1 < lds(f_hat, f, test).slope - 1
        True
    """
    check_comparable(f_hat, f)
    _check_subsets(subsets)

    def on(targets: Any, output: Measure | None) -> Scaled:
        return calibrated(f_hat.on(targets, output), f.on(targets, output), subsets)

    with torch.no_grad():
        return Scaled(f_hat, *_lines(f_hat(subsets), f(subsets)), on=on)


@dataclass(frozen=True)
class Calibrated:
    """The estimator that fits another one and calibrates it.

    Args:
        estimator: what predicts.
        subsets: how many models to train; run i trains with the seed `seed + i`.
        alpha: the share of the points in a subset, between 0 and 1. Calibrate near the size that you will ask about.
        seed: of the subsets and of the first run.

    Raises:
        ValueError: fewer than two subsets, or a share that is not between 0 and 1.

    Example:
        >>> from recipe import Newton
        >>> from estimators.influence import Influence
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> Calibrated(Influence(), subsets=10).fit(setting).slope.shape
        torch.Size([20])
    """

    estimator: Any
    subsets: int
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise ValueError(f"A calibration needs at least two subsets, better ten or more; got {self.subsets}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"The share alpha of the points in a subset must be between 0 and 1; got {self.alpha}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        retraining = Work(setting).retraining(self.subsets, round(self.alpha * setting.n))
        return cost_of(self.estimator, setting) + retraining

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> Scaled:
        """Fit, retrain on random subsets, calibrate.

        Args:
            setting: what to attribute.
            at: `(weights, added)` where the estimator linearises; subsets are drawn from the points with weight, which
                they keep, and the added examples are in every one.
        """
        weights, added = at or (torch.ones(setting.n, dtype=setting.dtype), None)
        runs = self._subsets(setting.check_weights(weights).detach())
        return self._calibrated(self.estimator.fit(setting, at), Retrain(setting), runs, added)

    def _calibrated(self, f_hat: OutputFunction, f: Retrain, runs: Tensor, added: Batch | None) -> Scaled:
        def on(targets: Any, output: Measure | None) -> Scaled:
            return self._calibrated(f_hat.on(targets, output), f.on(targets, output), runs, added)

        actual = f.paired(runs, range(self.seed, self.seed + self.subsets), added)
        with torch.no_grad():
            return Scaled(f_hat, *_lines(f_hat(runs, added), actual), on=on)

    def _subsets(self, weights: Tensor) -> Tensor:
        """Subsets of the points with weight, each with the weight it has, `(r, n)`."""
        points = weights.nonzero().squeeze(1)
        chosen = random_subsets(len(points), self.subsets, self.alpha, self.seed + STREAM).to(weights)
        return torch.zeros_like(weights).expand(self.subsets, -1).index_copy(1, points, chosen * weights[points])


def _lines(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept `(m,)` of true on predicted outputs `(r, m)`."""
    x, y = predicted.double(), actual.double()
    a, b = x.mean(0), y.mean(0)
    x, y = x - a, y - b
    spread, r, m = x.square().sum(0), len(x), x.shape[1]
    if not spread.sum() > 0:
        raise ValueError(
            "The datamodel predicts the same outputs for every subset, so there is no slope to find. Draw random "
            "subsets, and look at whether its effects are all zero."
        )
    products = (x * y).sum(0)
    pooled = products.sum() / spread.sum()
    own = torch.where(spread > 0, products / spread, pooled)
    if r < 3 or m < 2:  # no residual to tell noise from differences, or nothing to pool
        slope = own if m < 2 else pooled.expand(m)
    else:
        noise = (y - own * x).square().sum() / (m * (r - 2))
        between = (spread * (own - pooled).square()).sum() - (m - 1) * noise
        between = (between / (spread.sum() - spread.square().sum() / spread.sum())).clamp_min(0)
        kept = between * spread / (between * spread + noise)  # tau^2 / (tau^2 + sigma^2 / spread)
        slope = pooled + (own - pooled) * kept.nan_to_num(1.0)  # 0 / 0: no noise and no differences
    return slope.to(actual.dtype), (b - slope * a).to(actual.dtype)


def _check_subsets(subsets: Tensor) -> None:
    if subsets.ndim != 2 or len(subsets) < 2:
        raise ValueError(
            f"A calibration needs at least two subsets as (r, n) weights; got the shape {tuple(subsets.shape)}."
        )
