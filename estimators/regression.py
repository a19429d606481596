"""Regression datamodels: retrain on random subsets and regress the outputs on which points were in.

With `S_1 .. S_r` random subsets of `round(alpha n)` points, `X[k, i] = 1` if point i is in `S_k`, and `Y[k, j]` the
output j after training on `S_k`,

    bias, effects = argmin  |Y - X effects^T - bias|^2 + penalty(effects),

for each output by itself; the bias is not penalised, so predictions are right on average over the subsets.

All subsets have one size. So adding a constant to all effects of an output, and subtracting it times that size from the
bias, changes no prediction: *the level of the effects is not identified*, only differences between points are. Ridge
answers with effects that sum to zero, the lasso with those that are smallest in absolute sum. What follows: predictions
are for sets of about `alpha n` points, and what the mere size of a set does (more data, better models) is not in them:
with ridge, `f_hat(1) = f_hat(0)`, about the mean output over the subsets, not that of the full model. Comparisons of
sets of one size, as selection and the LDS make, do not need the level.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622.
Deviation: the paper fits the lasso; ridge is the default here, since it costs one eigendecomposition for all outputs
and penalties. Every run has a seed of its own, so that the noise of initialisation averages out.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._penalties import Lasso, Penalty, Ridge
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.random_subsets import random_subsets
from recipe.retrain import Retrain
from recipe.setting import Measure, Setting

__all__ = ["Lasso", "Penalty", "Regression", "Ridge", "regress"]

STREAM = 20_220_202  # added to the seed of the subsets: random_subsets(seed=0) must not score a fit on its own subsets


@dataclass(frozen=True)
class Regression:
    """The datamodel that regression on random subsets gives.

    Args:
        subsets: how many models to train; run i trains with the seed `seed + i`.
        alpha: the share of the points in a subset, between 0 and 1. Fit near the size that you will ask about.
        penalty: `Ridge()` or `Lasso()`.
        seed: of the subsets and of the first run.

    Raises:
        ValueError: fewer than two subsets, or a share that is not between 0 and 1.

    Example:
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = Regression(subsets=100).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.5, seed=0)).mean > 0.9
        True
    """

    subsets: int
    alpha: float = 0.5
    penalty: Penalty = Ridge()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise ValueError(f"Regression needs at least two subsets, better hundreds; got {self.subsets}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"The share alpha of the points in a subset must be between 0 and 1; got {self.alpha}.")

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train on the subsets and regress.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: subsets are drawn from the points with positive weight, whatever it is (others get
                the effect 0), and the added examples are in every training set, so that the bias holds what they
                contribute. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)`. Its `on` measures the same models again, as far as `Retrain` remembers them, and
            regresses. It has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting, or so few points that every subset is empty or full.
        """
        weights, added = at or (torch.ones(setting.n), None)
        masks = self._masks(setting.check_weights(weights).detach() > 0)
        return self._regressed(Retrain(_with_added(setting, added)), masks)

    def _masks(self, eligible: Tensor) -> Tensor:
        """Subsets of the eligible points, `(r, n)`."""
        points = eligible.nonzero().squeeze(1)
        if not 0 < round(self.alpha * len(points)) < len(points):
            raise ValueError(
                f"Subsets with a share {self.alpha} of {len(points)} points are all empty or all full, so there is "
                "nothing to regress on. Change alpha, or give more points a positive weight."
            )
        drawn = random_subsets(len(points), self.subsets, self.alpha, self.seed + STREAM).to(eligible.device)
        return drawn.new_zeros(self.subsets, len(eligible)).index_copy_(1, points, drawn)

    def _regressed(self, f: Retrain, masks: Tensor) -> LinearDatamodel:
        def on(targets: Any, output: Measure | None) -> LinearDatamodel:
            return self._regressed(f.on(targets, output), masks)

        runs = F.pad(masks, (0, f.n - masks.shape[1]), value=1.0)  # added examples are always in
        outputs = f.paired(runs, range(self.seed, self.seed + self.subsets))
        return LinearDatamodel(*regress(masks, outputs, self.penalty), output_shape=f.output_shape, on=on)


def regress(masks: Tensor, outputs: Tensor, penalty: Penalty = Ridge()) -> tuple[Tensor, Tensor]:
    """Fit outputs by a linear function of the weights, from retrainings that you have already.

    Args:
        masks: `(r, n)` weights of r retrainings, 1 for a point that was in and 0 for another.
        outputs: `(r, m)` what each gave.
        penalty: `Ridge()` or `Lasso()`.

    Returns:
        `bias (m,)` and `effects (m, n)`, in the outputs' type; computed in float64. A point that was always in, or
        never, gets the effect 0.

    Raises:
        ValueError: fewer than two retrainings, shapes that do not fit, outputs that are not finite, or weights that are
            the same in every retraining.

    Example:
        >>> masks = random_subsets(n=8, r=100, alpha=0.5, seed=0)
        >>> bias, effects = regress(masks, 3 * masks[:, :1], Ridge(penalty=1e-6))
        >>> (effects[0, 0] - effects[0, 1:]).round(decimals=3)  # differences between points are identified
        tensor([3., 3., 3., 3., 3., 3., 3.])
    """
    _check(masks, outputs)
    X, Y = masks.to(outputs.device, torch.float64), outputs.detach().double()
    x, y = X.mean(0), Y.mean(0)
    effects = penalty.coefficients(X - x, Y - y).T.contiguous()
    return (y - effects @ x).to(outputs.dtype), effects.to(outputs.dtype)


def _with_added(setting: Setting, added: Batch | None) -> Setting:
    """The setting with the added examples at the end of its universe."""
    if added is None or not batches.size(added):
        return setting
    examples = batches.apply(Tensor.detach, setting.check_added(added))
    return replace(setting, universe=batches.concatenate(setting.pool, examples))


def _check(masks: Tensor, outputs: Tensor) -> None:
    if masks.ndim != 2 or outputs.ndim != 2 or len(masks) != len(outputs) or len(masks) < 2:
        raise ValueError(
            "Regression needs weights (r, n) and outputs (r, m) of the same r >= 2 retrainings; got "
            f"{tuple(masks.shape)} and {tuple(outputs.shape)}."
        )
    if not outputs.isfinite().all():
        run = int((~outputs.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"Outputs must be finite; retraining {run} gave NaN or infinity. Leave it out, or train it again."
        )
    if (masks == masks[0]).all():
        raise ValueError(
            "All retrainings have the same weights, so there is nothing to regress on. Draw random subsets."
        )
