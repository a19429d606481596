"""Data selection on noisy, skewed and mixed pools and on images with captions, by retraining; and how fast solvers are.

`python -m benchmarks selection` prints all tables, `python -m benchmarks.selection noise skewed` some of them.
"""

import importlib

PARTS = ("noise", "skewed", "text", "captions", "metagradient", "speed")


def main(names: tuple[str, ...] | list[str] = PARTS) -> None:
    """Print the tables of these parts."""
    for name in names or PARTS:
        if name not in PARTS:
            raise SystemExit(f"Unknown part {name!r}; there are {', '.join(PARTS)}.")
        importlib.import_module(f"benchmarks.selection.{name}").main()
