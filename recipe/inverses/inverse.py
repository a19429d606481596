"""What an inverse of the curvature is, and what all of them say when they cannot go on."""

import warnings
from typing import Protocol

from torch import Tensor

from recipe.calculus import Operator, Point, Product
from recipe.cost import Cost
from recipe.work import Products


class Inverse(Protocol):
    """How `(k, p)` vectors are multiplied with the inverse of an operator."""

    def of(self, operator: Operator) -> Product:
        """The inverse as a product."""

    def cost(self, products: Products, vectors: float) -> Cost:
        """What it costs to make the inverse and to apply it to so many vectors."""


def check_finite(values: Tensor) -> None:
    """Raise `ValueError` where a product with the curvature is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError(
            "A product with the curvature is not finite: the model has diverged, its loss overflows, or the outputs' "
            "gradients are not finite themselves. Look at the trained parameters before anything is attributed."
        )


def check_rank(rank: int) -> None:
    """Raise `ValueError` for a rank below 1."""
    if rank < 1:
        raise ValueError(f"An inverse of low rank needs at least one eigenvector; got rank={rank}. Try 100.")


def point_of(operator: Operator, name: str) -> Point:
    """Where the curvature was taken.

    Raises:
        ValueError: an operator that is only a matrix.
    """
    if operator.point is None:
        raise ValueError(f"{name} looks at the examples; an operator that is only a matrix has none. Use CG().")
    return operator.point


def warn_unconverged(
    method: str, residual: Tensor, whole: Tensor, tolerance: float, iterations: int, remedy: str
) -> None:
    """Warn where a squared residual is above tolerance, with the worst of them.

    Args:
        method: the method's name.
        residual: squared norms `(k,)`.
        whole: squared norms of the right-hand sides `(k,)`.
        tolerance: of the norms' ratio.
        iterations: that were made.
        remedy: what to do about it.
    """
    worst = float((residual / whole).nan_to_num(0).max().sqrt())  # 0 / 0: nothing to solve
    if worst > tolerance:
        warnings.warn(
            f"{method} did not converge: relative residual {worst:.1e} after {iterations} iterations, asked for "
            f"{tolerance:.1e}. {remedy}.",
            stacklevel=4,
        )
