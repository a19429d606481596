"""Debugging, measured: label errors, brittleness, subpopulations, comparisons of algorithms, and the report itself."""

import importlib
import sys

PARTS = ("label_errors", "brittleness", "subpopulations", "comparison", "report")


def main(parts: tuple[str, ...] = PARTS) -> None:
    """The tables, one part after the other."""
    for part in parts:
        importlib.import_module(f"benchmarks.debugging.{part}").main()


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or PARTS)
