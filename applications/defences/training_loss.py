"""The loss defence: points that the trained model still gets wrong.

Reference: Koh, Steinhardt & Liang 2022, arXiv:1811.00741, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.outputs import Loss
from recipe.retrain import Retrain
from recipe.setting import Setting


@dataclass(frozen=True)
class TrainingLoss:
    """The loss of every training point after training on all of them.

    Args:
        seeds: whose models are averaged.
    """

    seeds: tuple[int, ...] = (0,)

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        f = Retrain(setting.on(setting.pool, Loss()), self.seeds)
        return f(torch.ones(setting.n))
