"""Retrainings of the digits MLP into a bank: what the bank adds to the training, and reading 10 000 runs back.

CPU seconds stand beside the clock's, which on shared machines is disturbed. The shares do not depend on the number of
runs, so that `python -m benchmarks.scale.bank 2000` tells the same in a fifth of the time. What is read back are 10 000
runs in the same parts with random outputs.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import Clock, table
from recipe import Bank, Retrain, Setting, random_subsets
from recipe.digits import MLP_SGD, load_digits, mlp
from recipe.shards import RUNS, Shard, Trained
from recipe.stores.fingerprint import run_keys

READ = 10_000


class Spent:
    """Seconds and CPU seconds inside some methods of the bank, over all their calls."""

    def __init__(self, *names: str) -> None:
        self.seconds, self.cpu, self._depth = 0.0, 0.0, 0
        for name in names:
            setattr(Bank, name, self._timed(getattr(Bank, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            clock, before = Clock(), time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += clock()
                self.cpu += time.process_time() - before

        return timed


def filled(setting: Setting, path: Path, masks: Tensor) -> None:
    """Write runs that nobody trained."""
    bank = Bank(path)
    bank.admit(setting)
    for i in range(0, len(masks), RUNS):
        part = masks[i : i + RUNS]
        seeds = (0,) * len(part)
        outputs = torch.randn(len(part), setting.m, generator=torch.Generator().manual_seed(i))
        keys = run_keys(setting, list(part), seeds)
        bank.add(setting, keys, outputs, Shard(part, seeds), Trained([], outputs, 0.0))


def main(runs: int = 10_000) -> None:
    """Train into a bank; then fill another one and read it as a new process would."""
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD)
    masks = random_subsets(setting.n, r=max(runs, READ), alpha=0.5, seed=0)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        filled(setting, Path(folder) / "read", masks[:READ])
        f, clock, before = Retrain(setting, bank=Bank(Path(folder) / "read")), Clock(), time.process_time()
        assert f(masks[:READ]).shape == (READ, setting.m)
        reading, reading_cpu = clock(), time.process_time() - before
        spent = Spent("admit", "outputs", "trained", "add")
        clock, before = Clock(), time.process_time()
        Retrain(setting, bank=Bank(Path(folder) / "bank"))(masks[:runs])
        seconds, cpu = clock() - spent.seconds, time.process_time() - before - spent.cpu
        files = [p.stat().st_size for p in (Path(folder) / "bank").rglob("*") if p.is_file()]
    share, cpu_share = 100 * spent.seconds / seconds, 100 * spent.cpu / cpu
    table(
        f"{runs:,} retrainings of the digits MLP into a bank ({sum(files) / 1e6:.0f} MB in {len(files):,} files)",
        ("", "seconds", "CPU seconds"),
        [
            ("training", f"{seconds:.0f}", f"{cpu:.0f}"),
            ("the bank", f"{spent.seconds:.1f} ({share:.1f} %)", f"{spent.cpu:.1f} ({cpu_share:.1f} %)"),
            (f"reading the outputs of {READ:,} runs, keys included", f"{reading:.2f}", f"{reading_cpu:.2f}"),
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(int, sys.argv[1:]))
