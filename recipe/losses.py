"""Losses: what training minimises, one number an example.

A loss is any callable `loss(prediction, batch) -> (b,)`; write your own as a function. Labels of -100 do not count.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.batch import Batch, labels

IGNORED = -100  # torch's own convention for positions that do not count


@dataclass(frozen=True)
class CrossEntropy:
    """`logsumexp(z) - z_y`, averaged over the positions of a sequence whose label is not -100.

    Args of a call:
        prediction: logits `(b, C)`, or `(b, T, C)` for sequences.
        batch: its labels are `(b,)` or `(b, T)` integers.

    Returns `(b,)`, in nats.

    >>> CrossEntropy()(torch.zeros(1, 4), (torch.zeros(1, 2), torch.tensor([3]))).exp()
    tensor([4.])
    """

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch)
        losses = F.cross_entropy(prediction.movedim(-1, 1), y, reduction="none", ignore_index=IGNORED)
        return over_positions(losses, y)


@dataclass(frozen=True)
class Hinge:
    """`max(0, 1 - margin)` with `margin = z_y - max of the other logits`, a multiclass support vector machine's loss.

    Args:
        smooth: the width `t` of the softened corner, `t log(1 + exp((1 - margin) / t))`, whose curvature influence
            functions need (the hinge itself has none); 0 for the hinge itself.

    Reference: Koh & Liang, "Understanding Black-box Predictions via Influence Functions", 2017, arXiv:1703.04730, 4.2.

    >>> Hinge()(torch.tensor([[2.0, 1.5], [2.0, 0.0]]), (torch.zeros(2), torch.tensor([0, 0])))
    tensor([0.5000, 0.0000])
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        if not self.smooth >= 0:
            raise ValueError(f"The width of a corner is not negative; got smooth={self.smooth}.")

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        index = labels(batch).unsqueeze(-1)
        own = prediction.gather(-1, index).squeeze(-1)
        short = 1 - own + prediction.scatter(-1, index, -torch.inf).amax(-1)
        return F.softplus(short, beta=1 / self.smooth) if self.smooth else short.clamp_min(0)


@dataclass(frozen=True)
class SquaredError:
    """`1/2 |prediction - label|^2`, summed over an example's entries; its Hessian in the prediction is the identity.

    >>> SquaredError()(torch.tensor([[3.0]]), (torch.zeros(1, 2), torch.tensor([1.0])))
    tensor([2.])
    """

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch).to(prediction.dtype)
        if y.numel() != prediction.numel():
            raise ValueError(
                f"A squared error needs a label for every entry of the prediction {tuple(prediction.shape)}; got "
                f"labels of the shape {tuple(y.shape)}. Reshape the labels, or use CrossEntropy for classes."
            )
        return 0.5 * (prediction - y.reshape(prediction.shape)).reshape(len(prediction), -1).square().sum(1)


def over_positions(values: Tensor, y: Tensor) -> Tensor:
    """Average `(b, ...)` values of positions to `(b,)`, counting only those whose label is not -100."""
    if values.ndim == 1:
        return torch.where(y == IGNORED, 0, values)
    counts = (y != IGNORED).to(values.dtype)
    return (values * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)


def check_classes(prediction: Tensor, y: Tensor, what: str) -> None:
    """Raise `ValueError` when an integer label lies outside the classes that the model predicts."""
    classes = prediction.shape[-1]
    if torch.is_floating_point(y):
        raise ValueError(f"Labels of the {what} must be integers for a cross-entropy; got {y.dtype}. Use `.long()`.")
    outside = (y != IGNORED) & ((y < 0) | (y >= classes))
    if outside.any():
        row = int(outside.reshape(len(y), -1).any(1).nonzero()[0])
        raise ValueError(
            f"Labels of the {what} must lie in 0..{classes - 1}, the classes of the model; example {row} has "
            f"{int(y[outside][0])}. Give the model more outputs, or relabel."
        )
