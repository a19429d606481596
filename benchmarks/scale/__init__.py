"""Work that outgrows one process: what the bank costs, what stays small in memory, what workers add, what kills lose.

`python -m benchmarks scale` runs all parts, `python -m benchmarks.scale bank top_k effects cluster crashes` some of
them. Each runs in a process of its own, since a process does not give memory back.
"""

import resource
import subprocess
import sys

PARTS = ("top_k", "effects", "crashes", "cluster", "bank")


def main(parts: tuple[str, ...] = PARTS) -> None:
    """Run parts, each in a new process."""
    for part in parts:
        subprocess.run([sys.executable, "-W", "ignore", "-m", f"benchmarks.scale.{part}"], check=True)


def peak_mebibytes() -> float:
    """The most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
