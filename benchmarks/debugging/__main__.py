"""Some of the tables: `python -m benchmarks.debugging [report] [brittleness] [subpopulations] [comparison] ...`."""

import sys

from benchmarks.debugging import PARTS, main

main(tuple(sys.argv[1:]) or PARTS)
