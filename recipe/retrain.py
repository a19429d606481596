"""The true outputs: train on the weighted training set, then measure."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.announcement import announce, least_training
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, fitting
from recipe.engine import current
from recipe.setting import Measure, Parameters, Setting
from recipe.shards import Shard, Trained, outputs_of, split, train_runs, train_shards
from recipe.stores.bank import Bank
from recipe.stores.fingerprint import run_keys
from recipe.training import stack

__all__ = ["Retrain", "train_runs"]

MEMORY_BYTES = 2**30  # of parameters that stay in memory for `on` and for asking again
OUTPUT_BYTES = 2**30  # of outputs that do

V = TypeVar("V")
Wanted = Mapping[str, tuple[Tensor, int]]  # runs (weights (n,), seed) by key


class Retrain(OutputFunction):
    """Outputs after really training: `f(w, added) = mean over seeds of output(targets; train(w, seed, added))`.

    Runs are remembered (up to 1 GiB of parameters and 1 GiB of outputs, the oldest forgotten first), so that asking
    again, or asking `f.on(other_targets)`, does not train again.

    Args:
        setting: what to train and what to measure.
        seeds: one run for each.
        bank: where runs are looked up before they are trained, and kept for other processes and later days; default
            that of `recipe.engine`, if any.
        executor: whose workers train, see `recipe.executors`; default the engine's, else this process.

    Raises:
        ValueError: no seeds, or one twice; a bank of another setting.

    Example:
        >>> from recipe import Newton, Setting
        >>> from torch import nn
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> f = Retrain(Setting(lambda: nn.Linear(3, 2), data, data, Newton(l2=0.1)))
        >>> f(torch.ones(20)).shape
        torch.Size([20])
    """

    def __init__(
        self, setting: Setting, seeds: Sequence[int] = (0,), bank: Bank | None = None, executor: Executor | None = None
    ) -> None:
        self._setting = setting
        self.seeds = _distinct(seeds)
        self.bank, self.executor = bank or current().bank, executor or current().executor
        if self.bank is not None:
            self.bank.admit(setting)
        self._runs: _Kept[Parameters] = _Kept(MEMORY_BYTES, _nbytes)
        self._measured = _outputs_kept()

    @property
    def setting(self) -> Setting:
        """What is trained and measured."""
        return self._setting

    @property
    def n(self) -> int:  # type: ignore[override]
        """The number of training points."""
        return self.setting.n

    @property
    def output_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """`(targets,)` or `(targets, C)`."""
        return self.setting.output_shape

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """True outputs `(..., m)`, the mean over the seeds. Raises as `Setting.check_weights` and training do."""
        return self.per_seed(weights, added).mean(0)

    def per_seed(self, weights: Any, added: Batch | None = None) -> Tensor:
        """True outputs of every seed, `(seeds, ..., m)`."""
        w = self.setting.check_weights(weights).detach()
        rows = w.reshape(-1, self.n)
        runs = [(row, seed) for seed in self.seeds for row in rows]
        return self._outputs(runs, added).view(len(self.seeds), *w.shape[:-1], self.m)

    def paired(self, weights: Tensor, seeds: Sequence[int], added: Batch | None = None) -> Tensor:
        """True outputs `(r, m)` of r runs with a weight vector `(r, n)` and a seed each, whatever `self.seeds`."""
        w = self.setting.check_weights(weights).detach()
        return self._outputs(list(zip(w, seeds, strict=True)), added)

    def on(self, targets: Any = None, output: Measure | None = None) -> "Retrain":
        """The same runs, measured on other targets or by another output; what is remembered trains no more."""
        other = copy.copy(self)
        other._setting, other._measured = self.setting.on(targets, output), _outputs_kept()
        return other

    def runs(self) -> "list[Retrain]":
        """One function for every seed."""
        return [self.with_seeds([seed]) for seed in self.seeds]

    def with_seeds(self, seeds: Sequence[int]) -> "Retrain":
        """The same function over other seeds, sharing what is remembered."""
        other = copy.copy(self)
        other.seeds = _distinct(seeds)
        return other

    def cost(self, sets: int = 1) -> Cost:
        """What it will cost to evaluate so many training sets with every seed, remembered ones included."""
        return self._cost(sets * len(self.seeds))

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """Trained parameters for `(n,)` weights, stacked over the seeds."""
        w = self.setting.check_weights(weights).detach()
        wanted = {_key(w, seed, added): (w, seed) for seed in self.seeds}
        names = self._names(wanted, added)
        found = self._remembered(list(wanted), names)
        for keys, trained in self._train({k: run for k, run in wanted.items() if k not in found}, names, added):
            found.update(zip(keys, trained.parameters, strict=True))
        return stack([found[key] for key in wanted])

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _cost(self, runs: int, points: int | None = None) -> Cost:
        from recipe.work import Work  # which measures by training

        return Work(self.setting).retraining(runs, points)

    def _outputs(self, runs: list[tuple[Tensor, int]], added: Batch | None) -> Tensor:
        keys = [_key(w, seed, added) for w, seed in runs]
        found = {key: outputs for key in keys if (outputs := self._measured.get(key)) is not None}
        if wanted := {key: run for key, run in zip(keys, runs, strict=True) if key not in found}:
            found |= self._measure(wanted, added)
        return torch.stack([found[key] for key in keys])

    def _measure(self, wanted: Wanted, added: Batch | None) -> dict[str, Tensor]:
        """Outputs from the bank, else from parameters that are still there, else by training."""
        names, found = self._names(wanted, added), dict[str, Tensor]()
        if self.bank is not None:
            banked = self.bank.outputs(self.setting, list(names.values()))
            found.update({key: banked[name] for key, name in names.items() if name in banked})
            self._measured.update(found)
        left = [key for key in wanted if key not in found]
        block = max(1, MEMORY_BYTES // _nbytes(self.setting.initial(0)))
        for keys in (left[i : i + block] for i in range(0, len(left), block)):
            if there := self._remembered(keys, names):
                outputs = outputs_of(self.setting, list(there.values()))
                found.update(again := dict(zip(there, outputs, strict=True)))
                self._measured.update(again)
                if self.bank is not None:
                    self.bank.add(self.setting, [names[key] for key in there], outputs)
        for keys, trained in self._train({key: wanted[key] for key in left if key not in found}, names, added):
            found.update(zip(keys, trained.outputs, strict=True))
        return found

    def _train(
        self, wanted: Wanted, names: Mapping[str, str], added: Batch | None
    ) -> Iterator[tuple[list[str], Trained]]:
        """Train and measure runs in parts, keep what comes of each, and show it with the runs' keys."""
        if not wanted:
            return
        runs = list(wanted.values())
        parts = [list(part) for part in split(self.setting, runs)]
        shards = [Shard(torch.stack([runs[i][0] for i in p]), tuple(runs[i][1] for i in p), added) for p in parts]
        by_part = [[list(wanted)[i] for i in part] for part in parts]
        if fitting() is None:
            points = sum(int((shard.weights > 0).sum()) for shard in shards)
            what = f"Training {len(runs)} models on subsets of n = {self.n} points"
            least = least_training(self.setting, points / self.n)
            announce(what, least, lambda: self._cost(len(runs), points // len(runs)))
        for number, trained in train_shards(self.setting, shards, self.executor):
            keys = by_part[number]
            self._runs.update(dict(zip(keys, trained.parameters, strict=True)))
            self._measured.update(dict(zip(keys, trained.outputs, strict=True)))
            self._keep([names[key] for key in keys] if names else [], trained, shards[number])
            yield keys, trained

    def _keep(self, names: list[str], trained: Trained, shard: Shard) -> None:
        """Put into the bank what it has not: no run twice, where it keeps no parameters, and no outputs twice."""
        if self.bank is None:
            return
        if self.bank.parameters:
            self.bank.add(self.setting, names, trained.outputs, shard, trained)
            return
        there, measured = self.bank.known(names), self.bank.outputs(self.setting, names)
        if new := [i for i, name in enumerate(names) if name not in there]:
            runs = Shard(shard.weights[new], tuple(shard.seeds[i] for i in new), shard.added)
            outputs = trained.outputs[new]
            self.bank.add(self.setting, [names[i] for i in new], outputs, runs, replace(trained, outputs=outputs))
        if old := [i for i, name in enumerate(names) if name in there and name not in measured]:
            self.bank.add(self.setting, [names[i] for i in old], trained.outputs[old])

    def _remembered(self, keys: Sequence[str], names: Mapping[str, str]) -> dict[str, Parameters]:
        """Parameters of those runs that are still in memory, or in the bank."""
        found = {key: kept for key in keys if (kept := self._runs.get(key)) is not None}
        if self.bank is not None:
            banked = self.bank.trained(self.setting, [names[key] for key in keys if key not in found])
            found.update({key: banked[names[key]] for key in keys if key not in found and names[key] in banked})
        return found

    def _names(self, wanted: Wanted, added: Batch | None) -> dict[str, str]:
        """What the runs are called in the bank, where there is one."""
        if self.bank is None:
            return {}
        weights, seeds = [w for w, _ in wanted.values()], [seed for _, seed in wanted.values()]
        return dict(zip(wanted, run_keys(self.setting, weights, seeds, added), strict=True))


def _distinct(seeds: Sequence[int]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"Retrain needs distinct seeds, at least one; got {tuple(seeds)}.")
    return tuple(seeds)


class _Kept(Generic[V]):
    """Values by key, the oldest forgotten when they outgrow a number of bytes."""

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self._kept: OrderedDict[str, V] = OrderedDict()
        self._most, self._size, self._bytes = most, size, 0

    def get(self, key: str) -> V | None:
        return self._kept.get(key)

    def update(self, values: Mapping[str, V]) -> None:
        for key, value in values.items():
            if key not in self._kept:
                self._kept[key] = value
                self._bytes += self._size(value)
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= self._size(self._kept.popitem(last=False)[1])


def _outputs_kept() -> _Kept[Tensor]:
    return _Kept(OUTPUT_BYTES, lambda outputs: outputs.nbytes)


def _nbytes(parameters: Parameters) -> int:
    return sum(t.nbytes for t in parameters.values())


def _key(weights: Tensor, seed: int, added: Batch | None) -> str:
    digest = hashlib.sha256(f"{seed}".encode())
    digest.update(weights.to(torch.float64).cpu().numpy().tobytes())
    if added is not None and batches.size(added):
        digest.update(batches.content_hash(added).encode())
    return digest.hexdigest()
