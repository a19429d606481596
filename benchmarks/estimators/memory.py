"""Memory of a fit as the universe grows: what does not grow with n but for the effects that it returns."""

import subprocess
import sys

import torch
from torch import nn

from benchmarks.estimators.measure import PeakMemory
from benchmarks.tables import Clock, table
from estimators.ekfac import EKFAC
from estimators.trak import TRAK
from recipe import SGD, Setting
from recipe.setting import Checkpoint

SIZES = (1_000, 10_000, 50_000, 200_000)
TARGETS = 20
ESTIMATORS = {"EKFAC": EKFAC(), "TRAK 512": TRAK(512)}


def main() -> None:
    """Each fit in a process of its own, since a process does not give back what it once had."""
    rows = []
    for name in ESTIMATORS:
        for n in SIZES:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.estimators.memory", name, str(n)]
            peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            rows.append((name, f"{n}", f"{TARGETS * n * 4 / 2**20:.1f}", peak, seconds))
    header = ("estimator", "n", "effects, MiB", "rise of memory, MiB", "seconds")
    table(f"Memory as n grows: an MLP 64-256-10, {TARGETS} targets", header, rows)


def one(name: str, n: int) -> None:
    """A fit on random data, after one on few, so that what a first call loads does not count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = torch.randn(n, 64), torch.randint(10, (n,))
    algorithm = SGD(epochs=1, batch_size=64, lr=0.1, weight_decay=1e-3)
    checkpoints = (Checkpoint(dict(model.named_parameters())),)

    def setting(count: int) -> Setting:
        targets = (x[:TARGETS], y[:TARGETS])
        return Setting(model, (x[:count], y[:count]), targets, algorithm, checkpoints=checkpoints)

    ESTIMATORS[name].fit(setting(100))
    full = setting(n)
    full.pool, full.probe  # noqa: B018  (the data themselves do not count)
    with PeakMemory() as memory:
        clock = Clock()
        ESTIMATORS[name].fit(full)
        seconds = clock()
    print(f"{memory.mebibytes:.0f} {seconds:.1f}")


if __name__ == "__main__":
    one(sys.argv[1], int(sys.argv[2]))
