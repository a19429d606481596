"""Linear datamodels that give the trained models' outputs where they were fitted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import LinearDatamodel, OutputFunction
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting


def where(setting: Setting, at: Arguments | None) -> Arguments:
    """`at`, or all points at weight 1, checked: weights `(n,)` in the setting's type, and added examples."""
    weights, added = at or (torch.ones(()).expand(setting.n), None)
    added = None if added is None or not batches.size(added) else setting.check_added(added)
    return setting.check_weights(weights).detach().to(setting.dtype), added


def check_effects(effects: Tensor) -> None:
    """Raise `ValueError` for effects `(m, n)` that are NaN or infinite, with the points and outputs whose they are."""
    if not isinstance(effects, Tensor):
        return  # on disk: each block was looked at before it was written
    broken = ~effects.isfinite()
    if broken.any():
        points, outputs = broken.any(0), broken.any(1)
        raise ValueError(
            f"The effects of {int(points.sum())} of {effects.shape[1]} training points on {int(outputs.sum())} of "
            f"{effects.shape[0]} outputs are not finite, the first of them those of point {int(points.nonzero()[0])}: "
            "gradients are NaN or infinite there. Look for NaN and infinity in these examples, and at the trained "
            "parameters, before anything is attributed."
        )


def anchored(
    setting: Setting,
    trained: list[Parameters],
    at: Arguments,
    effects: Tensor,
    effect: Callable[[Batch], Tensor] | None = None,
    on: Callable[[Any, Measure | None], OutputFunction] | None = None,
) -> LinearDatamodel:
    """The datamodel with these effects `(m, n)` whose outputs at `at` are the mean of the trained models' own."""
    weights, added = at
    check_effects(effects)
    with torch.no_grad():
        outputs = torch.stack([setting.outputs(theta) for theta in trained]).mean(0)
        if added is not None and effect is not None:
            outputs = outputs - effect(added).sum(1)
    return LinearDatamodel(outputs, effects, effect, at=weights, output_shape=setting.output_shape, on=on)
