"""Print some of the tables: `python -m benchmarks.selection noise skewed`."""

import sys
import warnings

from benchmarks.selection import main

warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
main(sys.argv[1:])
