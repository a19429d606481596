"""The slab defence: points far out along the line between their class's centroid and the others'.

Reference: Koh, Steinhardt & Liang 2022, arXiv:1811.00741, section 3.2. Deviation: with more than two classes, the line
goes to the mean of the other centroids.
"""

from dataclasses import dataclass

from torch import Tensor

from applications.defences._geometry import Centroids, inputs_of, labels_of
from recipe.setting import Setting


@dataclass(frozen=True)
class Slab:
    """`|<x - mu_y, u>|`, with `u` of length one from the other classes' centroid.

    Args:
        entry: of the inputs in a batch.

    Example:
        >>> import torch
        >>> from recipe import SGD
        >>> data = (torch.tensor([[0.0, 9.0], [2.0, -9.0], [5.0, 0.0]]), torch.tensor([0, 0, 1]))
        >>> setting = Setting(torch.nn.Linear(2, 2), data, data, SGD(epochs=1, batch_size=1, lr=0.1))
        >>> Slab().scores(setting)
        tensor([1., 1., 0.])
    """

    entry: int | str = 0

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        x, y = inputs_of(setting.pool, self.entry), labels_of(setting.pool)
        return Centroids.of(x, y).along(x, y).abs()
