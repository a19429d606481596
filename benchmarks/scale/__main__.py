"""`python -m benchmarks.scale [part ...]`."""

import sys

from benchmarks.scale import PARTS, main

main(tuple(sys.argv[1:]) or PARTS)
