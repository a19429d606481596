"""The datamodel tangent to retraining, whatever inverse of the curvature it is made with.

    effects[j, i] = -grad f_j(theta)^T  F^-1  (grad l_i(theta) + l2 theta) / W,

averaged over the ensemble's models; for an algorithm that minimises a sum, `l2 theta` and `W` drop out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from estimators._anchored import check_effects
from estimators._ensemble import check_differentiable, members
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Point, Product
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, OutputFunction, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.training import progress, stack
from recipe.work import Work


def fit_tangent(
    setting: Setting,
    models: int,
    seed: int,
    at: Arguments | None,
    invert: Callable[[Point], Any],
    lazy: bool = False,
    queries: "Callable[[Setting, Parameters, Any], Queries] | None" = None,
) -> "TangentDatamodel":
    """Train an ensemble (or take the setting's checkpoints) and linearise retraining.

    Args:
        setting: what to attribute.
        models: of the ensemble.
        seed: of its first model.
        at: `(weights, added)` where to linearise; default all points at weight 1.
        invert: the inverse of the curvature at a point.
        lazy: never keep the effects.
        queries: how the outputs' gradients are taken through what `invert` returns; default `DenseQueries`.

    Returns:
        A datamodel with `effect`, `on` and `parameters`; `on` reuses trained models and inverses.
    """
    weights, added = at or (torch.ones(setting.n, dtype=setting.dtype, device=setting.device), None)
    weights = setting.check_weights(weights).to(setting.dtype)
    check_differentiable(setting)
    tangents = []
    for k, theta in enumerate(progress(members(setting, models, seed, at), "curvature")):
        data, all_weights = calculus.training_set(setting, weights, added)
        inverse = invert(Point(setting, theta, all_weights, data, seed + k))
        total = calculus.normaliser(setting, all_weights)
        tangents.append(Tangent(theta, inverse, total, queries or DenseQueries))
    return TangentDatamodel(setting, tangents, weights, added, lazy)


def tangent_cost(work: Work, models: int, inverse: Callable[[int], Cost], lazy: bool = False) -> Cost:
    """What `fit_tangent` costs, given what it costs to invert the curvature and apply it to so many vectors."""
    training, count = work.ensemble(models)
    vectors = 0 if lazy else work.setting.m
    queries = vectors * work.setting.p * work.number
    one = inverse(vectors) + work.fitted(_Plain(lazy)).holding(queries)
    return training + (count * one).holding((count - 1) * queries)


@dataclass(frozen=True)
class _Plain:
    """The tangent as it were without a curvature: what all inverses share."""

    lazy: bool

    def fit(self, setting: Setting) -> "TangentDatamodel":
        return fit_tangent(setting, 1, 0, None, lambda point: lambda vectors: vectors, self.lazy)


class Queries(Protocol):
    """The outputs' gradients times the inverse curvature, `q_j = F^-1 grad f_j`, as what they are multiplied with."""

    def examples(self, batch: Batch) -> Tensor:
        """Products `(m, b)` with the gradients of the examples' losses, differentiable in them."""

    def parameters(self) -> Tensor:
        """Products `(m,)` with the parameters themselves."""


class DenseQueries:
    """The `(m, p)` matrix.

    Args:
        setting: whose outputs.
        theta: parameters of a trained model.
        inverse: of its curvature.
    """

    def __init__(self, setting: Setting, theta: Parameters, inverse: Product) -> None:
        self._setting, self._theta = setting, theta
        self._matrix = inverse(calculus.output_gradients(setting, theta))

    def examples(self, batch: Batch) -> Tensor:
        """See `Queries.examples`."""
        return calculus.gradient_products(self._setting, self._theta, batch, self._matrix)

    def parameters(self) -> Tensor:
        """See `Queries.parameters`."""
        return self._matrix @ self._setting.flat(self._theta)


@dataclass(frozen=True, eq=False)
class Tangent:
    """One trained model, the inverse of its curvature and the total weight that it was trained with."""

    theta: Parameters
    inverse: Product
    total: Tensor
    queries: Callable[[Setting, Parameters, Any], Queries] = DenseQueries

    def moves(self, setting: Setting, batch: Batch) -> Tensor:
        """`d theta / d w` of the examples of a batch, `(b, p)`, without the inverse curvature."""
        return -calculus.pulls(setting, self.theta, batch) / self.total

    def push(self, setting: Setting, changes: Tensor) -> Tensor:
        """The move, without the inverse curvature, under changes of the weights, `(k, n) -> (k, p)`."""
        moved = changes.any(0).nonzero().squeeze(1)  # a forget set, say: few of all points
        pulls: Tensor | float = 0.0
        for index in moved.split(calculus.examples_at_once(setting, setting.pool)) if len(moved) else ():
            losses = partial(setting.losses, batch=batches.take(setting.pool, index))
            pulls = pulls + calculus.pulled(setting, self.theta, losses, changes[:, index])
        decay = moving_decay(setting) * changes.sum(1, keepdim=True) * setting.flat(self.theta)
        return -(pulls + decay) / self.total

    def pull(self, setting: Setting, vectors: Tensor) -> Tensor:
        """The transpose of `push`, `(k, p) -> (k, n)`."""
        parts = [
            calculus.pushed(setting, self.theta, partial(setting.losses, batch=part), vectors)
            for part in calculus.passes(setting, setting.pool)
        ]
        decay = moving_decay(setting) * (vectors @ setting.flat(self.theta))
        return -(torch.cat(parts, 1) + decay[:, None]) / self.total


def moving_decay(setting: Setting) -> float:
    """What of the weight decay moves with the weights (see `calculus.pulls`)."""
    return setting.algorithm.objective.l2 if setting.algorithm.objective.mean else 0.0


class TangentDatamodel(LinearDatamodel):
    """A linear datamodel that can multiply with its effects without having them.

    Args:
        setting: what is attributed.
        tangents: one for each model of the ensemble.
        weights: `(n,)`, where the tangent touches.
        added: examples that were added there.
        lazy: never keep the effects: a vector of weights costs one product with the inverse curvature, its gradient
            another, where all effects cost m products once.
    """

    _at: Tensor

    def __init__(
        self, setting: Setting, tangents: list[Tangent], weights: Tensor, added: Batch | None, lazy: bool
    ) -> None:
        self._setting, self._tangents, self._lazy = setting, tangents, lazy
        self._at, self._added = weights, added
        self.n, self.output_shape = setting.n, setting.output_shape
        self._touched = torch.stack([setting.outputs(t.theta).detach() for t in tangents]).mean(0)
        if lazy:  # else the queries look at all of them
            some = torch.randn(1, self.m, generator=torch.Generator().manual_seed(0)).to(self._touched)
            calculus.check_gradient(setting, calculus.pulled(setting, tangents[0].theta, setting.outputs, some))
        self._base = self._touched
        if added is not None and batches.size(added):
            self._base = self._touched - self.effect(added).sum(1).detach()
        if not lazy:
            check_effects(self.effects)  # now, as a part of the fit

    @cached_property
    def effects(self) -> Tensor:
        """The effects `(m, n)`."""
        return collected(self.effect, self._parts)

    @property
    def _parts(self) -> list[Batch]:
        """The universe in parts that are small enough for what they leave behind to stay in the cache."""
        setting = self._setting
        return (calculus.factored if setting.layers.covered else calculus.blocks)(setting, setting.pool)

    def effect(self, batch: Batch) -> Tensor:
        """The value of examples of weight 1 `(m, b)`, differentiable in them."""
        batch, decay = self._setting.check_added(batch), moving_decay(self._setting)
        return torch.stack(
            [
                (q.examples(batch) + decay * steady[:, None]) / -t.total
                for (q, steady), t in zip(self._queries, self._tangents, strict=True)
            ]
        ).mean(0)

    def _outputs(self, weights: Any) -> Any:
        if not (self._lazy and isinstance(weights, Tensor)):
            return super()._outputs(weights)
        changes = (weights.to(self._touched) - self._at).reshape(-1, self.n)
        return self._base + _Products.apply(changes, self).view(*weights.shape[:-1], self.m)

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`; trained models and inverses are reused."""
        new = TangentDatamodel(self._setting.on(targets, output), self._tangents, self._at, self._added, self._lazy)
        return same_origin(self, new, targets, output)

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """See `OutputFunction.parameters`."""
        setting, old_weights, old = self._setting, self._at, self._added
        moved = []
        with torch.no_grad():
            for t in self._tangents:
                move = t.push(setting, (weights.to(old_weights) - old_weights)[None])
                for sign, batch in ((1, added), (-1, old)):
                    if batch is not None and batches.size(batch):
                        move = move + sign * t.moves(setting, setting.check_added(batch)).sum(0)
                moved.append(setting.unflat(setting.flat(t.theta) + t.inverse(move)[0], t.theta))
        return stack(moved)

    @cached_property
    def _queries(self) -> list[tuple[Queries, Tensor]]:
        """For each model the outputs' gradients times the inverse curvature, and their products with the parameters."""
        made = [t.queries(self._setting, t.theta, t.inverse) for t in self._tangents]
        return [(queries, queries.parameters()) for queries in made]

    def forward(self, changes: Tensor) -> Tensor:
        """`effects @ change`, `(k, n) -> (k, m)`."""
        setting, parts = self._setting, []
        for t in self._tangents:
            moves = t.inverse(t.push(setting, changes))
            parts.append(calculus.pushed(setting, t.theta, setting.outputs, moves))
        return torch.stack(parts).mean(0)

    def backward(self, gradients: Tensor) -> Tensor:
        """`gradient @ effects`, `(k, m) -> (k, n)`."""
        setting, parts = self._setting, []
        for t in self._tangents:
            queries = t.inverse(calculus.pulled(setting, t.theta, setting.outputs, gradients))
            parts.append(t.pull(setting, queries))
        return torch.stack(parts).mean(0)


class _Products(torch.autograd.Function):
    """`changes (k, n) -> (k, m)` through the inverse curvature, both ways without the effects."""

    @staticmethod
    def forward(ctx: Any, changes: Tensor, datamodel: TangentDatamodel) -> Tensor:
        ctx.datamodel = datamodel
        return datamodel.forward(changes)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.datamodel.backward(gradients), None
