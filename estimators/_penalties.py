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
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from recipe.cost import Cost, along, measured
from recipe.datamodel import combinations, product, squared_norm
from recipe.setting import Setting

RIDGE_GRID = torch.logspace(-5, 3, 33, dtype=torch.float64)  # times the mean eigenvalue of the kernel
LASSO_GRID = torch.logspace(0, -2.5, 11, dtype=torch.float64)  # times the penalty from which on all effects are zero
WARM_STARTS = 5  # penalties on the way from all effects zero to the wanted penalty
COARSE = 1e-3  # tolerance that is enough to compare penalties
MEASURED = 4e6  # entries of weights up to which the work is measured in full
OUTPUTS = (2, 16)  # on which it is measured
ITERATIONS = 5000  # of FISTA, at most

Product = Callable[[Tensor], Tensor]


Solver = Callable[[Tensor], Tensor]  # centred outputs (r, k) -> coefficients (n, k)


class Penalty(Protocol):
    """How effects are kept small."""

    def solver(self, X: Tensor, along: Any = None) -> Solver:
        """What finds small coefficients that explain outputs.

        Args:
            X: `(r, n)` centred weights.
            along: `(k, n)` directions in which to expect larger coefficients, for penalties that have a use for them: a
                tensor, or effects on disk, which are read in blocks.

        Returns:
            A function of centred outputs `(r, m)`, of some or all at a time: each is explained by itself.
        """


@dataclass(frozen=True)
class Ridge:
    """`|Y - X B|^2 + penalty |B|^2`, by one eigendecomposition of the smaller of `X X^T` (the dual) and `X^T X`.

    Directions `D (k, n)` to prefer, scaled so that they weigh as much as all points together (`|D|^2 = n`), cost less:
    `tr B^T (1 + D^T D)^-1 B` takes the place of `|B|^2`.

    Args:
        penalty: the factor of the squared norm, at least 0 (0: the smallest of the least-squares solutions); default:
            for every output the one of 33 penalties with the least leave-one-out error, exact and without refits.

    Raises:
        ValueError: a negative penalty.

    Example:
        >>> X, Y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [-3.0]])
        >>> Ridge(penalty=1.0).solver(X)(Y).round(decimals=4)  # x.y / (x.x + 1)
        tensor([[2.]])
    """

    penalty: float | None = None

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty >= 0:
            raise ValueError(f"The penalty of Ridge must be at least 0, or None to choose it; got {self.penalty}.")

    def solver(self, X: Tensor, along: Any = None) -> Solver:
        """See `Penalty.solver`."""
        size = X.new_zeros(()) if along is None else squared_norm(along, X)
        if not size:
            return _Dual(self.penalty, X, X)
        # With D = sqrt(n / |A|^2) A the answer is that of the weights Z = X [1, D^T], and B = [1, D^T] C.
        share = X.shape[1] / size
        P = product(along, X)  # (r, k)
        return _Dual(self.penalty, X, torch.cat([X, P * share.sqrt()], 1), share * P, along)


@dataclass(frozen=True, eq=False)
class _Dual:
    """Ridge on the weights `Z (r, q)` by one decomposition: `B = X^T V + A^T (P^T V)`, with `V` in place of `Z Z^T`."""

    penalty: float | None
    X: Tensor
    Z: Tensor
    P: Tensor | None = None
    along: Any = None

    def __call__(self, Y: Tensor) -> Tensor:
        U, s = self._decomposed
        penalties = _least_leave_one_out(U, s, Y) if self.penalty is None else torch.full_like(Y[0], self.penalty)
        V = U @ ((U.T @ Y) / (s[:, None] + penalties))
        B = self.X.T @ V
        return B if self.P is None else B + combinations((self.P.T @ V).T, self.along).T

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        return _left_singular(self.Z)


