"""Top-k over 100 000 000 training points x 4 outputs in float16 on disk, against reading the same files once.

The datamodel is a tangent at all points, as estimators make it: its outputs there are known, and the gradient reads the
effects once.
"""

import os
import subprocess
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
    """Measure, from the disk and from the system's cache, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "effects"
        subprocess.run(_command("write", path, n), check=True)
        size = sum(chunk.stat().st_size for chunk in path.glob("c/0/*"))
        rows = []
        for where in ("disk", "cache"):
            if where == "disk":
                forget(path)
            reading = plain(path)
            if where == "disk":
                forget(path)
            printed = subprocess.run(_command("solve", path, n), check=True, capture_output=True, text=True).stdout
            seconds, start, peak = map(float, printed.split())
            rates = [f"{size / spent / 1e9:.2f} GB/s ({spent:.2f} s)" for spent in (reading, seconds)]
            rows.append((where, *rates, f"{reading / seconds:.2f}", f"{peak:.0f} ({start:.0f} of it imports)"))
        table(
            f"Top-k of {n:,} points x {M} outputs, float16, {size / 1e6:.0f} MB",
            ("from", "plain read", "top-k", "ratio", "peak memory, MiB"),
            rows,
        )


def solve(path: Path, n: int) -> None:
    """A hundredth of the points, once; prints seconds and memory."""
    torch.set_num_threads(1)
    imports = peak_mebibytes()
    f_hat = LinearDatamodel(torch.zeros(M), Effects(path), at=torch.ones(()).expand(n))
    start = torch.ones(n, dtype=torch.bool)
    problem = Problem(Minimize(lambda w: f_hat(w).mean()), start, Subset(n, n // 100), lambda w: (w, None))
    clock = Clock()
    decision = TopK().solve(problem)
    seconds = clock()
    assert decision.dtype == torch.bool
    assert int(decision.count_nonzero()) == n // 100
    print(seconds, imports, peak_mebibytes())


def _command(part: str, path: Path, n: int) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "benchmarks.scale.top_k", part, str(path), str(n)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        written(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["solve"]:
        solve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*map(int, sys.argv[1:]))
