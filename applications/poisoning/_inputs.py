"""Batches with other inputs."""

from torch import Tensor

from recipe.batch import Batch


def replaced(batch: Batch, entry: int | str, inputs: Tensor) -> Batch:
    """The batch with other inputs."""
    if isinstance(batch, tuple):
        return tuple(inputs if i == entry else t for i, t in enumerate(batch))
    return {**batch, str(entry): inputs}
