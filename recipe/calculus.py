"""Derivatives at trained parameters: per-example gradients and curvature.

Everything is a vector over the p trained parameters, and every sum is the one that the algorithm minimises:

    L(theta; w) = sum_i w_i l_i(theta) / sum_i w_i + l2/2 |theta|^2        (mean; without the division if not).

Models are evaluated in eval mode: dropout off, running statistics fixed.
"""

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from recipe import batch as batches
from recipe.batch import Batch
from recipe.engine import Spread
from recipe.setting import Parameters, Setting

with warnings.catch_warnings(), contextlib.suppress(ImportError):
    # torch's own forward-mode rules use its deprecated `torch.jit.script`; load them here, so that no user is warned of
    # what is not theirs.
    warnings.simplefilter("ignore")
    importlib.import_module("torch._decomp.decompositions_for_jvp")

BLOCK_BYTES = 2**28  # of gradients or activations that are held at once
CACHE_BYTES = 2**25  # of activations that are gone through again and again

Product = Callable[[Tensor], Tensor]  # k vectors (k, p) -> (k, p), a symmetric matrix applied to each


def training_set(setting: Setting, weights: Tensor, added: Batch | None) -> tuple[Batch, Tensor]:
    """Universe and added examples as one batch of `n + b`, and weights over it; gradients flow to the added inputs."""
    if added is None or not batches.size(added):
        return setting.pool, weights
    added = setting.check_added(added)
    data = batches.concatenate(setting.pool, added)
    return data, torch.cat([weights, weights.new_ones(batches.size(added))])


def normaliser(setting: Setting, weights: Tensor) -> Tensor:
    """What the sum of weighted losses is divided by: `sum w`, or 1 for an algorithm that minimises a sum."""
    return weights.sum() if setting.algorithm.objective.mean else weights.new_ones(())


@dataclass(frozen=True, eq=False)
class Point:
    """Where derivatives of the objective are taken.

    Args:
        setting: the model, the loss and the objective.
        parameters: of a trained model.
        weights: `(b,)` over `data`.
        data: what it was trained on, or what is to stand for it.
        number: the seed of what is drawn at random, another for every model of an ensemble.
    """

    setting: Setting
    parameters: Parameters
    weights: Tensor
    data: Batch
    number: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """For another process: data that are the setting's universe do not travel a second time, or not at all."""
        return {**self.__dict__, "data": None} if self.data is self.setting.pool else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        whole = state["data"] if state["data"] is not None else state["setting"].pool
        self.__dict__.update(state | {"data": whole})

    @property
    def theta(self) -> Tensor:
        """The trained parameters as a `(p,)` vector."""
        return self.setting.flat(self.parameters)

    @property
    def shares(self) -> Tensor:
        """`w_i / sum w`, or `w_i` for an algorithm that minimises a sum, `(b,)`."""
        return self.weights / normaliser(self.setting, self.weights)


def objective(setting: Setting, theta: Tensor, at: Parameters, weights: Tensor, data: Batch) -> Tensor:
    """What training minimises, `L(theta; w)`, as a function of the `(p,)` vector; buffers come from `at`."""
    losses = setting.losses(setting.unflat(theta, at), data)
    return (weights * losses).sum() / normaliser(setting, weights) + penalty(setting, theta)


def penalty(setting: Setting, theta: Tensor) -> Tensor:
    """`l2/2 |theta|^2`."""
    return 0.5 * setting.algorithm.objective.l2 * theta.square().sum()


def loss_gradients(setting: Setting, at: Parameters, batch: Batch) -> Tensor:
    """Gradients of the examples' losses, `(b, p)`, differentiable in the batch.

    By the factors of the model's layers, or, where one is not known, example by example under `vmap`.
    """
    if setting.layers.covered:
        run = setting.layers.forward(at, batch)
        return run.flat(run.pull(*run.slopes(lambda z: setting.loss(z, batch))))

    def loss(theta: Tensor, one: Batch) -> Tensor:
        return setting.losses(setting.unflat(theta, at), batches.example(one)).squeeze(0)

    with explained(setting):
        return vmap(grad(loss), in_dims=(None, 0))(setting.flat(at), batch)


