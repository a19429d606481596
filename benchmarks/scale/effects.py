"""Effects of up to 50 000 points of MNIST's size x 1 000 targets, written in blocks: memory, and time a point."""

import subprocess
import sys
import tempfile
import time

import torch
from torch import nn

from benchmarks.scale import peak_mebibytes
from benchmarks.tables import Clock, table
from estimators.logra import LoGra
from recipe import SGD, Setting, Stored
from recipe.setting import Checkpoint

SIZES, TARGETS, PIXELS = (5_000, 15_000, 50_000), 1_000, 784


def main() -> None:
    """Each size in a process of its own."""
    rows = []
    for n in SIZES:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scale.effects", str(n)]
        fit, cpu, peak, held = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        cells = (f"{1e3 * float(fit) / n:.2f}", f"{1e3 * float(cpu) / n:.2f}", f"{float(peak):.0f}", held)
        rows.append((f"{n:,}", *cells, f"{TARGETS * n * 4 / 2**20:.0f}"))
    header = ("n", "ms a point", "CPU ms a point", "peak memory, MiB", "of it before the fit", "effects, MiB")
    table(f"LoGra's effects on disk: an MLP 784-128-10, {TARGETS} targets", header, rows)


def one(n: int) -> None:
    """A fit on random data of MNIST's size, after one on few, so that what a first call loads does not count."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, 10))
    x, y = torch.rand(n, PIXELS), torch.randint(10, (n,))
    checkpoints = (Checkpoint(dict(model.named_parameters())),)

    def setting(count: int, targets: int) -> Setting:
        probe = (x[:targets], y[:targets])
        rule = SGD(epochs=1, batch_size=64, lr=0.1, weight_decay=1e-3)
        return Setting(model, (x[:count], y[:count]), probe, rule, checkpoints=checkpoints)

    with tempfile.TemporaryDirectory(dir=".") as folder:
        Stored(LoGra(), f"{folder}/few").fit(setting(1000, 10))
        before = peak_mebibytes()
        clock, cpu = Clock(), time.process_time()
        f_hat = Stored(LoGra(), f"{folder}/effects").fit(setting(n, TARGETS))
        seconds, spent = clock(), time.process_time() - cpu
        assert f_hat.effects.shape == (TARGETS, n)
        print(seconds, spent, peak_mebibytes(), f"{before:.0f}")


if __name__ == "__main__":
    one(int(sys.argv[1])) if len(sys.argv) > 1 else main()
