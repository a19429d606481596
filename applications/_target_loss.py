"""The targets' loss as a function of whatever is measured on them.

With the cross-entropy of one label an example, `loss = log(1 + exp(-margin))` exactly. Margins are closer to linear in
the training weights than losses are, so a datamodel of margins put through that function often predicts losses better
than a datamodel of losses.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from recipe import batch as batches
from recipe.datamodel import OutputFunction
from recipe.losses import CrossEntropy
from recipe.outputs import Correct, Logits, Margin, TopMargin
from recipe.setting import Setting


def target_loss(f: OutputFunction) -> Callable[[Tensor], Tensor]:
    """What makes losses `(..., m)` of the outputs of `f`: of margins the above, of accuracy the error.

    Outputs of your own, and of datamodels without a setting, are taken for losses.

    Raises:
        ValueError: outputs that are known to be neither, such as logits.
    """
    setting = f.setting
    output = None if setting is None else setting.output
    if isinstance(output, Margin) and _one_label_each(setting):
        return lambda margins: F.softplus(-margins)
    if isinstance(output, Correct):
        return lambda correct: 1 - correct
    if isinstance(output, (Margin, TopMargin, Logits)):
        raise ValueError(
            f"This task is about losses, which do not follow from {output} here. Make the setting with "
            "`output=Loss()`, or pass `f.on(output=Loss())`."
        )
    return lambda losses: losses


def _one_label_each(setting: Setting | None) -> bool:
    return setting is not None and isinstance(setting.loss, CrossEntropy) and batches.labels(setting.probe).ndim == 1
