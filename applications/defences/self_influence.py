"""Self-influence: points without which the model would get them wrong.

    score_i = - sum over j, k in G(i) of the effect of point k on the loss of point j,      G(i): the copies of i,

large for what the model had to memorise, mislabelled and poisoned points among it. For a point that has no copy it is
minus the effect on its own loss. Copies hold each other up: the score takes them for one point whose gradient is the
sum of theirs.

References: Koh & Liang 2017, arXiv:1703.04730, section 5.4; Feldman & Zhang, "What Neural Networks Memorize and Why",
2020, arXiv:2008.03703. Addition: groups of copies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences.copies import Copies, groups_of
from recipe import batch as batches
from recipe.composition import effects_of
from recipe.datamodel import Estimator
from recipe.outputs import Loss
from recipe.setting import Setting

BLOCK = 256  # points whose effects on each other are held at once


@dataclass(frozen=True)
class SelfInfluence:
    """Minus the effects of all training points on their own losses, copies taken together.

    Args:
        estimator: of the effects.
        copies: what counts as a copy; None takes every point by itself.
    """

    estimator: Estimator
    copies: Copies | None = Copies()

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        f_hat, groups = None, groups_of(self.copies, setting)
        parts = []
        for start in range(0, setting.n, BLOCK):
            rows = slice(start, start + BLOCK)
            block = batches.take(setting.pool, rows)
            if f_hat is None:
                f_hat = self.estimator.fit(setting.on(block, Loss()))
            effects = effects_of(f_hat if start == 0 else f_hat.on(block, Loss()))
            together = (groups[rows, None] == groups).to(effects)
            parts.append(-(effects * together).sum(1))
        own = torch.cat(parts)
        groups = groups.to(own.device)
        return torch.zeros_like(own).index_add(0, groups, own)[groups]
