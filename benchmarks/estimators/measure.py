"""One estimator, measured: how well it predicts retraining, in what time and memory."""

import contextlib
import ctypes
import gc
import os
import statistics
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.estimators.runs import first_members
from benchmarks.tables import Clock
from recipe import OutputFunction, Setting
from recipe import batch as batches
from recipe.lds import LDS, score

OURS = "ours"
PAGE = 4096  # bytes
QUICK, REPEATS = 3.0, 5  # fits that take fewer seconds are timed so often again, and the median counts


class Fits(Protocol):
    """Our estimators, and other libraries behind the same method."""

    def fit(self, setting: Setting) -> OutputFunction:
        """A datamodel of the setting's outputs."""


@dataclass(frozen=True)
class Entry:
    """What takes part: an estimator, on so many of the trained models, of ours or of which library."""

    name: str
    estimator: Fits
    models: int = 1
    library: str = OURS

    def __str__(self) -> str:
        return f"{self.name} x{self.models}" if self.models > 1 else self.name


@dataclass(frozen=True)
class Result:
    """Of one entry in one setting; `failure` says why there is nothing else."""

    entry: str
    library: str
    lds: float = float("nan")
    ci: tuple[float, float] = (float("nan"), float("nan"))
    slope: float = float("nan")
    seconds: float = float("nan")
    cpu: float = float("nan")  # seconds of all threads, which others on the machine change less
    mebibytes: float = float("nan")
    failure: str = ""


def measure(entry: Entry, setting: Setting, subsets: Tensor, actual: Tensor) -> Result:
    """Fit on the checkpoints of a setting and score; a small fit before is not counted."""
    setting = first_members(setting, entry.models)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # progress bars
        with contextlib.suppress(Exception):  # some cannot do with few points
            entry.estimator.fit(_few(setting))
        gc.collect()
        gc.freeze()  # kronfluence collects garbage dozens of times; it need not look at what all the others have loaded
        try:
            with PeakMemory() as memory:
                f_hat, seconds, cpu = _timed(entry.estimator, setting)
            if seconds < QUICK:  # memory that is touched for the first time is slow, and what is short is noisy
                times = [_timed(entry.estimator, setting)[1:] for _ in range(REPEATS)]
                seconds, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            found = _score(f_hat, subsets, actual)
        except Exception as error:  # one library's failure is a line of the table, not the end of it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            return Result(str(entry), entry.library, failure=reason)
    return Result(str(entry), entry.library, found.mean, found.ci, found.slope, seconds, cpu, memory.mebibytes)


def _timed(estimator: Fits, setting: Setting) -> tuple[OutputFunction, float, float]:
    """The datamodel, seconds of wall clock, and of all threads."""
    clock, before = Clock(), time.process_time()
    f_hat = estimator.fit(setting)
    return f_hat, clock(), time.process_time() - before


def _score(f_hat: Any, subsets: Tensor, actual: Tensor) -> LDS:
    with torch.no_grad():
        return score(f_hat(subsets).double(), actual)


def _few(setting: Setting) -> Setting:
    universe, targets = batches.take(setting.pool, slice(0, 64)), batches.take(setting.probe, slice(0, 4))
    return replace(setting, universe=universe, targets=targets, checkpoints=first_members(setting, 1).checkpoints)


class PeakMemory:
    """How far the memory of the process rises above where it was, by looking every few milliseconds."""

    def __enter__(self) -> "PeakMemory":
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again, and not be seen
        self._start = self._peak = _resident()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()

    @property
    def mebibytes(self) -> float:
        """The rise."""
        return (self._peak - self._start) / 2**20

    def _look(self) -> None:
        while not self._over.is_set():
            self._peak = max(self._peak, _resident())
            time.sleep(0.005)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
