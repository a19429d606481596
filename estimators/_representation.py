"""What a trained model makes of an example: by default the input of its last trained layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Parameters, Setting

BLOCK = 512  # examples whose activations are held at once

Representation = Callable[[nn.Module, Batch], Tensor]  # (model, batch) -> (b, d)


@dataclass(frozen=True)
class LastInput:
    """The input of the layer that is called last among those that own trained parameters, flattened to `(b, d)`."""

    forward: Callable[[nn.Module, Batch], Tensor]
    layers: frozenset[str]

    @classmethod
    def of(cls, setting: Setting) -> "LastInput":
        """For the models of a setting."""
        return cls(setting.forward, frozenset(name.rpartition(".")[0] for name in setting.trained))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The representation `(b, d)`. Raises `ValueError` where no such layer is called."""
        return self.look(model, batch)[1].flatten(1)

    def look(self, model: nn.Module, batch: Batch) -> tuple[str, Tensor]:
        """The layer's name and its input as it comes."""
        seen: list[tuple[str, Tensor]] = []

        def watch(name: str) -> Callable[..., None]:
            def hook(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
                seen.extend([(name, t) for t in (*args, *named.values()) if isinstance(t, Tensor)][:1])

            return hook

        hooks = [model.get_submodule(n).register_forward_pre_hook(watch(n), with_kwargs=True) for n in self.layers]
        try:
            self.forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen:
            raise ValueError(
                f"None of the layers with trained parameters ({', '.join(sorted(self.layers))}) is called as a module, "
                "so there is no last layer to look into. Pass `representation=`."
            )
        return seen[-1]


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained model as a map from examples to representations, differentiable in the examples."""

    model: nn.Module
    representation: Representation

    @classmethod
    def of(cls, setting: Setting, theta: Parameters, representation: Representation | None = None) -> "Encoder":
        """The model with these parameters in eval mode; default the input of its last trained layer."""
        model = setting.module(theta).eval().requires_grad_(False)
        return cls(model, representation or LastInput.of(setting))

    def __call__(self, batch: Batch) -> Tensor:
        """Representations `(b, d)`. Raises `ValueError` for a representation of another shape or type."""
        phi = self.representation(self.model, batch)
        if phi.ndim != 2 or len(phi) != batches.size(batch) or not torch.is_floating_point(phi):
            raise ValueError(
                f"A representation must be a floating tensor (b, d), here b = {batches.size(batch)}; got {phi.dtype} "
                f"of shape {tuple(phi.shape)}. Pass `representation=`, a function (model, batch) -> (b, d)."
            )
        return phi

    def all(self, batch: Batch) -> Tensor:
        """Representations of many examples, block by block, without a gradient."""
        with torch.no_grad():
            return torch.cat([self(block) for block in blocks(batch)])


def blocks(batch: Batch) -> list[Batch]:
    """The batch in parts of `BLOCK` examples."""
    return [batches.take(batch, slice(i, i + BLOCK)) for i in range(0, batches.size(batch), BLOCK)]


def unit(phi: Tensor) -> Tensor:
    """Representations of length 1; one of length 0 is like nothing."""
    return F.normalize(phi, dim=1)
