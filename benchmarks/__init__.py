"""Measured comparisons, off by default: `python -m benchmarks` prints every table, `python -m benchmarks lds` one."""
