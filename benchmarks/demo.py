"""The demo as a whole process: seconds and peak memory."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tables import Clock, table


def main() -> None:
    """Run `recipe demo` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "recipe", "demo", "--out", str(Path(folder) / "demo")]
        clock = Clock()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = clock()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    table("`recipe demo`", ("seconds", "peak memory, GiB"), [(f"{seconds:.0f}", f"{peak:.2f}")])
