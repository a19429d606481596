"""Spectral defences: points that stick out along a class's main directions, or out of them.

    signatures:   <h(x) - mu_y, v>^2 with v the first singular vector of the class's centred representations
    residual:     |(I - V V^T) x|, the part that the first k singular vectors of all inputs cannot express

References: Tran, Li & Madry, "Spectral Signatures in Backdoor Attacks", 2018, arXiv:1811.00636; Koh, Steinhardt & Liang
2022, arXiv:1811.00741, section 3.2 (the SVD defence).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences._features import Activations, Features, Inputs
from applications.defences._geometry import labels_of
from recipe.setting import Setting


@dataclass(frozen=True)
class SpectralSignatures:
    """The squared projection on the first singular vector, class by class.

    Args:
        features: of an example; default what enters the model's last layer.
    """

    features: Features = Activations()

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        h, y = self.features.of(setting), labels_of(setting.pool)
        scores = h.new_zeros(len(h))
        for c in y.unique():
            centred = h[y == c] - h[y == c].mean(0)
            v = torch.linalg.svd(centred, full_matrices=False).Vh[0]
            scores[y == c] = (centred @ v) ** 2
        return scores


@dataclass(frozen=True)
class SpectralResidual:
    """The norm of what the first singular vectors of all points leave over.

    Args:
        rank: how many vectors.
        features: of an example; default its inputs.
    """

    rank: int = 10
    features: Features = Inputs()

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        x = self.features.of(setting)
        v = torch.linalg.svd(x, full_matrices=False).Vh[: self.rank]
        return (x - x @ v.T @ v).norm(dim=1)
