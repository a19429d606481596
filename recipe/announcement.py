"""What long work will cost, said before it begins, where somebody reads: on a terminal or in a notebook.

    Fitting EKFAC to n = 50000 points and m = 1000 outputs, expected: 4.6 min, 3.2 TFLOP, 1.2 GiB of memory.
    Training 10000 models on subsets of n = 1000 points, expected: 4.5 min, 4.1 TFLOP, 0.2 GiB of memory.

Work is long where the least number of operations that it can take is. To say what it costs takes a part of a second:
pieces of it are measured (`recipe.work`). What is part of other work, and what was said before, is not said.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

from recipe.cost import Cost

LONG = 1e12  # operations: ten seconds and more of a processor

_SILENT: ContextVar[bool] = ContextVar("silent", default=False)
_said: set[str] = set()


def announce(what: str, operations: float, cost: Callable[[], Cost]) -> None:
    """Say what work will cost, if it is long, somebody reads it, and it was not said.

    Args:
        what: it is, in words.
        operations: the least that it takes.
        cost: measures what it will take.
    """
    if operations < LONG or _SILENT.get() or what in _said or not _read():
        return
    _said.add(what)
    with unannounced():
        tqdm.write(f"{what}, expected: {expected(cost)}.", file=sys.stderr)


@contextmanager
def unannounced() -> Iterator[None]:
    """Within: nothing is said, since whoever began the work said it, or will."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def expected(cost: Callable[[], Cost]) -> str:
    """A cost, or why it is not known: an estimate that fails stops nobody."""
    try:
        return str(cost())
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        return f"not known ({next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')})"


def least_training(setting: Any, runs: float) -> float:
    """Operations that so many runs take at least: a product forwards and one back, a parameter and example."""
    return 4.0 * runs * setting.p * setting.n * getattr(setting.algorithm, "epochs", 1)


def models_of(estimator: Any, setting: Any) -> int:
    """How many models a fit trains, at most, by the names that estimators give these numbers.

    Those that an estimator is made of count too, and its prior.

    >>> from estimators.ekfac import EKFAC
    >>> from estimators.regression import Regression
    >>> from types import SimpleNamespace
    >>> models_of(Regression(subsets=100, prior=EKFAC(models=5)), SimpleNamespace(n=50, checkpoints=()))
    105
    """
    own = getattr(estimator, "subsets", 0) + getattr(estimator, "permutations", 0) * setting.n
    own += 0 if setting.checkpoints else getattr(estimator, "models", 0)
    return int(own) + sum(models_of(part, setting) for part in _parts(estimator))


def least_fit(estimator: Any, setting: Any) -> float:
    """Operations that a fit takes at least: its models on half of the points, and a product with every gradient."""
    return least_training(setting, models_of(estimator, setting) / 2) + 2.0 * setting.p * setting.n


def _parts(estimator: Any) -> list[Any]:
    named = [getattr(estimator, name, None) for name in ("estimator", "prior")]
    return [part for part in (*named, *getattr(estimator, "estimators", ())) if part is not None]


def _read() -> bool:
    return "ipykernel" in sys.modules or sys.stderr.isatty()
