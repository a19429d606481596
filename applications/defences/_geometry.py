"""Where the classes lie: centroids, and the line between two of them. What l2 and slab defences look at."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch


@dataclass(frozen=True, eq=False)
class Centroids:
    """The classes' mean inputs.

    Args:
        classes: `(C,)` labels, ascending.
        means: `(C, d)`.
    """

    classes: Tensor
    means: Tensor

    @classmethod
    def of(cls, inputs: Tensor, y: Tensor) -> "Centroids":
        """From inputs `(n, ...)` with labels."""
        classes = y.unique()
        flat = inputs.flatten(1)
        return cls(classes, torch.stack([flat[y == c].mean(0) for c in classes]))

    def own(self, y: Tensor) -> Tensor:
        """Of each label's class, `(n, d)`."""
        return self.means[torch.searchsorted(self.classes, y)]

    def normals(self, y: Tensor) -> Tensor:
        """From the mean of the other classes to that of each label's class, of length one, `(n, d)`."""
        total, count = self.means.sum(0), len(self.means)
        others = (total - self.means) / max(1, count - 1)
        across = self.means - others
        return (across / across.norm(dim=1, keepdim=True).clamp_min(1e-12))[torch.searchsorted(self.classes, y)]

    def distances(self, inputs: Tensor, y: Tensor) -> Tensor:
        """To the own class's centroid, `(n,)`."""
        return (inputs.flatten(1) - self.own(y)).norm(dim=1)

    def along(self, inputs: Tensor, y: Tensor) -> Tensor:
        """Signed distance from the own class's centroid along its normal, `(n,)`."""
        return ((inputs.flatten(1) - self.own(y)) * self.normals(y)).sum(1)


def inputs_of(batch: Batch, entry: int | str = 0) -> Tensor:
    """The inputs of a batch, as floating numbers."""
    inputs = batch[entry]  # type: ignore[index]
    return inputs if inputs.is_floating_point() else inputs.float()


def labels_of(batch: Batch) -> Tensor:
    """The labels; raises `ValueError` where there is not one for each example."""
    y = batches.labels(batch)
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(f"Defences look at classes: one whole-numbered label an example; got {tuple(y.shape)}.")
    return y
