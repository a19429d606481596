"""Some of the tables: `python -m benchmarks.unlearning margins klom`."""

import sys
import warnings

from benchmarks.tables import machine
from benchmarks.unlearning import main

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    print(machine(), flush=True)
    main(sys.argv[1:])
