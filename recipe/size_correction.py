"""Size correction: a tangent datamodel, made right for training sets that are smaller than the one it touches.

SizeCorrected(f_hat)(w)  =  f_hat(1) + (f_hat(w) - f_hat(1)) n / sum w
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.composition import origin_of
from recipe.cost import Cost, cost_of
from recipe.datamodel import OutputFunction
from recipe.problem import Arguments
from recipe.setting import Measure, Setting


class SizeCorrected(OutputFunction):
    """`f_hat(1) + (f_hat(w, added) - f_hat(1)) * n / W`, with W the total weight, added examples included.

    Why: with a mean loss, leaving k of n points out moves the parameters by a sum over the points divided by the weight
    that *remains*, while the tangent at full weights divides by n, and so underestimates changes by about n / W. Where
    the datamodel was linearised elsewhere (`fit(setting, at)`), that point takes the place of full weights.

    Args:
        f_hat: a tangent datamodel of an algorithm that minimises a mean loss, such as `Influence` fits.
    """

    def __init__(self, f_hat: OutputFunction) -> None:
        self.f_hat = f_hat
        self.n, self.output_shape = f_hat.n, f_hat.output_shape
        at = f_hat.origin.at if f_hat.origin is not None else None
        anchor = (torch.ones(f_hat.n), None) if at is None else at
        self._anchor = f_hat(*anchor).detach()
        self._weight = _total(*anchor).to(self._anchor)
        self.origin = origin_of(f_hat, SizeCorrecting)

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`; not linear in the weights."""
        scale = self._weight / _total(torch.as_tensor(weights), added).to(self._anchor)
        return self._anchor + (self.f_hat(weights, added) - self._anchor) * scale

    def on(self, targets: Any = None, output: Measure | None = None) -> "SizeCorrected":
        """See `OutputFunction.on`."""
        return SizeCorrected(self.f_hat.on(targets, output))


@dataclass(frozen=True)
class SizeCorrecting:
    """The estimator behind `SizeCorrected`: fits another one and corrects it, so that a refit is corrected too."""

    estimator: Any

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return cost_of(self.estimator, setting)

    def fit(self, setting: Setting, at: Arguments | None = None) -> SizeCorrected:
        """Fit and correct."""
        return SizeCorrected(self.estimator.fit(setting, at))


def _total(weights: Tensor, added: Batch | None) -> Tensor:
    """The total weight `(..., 1)`, added examples included."""
    return weights.sum(-1, keepdim=True) + (0 if added is None else batches.size(added))
