"""Top-k over 100 000 000 training points x 4 outputs in float16 on disk, against reading the same files once."""

import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.scale import peak_mebibytes
from benchmarks.tables import Clock, table
from recipe import Effects, LinearDatamodel, Minimize, Problem, Subset, TopK
from recipe.stores.blocks import Blocks

M, WIDTH = 4, 2**19


def written(path: Path, n: int) -> None:
    """Random effects in blocks."""
    store = Blocks.create(str(path), (M, n), WIDTH, torch.float16, {})
    for block in range(store.count):
        low, high = store.span(block)
        generator = torch.Generator().manual_seed(block)
        store.write(block, torch.randn(M, high - low, generator=generator))


def forget(path: Path) -> None:
    """Take the files out of the system's cache."""
    os.sync()
    for chunk in path.glob("c/0/*"):
        with open(chunk, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(path: Path) -> float:
    """Seconds to read all files from beginning to end."""
    clock = Clock()
    for chunk in sorted(path.glob("c/0/*"), key=lambda p: int(p.name)):
        with open(chunk, "rb", buffering=0) as file:
            while file.read(2**24):
                pass
    return clock()


def main(n: int = 100_000_000) -> None:
    """Measure, from the disk and from the system's cache."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "effects"
        written(path, n)
        size = sum(chunk.stat().st_size for chunk in path.glob("c/0/*"))
        rows = []
        for where in ("disk", "cache"):
            if where == "disk":
                forget(path)
            reading = plain(path)
            if where == "disk":
                forget(path)
            f_hat = LinearDatamodel(torch.zeros(M), Effects(path))
            start = torch.ones(n, dtype=torch.bool)
            problem = Problem(Minimize(lambda w, f=f_hat: f(w).mean()), start, Subset(n, n // 100), lambda w: (w, None))
            clock = Clock()
            decision = TopK().solve(problem)
            seconds = clock()
            assert decision.dtype == torch.bool
            assert int(decision.sum()) == n // 100
            rate = 2 * size / seconds  # the effects are read twice: for the outputs, and for the gradient
            rows.append(
                (
                    where,
                    f"{size / reading / 1e9:.2f} GB/s",
                    f"{rate / 1e9:.2f} GB/s in {seconds:.1f} s",
                    f"{rate * reading / size:.2f}",
                    f"{peak_mebibytes():.0f}",
                )
            )
        table(
            f"Top-k of {n:,} points x {M} outputs, float16, {size / 1e6:.0f} MB read twice",
            ("from", "plain read", "top-k", "ratio", "peak memory of the process, MiB"),
            rows,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
