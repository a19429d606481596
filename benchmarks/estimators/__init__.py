"""Our estimators beside the libraries that people use, on the same checkpoints, in one process.

    pip install -e . kronfluence==1.0.1 traker==0.3.2 dattri==0.3.0 captum==0.9.0 mlxtend
    pip install --no-deps pyDVL==0.10.0
    pip install cloudpickle distributed more-itertools numcodecs pyDeprecate
    RECIPE_DATA=../shared/data python -m benchmarks estimators

or `make bench-estimators`. A library that is not installed is left out, and so is a setting whose data are not there
(CIFAR-2 and TOFU, in the folder RECIPE_DATA). `python -m benchmarks.estimators "digits MLP" gradients` measures some.

Every line is a fit from trained models to effects `(m, n)`: seconds of wall clock, without training, after a small
warm-up, all with the threads that torch has, and the median of five further fits where the first takes less than three;
memory is how far the process rises above where it was in the first, so that what an earlier fit left free does not
show. LDS is of half of the points (`settings.py`), against `runs/benchmarks/*.npz` where that was retrained before.
Regression and MAGIC train for themselves, and their time has that in it. Scores without a unit have a nominal one, and
their slope means nothing.
"""

from collections.abc import Sequence


def main(names: Sequence[str] = ()) -> None:
    """Measure the named settings and tables, or all of them."""
    from benchmarks.estimators import cost, gradients, memory, settings, table

    extra = {"gradients": gradients.main, "memory": memory.main, "cost": cost.main}
    known = [*settings.SETTINGS, *extra]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"Unknown setting or table {unknown[0]!r}; there are {', '.join(known)}.")
    names = names or known
    chosen = [name for name in settings.SETTINGS if name in names]
    if chosen:
        table.compare(chosen)
    for name, measured in extra.items():
        if name in names:
            measured()
