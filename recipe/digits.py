"""Scikit-learn's handwritten digits, and the two training recipes that the demo, tests and benchmarks measure on.

1 797 real images of 8 x 8 pixels in ten classes, shipped with scikit-learn, so that nothing is downloaded: 1 000 to
choose from, 200 targets to optimise for, and 597 that neither contains, to measure on.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recipe.algorithms import SGD

SIDE = 8  # pixels
CLASSES = 10

MLP_SGD = SGD(epochs=40, batch_size=64, lr=0.1, momentum=0.9, weight_decay=1e-3)
LOGISTIC_SGD = SGD(epochs=60, batch_size=64, lr=0.5, momentum=0.9, weight_decay=1e-2)


Images = tuple[Tensor, Tensor]  # pixels (b, 64) from 0 to 1, labels (b,)


class Digits(NamedTuple):
    """Disjoint batches `(pixels (b, 64), labels (b,))`: `train` 1000, `targets` 200, `test` 597."""

    train: Images
    targets: Images
    test: Images


def load_digits() -> Digits:
    """The digits, always split in the same way.

    Example:
        >>> [len(labels) for _, labels in load_digits()]
        [1000, 200, 597]
    """
    from sklearn.datasets import load_digits as load  # slow to import, and needed nowhere else

    pixels, labels = load(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    x = torch.from_numpy((pixels / 16)[order]).float()
    y = torch.from_numpy(labels[order]).long()
    parts = (slice(0, 1000), slice(1000, 1200), slice(1200, None))
    return Digits(*((x[part], y[part]) for part in parts))


def mlp() -> nn.Module:
    """64 pixels, 128 hidden units, 10 logits: 9 610 parameters. Goes with `MLP_SGD`."""
    return nn.Sequential(nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def logistic() -> nn.Module:
    """Multinomial logistic regression on pixels: 650 parameters. Goes with `LOGISTIC_SGD`."""
    return nn.Linear(SIDE * SIDE, CLASSES)


def flip_labels(batch: Images, share: float, seed: int) -> tuple[Images, Tensor]:
    """Give a share of the images a random other label of the batch.

    Args:
        batch: inputs, and integer labels `(b,)`.
        share: how many of them, from 0 to 1.
        seed: decides which, and which labels.

    Returns:
        The batch with its new labels, and booleans `(b,)`: which were flipped.

    Raises:
        ValueError: a share outside 0 to 1, or a batch of one class.

    Example:
        >>> (_, y), flipped = flip_labels((torch.zeros(10, 2), torch.arange(10) % 2), share=0.3, seed=0)
        >>> int(flipped.sum()), bool(((y != torch.arange(10) % 2) == flipped).all())
        (3, True)
    """
    inputs, old = batch
    classes = old.unique()
    if not 0 <= share <= 1 or len(classes) < 2:
        raise ValueError(
            f"Expected a share from 0 to 1 and labels of at least two classes; got {share} and {len(classes)}."
        )
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(old), generator=generator)[: round(share * len(old))].to(old.device)
    rank = torch.searchsorted(classes, old[index])
    shift = torch.randint(1, len(classes), (len(index),), generator=generator).to(old.device)
    flipped = torch.zeros(len(old), dtype=torch.bool, device=old.device).index_fill(0, index, True)
    new = old.index_copy(0, index, classes[(rank + shift) % len(classes)])
    return (inputs, new), flipped
