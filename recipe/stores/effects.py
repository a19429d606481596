"""Effects on disk, written in blocks of training points: `(m, n)` matrices that never fit in memory.

    f_hat = Stored(EKFAC(models=5), "runs/effects", dtype=torch.float16).fit(setting)

fits the estimator, and every block of effects goes to a zarr array as it is computed; products with the datamodel
stream over the blocks. A killed job goes on with the blocks that are missing. Several processes or machines that fit
the same at once share the work: each begins at another block and skips what is there.

Estimators hand their effects to `collected`, a block of points after the other, or to `collected_by_outputs`, a few
targets after the other: these put them together in memory, or where `Stored` says.
"""

import hashlib
import math
import os
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.cost import Cost, cost_of
from recipe.datamodel import Estimator, LinearDatamodel, OutputFunction, fitting, records_origin
from recipe.engine import Spread, current, engine
from recipe.problem import Arguments
from recipe.scratch import HELD_BYTES, room
from recipe.setting import Setting
from recipe.stores.bank import Bank
from recipe.stores.blocks import AT, RUNS, TYPES, Blocks, Effects
from recipe.stores.fingerprint import fingerprint, identity, measure_key
from recipe.training import progress, progress_bar
from recipe.values import all_finite

BLOCK_BYTES = 2**24  # of a block at least, so that files are worth opening
TASKS = 32  # that the effects in memory are divided into


