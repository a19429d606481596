"""The targets' loss as a function of whatever is measured on them.

With the cross-entropy, `loss = log(1 + exp(-margin))` exactly. Margins are closer to linear in the training weights
than losses are, so a datamodel of margins put through that function often predicts losses better than a datamodel of
losses.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from recipe.datamodel import OutputFunction
from recipe.outputs import Correct, Margin, TopMargin


def target_loss(f: OutputFunction) -> Callable[[Tensor], Tensor]:
    """What makes losses `(..., m)` of the outputs of `f`: of margins the above, of accuracy the error, else nothing."""
    output = None if f.setting is None else f.setting.output
    if isinstance(output, (Margin, TopMargin)):
        return lambda margins: F.softplus(-margins)
    if isinstance(output, Correct):
        return lambda correct: 1 - correct
    return lambda losses: losses
