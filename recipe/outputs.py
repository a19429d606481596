"""Outputs: what is measured on a target, `f(z; theta)`.

An output is any callable `output(prediction, batch) -> (b,)` or `(b, C)`; write your own as a function. For sequences
the values of positions are averaged; labels of -100 do not count. Margins are the default because they are closer to
linear in the training weights than losses are (Ilyas et al. 2022, arXiv:2202.00622, section 2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.batch import Batch, labels
from recipe.losses import IGNORED, over_positions


@dataclass(frozen=True)
class Loss:
    """The loss of an example; inside a `Setting`, the loss that the setting trains with.

    Args:
        loss: `loss(prediction, batch) -> (b,)`; None takes the setting's own when the setting is made.
    """

    loss: Callable[[Tensor, Batch], Tensor] | None = None

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        if self.loss is None:
            raise ValueError("Loss() outside a Setting does not know which loss is meant; pass `Loss(loss)`.")
        return self.loss(prediction, batch)


@dataclass(frozen=True)
class Margin:
    """`z_y - logsumexp of the other logits`, the log-odds of the label: in nats, positive when p(y) > 1/2.

    >>> Margin()(torch.tensor([[2.0, 0.0]]), (torch.zeros(1), torch.tensor([0])))
    tensor([2.])
    """

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch)
        own, rest = _split(prediction, y)
        return over_positions(own - rest.logsumexp(-1), y)


@dataclass(frozen=True)
class TopMargin:
    """`z_y - max of the other logits`: its sign is the decision, positive when the label is predicted.

    >>> TopMargin()(torch.tensor([[2.0, 0.0, 5.0]]), (torch.zeros(1), torch.tensor([0])))
    tensor([-3.])
    """

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch)
        own, rest = _split(prediction, y)
        return over_positions(own - rest.amax(-1), y)


@dataclass(frozen=True)
class Logits:
    """The prediction itself, `(b, C)`: several outputs an example."""

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        return prediction.flatten(1)


@dataclass(frozen=True)
class Correct:
    """1 where the label is predicted, else 0; averaged over a sequence. A measurement: it has no useful gradient.

    >>> Correct()(torch.tensor([[2.0, 0.0]]), (torch.zeros(1), torch.tensor([1])))
    tensor([0.])
    """

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch)
        return over_positions((prediction.argmax(-1) == y).to(prediction.dtype), y)


@dataclass(frozen=True)
class SoftError:
    """`sigmoid(-top margin / width)`, from 0 to 1: the error, with a border so wide that it has a gradient.

    What an attacker would rather raise than a loss: a loss goes on growing on targets that are wrong already.

    Args:
        width: of the border, in logits; towards 0 it is `1 - Correct()`.

    >>> SoftError(0.5)(torch.tensor([[1.0, 1.0], [9.0, 0.0]]), (torch.zeros(2), torch.tensor([0, 1])))
    tensor([0.5000, 1.0000])
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"The width of a border is positive; got {self.width}.")

    def __call__(self, prediction: Tensor, batch: Batch) -> Tensor:
        y = labels(batch)
        own, rest = _split(prediction, y)
        return over_positions(torch.sigmoid((rest.amax(-1) - own) / self.width), y)


def _split(prediction: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit `(b, ...)` and the logits with the label's replaced by minus infinity `(b, ..., C)`."""
    index = y.masked_fill(y == IGNORED, 0).unsqueeze(-1)
    own = prediction.gather(-1, index).squeeze(-1)
    return own, prediction.scatter(-1, index, -torch.inf)
