"""Decoys: bad parameters that poisons are to make optimal, found by training on the attacker's targets, mislabelled.

    theta_d = argmin over theta of  the training objective on the universe and on copies of mislabelled targets

A good decoy has a large loss on the targets, and a small one on the universe: the smaller, the fewer poisons it takes.
Targets that the clean model nearly gets wrong are mislabelled first, since they cost the least on clean data. How many
of them, and how often each is repeated, is a grid; decoys that another one beats in both losses are left out.

Reference: Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741, section 4.3. Deviations: shares of the targets instead of quantiles of their loss, which is zero for
most under a hinge; targets of one class alone are mislabelled too, which moves the border to one side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.outputs import Loss
from recipe.retrain import Retrain
from recipe.setting import Parameters, Setting


@dataclass(frozen=True, eq=False)
class Decoy:
    """Parameters to imitate.

    Args:
        name: how it was made.
        parameters: of the model.
        clean: their mean loss on the universe.
        targets: their mean loss on the targets: true labels, or those that are wanted.
    """

    name: str
    parameters: Parameters = field(repr=False)
    clean: float
    targets: float


def label_flip_decoys(
    setting: Setting,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
    repeats: Sequence[int] = (1, 2, 3),
    one_sided: bool = True,
    towards: bool = False,
) -> tuple[Decoy, ...]:
    """Decoys for a two-class setting, the lowest loss on clean data first, none beaten in both losses.

    Args:
        setting: the attacker's: its universe is clean, its targets are those to be got wrong.
        shares: of the targets that are mislabelled.
        repeats: how often each is repeated.
        one_sided: mislabel shares of the targets of one label alone, too.
        towards: the targets already carry the labels that are wanted (`Targeted`, `Backdoor`): all are used as they
            are.

    Raises:
        ValueError: not two classes, shares outside 0 to 1, or repeats below 1.

    Example:
        >>> from recipe import LBFGS
        >>> x, y = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(60) % 2
        >>> x[:, 0] += 2 * y
        >>> parts = (x[:40], y[:40]), (x[40:], y[40:])
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), *parts, LBFGS(l2=0.1))
        >>> mild, *_, bad = label_flip_decoys(setting, repeats=(1, 2))
        >>> mild.clean < bad.clean and mild.targets < bad.targets
        True
    """
    classes = batches.labels(setting.pool).unique()
    if len(classes) != 2 or not all(0 < s <= 1 for s in shares) or min(repeats, default=0) < 1:
        raise ValueError(
            f"Decoys mislabel shares of the targets, above 0 and at most 1, of two classes, once at least; got "
            f"{len(classes)} classes, shares={tuple(shares)} and repeats={tuple(repeats)}."
        )
    f, ones = Retrain(setting.on(output=Loss()), (0,)), torch.ones(setting.n)
    sets = [("all targets", setting.probe)] if towards else _mislabelled(setting, f(ones), shares, classes, one_sided)
    found = []
    for name, flips in sets:
        for r in repeats:
            repeated = batches.apply(lambda t, r=r: t.repeat_interleave(r, 0), flips)  # type: ignore[misc]
            theta = {k: t[0] for k, t in f.parameters(ones, repeated).items()}
            found.append(_decoy(f.setting, f"{name}, {r} times", theta))
    return _unbeaten(found, towards)


def _mislabelled(
    setting: Setting, losses: Tensor, shares: Sequence[float], classes: Tensor, one_sided: bool
) -> list[tuple[str, Batch]]:
    """Sets of targets with the other label, by name: the highest losses of all, of one class, of the other."""
    y = batches.labels(setting.probe)
    sides = {"all": torch.ones_like(y, dtype=torch.bool)}
    sides |= {f"label {c}": y == c for c in classes.tolist() if one_sided}
    found: dict[tuple[int, ...], tuple[str, Batch]] = {}  # small shares of few targets are the same
    for name, side in sides.items():
        order = losses.masked_fill(~side, -torch.inf).argsort(descending=True)
        for share in shares if bool(side.any()) else ():
            chosen = order[: max(1, round(share * int(side.sum())))]
            flips = batches.take(setting.probe, chosen)
            flips = batches.relabel(flips, classes.sum() - batches.labels(flips))
            found.setdefault(tuple(sorted(chosen.tolist())), (f"{share:g} of {name}", flips))
    return list(found.values())


def _decoy(setting: Setting, name: str, theta: Parameters) -> Decoy:
    with torch.no_grad():
        clean, targets = (float(setting.losses(theta, data).mean()) for data in (setting.pool, setting.probe))
    return Decoy(name, theta, clean, targets)


def _unbeaten(decoys: list[Decoy], towards: bool) -> tuple[Decoy, ...]:
    """Those than which none is better on clean data and worse on the targets (better, where `towards`)."""
    sign = -1 if towards else 1
    kept: list[Decoy] = []
    for decoy in sorted(decoys, key=lambda d: (d.clean, -sign * d.targets)):
        if not kept or sign * decoy.targets > sign * kept[-1].targets:
            kept.append(decoy)
    return tuple(kept)
