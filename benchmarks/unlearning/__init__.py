"""Unlearning against retraining: margins, distributions over seeds, certificates and time.

    python -m benchmarks unlearning                 every part below, one after the other
    python -m benchmarks.unlearning margins klom certified time

`margins`: digits logistic regression trained exactly, forget sets of 1, 5 and 10 % and subpopulations. `klom`: digits
MLP, 100 unlearned models and 2 x 100 oracles, forget sets of 5 %. `certified`: 1 000 random requests. `time`: the cost
of a request on the CIFAR-2 CNN. Random choices, doing nothing and the field's baselines stand beside every result.
"""

import importlib
import sys

PARTS = ("margins", "certified", "time", "klom")


def main(names: list[str] | None = None) -> None:
    """Print the tables."""
    for name in names or PARTS:
        importlib.import_module(f"benchmarks.unlearning.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
