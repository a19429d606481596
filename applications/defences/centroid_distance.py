"""The l2 defence: points far from their class's centroid.

Reference: Koh, Steinhardt & Liang 2022, arXiv:1811.00741, section 3.2.
"""

from dataclasses import dataclass

from torch import Tensor

from applications.defences._geometry import Centroids, inputs_of, labels_of
from recipe.setting import Setting


@dataclass(frozen=True)
class CentroidDistance:
    """`|x - mu_y|_2`, the centroids from all points, poisons included.

    Args:
        entry: of the inputs in a batch.

    Example:
        >>> import torch
        >>> from recipe import SGD
        >>> data = (torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 0]))
        >>> setting = Setting(torch.nn.Linear(1, 2), data, data, SGD(epochs=1, batch_size=1, lr=0.1))
        >>> CentroidDistance().scores(setting)
        tensor([2., 1., 3.])
    """

    entry: int | str = 0

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        x, y = inputs_of(setting.pool, self.entry), labels_of(setting.pool)
        return Centroids.of(x, y).distances(x, y)
