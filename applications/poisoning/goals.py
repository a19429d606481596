"""Goals: what an attacker wants a model to do, as targets, labels and a direction.

    Indiscriminate            the loss on all targets, up
    Subpopulation(mask)       the loss on some targets, up
    Targeted(target, label)   the loss of one target with the label that the attacker wants, down
    Backdoor(trigger, label)  the loss of all targets with the trigger and that label, down

`aim(setting)` is the setting with the attacker's targets; `towards` says which way.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from applications.poisoning._inputs import replaced
from recipe import batch as batches
from recipe.batch import Batch
from recipe.feasible import Box
from recipe.outputs import Loss
from recipe.setting import Setting


class Goal(Protocol):
    """What an attacker wants."""

    @property
    def towards(self) -> bool:
        """Whether the targets carry labels that are wanted (loss down) or true ones (loss up)."""

    def aim(self, setting: Setting) -> Setting:
        """The setting with the attacker's targets, measured by their loss."""


@dataclass(frozen=True)
class Indiscriminate:
    """Any harm to all targets."""

    towards = False

    def aim(self, setting: Setting) -> Setting:
        """All targets."""
        return setting.on(output=Loss())


@dataclass(frozen=True, eq=False)
class Subpopulation:
    """Harm to some targets, a class say; what happens to the others does not count.

    Args:
        mask: `(targets,)`, true for those meant.
    """

    mask: Tensor
    towards = False

    def aim(self, setting: Setting) -> Setting:
        """The targets meant. Raises `ValueError` where the mask does not fit or is empty."""
        count = batches.size(setting.probe)
        if self.mask.shape != (count,) or not bool(self.mask.any()):
            raise ValueError(
                f"Expected a mask of {count} targets with one at least; got {tuple(self.mask.shape)} with "
                f"{int(self.mask.sum())}."
            )
        return setting.on(batches.take(setting.probe, self.mask.bool()), Loss())


@dataclass(frozen=True)
class Targeted:
    """One target to a label of the attacker's.

    Args:
        target: its index.
        label: the wanted one.
    """

    target: int
    label: int
    towards = True

    def aim(self, setting: Setting) -> Setting:
        """The target with the wanted label. Raises `ValueError` where there is no such target."""
        count = batches.size(setting.probe)
        if not 0 <= self.target < count:
            raise ValueError(f"Expected a target from 0 to {count - 1}; got {self.target}.")
        return setting.on(_wanted(batches.take(setting.probe, slice(self.target, self.target + 1)), self.label), Loss())


@dataclass(frozen=True, eq=False)
class Trigger:
    """A fixed patch: some entries of an example, and what they are set to.

    Args:
        mask: true for the entries of the patch, of an example's shape.
        values: of an example's shape; only those of the patch matter.

    Raises:
        ValueError: a mask that is not of zeros and ones, or another shape than the values'; on use, than an example's.

    Example:
        >>> corner = Trigger(torch.tensor([True, False]), torch.ones(2))
        >>> corner.stamp(torch.zeros(2, 2))
        tensor([[1., 0.],
                [1., 0.]])
    """

    mask: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.shape != self.values.shape:
            raise ValueError(
                f"Expected a mask of booleans and values of the same shape; got {self.mask.dtype} "
                f"{tuple(self.mask.shape)} and {tuple(self.values.shape)}. Call .bool() on the mask."
            )

    def stamp(self, inputs: Tensor) -> Tensor:
        """The inputs `(b, ...)` with the patch on them."""
        if inputs.shape[1:] != self.mask.shape:
            raise ValueError(
                f"Expected a trigger of an example's shape {tuple(inputs.shape[1:])}; got {tuple(self.mask.shape)}."
            )
        return torch.where(self.mask, self.values.to(inputs), inputs)

    def worn(self, box: Box) -> Box:
        """What of a box `(b, ...)` wears the patch: there only its values are allowed."""
        radius = torch.as_tensor(box.radius).expand_as(box.center)
        return Box(self.stamp(box.center), torch.where(self.mask, 0.0, radius))


@dataclass(frozen=True, eq=False)
class Backdoor:
    """Every target that wears the trigger to a label of the attacker's; without it nothing should change.

    Args:
        trigger: the patch.
        label: the wanted one.
        entry: of the inputs in a batch.
    """

    trigger: Trigger
    label: int
    entry: int | str = 0
    towards = True

    def aim(self, setting: Setting) -> Setting:
        """The targets of other labels, with trigger and wanted label. Raises `ValueError` where there are none."""
        if bool((batches.labels(setting.probe) == self.label).all()):
            raise ValueError(f"All targets have the label {self.label} already; a backdoor is for those of others.")
        others = batches.take(setting.probe, batches.labels(setting.probe) != self.label)
        inputs = self.trigger.stamp(others[self.entry])  # type: ignore[index]
        stamped = replaced(others, self.entry, inputs)
        return setting.on(_wanted(stamped, self.label), Loss())


def _wanted(batch: Batch, label: int) -> Batch:
    return batches.relabel(batch, torch.full_like(batches.labels(batch), label))
