"""Mixed precision: matrix products in bfloat16 where that is safe, and everything that is summed up in full.

Autocast runs products and convolutions in half the bits and keeps reductions, losses and the parameters as they are. It
is on while a model trains, whose steps are noisy anyway. Outputs, gradients of examples and curvature are taken in
full: effects are small differences, which eight bits would drown. bfloat16 has the range of float32, so no loss scaling
is needed; float16 would need it, and is not offered.

Reference: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipe.batch import Batch
from recipe.setting import Forward


@dataclass(frozen=True)
class MixedPrecision:
    """How a model is called, in training under autocast: `Setting(..., forward=MixedPrecision(), device="cuda")`.

    It enters the fingerprint of a setting, so a bank does not take its runs for those of full precision.

    Args:
        forward: `forward(model, batch) -> prediction`, what is called.

    Example:
        >>> model, batch = nn.Linear(3, 2), (torch.ones(4, 3), torch.zeros(4))
        >>> MixedPrecision()(model, batch).dtype
        torch.float32
    """

    forward: Callable[[nn.Module, Batch], Tensor] = Forward()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The prediction on a batch, in the type of the model's parameters."""
        if not model.training:
            return self.forward(model, batch)
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        with torch.autocast(parameter.device.type, dtype=torch.bfloat16):
            prediction = self.forward(model, batch)
        return prediction.to(parameter.dtype)
