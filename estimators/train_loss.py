"""The training loss: a point that the model still gets wrong hurts, whatever the target.

    effects[j, i] = -s_j (l_i - mean l) / n,        s_j = -<d f_j / d z, g> / |g|,    g = d l_target / d z,

averaged over the models: `s_j` is how much output j rises as the loss of its own target falls, so that a point with
more than the average loss lowers margins and raises losses. Every target ranks the points alike: it says nothing about
which points matter for *which* target, and no attribution should lose to it at finding mislabelled points.

Reference: the baseline for mislabelled points in Koh & Liang, "Understanding Black-box Predictions via Influence
Functions", 2017, arXiv:1703.04730, section 5.4. Deviations: a sign and a scale for every target, so that it is a
datamodel. The unit is nominal: effects shrink like 1/n as they should, but their size is not that of a retrained
output.
Cost: a pass over the data.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import members
from estimators._representation import blocks
from estimators._votes import descents
from recipe import calculus
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.work import Work


@dataclass(frozen=True)
class TrainLoss:
    """Effects by each training point's own loss.

    Args:
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        >>> from recipe import Newton, Setting
        >>> x, y = torch.tensor([[2.0], [2.0], [2.0], [-2.0]]), torch.tensor([0, 0, 1, 1])  # the third is mislabelled
        >>> setting = Setting(lambda: torch.nn.Linear(1, 2), (x, y), (x[:1], y[:1]), Newton(l2=0.1))
        >>> TrainLoss().fit(setting).effects.argmin()  # what lowers the margin most
        tensor(2)
    """

    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and look at the losses.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at, over which losses are averaged; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable in the examples, and `on`.

        Raises:
            ValueError: outputs without a gradient.
        """
        there = where(setting, at)
        descents(setting, partial(setting.predict, setting.initial(0)))  # fails before anything is trained
        return _datamodel(setting, members(setting, self.models, self.seed, at), there)


def _datamodel(setting: Setting, trained: list[Parameters], at: Arguments) -> LinearDatamodel:
    data, weights = calculus.training_set(setting, *at)
    with torch.no_grad():
        means = [weights @ _losses(setting, theta, data) / weights.sum() for theta in trained]
    helped = [descents(setting, partial(setting.predict, theta)) for theta in trained]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        excess = [setting.losses(theta, batch) - mean for theta, mean in zip(trained, means, strict=True)]
        return -torch.stack([torch.outer(s, e) for s, e in zip(helped, excess, strict=True)]).mean(0) / setting.n

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), trained, at)

    with torch.no_grad():
        effects = collected(effect, blocks(setting.pool))
    return anchored(setting, trained, at, effects, effect, on)


def _losses(setting: Setting, theta: Parameters, data: Batch) -> Tensor:
    return torch.cat([setting.losses(theta, block) for block in blocks(data)])
