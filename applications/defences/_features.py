"""What stands for an example in a defence: its inputs, or what enters the model's last layer."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from applications.defences._geometry import inputs_of
from recipe.retrain import Retrain
from recipe.setting import Setting


class Features(Protocol):
    """A vector for every training point."""

    def of(self, setting: Setting) -> Tensor:
        """`(n, d)`."""


@dataclass(frozen=True)
class Inputs:
    """The inputs themselves, flattened.

    Args:
        entry: of the inputs in a batch.
    """

    entry: int | str = 0

    def of(self, setting: Setting) -> Tensor:
        """See `Features.of`."""
        return inputs_of(setting.pool, self.entry).flatten(1)


@dataclass(frozen=True)
class Activations:
    """What enters the last linear layer of a model trained on all points; of a linear model, its inputs.

    Args:
        seed: of the training.
    """

    seed: int = 0

    def of(self, setting: Setting) -> Tensor:
        """See `Features.of`. Raises `ValueError` where the model has no linear layer."""
        theta = Retrain(setting, (self.seed,)).parameters(torch.ones(setting.n))
        module = setting.module({name: t[0] for name, t in theta.items()}).eval()
        layers = [m for m in module.modules() if isinstance(m, nn.Linear)]
        if not layers:
            raise ValueError("The model has no linear layer whose inputs could stand for an example; use Inputs().")
        seen: list[Tensor] = []
        hook = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(1)))
        with torch.no_grad():
            setting.forward(module, setting.pool)
        hook.remove()
        return seen[-1]