@contextmanager
def explained(setting: Setting) -> Iterator[None]:
    """Say which layers are in the way where gradients are taken example by example, and what to do.

    Raises:
        ValueError: torch cannot differentiate the model so.
    """
    try:
        yield
    except RuntimeError as error:
        if setting.layers.covered or isinstance(error, torch.OutOfMemoryError):
            raise
        what = ", ".join(setting.layers.uncovered) or "a layer that mixes examples or is not called as a module"
        raise ValueError(
            f"Gradients of single examples cannot be taken through {what}: torch says {str(error)[:200]!r}. Freeze it "
            "(`requires_grad_(False)`), which leaves it out of the attribution, write it with torch's own functions, "
            "or take an estimator without gradients: Regression, EmpiricalInfluence, Similarity."
        ) from error


def pulls(setting: Setting, at: Parameters, batch: Batch) -> Tensor:
    """Minus the direction in which weight on an example moves the optimum, before curvature, `(b, p)`.

    `grad l_i + l2 theta` for a mean objective (weight also shifts the balance of data and regulariser), `grad l_i`
    for a sum.
    """
    goal = setting.algorithm.objective
    gradients = loss_gradients(setting, at, batch)
    return gradients + goal.l2 * setting.flat(at) if goal.mean else gradients


def gradient_products(setting: Setting, at: Parameters, batch: Batch, vectors: Tensor) -> Tensor:
    """Products of vectors `(k, p)` with the examples' loss gradients, `(k, b)`, differentiable in the batch."""
    if not setting.layers.covered:
        return vectors @ loss_gradients(setting, at, batch).T
    run, parts = setting.layers.forward(at, batch), setting.split(vectors)
    gradients = run.named(run.pull(*run.slopes(lambda z: setting.loss(z, batch))))
    return torch.stack([parts[name] @ gradient.T for name, gradient in gradients.items()]).sum(0)


def output_gradients(setting: Setting, at: Parameters) -> Tensor:
    """Gradients of the outputs on the targets, `(m, p)`, target-major.

    Raises:
        ValueError: an output without a gradient, such as `Correct`.
    """
    parts = [_output_gradients(setting, at, part) for part in blocks(setting, setting.probe)]
    gradients = torch.cat(parts).reshape(setting.m, -1)
    check_gradient(setting, gradients)
    return gradients


def check_gradient(setting: Setting, *gradients: Tensor) -> None:
    """Raise `ValueError` where the outputs have no gradient, as accuracies have none."""
    if not any(bool(part.any()) for part in gradients):
        raise without_gradient(setting)


def without_gradient(setting: Setting) -> ValueError:
    """What is said of outputs that do not move with the parameters."""
    return ValueError(
        f"The gradient of {setting.output} is zero on every target, so nothing can be attributed to training points. "
        "Use Margin or Loss for the datamodel and measure the other by retraining."
    )


def _output_gradients(setting: Setting, at: Parameters, targets: Batch) -> Tensor:
    """`(b, columns, p)`."""
    if setting.layers.covered:
        run = setting.layers.forward(at, targets)
        slopes = run.slopes(lambda z: setting.output(z, targets))
        return torch.stack([run.flat(run.pull(slope)) for slope in slopes], 1).detach()

    def output(theta: Tensor, one: Batch) -> Tensor:
        return setting.outputs(setting.unflat(theta, at), batches.example(one))

    with explained(setting):
        return vmap(jacrev(output), in_dims=(None, 0))(setting.flat(at), targets)


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric `(p, p)` matrix that is known by its products with vectors.

    Args:
        product: `(k, p) -> (k, p)`.
        p: the number of parameters.
        like: a tensor of the type and on the device of the vectors.
        point: where the curvature was taken, for inverses that look at the model again.
        damping: what was added to the diagonal.
    """

    product: Product
    p: int
    like: Tensor
    point: Point | None = None
    damping: float = 0.0

    @property
    def shift(self) -> float:
        """What is known of the diagonal: weight decay and damping, without which the data's curvature is left."""
        return self.damping + (0.0 if self.point is None else self.point.setting.algorithm.objective.l2)

    def dense(self) -> Tensor:
        """The matrix itself, `(p, p)`; twice that while it is made."""
        matrix = self.like.new_zeros(self.p, self.p)
        for rows in torch.arange(self.p, device=self.like.device).split(_rows(self.p)):
            matrix[rows, rows] = 1.0
            matrix[rows] = self.product(matrix[rows])
        return (matrix + matrix.T).mul_(0.5)