@dataclass(frozen=True)
class Stored:
    """The estimator that fits another one and keeps its effects on disk.

    Effects are never held whole. Those that come from the examples' gradients or representations are written block by
    block as they are computed, and after an interruption only the blocks that are missing are computed. Estimators that
    make the effects of all points at once (regressions, game values, replays) make them for a few targets at a time,
    which wait in a file until all are there, in the folder that `RECIPE_CACHE` names.

    What is trained on the way is kept too, in a bank in the same folder (`runs`), unless the engine has one: outputs of
    runs on subsets, and the models of ensembles. So what was interrupted trains only what is missing, and asking again
    for what is complete trains none of these and computes no effect. (What follows a run step by step, such as `TracIn`
    or `MAGIC`, trains it again, to be ready for other targets.) Two processes that fit the same share the blocks;
    effects that are made at once, each of them makes.

    An estimator made of others is not stored: store what it is made of, `Calibrated(Stored(EKFAC(), path), 10)`,
    `Ensembling([Stored(EKFAC(), "a"), Stored(TRAK(256), "b")])`. A prior is an estimator of its own, whose effects are
    read in blocks where they are stored: `Stored(Regression(500, prior=Stored(EKFAC(), "prior")), path)`.

    Args:
        estimator: what is fitted.
        path: a folder, or any fsspec address.
        dtype: of the stored effects, float32, bfloat16 or float16; products are computed in the setting's type.
        redo: write damaged blocks again instead of raising; reads everything once.

    Raises:
        ValueError: another type, or an estimator made of others.

    Raises, on fit:
        ValueError: effects of another setting or estimator (what differs is named), or of a newer format.
        DamagedError: a block is damaged.

    Example:
        >>> import tempfile
        >>> from estimators.similarity import Similarity
        >>> from recipe import Newton, Stored
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> f_hat, w = Similarity().fit(setting), torch.ones(20)
        >>> on_disk = Stored(Similarity(), tempfile.mkdtemp()).fit(setting)
        >>> torch.allclose(on_disk(w), f_hat(w))
        True
    """

    estimator: Estimator
    path: str
    dtype: torch.dtype = torch.float32
    redo: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _address(self.path))
        if self.dtype not in TYPES:
            raise ValueError(f"Effects are stored as float32, bfloat16 or float16; got {self.dtype}.")
        if hasattr(self.estimator, "estimator") or hasattr(self.estimator, "estimators"):
            raise ValueError(
                f"{type(self.estimator).__name__} is made of other estimators: store these, each at its own path, "
                f"{type(self.estimator).__name__}(Stored(...), ...)."
            )
        if getattr(self.estimator, "lazy", False):
            raise ValueError(
                "With lazy=True no effects are ever made, so there are none to store: leave one of them out."
            )

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`: that of the estimator, of whose effects memory holds a part."""
        whole, effects = cost_of(self.estimator, setting), setting.m * setting.n * setting.dtype.itemsize
        return replace(whole, bytes=max(0.0, whole.bytes - max(0, effects - HELD_BYTES)))

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> OutputFunction:
        """Fit the estimator; its effects go to the store.

        Args:
            setting: what to attribute.
            at: `(weights, added)` where to linearise; these effects go to a folder of their own within the store, as
                those of refits do.

        Returns:
            What the estimator returns, with `Effects` for its effects. Its `on` keeps the other effects in memory: for
            many outputs fit `Stored(...)` to `setting.on(...)` with another path.
        """
        path = self.path if at is None else f"{self.path}/{AT}{_place(at)}"
        sink = _Sink(self, path, _described(self.estimator, setting, at))
        if (store := Blocks.found(path)) is not None:
            store.check(sink.described, self.dtype)  # before anything is trained
        with _collecting(sink), self._keeping_runs():
            f_hat = self.estimator.fit(setting, at)
        if sink.effects is None:  # an estimator that does not know `collected`
            if not isinstance(f_hat, LinearDatamodel):
                raise ValueError(
                    f"{type(self.estimator).__name__} is not linear in the weights, so it has no effects to store. Use "
                    "it as it is."
                )
            f_hat.effects = sink.collect_outputs(lambda some: f_hat.effects[some], f_hat.output_shape, f_hat.n)
        return f_hat

    @contextmanager
    def _keeping_runs(self) -> Iterator[None]:
        """The engine's bank, or one beside the effects: of subsets the outputs alone, of ensembles the models too."""
        own = Bank(f"{self.path}/{RUNS}")
        there = current() if current().bank else replace(current(), bank=own, models=replace(own, parameters=True))
        with engine(there.executor, there.bank, there.models):
            yield


def collected(function: Callable[[Any], Tensor], parts: Sequence[Any], sizes: Sequence[int] | None = None) -> Any:
    """`function(part) -> (m, b)` of all parts side by side, `(m, n)`: in memory, or where `Stored` says.

    Args:
        function: the effects of a part.
        parts: blocks of the universe, all of one size but the last.
        sizes: how many examples each has; default the sizes of batches.
    """
    sink = _SINK.get()
    with torch.no_grad():
        if sink is None or sink.effects is not None or fitting() is not sink.stored.estimator:
            size = math.ceil(len(parts) / TASKS)
            groups = [(parts[i : i + size],) for i in range(0, len(parts), size)]
            return torch.cat(list(_mapped(partial(_together, function), groups)), 1)
        return sink.collect(function, parts, [batches.size(part) for part in parts] if sizes is None else sizes)


def collected_by_outputs(function: Callable[[slice], Tensor], output_shape: tuple[int, ...], n: int) -> Any:
    """`function(outputs) -> (k, n)` of all outputs, one below the other, `(m, n)`: in memory, or where `Stored` says.

    Args:
        function: the effects of all points on the outputs of some whole targets.
        output_shape: of all outputs.
        n: how many points.
    """
    sink = _SINK.get()
    with torch.no_grad():
        if sink is None or sink.effects is not None or fitting() is not sink.stored.estimator:
            return function(slice(0, math.prod(output_shape)))
        return sink.collect_outputs(function, output_shape, n)


# ---- inside ----------------------------------------------------------------------------------------------------------
def _address(path: str | os.PathLike[str]) -> str:
    """The same for workers in other folders."""
    path = os.fspath(path)
    return path if "://" in path else os.path.abspath(path)


class _Sink:
    """Where one fit's effects go."""

    def __init__(self, stored: Stored, path: str, described: dict[str, str]) -> None:
        self.stored, self.path, self.described = stored, path, described
        self.effects: Effects | None = None

    def collect(self, function: Callable[[Any], Tensor], parts: Sequence[Any], sizes: Sequence[int]) -> Effects:
        """Compute and write the blocks that are missing."""
        store, first = Blocks.found(self.path), None
        if store is None:
            first = function(parts[0])
            width = sizes[0] * math.ceil(BLOCK_BYTES / (len(first) * sizes[0] * self.stored.dtype.itemsize))
            shape = (len(first), sum(sizes))
            store = Blocks.create(self.path, shape, width, self.stored.dtype, self.described)
        starts = [0, *accumulate(sizes)]
        wanted = store.missing(deep=self.stored.redo)
        offset = random.SystemRandom().randrange(len(wanted)) if wanted and not self.stored.redo else 0
        wanted = wanted[offset:] + wanted[:offset]
        spans = [store.span(block) for block in wanted]
        groups = [parts[bisect_left(starts, low) : bisect_left(starts, high)] for low, high in spans]
        compute = partial(_block, function, None if self.stored.redo else self.path)
        with progress_bar(len(wanted), "effects", unit="block") as bar:
            for block, values in zip(wanted, _mapped(compute, list(zip(wanted, groups, strict=True))), strict=True):
                if values is not None:
                    store.write(block, _stored(values, self.stored.dtype, store.span(block)[0]))
                bar.update()
        self.effects = Effects(self.path)
        return self.effects

    def collect_outputs(self, function: Callable[[slice], Tensor], output_shape: tuple[int, ...], n: int) -> Effects:
        """Where any block is missing, compute the effects on a few targets after the other, and write those blocks.

        What is computed lies beside the blocks until all are written, so that none is computed twice.
        """
        m, width = math.prod(output_shape), math.prod(output_shape[1:])
        columns = max(1, BLOCK_BYTES // (m * self.stored.dtype.itemsize))
        store = Blocks.found(self.path) or Blocks.create(self.path, (m, n), columns, self.stored.dtype, self.described)
        if store.missing(deep=self.stored.redo):
            size = width * max(1, HELD_BYTES // (8 * n * width))
            rows = room((m, n), torch.float32)
            for start in progress(range(0, m, size), "effects"):
                some = slice(start, min(start + size, m))
                rows[some] = store.kept_rows(some, partial(_computed, function, some))
            parts = [slice(i, min(i + store.width, n)) for i in range(0, n, store.width)]
            with engine():  # the rows are here
                self.collect(lambda part: rows[:, part].clone(), parts, [p.stop - p.start for p in parts])
        store.drop_rows()
        self.effects = Effects(self.path)
        return self.effects


_SINK: ContextVar[_Sink | None] = ContextVar("sink", default=None)


@contextmanager
def _collecting(sink: _Sink) -> Iterator[None]:
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


def _mapped(function: Callable[..., Any], parts: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """By the engine, but the first here: what the function prepares when it is first called then travels with it."""
    for first in parts[:1]:
        yield function(*first)
    yield from Spread(function, "effects")(parts[1:])


def _block(function: Callable[[Any], Tensor], path: str | None, block: int, parts: Sequence[Any]) -> Tensor | None:
    """The effects of a block's parts; None where another process has written it meanwhile."""
    store = None if path is None else Blocks.found(path)  # a worker elsewhere may not see it
    if store is not None and store.has(block):
        return None
    return _together(function, parts)


def _computed(function: Callable[[slice], Tensor], some: slice) -> Tensor:
    return function(some).detach().cpu().float()


def _together(function: Callable[[Any], Tensor], parts: Sequence[Any]) -> Tensor:
    return torch.cat([function(part) for part in parts], 1)


def _stored(values: Tensor, dtype: torch.dtype, start: int) -> Tensor:
    """The effects of points from `start` on, in the type of the store."""
    stored = values.to(dtype)
    if all_finite(stored):
        return stored
    first = start + int((~stored.isfinite()).any(0).nonzero()[0])
    if all_finite(values):
        raise ValueError(
            f"The effects of training point {first} are too large for {dtype}: above {torch.finfo(dtype).max:g}. Store "
            "them as float32 or bfloat16, or measure the outputs in a larger unit."
        )
    raise ValueError(
        f"The effects of training point {first} are not finite: gradients are NaN or infinite there. Look for NaN and "
        "infinity in this example, and at the trained parameters. What was complete stays in the store."
    )


def _described(estimator: Estimator, setting: Setting, at: Arguments | None) -> dict[str, str]:
    """What effects belong to."""
    found = {**fingerprint(setting), "universe": setting.contents, "measure": measure_key(setting)}
    checkpoints = [point.parameters for point in setting.checkpoints]
    return {**found, "checkpoints": identity(checkpoints), "estimator": identity(estimator), "at": _place(at)}


def _place(at: Arguments | None) -> str:
    if at is None:
        return "all points"
    weights, added = at
    digest = hashlib.sha256(weights.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]
    return digest if added is None else f"{digest}-{batches.content_hash(added)}"
