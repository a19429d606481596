"""Many runs in parts: what trains together, is measured together and is written to a bank at once.

Parts depend on the runs alone, never on how many workers there are or on which of them is fast. So the same runs give
the same numbers in one process and on a cluster, to the last bit where the machines compute alike (the same number of
threads, the same kind of processor), else up to rounding. What is interrupted goes on with the same parts.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe import batch as batches
from recipe.algorithms import Custom
from recipe.arrays import as_array, as_tensor
from recipe.batch import Batch
from recipe.engine import Spread
from recipe.executors import keep_memory
from recipe.setting import Parameters, Setting
from recipe.training import Minibatch, progress_bar, runs_at_once

RUNS = 64  # of a part at most: what a crash can lose, and what a worker does at a time


@dataclass(frozen=True, eq=False)
class Shard:
    """Runs that train together: weights `(r, n)`, a seed each, and the examples added to all of them."""

    weights: Tensor
    seeds: tuple[int, ...]
    added: Batch | None = None

    def __str__(self) -> str:
        sizes = (self.weights > 0).sum(1).tolist()
        first = ", ".join(f"seed {s} on {k} points" for s, k in list(zip(self.seeds, sizes, strict=True))[:3])
        return first if len(self.seeds) <= 3 else f"{first} and {len(self.seeds) - 3} more"


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a shard: parameters of each run, outputs `(r, m)`, seconds a run."""

    parameters: Sequence[Parameters]
    outputs: Tensor
    seconds: float


def split(setting: Setting, runs: Sequence[tuple[Tensor, int]]) -> list[list[int]]:
    """The runs `(weights (n,), seed)` in parts, by index: similar sizes together, since these train at once."""
    room = _room(setting)
    order = sorted(range(len(runs)), key=lambda i: int((runs[i][0] > 0).sum()))
    return [order[i : i + room] for i in range(0, len(order), room)]


def train_shard(setting: Setting, shard: Shard) -> Trained:
    """Train and measure."""
    keep_memory()
    started = time.perf_counter()
    parameters = train_runs(setting, shard.weights, shard.seeds, shard.added)
    outputs = outputs_of(setting, parameters)
    return Trained(parameters, outputs, (time.perf_counter() - started) / len(shard.seeds))


def train_shards(
    setting: Setting, shards: Sequence[Shard], executor: Executor | None = None
) -> Iterator[tuple[int, Trained]]:
    """What comes of each shard, with its number, as it is done: here one after the other, or by an executor."""
    with progress_bar(sum(len(shard.seeds) for shard in shards), "retraining", unit="run") as bar:
        if executor is None:
            done: Any = ((i, train_shard(setting, shard)) for i, shard in enumerate(shards))
        else:
            done = _elsewhere(setting, shards, executor)
        for i, trained in done:
            bar.update(len(shards[i].seeds))
            yield i, trained


def train_runs(setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None) -> list[Parameters]:
    """Parameters of r runs, one dictionary each: one run by `train`, several by `train_many`."""
    if len(seeds) == 1:
        return [setting.algorithm.train(setting, weights[0], seeds[0], added)]
    stacked = setting.algorithm.train_many(setting, weights, seeds, added)
    return [{name: t[i].clone() for name, t in stacked.items()} for i in range(len(seeds))]


def outputs_of(setting: Setting, runs: Sequence[Parameters]) -> Tensor:
    """Outputs `(r, m)` of r trained models on the setting's targets."""
    with torch.no_grad():
        return torch.stack([setting.outputs(parameters) for parameters in runs])


# ---- in other processes ----------------------------------------------------------------------------------------------
def _elsewhere(setting: Setting, shards: Sequence[Shard], executor: Executor) -> Iterator[tuple[int, Trained]]:
    spread = Spread(partial(_work, setting), "training")
    parts = [(_to_arrays(shard),) for shard in shards]
    for i, (parameters, outputs, seconds) in spread.as_completed(executor, parts, [f"training {s}" for s in shards]):
        runs = [{name: _there(packed).to(setting.device) for name, packed in run.items()} for run in parameters]
        yield i, Trained(runs, _there(outputs).to(setting.device), seconds)


def _work(setting: Setting, arrays: Any) -> Any:
    """In a worker: train one shard. Numpy arrays travel, which takes a tenth of the time that tensors take."""
    trained = train_shard(setting, _from_arrays(arrays))
    runs = [{name: _packed(t) for name, t in run.items()} for run in trained.parameters]
    return runs, _packed(trained.outputs), trained.seconds


def _packed(t: Tensor) -> Any:
    return as_array(t), t.dtype


def _there(packed: Any) -> Tensor:
    return as_tensor(*packed)


def _to_arrays(shard: Shard) -> Any:
    pack: Any = _packed
    added = None if shard.added is None else batches.apply(pack, shard.added)
    w = shard.weights.cpu()
    bits = bool(((w == 0) | (w == 1)).all())
    rows = np.packbits((w > 0).numpy(), axis=1) if bits else as_array(w)
    return rows, bits, w.dtype, w.shape[1], shard.seeds, added


def _from_arrays(arrays: Any) -> Shard:
    w, bits, dtype, n, seeds, added = arrays
    unpack: Any = _there
    weights = torch.from_numpy(np.unpackbits(w, axis=1, count=n)).to(dtype) if bits else as_tensor(w, dtype)
    return Shard(weights, seeds, None if added is None else batches.apply(unpack, added))


def _room(setting: Setting) -> int:
    """How many runs make a part: as many as train at once, and one where each trains alone for long."""
    rule = setting.algorithm
    if isinstance(rule, Custom):
        return 1
    return min(RUNS, runs_at_once(rule, setting)) if isinstance(rule, Minibatch) else RUNS
