"""Print the tables of the README: `python -m benchmarks [NAME ...]`, the names being those of `ALL`."""

import importlib
import sys
import warnings

from benchmarks.tables import machine

ALL = ("retraining", "lds", "estimators", "tasks", "scale", "poisoning", "debugging", "demo", "selection", "unlearning")


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all of them."""
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise SystemExit(f"Unknown benchmark {unknown[0]!r}; there are {', '.join(ALL)}.")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    print(machine(), flush=True)
    for name in names or ALL:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
