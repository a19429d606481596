"""Output functions: outputs as a function of the training set, true (`Retrain`) or predicted (datamodels).

    f(weights (..., n), added=None) -> (..., m)

`LinearDatamodel` is the most common stand-in for retraining:

    f_hat(w, added) = bias + effects @ w + effect(added).sum(1),

where `effects[j, i]` is the predicted change of output j, in its own unit, when the weight of training point i goes
from 0 to 1 (Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622).
"""

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recipe import batch as batches
from recipe.announcement import announce, least_fit
from recipe.batch import Batch
from recipe.cost import Cost, cost_of
from recipe.notes import taking_notes
from recipe.setting import Measure, Parameters, Setting, check_values
from recipe.values import same_values

READ_BYTES = 2**24  # of effects that are read at once
BLOCK_BYTES = 2**20  # of effects that are multiplied at once: they stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a datamodel comes from: the estimator, the setting, where it was linearised, how long the fit took.

    `notes` is what the fit decided by itself, by name, such as the damping (`recipe/notes.py`).
    """

    estimator: Any
    setting: Setting
    at: tuple[Tensor, Batch | None] | None
    seconds: float
    notes: Mapping[str, Any] = field(default_factory=dict)


_FITTING: ContextVar[Any] = ContextVar("fitting", default=None)


def fitting() -> Any:
    """The estimator whose `fit` is running, the innermost where one fits another."""
    return _FITTING.get()


def records_origin(fit: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates an estimator's `fit(self, setting, at=None)`: the datamodel it returns knows its `origin`."""

    @functools.wraps(fit)
    def recorded(self: Any, setting: Setting, at: tuple[Tensor, Batch | None] | None = None) -> Any:
        started = time.perf_counter()
        if _FITTING.get() is None:
            what = f"Fitting {type(self).__name__} to n = {setting.n} points and m = {setting.m} outputs"
            announce(what, least_fit(self, setting), lambda: cost_of(self, setting))
        token = _FITTING.set(self)
        try:
            with taking_notes(type(self).__name__) as notes:
                f_hat = fit(self, setting, at)
        finally:
            _FITTING.reset(token)
        f_hat.origin = Origin(self, setting, at, time.perf_counter() - started, notes)
        return f_hat

    return recorded


class Estimator(Protocol):
    """A frozen dataclass with `fit(setting, at=None) -> OutputFunction`, `at = (weights, added)`: where; and `cost`."""

    def fit(self, setting: Setting, at: tuple[Tensor, Batch | None] | None = None) -> "OutputFunction":
        """A datamodel of the setting's outputs."""

    def cost(self, setting: Setting) -> Cost:
        """What `fit` will cost, training included, known before it: within a factor of about 3."""


