"""Self-influence: points without which the model would get them wrong.

    score_i = minus the effect of point i on its own loss,

large for what the model had to memorise, mislabelled and poisoned points among it.

References: Koh & Liang 2017, arXiv:1703.04730, section 5.4; Feldman & Zhang, "What Neural Networks Memorize and Why",
2020, arXiv:2008.03703.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.composition import effects_of
from recipe.datamodel import Estimator
from recipe.outputs import Loss
from recipe.setting import Setting

BLOCK = 256  # points whose effects on each other are held at once


@dataclass(frozen=True)
class SelfInfluence:
    """Minus the diagonal of the effects of all training points on their own losses.

    Args:
        estimator: of the effects.
    """

    estimator: Estimator

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        f_hat = None
        parts = []
        for start in range(0, setting.n, BLOCK):
            block = batches.take(setting.pool, slice(start, start + BLOCK))
            if f_hat is None:
                f_hat = self.estimator.fit(setting.on(block, Loss()))
            effects = effects_of(f_hat if start == 0 else f_hat.on(block, Loss()))
            parts.append(-effects[:, start : start + BLOCK].diagonal())
        return torch.cat(parts)
