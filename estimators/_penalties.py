"""Least squares with small coefficients, for many outputs at once: ridge and lasso.

Both get centred weights `X (r, n)` and centred outputs `Y (r, m)` and give coefficients `B (n, m)`, each output with a
penalty of its own; both choose it by held-out error where none is given. Computed in the type of what they get.

References: Hoerl & Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", 1970; Allen, "The
Relationship between Variable Selection and Data Augmentation and a Method for Prediction", 1974 (leave-one-out by
leverages); Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996; Beck & Teboulle, "A Fast Iterative
Shrinkage-Thresholding Algorithm", 2009; O'Donoghue & Candes, "Adaptive Restart for Accelerated Gradient Schemes", 2012,
arXiv:1204.3982.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

RIDGE_GRID = torch.logspace(-5, 3, 33, dtype=torch.float64)  # times the mean eigenvalue of the kernel
LASSO_GRID = torch.logspace(0, -2.5, 11, dtype=torch.float64)  # times the penalty from which on all effects are zero
WARM_STARTS = 5  # penalties on the way from all effects zero to the wanted penalty
COARSE = 1e-3  # tolerance that is enough to compare penalties
ITERATIONS = 5000  # of FISTA, at most

Product = Callable[[Tensor], Tensor]


class Penalty(Protocol):
    """How effects are kept small."""

    def coefficients(self, X: Tensor, Y: Tensor) -> Tensor:
        """`(n, m)` coefficients for centred weights `X (r, n)` and centred outputs `Y (r, m)`."""


@dataclass(frozen=True)
class Ridge:
    """`|Y - X B|^2 + penalty |B|^2`, by one eigendecomposition of the smaller of `X X^T` (the dual) and `X^T X`.

    Args:
        penalty: the factor of the squared norm, at least 0 (0: the smallest of the least-squares solutions); default:
            for every output the one of 33 penalties with the least leave-one-out error, exact and without refits.

    Raises:
        ValueError: a negative penalty.

    Example:
        >>> X, Y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [-3.0]])
        >>> Ridge(penalty=1.0).coefficients(X, Y).round(decimals=4)  # x.y / (x.x + 1)
        tensor([[2.]])
    """

    penalty: float | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty >= 0:
            raise ValueError(f"The penalty of Ridge must be at least 0, or None to choose it; got {self.penalty}.")

    def coefficients(self, X: Tensor, Y: Tensor) -> Tensor:
        """See `Penalty.coefficients`."""
        U, s = _left_singular(X)
        penalties = _least_leave_one_out(U, s, Y) if self.penalty is None else torch.full_like(Y[0], self.penalty)
        return X.T @ (U @ ((U.T @ Y) / (s[:, None] + penalties)))


@dataclass(frozen=True)
class Lasso:
    """`|Y - X B|^2 / 2r + penalty |B|_1`, by accelerated proximal gradient steps, all outputs at once.

    FISTA with adaptive restarts, warm-started along a short path of falling penalties.

    Args:
        penalty: the factor of the absolute sum, above 0; default: for every output the one of 11 penalties with the
            least error on the last fifth of the subsets, which then join the fit.
        tolerance: stops where no gradient is further from optimal than this share of the largest gradient at zero.

    Raises:
        ValueError: a penalty or tolerance that is not positive.

    Example:
        >>> X, Y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [-3.0]])
        >>> Lasso(penalty=1.0).coefficients(X, Y)  # 3, moved towards 0 by 1
        tensor([[2.]])
    """

    penalty: float | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ValueError(f"The penalty of Lasso must be above 0, or None to choose it; got {self.penalty}.")
        if not self.tolerance > 0:
            raise ValueError(f"The tolerance of Lasso must be above 0; got {self.tolerance}.")

    def coefficients(self, X: Tensor, Y: Tensor) -> Tensor:
        """See `Penalty.coefficients`."""
        top = _silencing(X, Y)
        wanted = self._least_held_out(X, Y) if self.penalty is None else torch.full_like(top, self.penalty)
        ratio = (top / wanted.clamp_min(torch.finfo(top.dtype).tiny)).clamp_min(1)
        *_, B = self._path(X, Y, [wanted * ratio**t for t in torch.linspace(1, 0, WARM_STARTS + 1)[1:].tolist()])
        return B

    def _least_held_out(self, X: Tensor, Y: Tensor) -> Tensor:
        """For every output the penalty with the least squared error on the last fifth, `(m,)`."""
        cut = len(X) - (len(X) + 4) // 5
        x, y = X[:cut].mean(0), Y[:cut].mean(0)  # the held-out rows must not enter the bias either
        path = LASSO_GRID.to(Y)[:, None] * _silencing(X[:cut] - x, Y[:cut] - y)
        coarse = replace(self, tolerance=max(self.tolerance, COARSE))
        errors: list[Tensor] = []
        for B in coarse._path(X[:cut] - x, Y[:cut] - y, path):
            errors.append((Y[cut:] - y - (X[cut:] - x) @ B).square().sum(0))
            if torch.stack(errors).argmin(0).max() < len(errors) - 2:  # smaller penalties overfit, at the highest price
                break
        best = torch.stack(errors).argmin(0, keepdim=True)
        return path.gather(0, best).squeeze(0)

    def _path(self, X: Tensor, Y: Tensor, penalties: Iterable[Tensor]) -> Iterator[Tensor]:
        """Coefficients at falling penalties `(m,)`, each starting from the one before."""
        r, n = X.shape
        gram = X.T @ X / r if n <= 2 * r else None  # else two thin products are cheaper
        product = (lambda B: X.T @ (X @ B) / r) if gram is None else (lambda B: gram @ B)
        curvature = _top_eigenvalue(X) / r
        slope = X.T @ Y / r
        B = torch.zeros_like(slope)
        for penalty in penalties:
            B = self._fista(product, slope, penalty, curvature, B)
            yield B

    def _fista(self, product: Product, slope: Tensor, penalty: Tensor, curvature: Tensor, B: Tensor) -> Tensor:
        answer, unfinished = B.clone(), torch.arange(B.shape[1], device=B.device)
        goal = self.tolerance * slope.abs().amax(0)
        ahead, t = B, torch.ones_like(penalty)
        for _ in range(ITERATIONS):
            new = _shrink(ahead - (product(ahead) - slope) / curvature, penalty / curvature)
            answer[:, unfinished] = new
            left = curvature * (new - ahead).abs().amax(0) > goal
            if not left.any():
                return answer
            # An output whose momentum points uphill drops it; the others keep theirs.
            t = torch.where(((ahead - new) * (new - B)).sum(0) > 0, 1.0, t)
            following = 0.5 * (1 + (1 + 4 * t.square()).sqrt())
            ahead = new + (t - 1) / following * (new - B)
            B, t = new, following
            if not left.all():  # outputs that are done cost no more products
                ahead, B, slope = ahead[:, left], B[:, left], slope[:, left]
                t, penalty, goal, unfinished = t[left], penalty[left], goal[left], unfinished[left]
        warnings.warn(
            f"The lasso did not converge in {ITERATIONS} steps for {len(unfinished)} of {answer.shape[1]} outputs. "
            f"Raise the tolerance, {self.tolerance}, or the penalty.",
            stacklevel=2,
        )
        return answer


def _left_singular(X: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors `(r, q)` and squared singular values `(q,)`, by the smaller of the two Gram matrices."""
    s, Q = torch.linalg.eigh(_smaller_gram(X))
    kept = s > s[-1] * max(X.shape) * torch.finfo(s.dtype).eps
    s, Q = s[kept], Q[:, kept]
    return (Q if len(X) <= X.shape[1] else X @ Q / s.sqrt()), s