class Curvature(Protocol):
    """The second derivative of the objective, or a stand-in for it."""

    def at(self, point: Point, damping: float = 0.0) -> Operator:
        """The matrix at a point, plus `damping` on its diagonal."""


@dataclass(frozen=True)
class Hessian:
    """The Hessian of the objective, `d^2 L / d theta^2 + damping`.

    Indefinite away from a minimum of a non-convex model; then it needs damping, or `GaussNewton`.
    """

    def at(self, point: Point, damping: float = 0.0) -> Operator:
        """See `Curvature.at`."""
        setting, at = point.setting, point.parameters
        theta = setting.flat(at)

        def linearised(data: Batch, shares: Tensor) -> Product:
            def gradient(t: Tensor) -> Tensor:
                return grad(lambda v: (shares * setting.losses(setting.unflat(v, at), data)).sum())(t)

            def one(v: Tensor) -> Tensor:
                return jvp(gradient, (theta,), (v,))[1]

            return vmap(one, chunk_size=_passes(setting, data))

        return _operator(point, damping, linearised)


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix `sum_i w_i J_i^T (d^2 l_i / dz_i^2) J_i / sum_i w_i + l2 + damping`, z the predictions.

    Positive semi-definite for losses convex in the prediction, and the Hessian where the model is linear in its
    parameters.

    Reference: Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", 2002.
    """

    def at(self, point: Point, damping: float = 0.0) -> Operator:
        """See `Curvature.at`."""
        setting, at = point.setting, point.parameters
        theta = setting.flat(at)

        def linearised(data: Batch, shares: Tensor) -> Product:
            def predict(t: Tensor) -> Tensor:
                return setting.predict(setting.unflat(t, at), data)

            def slope(z: Tensor) -> Tensor:  # of the weighted loss in the predictions
                return grad(lambda u: (shares * setting.loss(u, data)).sum())(z)

            z, pull = vjp(predict, theta)[:2]

            def one(v: Tensor) -> Tensor:
                push = jvp(predict, (theta,), (v,))[1]
                return pull(jvp(slope, (z,), (push,))[1])[0]

            return vmap(one, chunk_size=_passes(setting, data))

        return _operator(point, damping, linearised)


def _operator(point: Point, damping: float, linearised: Callable[[Batch, Tensor], Product]) -> Operator:
    """The sum of `linearised(data, shares)` over parts of the data, plus `l2 + damping` on the diagonal.

    A single part is linearised once. Several are linearised anew for every product: memory does not grow with n.
    """
    setting = point.setting
    ends = [0, *accumulate(batches.size(part) for part in passes(setting, point.data))]
    parts = [slice(start, stop) for start, stop in pairwise(ends)]
    kept = explained(setting)(linearised)(point.data, point.shares) if len(parts) == 1 else None
    spread = Spread(partial(_term, point, linearised), "products with the curvature")

    def product(vectors: Tensor) -> Tensor:
        total = (setting.algorithm.objective.l2 + damping) * vectors
        for term in [explained(setting)(kept)(vectors)] if kept else spread([(part,) for part in parts], vectors):
            total = total + term
        return total

    return Operator(product, setting.p, setting.flat(point.parameters), point, damping)


def _term(point: Point, linearised: Callable[[Batch, Tensor], Product], part: slice, vectors: Tensor) -> Tensor:
    with explained(point.setting):
        return linearised(batches.take(point.data, part), point.shares[part])(vectors)


def pushed(setting: Setting, at: Parameters, function: Callable[[Parameters], Tensor], vectors: Tensor) -> Tensor:
    """Directional derivatives of a function of the parameters, `(k, p) -> (k, values)`."""
    theta = setting.flat(at)

    def one(v: Tensor) -> Tensor:
        return jvp(lambda t: function(setting.unflat(t, at)), (theta,), (v,))[1]

    return vmap(one)(vectors)


def pulled(setting: Setting, at: Parameters, function: Callable[[Parameters], Tensor], values: Tensor) -> Tensor:
    """Gradients of weighted sums of a function's values, `(k, values) -> (k, p)`."""
    if len(values) == 1 and not values.requires_grad:  # twice as fast as under `vmap`
        with torch.enable_grad():
            theta = setting.flat(at).detach().requires_grad_()
            value = function(setting.unflat(theta, at))
            if not value.requires_grad:  # a measure that jumps, such as the accuracy
                return torch.zeros_like(theta)[None]
            return torch.autograd.grad(value, theta, values[0])[0][None]
    pull = vjp(lambda t: function(setting.unflat(t, at)), setting.flat(at))[1]
    return vmap(lambda v: pull(v)[0])(values)


