"""The k-NN defence: points far from their neighbours, or among neighbours of another label.

References: Koh, Steinhardt & Liang 2022, arXiv:1811.00741, section 3.2 (distance); Peri et al., "Deep k-NN Defense
against Clean-label Data Poisoning Attacks", 2020, arXiv:1909.13374 (labels).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences._features import Features, Inputs
from applications.defences._geometry import labels_of
from recipe.setting import Setting


@dataclass(frozen=True)
class Neighbours:
    """The distance to the k-th nearest neighbour, or the share of the k nearest that carry another label.

    Args:
        k: how many.
        labels: look at labels instead of distances; ties go to the farther point.
        features: of an example; default its inputs.
    """

    k: int = 5
    labels: bool = False
    features: Features = Inputs()

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`.

        Raises:
            ValueError: not more than k points.
        """
        if not 1 <= self.k < setting.n:
            raise ValueError(f"Expected between 1 and {setting.n - 1} neighbours; got k={self.k}.")
        x, y = self.features.of(setting), labels_of(setting.pool)
        distances = torch.cdist(x, x).fill_diagonal_(torch.inf)
        near = distances.topk(self.k, largest=False)
        farthest = near.values[:, -1]
        if not self.labels:
            return farthest
        other = (y[near.indices] != y[:, None]).to(x.dtype).mean(1)
        return other + farthest / (2 * self.k * farthest.max().clamp_min(torch.finfo(x.dtype).tiny))
