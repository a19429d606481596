"""MNIST-5k at half its resolution, as a pool, targets and a test split that are disjoint, and a small network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.data import Images, mnist
from recipe import SGD

NETWORK_SGD = SGD(epochs=40, batch_size=32, lr=0.05, momentum=0.9, weight_decay=1e-3)


def network() -> nn.Module:
    """14 x 14 pixels, 64 hidden units, 10 logits: 13 258 parameters."""
    return nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 10))


def digits() -> Images:
    """The 5 000 images, averaged over 2 x 2 pixels."""
    x, y = mnist()
    return F.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1), y


def split(seed: int, *sizes: int) -> list[Images]:
    """Disjoint random parts of these sizes."""
    x, y = digits()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 + seed))
    return [(x[part], y[part]) for part in order[: sum(sizes)].split(sizes)]


def random_subset(allowed: Tensor, size: int, seed: int) -> Tensor:
    """Weights `(n,)` of a random subset of the points allowed; its randomness is not that of the flips."""
    points = allowed.nonzero().squeeze(1)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(70_000 + seed))[:size]
    return torch.zeros(len(allowed)).index_fill(0, points[order], 1.0)
