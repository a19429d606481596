"""Linear datamodels of projected gradients: features of the examples, and an inverse curvature between them.

With features `phi (k,)` of the training points and `psi_j` of the outputs' gradients,

    effects[j, i] = mean(psi_j^T K^-1 phi_i) mean(residual_i) - mean(psi_j^T K^-1 drift),

each mean over the ensemble's models; `K` includes the normaliser W of the objective.

Memory: features are kept up to `KEPT_BYTES`, and computed again where they are needed and are more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from estimators._anchored import anchored
from estimators._projections import Projection
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Product
from recipe.datamodel import LinearDatamodel
from recipe.engine import Spread
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected

KEPT_BYTES = 2**27  # of features of the universe, over all models of an ensemble


class Features(NamedTuple):
    """Of b examples, of which each has one number that decides its loss.

    `phi (b, k)` are the projected gradients of the number, `residual (b,)` is minus the first derivative of the loss in
    it, by which an example's weight moves the parameters, and `curvature (b,)` the second.
    """

    phi: Tensor
    residual: Tensor
    curvature: Tensor


@dataclass(frozen=True, eq=False)
class Featuriser:
    """The features of one trained model.

    Args:
        theta: the model.
        projection: of gradients to k features.
        features: of a batch, differentiable in it.
        models: of the ensemble, among which the memory is shared.
        measured: the outputs of a setting, as their gradients are taken.
    """

    theta: Parameters
    projection: Projection
    features: Callable[[Batch], Features]
    models: int
    measured: Callable[[Setting], Measure] = attrgetter("output")

    @property
    def setting(self) -> Setting:
        """Whose examples."""
        return self.projection.setting

    @cached_property
    def parts(self) -> list[Batch]:
        """The universe in parts."""
        return self.projection.blocks(self.setting.pool)

    def universe(self) -> Iterator[Features]:
        """Of all training points, part by part."""
        return self._spread() if self._kept is None else iter(self._kept)

    def part(self, i: int) -> Features:
        """Of a part of the universe, without a graph."""
        return self.fixed(self.parts[i]) if self._kept is None else self._kept[i]

    def fixed(self, batch: Batch) -> Features:
        """Of a batch, without a graph."""
        with torch.no_grad():
            return self.features(batch)

    @cached_property
    def _kept(self) -> list[Features] | None:
        size = (self.projection.k + 1) * self.setting.n * self.setting.dtype.itemsize
        return list(self._spread()) if self.models * size <= KEPT_BYTES else None

    def _spread(self) -> Iterator[Features]:
        return Spread(self.fixed, "features of gradients")([(part,) for part in self.parts])


@dataclass(frozen=True, eq=False)
class Member:
    """One model of a datamodel.

    Args:
        featuriser: of the model.
        inverse: of the curvature times W, on features `(b, k)`.
        drift: `(k,)`, what weight on any example adds to its features, such as a balance with the weight decay.
    """

    featuriser: Featuriser
    inverse: Product
    drift: Tensor

    def queries(self, setting: Setting) -> Tensor:
        """`K^-1 psi_j`, `(m, k)`, for the outputs of a setting."""
        projection, theta = self.featuriser.projection, self.featuriser.theta
        measure = self.featuriser.measured(setting)
        parts = [projection.gradients(theta, part, measure) for part in projection.blocks(setting.probe)]
        psi = torch.cat([part.detach().flatten(0, 1) for part in parts])
        calculus.check_gradient(setting, psi)
        return self.inverse(psi)


def projected_datamodel(setting: Setting, members: Sequence[Member], at: Arguments) -> LinearDatamodel:
    """The datamodel of an ensemble, with `effect` and `on`, that gives the models' mean outputs where it was fitted."""
    queries = [member.queries(setting) for member in members]
    drift = torch.stack([q @ member.drift for q, member in zip(queries, members, strict=True)]).mean(0)

    def combined(found: Sequence[Features]) -> Tensor:
        alike = torch.stack([q @ features.phi.T for q, features in zip(queries, found, strict=True)]).mean(0)
        return alike * torch.stack([features.residual for features in found]).mean(0) - drift[:, None]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        return combined([member.featuriser.features(batch) for member in members])

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return projected_datamodel(setting.on(targets, output), members, at)

    def block(i: int) -> Tensor:
        return combined([member.featuriser.part(i) for member in members])

    parts = members[0].featuriser.parts
    effects = collected(block, range(len(parts)), [batches.size(part) for part in parts])
    return anchored(setting, [member.featuriser.theta for member in members], at, effects, effect, on)


def weighted_parts(featuriser: Featuriser, at: Arguments) -> Iterator[tuple[Features, Tensor]]:
    """The features and weights of the training set in parts: the universe, then what was added."""
    weights, added = at
    start = 0
    for features in featuriser.universe():
        stop = start + len(features.phi)
        yield features, weights[start:stop]
        start = stop
    if added is not None:
        yield featuriser.fixed(added), weights.new_ones(batches.size(added))


def cholesky(kernel: Tensor, ridge: float, remark: str = "") -> Tensor:
    """The Cholesky factor of a kernel `(k, k)` with a ridge.

    Raises:
        ValueError: it is not finite, or not of full rank in its type.
    """
    if not kernel.isfinite().all():
        raise ValueError(
            "The kernel of the projected gradients is not finite: the model has diverged, or its loss overflows. Look "
            "at the trained parameters before anything is attributed."
        )
    kernel = kernel + ridge * torch.eye(len(kernel)).to(kernel)
    factor, minor = torch.linalg.cholesky_ex(kernel)
    pivots = factor.diagonal().square()
    if minor or pivots.min() <= 10 * torch.finfo(kernel.dtype).eps * pivots.max():
        rank = int(torch.linalg.matrix_rank(kernel, hermitian=True))
        raise ValueError(
            f"The kernel of the projected gradients has rank {rank} of {len(kernel)} in {kernel.dtype}{remark}. "
            "Project to fewer dimensions, or pass a (larger) damping: a hundredth of the kernel's mean diagonal is "
            f"damping={0.01 * float(kernel.diagonal().mean()):.1g}."
        )
    return factor
