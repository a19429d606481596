"""The inverse of the second moment of the examples' gradients, exact, by a matrix of the size of the data.

The curvature is the empirical Fisher matrix. With `R = diag(sqrt s) G` of the gradients `G (n, p)` and the shares
`s_i = w_i / W`, the identity of Woodbury turns a `(p, p)` inverse into an `(n, n)` one,

    (R^T R + shift)^-1 v  =  (v - R^T (R R^T + shift)^-1 R v) / shift.

For models with many more parameters than there are examples, and for losses and layers of any kind: gradients are all
it asks for. The empirical Fisher matrix has the curvature's directions rather than its size, so that effects rank
points well and have no unit; scale them by what a few retrainings say (`calibrated`).

Cost: one pass of gradients, `n^2 p + n^3 / 3` operations, and `4 k n p` for k right-hand sides; memory `(n, p)`.

Reference: Woodbury, "Inverting modified matrices", 1950; for gradients, Singh & Alistarh, "WoodFisher: Efficient
Second-Order Approximation for Neural Network Compression", 2020, arXiv:2004.14340.
Deviation: solved at once by Cholesky, where WoodFisher goes example by example.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe import batch as batches
from recipe import calculus
from recipe.calculus import Operator, Point, Product
from recipe.cost import Cost
from recipe.inverses.inverse import check_finite, point_of
from recipe.notes import note
from recipe.work import Products


@dataclass(frozen=True)
class Woodbury:
    """The exact inverse of the empirical Fisher matrix plus a shift; the estimator's curvature is not used.

    The shift is weight decay plus damping; without either, a tenth of the mean of the n eigenvalues that the examples
    can have.

    Raises on use:
        ValueError: an operator that is only a matrix, gradients that are not finite, or all zero without a shift.

    Example:
        >>> from recipe import Newton, Setting, SquaredError
        >>> from recipe.calculus import GaussNewton, Point, loss_gradients
        >>> data = (torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
        >>> setting = Setting(lambda: torch.nn.Linear(1, 1, bias=False), data, data, Newton(l2=0.5),
        ...                   loss=SquaredError(), output=lambda z, batch: z[:, 0])
        >>> point = Point(setting, {"weight": torch.tensor([[1.0]])}, torch.ones(2), data)
        >>> g = loss_gradients(setting, point.parameters, data)
        >>> inverse = Woodbury().of(GaussNewton().at(point))
        >>> torch.allclose(inverse(torch.ones(1, 1)), 1 / ((g**2).mean() + 0.5))
        True
    """

    def cost(self, products: Products, vectors: float) -> Cost:
        """See `Inverse.cost`."""
        n, p, machine = products.work.setting.n, products.p, products.machine
        kernel = machine.product(n, p, n) + machine.cholesky(n, vectors)
        both_ways = 2 * machine.product(vectors, p, n)
        return (products.applied(_only_gradients, vectors) + kernel + both_ways).holding(machine.number * n * p)

    def of(self, operator: Operator) -> Product:
        """See `Inverse.of`."""
        point = point_of(operator, "Woodbury()")
        root = _root(point)
        check_finite(root)
        kernel = root @ root.T
        shift = operator.shift or 0.1 * float(kernel.diagonal().mean())
        if shift <= 0:
            raise ValueError("All gradients are zero, and there is neither weight decay nor damping. Pass a damping.")
        if not operator.shift:
            note(damping=shift)
        factor = torch.linalg.cholesky(kernel + shift * torch.eye(len(kernel)).to(kernel))

        def product(vectors: Tensor) -> Tensor:
            return (vectors - torch.cholesky_solve(root @ vectors.T, factor).T @ root) / shift

        return product


def _root(point: Point) -> Tensor:
    """Gradients times the roots of their shares, `(n, p)`: the Fisher matrix is their product with themselves."""
    used = point.shares.nonzero().squeeze(1)
    blocks = calculus.blocks(point.setting, batches.take(point.data, used))
    rows = [calculus.loss_gradients(point.setting, point.parameters, block).detach() for block in blocks]
    return torch.cat(rows) * point.shares[used].detach().sqrt()[:, None]


def _only_gradients(operator: Operator) -> Product:
    """What of the inverse is linear in the examples."""
    _root(point_of(operator, "Woodbury()"))
    return lambda vectors: vectors
