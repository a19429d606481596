"""What a defence is: `scores(setting) -> (n,)`, larger is more suspicious, and what is done with the scores.

A defence sees the setting as the defender does: a universe in which the poisons are already mixed, without a mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from applications.defences._geometry import labels_of
from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Setting


class Defence(Protocol):
    """Anything with `scores`, as a frozen dataclass."""

    def scores(self, setting: Setting) -> Tensor:
        """How suspicious each training point is, `(n,)`."""


@dataclass(frozen=True, eq=False)
class Caught:
    """What inspecting the most suspicious points finds.

    Args:
        inspected: `(n,)`, true for the points that are looked at (or thrown away).
        poison: the share of the poison among them, of all poison.
        clean: the share of the clean data among them, of all clean data.
    """

    inspected: Tensor
    poison: float
    clean: float


def poisoned(setting: Setting, added: Batch | None, replaces: Sequence[int] = ()) -> tuple[Setting, Tensor]:
    """The setting as the defender gets it, poisons at the end of the universe, and a mask `(n,)` of the poisons."""
    kept = torch.ones(setting.n, dtype=torch.bool).index_fill(0, torch.tensor(list(replaces), dtype=torch.long), False)
    universe = batches.take(setting.pool, kept)
    count = 0 if added is None else batches.size(added)
    if added is not None and count:
        universe = batches.concatenate(universe, batches.apply(Tensor.detach, setting.check_added(added)))
    mixed = Setting(
        setting.model,
        universe,
        setting.probe,
        setting.algorithm,
        setting.loss,
        setting.output,
        setting.forward,
        device=setting.device,
    )
    n = mixed.n
    return mixed, torch.arange(n) >= n - count


def most_suspicious(scores: Tensor, share: float, y: Tensor | None = None) -> Tensor:
    """A mask `(n,)` of the share of the points with the largest scores: of all, or of each class.

    Raises:
        ValueError: a share outside 0 to 1, or scores that are not finite.

    Example:
        >>> most_suspicious(torch.tensor([0.1, 3.0, 2.0, 0.5]), 0.25)
        tensor([False,  True, False, False])
    """
    if not 0 <= share <= 1 or not bool(scores.isfinite().all()):
        raise ValueError(f"Expected a share from 0 to 1 and finite scores; got share={share}.")
    scores, chosen = scores.detach().cpu(), torch.zeros(len(scores), dtype=torch.bool)
    y = torch.zeros(len(scores)) if y is None else y.cpu()
    for group in [(y == c).nonzero().squeeze(1) for c in y.unique()]:
        chosen[group[scores[group].argsort(descending=True)[: round(share * len(group))]]] = True
    return chosen


def caught(scores: Tensor, poison: Tensor, share: float, y: Tensor | None = None) -> Caught:
    """What looking at a share of the points, of all or of each class, finds of the poison `(n,)` mask."""
    seen = most_suspicious(scores, share, y)
    return Caught(seen, _share(seen[poison]), _share(seen[~poison]))


def inspect(defence: Defence, setting: Setting, poison: Tensor, share: float = 0.05, per_class: bool = True) -> Caught:
    """Ask a defence about a poisoned setting (`poisoned`), and look at the most suspicious share of each class."""
    return caught(defence.scores(setting), poison, share, labels_of(setting.pool) if per_class else None)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0
