"""The trained models that an estimator looks at: the setting's own checkpoints, or freshly trained ones."""

from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.calculus import without_gradient
from recipe.engine import HERE, current
from recipe.problem import Arguments
from recipe.retrain import Retrain, train_runs
from recipe.setting import Checkpoint, Parameters, Setting


def members(setting: Setting, models: int, seed: int, at: Arguments | None = None) -> list[Parameters]:
    """Parameters of an ensemble; member k trains with the seed `seed + k`.

    Args:
        setting: what to train; where it has checkpoints and `at` is None, the last step of each of their members is
            taken instead of training, and `models` and `seed` are ignored.
        models: how many to train.
        seed: of the first one.
        at: `(weights (n,), added)` to train at; default all points at weight 1.

    Returns:
        One dictionary of parameters a member.

    Raises:
        ValueError: fewer than one model, a checkpoint that does not fit the model, or training points that hold
            NaN or infinity, as their loss does.

    Example:
        >>> from recipe import Newton, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> [theta["weight"].shape for theta in members(setting, models=2, seed=0)]
        [torch.Size([2, 3]), torch.Size([2, 3])]
    """
    check_examples(setting)
    if setting.checkpoints and at is None:
        return [point.parameters for point in _completed(setting, [points[-1] for points in _grouped(setting)])]
    if models < 1:
        raise ValueError(f"An ensemble needs at least one model; got models={models}.")
    weights, added = at or (torch.ones(setting.n), None)
    w = setting.check_weights(weights).detach().to(setting.dtype)
    seeds = range(seed, seed + models)
    if current() == HERE:
        return train_runs(setting, w.expand(models, -1), seeds, added)
    stacked = Retrain(setting, seeds, bank=current().models).parameters(w, added)
    return [{name: t[k] for name, t in stacked.items()} for k in range(models)]


def check_differentiable(setting: Setting) -> None:
    """Raise `ValueError`, before any work, for outputs that jump, as accuracies do."""
    one = batches.take(setting.probe, slice(0, 1))
    with torch.enable_grad():
        z = setting.predict(setting.initial(0), one).detach().requires_grad_()
        if not setting.output(z, one).requires_grad:
            raise without_gradient(setting)


def check_examples(setting: Setting) -> None:
    """Raise `ValueError`, before any work, for training points whose NaN or infinity reaches their loss."""
    tensors = [t for t in batches.tensors(setting.pool) if t.is_floating_point() and not t.sum().isfinite()]
    suspects = sum((~t.flatten(1).isfinite()).any(1) for t in tensors)
    if not isinstance(suspects, Tensor) or not suspects.any():
        return
    points = suspects.nonzero().squeeze(1)
    with torch.no_grad():
        losses = setting.losses(setting.initial(0), batches.take(setting.pool, points))
    broken = points[~losses.isfinite()]
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {setting.n} training points hold NaN or infinity, the first of them point "
            f"{int(broken[0])}, and so does their loss. Mend them or leave them out of the universe."
        )


def by_member(setting: Setting) -> list[list[Checkpoint]]:
    """The setting's checkpoints, of each member in the order of their steps, with all parameters on its device.

    Raises:
        ValueError: a checkpoint that does not fit the model.
    """
    return [_completed(setting, points) for points in _grouped(setting)]


def _grouped(setting: Setting) -> list[list[Checkpoint]]:
    ordered = sorted(setting.checkpoints, key=lambda point: (point.member, point.step))
    return [list(points) for _, points in groupby(ordered, key=lambda point: point.member)]


def _completed(setting: Setting, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    blank = setting.initial(0)
    return [replace(point, parameters=_complete(blank, setting, point)) for point in checkpoints]


def _complete(blank: Parameters, setting: Setting, checkpoint: Checkpoint) -> Parameters:
    """The checkpoint's parameters on the setting's device, with those of `blank` for what it leaves out."""
    shapes = {name: tuple(t.shape) for name, t in checkpoint.parameters.items()}
    alien = [name for name, shape in shapes.items() if name not in blank or shape != tuple(blank[name].shape)]
    missing = [name for name in setting.trained if name not in shapes]
    if alien or missing:
        raise ValueError(
            f"The checkpoint of member {checkpoint.member}, step {checkpoint.step}, does not fit the model: "
            f"unknown or of another shape {alien}, missing {missing}. Pass the `state_dict()` of the setting's model."
        )
    broken = {name: int((~checkpoint.parameters[name].isfinite()).sum()) for name in setting.trained}
    if any(broken.values()):
        named = ", ".join(f"{count} of {name}" for name, count in broken.items() if count)
        raise ValueError(
            f"The checkpoint of member {checkpoint.member}, step {checkpoint.step}, has values that are not finite: "
            f"{named}. The run has diverged; leave this member out, or train it with a lower learning rate."
        )
    return {name: checkpoint.parameters.get(name, t).detach().to(t) for name, t in blank.items()}
