"""Where heavy work is done and kept: `with engine(executor, bank):` around anything.

    with engine(Processes(8), Bank("runs/bank", parameters=True)):
        f_hat = EKFAC(models=5).fit(setting)  # its models from the bank or by workers, its sums over data by workers
        solution = solve(task, f_hat)         # refits too
        truth = Retrain(setting, seeds=range(5))(weights)

Retraining is a map over runs; curvature, features and effects are maps over parts of the data. Parts depend on the data
alone and results are used in their order, so that the numbers do not depend on the executor or on how many workers it
has, to the last bit where the machines compute alike.
"""

import contextlib
import functools
import glob
import os
import socket
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recipe.executors import ALONE, completed, dumps, loads

if TYPE_CHECKING:
    from recipe.stores.bank import Bank

WINDOW = 32  # parts that may be ahead of the one whose turn it is: their answers are held
KEPT = 2  # functions that a worker remembers: each may hold the data


@dataclass(frozen=True)
class Engine:
    """Whose workers do heavy work (None: this process), and the banks that keep what was trained (None: no bank)."""

    executor: Executor | None = None
    bank: "Bank | None" = None
    models: "Bank | None" = None


HERE = Engine()
_ENGINE: ContextVar[Engine] = ContextVar("engine", default=HERE)


@contextmanager
def engine(
    executor: Executor | None = None, bank: "Bank | None" = None, models: "Bank | None" = None
) -> Iterator[None]:
    """Within: work goes to the executor's workers, and retrainings to the bank.

    What is passed by itself, `Retrain(executor=..., bank=...)`, counts more. A bank that keeps parameters keeps the
    models of ensembles too.

    Args:
        executor: any `concurrent.futures.Executor` whose workers are processes, see `recipe.executors`.
        bank: where runs are looked up and kept.
        models: where the models of ensembles are, if not in the same bank.

    Example:
        >>> from estimators.influence import Influence
        >>> from recipe import Bank, Newton, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> with engine(bank=Bank("memory://engine", parameters=True)):
        ...     f_hat = Influence().fit(setting)  # its model stays in the bank
    """
    token = _ENGINE.set(Engine(executor, bank, models))
    try:
        yield
    finally:
        _ENGINE.reset(token)


def current() -> Engine:
    """The engine of this code."""
    return _ENGINE.get()


class Spread:
    """A function of a part of the data, evaluated part by part here or by the engine's workers.

    The function lies in a file while this object lives, in the folder that `RECIPE_CACHE` names (default the system's
    temporary one), which a worker reads once; one of another machine that does not share the folder is sent it. Tensors
    come without a graph.

    Args:
        function: of the arguments of a part.
        what: it does, for errors: "curvature".

    Example:
        >>> list(Spread(lambda i, x: x[i] ** 2, "squares")([(0,), (2,)], torch.arange(3)))
        [tensor(0), tensor(4)]
    """

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._function, self._what = function, what

    def __call__(self, parts: Sequence[tuple[Any, ...]], *shared: Any) -> Iterator[Any]:
        """`function(*part, *shared)` of every part, in their order."""
        executor = current().executor
        if executor is None or len(parts) < 2:
            return (self._function(*part, *shared) for part in parts)
        names = [f"computing {self._what}, part {i + 1} of {len(parts)}" for i in range(len(parts))]
        return _in_order(self.as_completed(executor, [(*part, *shared) for part in parts], names, WINDOW))

    def as_completed(
        self, executor: Executor, parts: Sequence[tuple[Any, ...]], names: Sequence[str], ahead: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        """`(i, function(*parts[i]))` by the executor's workers, as answers come; see `recipe.executors.completed`."""
        grad, unread = torch.is_grad_enabled(), set[int]()

        def task(i: int) -> tuple[Any, ...]:
            return self._key, self._path, dumps((parts[i], grad), "A part"), self._read() if i in unread else None

        def again(i: int, answer: bytes | None) -> bool:
            if answer is None:
                unread.add(i)
            return answer is None

        for i, answer in completed(executor, _evaluate, task, names, again, ahead):
            yield i, loads(answer)

    def _read(self) -> bytes:
        with open(self._path, "rb") as file:
            return file.read()

    @functools.cached_property
    def _path(self) -> str:
        function = dumps(self._function, f"What is needed for {self._what}")
        folder = os.environ.get("RECIPE_CACHE") or tempfile.gettempdir()
        _sweep(folder)
        handle, path = tempfile.mkstemp(prefix=f"recipe-{socket.gethostname()}-{os.getpid()}-", dir=folder)
        weakref.finalize(self, _unlink, path, os.getpid())
        with os.fdopen(handle, "wb") as file:
            file.write(function)
        return path

    @functools.cached_property
    def _key(self) -> str:
        return uuid.uuid4().hex


def _in_order(answers: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    early: dict[int, Any] = {}
    turn = 0
    for i, answer in answers:
        early[i] = answer
        while turn in early:
            yield early.pop(turn)
            turn += 1


# ---- in a worker -----------------------------------------------------------------------------------------------------
_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def _evaluate(key: str, path: str, arguments: bytes, function: bytes | None) -> bytes | None:
    """The answer for a part; None where this worker does not have the function and cannot read it."""
    with ALONE:
        if key not in _FUNCTIONS:
            if function is None:
                try:
                    with open(path, "rb") as file:
                        function = file.read()
                except OSError:
                    return None
            while len(_FUNCTIONS) >= KEPT:
                _FUNCTIONS.pop(next(iter(_FUNCTIONS)))
            _FUNCTIONS[key] = loads(function)
        part, grad = loads(arguments)
        with torch.set_grad_enabled(grad):
            answer = _FUNCTIONS[key](*part)
        return dumps(answer.detach() if isinstance(answer, Tensor) else answer, "An answer")


def _sweep(folder: str) -> None:
    """Remove what processes of this machine left there that were killed."""
    mine = f"recipe-{socket.gethostname()}-"
    for path in Path(folder).glob(f"{glob.escape(mine)}*-*"):
        owner = path.name.removeprefix(mine).partition("-")[0]
        if owner.isdigit() and not _runs(int(owner)):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _unlink(path: str, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that it belongs to
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
