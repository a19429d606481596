"""Linear limits on whole numbers, `low <= A @ x <= high` and `least <= x <= most`, by mixed-integer programming.

By HiGHS: the best x for a linear score; or, where there is none, which limits stand in the way.

Reference: Huangfu & Hall, "Parallelizing the dual revised simplex method", 2018.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, eye_array, hstack

Limits = tuple[csr_array, np.ndarray, np.ndarray]  # A (rows, n), low (rows,), high (rows,)


def best(score: np.ndarray, limits: Limits, least: np.ndarray, most: np.ndarray | float) -> np.ndarray:
    """The x of largest `score @ x`, exact up to 1e-9 of the largest score.

    Raises:
        ValueError: there is no such x, or HiGHS found none.

    Example:
        >>> one = csr_array(np.ones((1, 3)))
        >>> best(np.array([1.0, 3.0, 2.0]), (one, np.array([2.0]), np.array([2.0])), np.zeros(3), 1.0)
        array([0., 1., 1.])
    """
    A, low, high = limits
    c = score * (1e3 / (np.abs(score).max(initial=0) or 1.0))  # HiGHS stops at an absolute gap of 1e-6
    result = milp(
        -c,
        integrality=np.ones(len(c)),
        bounds=Bounds(least, most),
        constraints=LinearConstraint(A, low, high),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise ValueError(f"HiGHS found no subset: {result.message} Loosen the budget, the size or the quotas.")
    return result.x.round()


def missed(limits: Limits, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """By how much the x that misses the limits least misses each, `(rows,)`: zeros where all can be kept.

    Each row has two slacks, to either side, and their sum is minimised.

    Example:
        >>> two = csr_array(np.array([[1.0, 1.0], [1.0, 0.0]]))
        >>> missed((two, np.array([0.0, 3.0]), np.array([2.0, 3.0])), np.zeros(2), np.full(2, 2.0))
        array([0., 1.])
    """
    A, low, high = limits
    rows, n = A.shape
    found = milp(
        np.concatenate([np.zeros(n), np.ones(2 * rows)]),
        integrality=np.concatenate([np.ones(n), np.zeros(2 * rows)]),
        bounds=Bounds(np.concatenate([least, np.zeros(2 * rows)]), np.concatenate([most, np.full(2 * rows, np.inf)])),
        constraints=LinearConstraint(hstack([A, eye_array(rows), -eye_array(rows)]), low, high),
    )
    return found.x[n:].reshape(2, rows).sum(0).round(6)