def _least_leave_one_out(U: Tensor, s: Tensor, Y: Tensor) -> Tensor:
    """For every output the ridge penalty with the least leave-one-out error, `(m,)`.

    What is missed at run k when it is left out is its residual over one minus its leverage (1/r of which is the bias').
    """
    grid = RIDGE_GRID.to(Y) * s.mean()
    Z = U.T @ Y
    errors = []
    for penalty in grid:
        kept = s / (s + penalty)
        leverage = 1 / len(U) + U.square() @ kept
        errors.append(((Y - U @ (kept[:, None] * Z)) / (1 - leverage)[:, None]).square().sum(0))
    return grid[torch.stack(errors).argmin(0)]


def _silencing(X: Tensor, Y: Tensor) -> Tensor:
    """The smallest lasso penalty of every output at which all its effects are zero, `(m,)`."""
    return (X.T @ Y).abs().amax(0) / len(X)


def _shrink(B: Tensor, by: Tensor) -> Tensor:
    return B.sign() * (B.abs() - by).clamp_min(0)


def _smaller_gram(X: Tensor) -> Tensor:
    return X @ X.T if len(X) <= X.shape[1] else X.T @ X


def _top_eigenvalue(X: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(_smaller_gram(X))[-1].clamp_min(torch.finfo(X.dtype).tiny)