def applied(inverse: Product, vectors: Tensor) -> Tensor:
    """`inverse(vectors)`, differentiable in the vectors (the matrix is held fixed; symmetric, so its own adjoint)."""
    return _Symmetric.apply(vectors, inverse)


class _Symmetric(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return product(vectors.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.product(gradient), None


def blocks(setting: Setting, batch: Batch) -> list[Batch]:
    """The batch in parts whose per-example gradients fit `BLOCK_BYTES`."""
    rows = _rows(setting.p)
    return [batches.take(batch, slice(i, i + rows)) for i in range(0, batches.size(batch), rows)]


def factored(setting: Setting, batch: Batch, copies: int = 1) -> list[Batch]:
    """The batch in parts whose layers' inputs and outputs, `copies` of them, fit the cache (see `recipe/layers.py`)."""
    rows = max(1, CACHE_BYTES // (4 * copies * setting.layers.floats))
    return [batches.take(batch, slice(i, i + rows)) for i in range(0, batches.size(batch), rows)]


def multiplied(setting: Setting, batch: Batch) -> list[Batch]:
    """The batch in parts for products with its examples' gradients, which `blocks` keeps small and `factored` fast."""
    small, fast = blocks(setting, batch), factored(setting, batch) if setting.layers.covered else []
    return max(small, fast, key=len)


def passes(setting: Setting, batch: Batch) -> list[Batch]:
    """The batch in parts whose activations fit `BLOCK_BYTES` in one pass through the model."""
    rows = examples_at_once(setting, batch)
    return [batches.take(batch, slice(i, i + rows)) for i in range(0, batches.size(batch), rows)]


def examples_at_once(setting: Setting, batch: Batch) -> int:
    """How many examples like these have activations that fit `BLOCK_BYTES` in one pass through the model."""
    return max(1, BLOCK_BYTES // (32 * _width(setting, batch)))


def _rows(p: int) -> int:
    return max(1, BLOCK_BYTES // (8 * p))


def _passes(setting: Setting, data: Batch) -> int:
    """How many vectors go through the model together."""
    return max(1, BLOCK_BYTES // (32 * batches.size(data) * _width(setting, data)))


def _width(setting: Setting, data: Batch) -> int:
    """The activations of an example, about the size of its inputs or predictions."""
    return max(math.prod(t.shape[1:]) for t in batches.tensors(data)) + math.isqrt(setting.p)
