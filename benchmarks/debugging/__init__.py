"""Debugging, measured: label errors, brittleness, subpopulations, comparisons of algorithms, and the report itself."""

import importlib

PARTS = ("report", "brittleness", "subpopulations", "comparison", "label_errors")


def main(parts: tuple[str, ...] = PARTS) -> None:
    """The tables, one part after the other."""
    for part in parts:
        importlib.import_module(f"benchmarks.debugging.{part}").main()