@dataclass(frozen=True)
class Lasso:
    """`|Y - X B|^2 / 2r + penalty |B|_1`, by accelerated proximal gradient steps, all outputs at once.

    FISTA with adaptive restarts, warm-started along a path of falling penalties. Directions to prefer are ignored:
    what is sparse is the points.

    Args:
        penalty: the factor of the absolute sum, above 0; default: for every output the one of 11 penalties with the
            least error on the last fifth of the subsets, which then join the fit.
        tolerance: stops where no gradient is further from optimal than this share of the largest gradient at zero.

    Raises:
        ValueError: a penalty or tolerance that is not positive.

    Example:
        >>> X, Y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0], [-3.0]])
        >>> Lasso(penalty=1.0).solver(X)(Y)  # 3, moved towards 0 by 1
        tensor([[2.]])
    """

    penalty: float | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.penalty is not None and not self.penalty > 0:
            raise ValueError(f"The penalty of Lasso must be above 0, or None to choose it; got {self.penalty}.")
        if not self.tolerance > 0:
            raise ValueError(f"The tolerance of Lasso must be above 0; got {self.tolerance}.")

    def solver(self, X: Tensor, along: Any = None) -> Solver:
        """See `Penalty.solver`."""
        return partial(self._coefficients, X)

    def _coefficients(self, X: Tensor, Y: Tensor) -> Tensor:
        if self.penalty is None:
            wanted, start = self._least_held_out(X, Y)
            return next(self.path(X, Y, [wanted], start))
        top = _silencing(X, Y)
        wanted = torch.full_like(top, self.penalty)
        ratio = (top / wanted).clamp_min(1)
        *_, B = self.path(X, Y, [wanted * ratio**t for t in torch.linspace(1, 0, WARM_STARTS + 1)[1:].tolist()])
        return B

    def path(self, X: Tensor, Y: Tensor, penalties: Iterable[Tensor], start: Tensor | None = None) -> Iterator[Tensor]:
        """The coefficients at one penalty after the other, each starting from the one before.

        Args:
            X: `(r, n)` centred weights.
            Y: `(r, m)` centred outputs.
            penalties: `(m,)` each, one an output; falling ones are found fastest.
            start: `(n, m)` to start from; default zero, the answer for large penalties.

        Returns:
            `(n, m)` for each of the penalties.
        """
        r, n = X.shape
        curvature = _top_eigenvalue(X) / r
        scale = 1 / (r * curvature)
        gram = scale * (X.T @ X) if n <= 2 * r else None  # else two thin products are cheaper
        product = (lambda B: X.T @ (X @ B * scale)) if gram is None else (lambda B: gram @ B)
        slope = scale * (X.T @ Y)
        B = torch.zeros_like(slope) if start is None else start.to(slope)
        for penalty in penalties:
            B = self._fista(product, slope, penalty / curvature, B)
            yield B

    def _least_held_out(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """For every output the penalty with the least squared error on the last fifth, `(m,)`, and what it gave."""
        cut = len(X) - (len(X) + 4) // 5
        x, y = X[:cut].mean(0), Y[:cut].mean(0)  # the held-out rows must not enter the bias either
        X_in, Y_in = (X[:cut] - x).float(), (Y[:cut] - y).float()  # single precision is enough to compare penalties
        X_out, Y_out = (X[cut:] - x).float(), (Y[cut:] - y).float()
        path = LASSO_GRID.to(Y_in)[:, None] * _silencing(X_in, Y_in)
        least, best = torch.full_like(Y_in[0], torch.inf), torch.zeros_like(Y_in[0], dtype=torch.long)
        chosen = torch.zeros(X.shape[1], Y.shape[1]).to(Y_in)
        for step, B in enumerate(replace(self, tolerance=max(self.tolerance, COARSE)).path(X_in, Y_in, path)):
            error = (Y_out - X_out @ B).square().sum(0)
            better = (error < least) & (step <= best + 2)  # done after two that are no better, whatever others do
            chosen = torch.where(better, B, chosen)
            least, best = torch.where(better, error, least), torch.where(better, step, best)
            if best.max() < step - 1:  # smaller penalties overfit, at the highest price
                break
        return path.gather(0, best[None]).squeeze(0).to(Y), chosen

    def _fista(self, product: Product, slope: Tensor, cut: Tensor, B: Tensor) -> Tensor:
        """From `B (n, m)` to the minimum; product, slope and cut (the penalty) are in units of the curvature."""
        answer, unfinished = B.clone(), torch.arange(B.shape[1], device=B.device)
        goal = self.tolerance * slope.abs().amax(0)
        ahead, t = B, torch.ones_like(cut)
        for _ in range(ITERATIONS):
            z = (ahead + slope).sub_(product(ahead))
            new = z - z.clamp(-cut, cut)
            move, gain = new - ahead, new - B
            left = move.abs().amax(0) > goal
            done = not left.all()
            if done:
                answer[:, unfinished] = new
                if not left.any():
                    return answer
            # An output whose momentum points uphill drops it; the others keep theirs.
            t = torch.where((move * gain).sum(0) < 0, 1.0, t)
            following = 0.5 * (1 + (1 + 4 * t.square()).sqrt())
            ahead, B, t = torch.addcmul(new, gain, (t - 1) / following), new, following
            if done:  # outputs that are done cost no more products
                ahead, B, slope = ahead[:, left], B[:, left], slope[:, left]
                t, cut, goal, unfinished = t[left], cut[left], goal[left], unfinished[left]
        answer[:, unfinished] = B
        warnings.warn(
            f"The lasso did not converge in {ITERATIONS} steps for {len(unfinished)} of {answer.shape[1]} outputs. "
            f"Raise the tolerance, {self.tolerance}, or the penalty.",
            stacklevel=2,
        )
        return answer


def regression_cost(penalty: Penalty, runs: int, setting: Setting) -> Cost:
    """What a regression on random halves costs; where it is large it is measured smaller, all sides alike."""
    n, m = setting.n, setting.m
    shrink = max(1.0, (runs * n / MEASURED) ** 0.5)
    r, k = max(4, round(runs / shrink)), max(2, round(n / shrink))
    generator = torch.Generator().manual_seed(0)
    X = (torch.rand(r, k, generator=generator, dtype=torch.float64) < 0.5).double() - 0.5
    B = torch.randn(k, m, generator=generator, dtype=torch.float64) ** 3  # few points matter much, and half is noise
    Y = X @ B
    Y = Y + Y.std(0) * torch.randn(r, m, generator=generator, dtype=torch.float64)
    found = along(lambda t: measured(lambda: penalty.solver(X)(Y[:, :t] - Y[:, :t].mean(0))), m, *OUTPUTS)
    return (shrink**2.5 * found).holding(8 * (runs + 4 * m) * n)


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