class OutputFunction(ABC):
    """Outputs as a function of the training set.

    `n` training points, outputs of `output_shape` (targets, or targets x C), flattened target-major to `m`; `seeds`
    of the retrainings behind true outputs; `origin`, the estimator and setting that a datamodel comes from, if any;
    `effect`, where predictions are linear in the examples added: `effect(batch) -> (m, b)`, what each of them is worth.
    """

    n: int
    output_shape: tuple[int, ...]
    seeds: tuple[int, ...] = ()
    origin: Origin | None = None
    effect: Callable[[Batch], Tensor] | None = None

    @property
    def setting(self) -> Setting | None:
        """The setting behind the outputs, where there is one."""
        return None if self.origin is None else self.origin.setting

    @property
    def m(self) -> int:
        """The number of outputs."""
        return int(np.prod(self.output_shape))

    def rows(self, target: int) -> slice:
        """Where the outputs of one target are among the m.

        Raises:
            IndexError: there is no such target.
        """
        count = self.output_shape[0]
        if not -count <= target < count:
            raise IndexError(f"There are {count} targets; got target {target}.")
        width = self.m // count
        start = (target % count) * width
        return slice(start, start + width)

    @abstractmethod
    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Outputs `(..., m)` after training on weights `(..., n)` and on added examples of weight 1."""

    def on(self, targets: Any = None, output: Measure | None = None) -> "OutputFunction":
        """The same training, measured on other targets or by another output; None keeps today's.

        Raises:
            NotImplementedError: this function knows its outputs only.
        """
        raise NotImplementedError(
            f"{type(self).__name__} knows only the outputs that it was fitted to. Fit the estimator to "
            "`setting.on(targets, output)` instead."
        )

    def runs(self) -> "Sequence[OutputFunction]":
        """One function for every training seed, whose mean this one is; a datamodel is one function."""
        return [self]

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """Predicted parameters, stacked over the ensemble's models along a first axis.

        Raises:
            NotImplementedError: predictions do not go through parameters.
        """
        raise NotImplementedError(
            f"{type(self).__name__} predicts outputs without predicting parameters; use Influence or NewtonStep."
        )


class LinearDatamodel(OutputFunction):
    """`bias + effects @ w + effect(added).sum(1)`, differentiable in the weights and in the added examples.

    Args:
        bias: `(m,)`, the outputs at weight zero, or, for a tangent, at the weights `at`.
        effects: `(m, n)`, a tensor, an array or a memory map of any floating type; streamed in blocks of columns.
        effect: `effect(batch) -> (m, b)`, the value of examples from outside the universe, differentiable in them.
        at: `(n,)`, where a tangent touches: there its outputs are known without a look at the effects.
        output_shape: `(targets,)` or `(targets, C)`; default `(m,)`.
        on: how to measure something else, `(targets, output) -> OutputFunction`, where the estimator can.
        parameters: predicted parameters, `(weights, added) -> Parameters`, where the estimator has them.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> f_hat = LinearDatamodel(torch.tensor([1.0]), torch.tensor([[2.0, -1.0]]))
        >>> f_hat(torch.tensor([1.0, 0.0]))
        tensor([3.])
    """

    def __init__(
        self,
        bias: Tensor,
        effects: Tensor | np.ndarray,
        effect: Callable[[Batch], Tensor] | None = None,
        *,
        at: Tensor | None = None,
        output_shape: tuple[int, ...] | None = None,
        on: Callable[[Any, Measure | None], OutputFunction] | None = None,
        parameters: Callable[[Tensor, Batch | None], Parameters] | None = None,
    ) -> None:
        self._base, self._at = torch.as_tensor(bias), at
        self.effects: Any = effects
        self.effect = effect
        if effects.ndim != 2 or self._base.shape != effects.shape[:1]:
            raise ValueError(
                f"Expected bias (m,) and effects (m, n); got {tuple(self._base.shape)} and {tuple(effects.shape)}. "
                "Effects have one row an output and one column a training point."
            )
        self.n = effects.shape[1]
        if at is not None and at.shape != (self.n,):
            raise ValueError(f"Expected weights ({self.n},) where the tangent touches; got {tuple(at.shape)}.")
        self.output_shape = output_shape or (len(self._base),)
        if self.m != len(self._base):
            raise ValueError(f"output_shape {self.output_shape} has {self.m} outputs; the bias has {len(self._base)}.")
        self._on, self._parameters = on, parameters

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`; a cvxpy variable `(n,)` gives a cvxpy expression.

        Raises:
            ValueError: weights of another length, negative, NaN or infinite.
            NotImplementedError: added examples, and this datamodel has no `effect`.
        """
        weights = torch.as_tensor(weights) if isinstance(weights, (list, tuple, np.ndarray)) else weights
        if tuple(weights.shape[-1:]) != (self.n,):
            raise ValueError(f"Expected weights of shape (..., {self.n}); got {tuple(weights.shape)}.")
        if isinstance(weights, Tensor):
            check_values(weights)
        outputs = self._outputs(weights)
        if added is None or not batches.size(added):
            return outputs
        value = self._effect(added).sum(1)
        return outputs + (value if isinstance(outputs, Tensor) else value.detach().cpu().numpy())

    @cached_property
    def bias(self) -> Tensor:
        """The outputs at weight zero `(m,)`, an extrapolation for a tangent."""
        return self._base if self._at is None else self._base - product(self.effects, self._at)

    def _outputs(self, weights: Any) -> Any:
        """`bias + effects @ w`."""
        if isinstance(weights, Tensor):
            return self._base + _Product.apply(weights, self.effects, self._base, self._at)
        return self.bias.detach().cpu().numpy() + _array(self.effects) @ weights

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`."""
        if self._on is None:
            return super().on(targets, output)
        return same_origin(self, self._on(targets, output), targets, output)

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """See `OutputFunction.parameters`."""
        return super().parameters(weights) if self._parameters is None else self._parameters(weights, added)

    def _effect(self, added: Batch) -> Tensor:
        if self.effect is None:
            raise NotImplementedError(
                "This datamodel has no `effect`: it cannot value examples from outside the universe (poisons). Use an "
                "estimator that is differentiable in added data, such as Influence or NewtonStep."
            )
        return self.effect(added)


def same_origin(
    old: OutputFunction, new: OutputFunction, targets: Any = None, output: Measure | None = None
) -> OutputFunction:
    """`new`, which measures other targets or outputs than `old`, with the origin that fits it."""
    if old.origin is not None:
        new.origin = replace(old.origin, setting=old.origin.setting.on(targets, output))
    return new


def measure_alike(a: Setting, b: Setting) -> bool:
    """Whether two settings measure the same output on the same targets, after training on the same universe."""
    if a is b:
        return True
    data = [(batches.content_hash(setting.pool), batches.content_hash(setting.probe)) for setting in (a, b)]
    return a.output == b.output and data[0] == data[1]


class _Product(torch.autograd.Function):
    """`(weights (..., n) - at (n,)) @ effects.T -> (..., m)`, in blocks of columns of effects that may lie on disk."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, effects: Tensor | np.ndarray, like: Tensor, at: Tensor | None) -> Tensor:
        ctx.effects, ctx.like, ctx.shape = effects, like, weights.shape
        ctx.dtype, ctx.device = weights.dtype, weights.device
        out = like.new_zeros((*weights.shape[:-1], len(like)))
        if at is not None and same_values(weights, at):
            return out  # nothing has to be read
        for columns, block in _blocks(effects, like):
            moved = weights[..., columns].to(like)
            out += (moved if at is None else moved - at[columns].to(like)) @ block.T
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        out = gradient.new_empty(ctx.shape, dtype=ctx.dtype)
        for columns, block in _blocks(ctx.effects, ctx.like):
            out[..., columns] = gradient @ block
        return out.to(ctx.device), None, None, None


def _blocks(effects: Tensor | np.ndarray, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of effects as `(slice, (m, width) tensor)`, at most `BLOCK_BYTES` at once, in the type of `like`."""
    width = max(1, BLOCK_BYTES // max(1, len(like) * like.element_size()))
    stream = getattr(effects, "columns", None)  # on disk, see `recipe.stores.blocks.Effects`
    for start, part in _slices(effects) if stream is None else stream():
        for i in range(0, part.shape[1], width):
            block = part[:, i : i + width]
            block = block if isinstance(block, Tensor) else torch.from_numpy(np.array(block))
            yield slice(start + i, start + i + block.shape[1]), block.to(like)


def _slices(effects: Tensor | np.ndarray) -> Iterator[tuple[int, Any]]:
    """Columns of an array with the first one's index: of an array in chunks, whole ones, so that none is read twice."""
    m, n = effects.shape
    width = max(1, READ_BYTES // max(1, m * effects.dtype.itemsize))
    if chunks := getattr(effects, "chunks", None):
        width = max(1, width // chunks[1]) * chunks[1]
    yield from ((start, effects[:, start : start + width]) for start in range(0, n, width))


def product(effects: Any, weights: Tensor) -> Tensor:
    """`weights (..., n) @ effects (m, n)^T`, `(..., m)`, in blocks of columns of effects that may lie on disk."""
    return _Product.apply(weights, effects, weights.new_zeros(effects.shape[0]), None)


def combinations(coefficients: Tensor, effects: Any) -> Tensor:
    """`coefficients (k, m) @ effects (m, n)`, in blocks of columns of effects that may lie on disk."""
    out = coefficients.new_empty(len(coefficients), effects.shape[1])
    for columns, block in _blocks(effects, coefficients):
        out[:, columns] = coefficients @ block
    return out


def squared_norm(effects: Any, like: Tensor) -> Tensor:
    """The sum of the squares of effects that may lie on disk, in the type of `like`."""
    return sum((block.square().sum() for _, block in _blocks(effects, like)), like.new_zeros(()))


def _array(effects: Tensor | np.ndarray) -> np.ndarray:
    return effects.detach().cpu().numpy() if isinstance(effects, Tensor) else np.asarray(effects)
