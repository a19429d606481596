"""The inverse by conjugate gradients: products with the curvature alone.

Accuracy on the digits MLP (9 610 parameters, 200 outputs, one model): at the tolerances .1 and .01 the relative error
is .11 and .012 and the LDS .66 and .69, where `Dense()` has .69, in 8 and 17 s of a core; .01 with
`preconditioner=Nystroem(rank=200)`, sketch included, takes 2 s.

Cost: one product with the curvature for an iteration and a right-hand side; the iterations grow with the root of the
condition number, less where eigenvalues cluster, and a preconditioner makes them cluster.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from recipe.calculus import Operator, Product
from recipe.cost import Cost
from recipe.inverses.inverse import Inverse, check_finite, warn_unconverged
from recipe.work import Products


@dataclass(frozen=True)
class CG:
    """Conjugate gradients, all right-hand sides at once, each stopping on its own tolerance.

    Args:
        tolerance: stops where `|residual| <= tolerance |right-hand side|`.
        iterations: at most; default twice the number of parameters. Not reached: a warning says how far it came.
        preconditioner: an approximate inverse, such as `Nystroem(rank)` or EK-FAC's `Kronecker()`: fewer iterations for
            the same answer.

    Raises on use:
        ValueError: a direction of negative curvature, or a product that is not finite.

    Example:
        >>> from recipe.calculus import Operator
        >>> operator = Operator(lambda v: v * torch.tensor([1.0, 10.0]), p=2, like=torch.zeros(1))
        >>> CG().of(operator)(torch.tensor([[1.0, 1.0]])).round(decimals=4)
        tensor([[1.0000, 0.1000]])

    Reference: Hestenes & Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """

    tolerance: float = 1e-5
    iterations: int | None = None
    preconditioner: Inverse | None = None

    def cost(self, products: Products, vectors: float) -> Cost:
        """See `Inverse.cost`."""
        if not vectors:
            return Cost() if self.preconditioner is None else self.preconditioner.cost(products, 0)
        times = products.iterations(self.of)
        solves = times * products.product(vectors)
        if self.preconditioner is not None:
            solves = solves + self.preconditioner.cost(products, times * vectors)
        return solves.holding(5 * vectors * products.vector_bytes)

    def of(self, operator: Operator) -> Product:
        """See `Inverse.of`."""
        precondition = None if self.preconditioner is None else self.preconditioner.of(operator)
        return partial(self._solve, operator, precondition=precondition or (lambda r: r))

    def _solve(self, operator: Operator, b: Tensor, precondition: Product) -> Tensor:
        x, r = torch.zeros_like(b), b.clone()
        d = precondition(r).clone()  # direction
        rz, rr = (r * d).sum(1), r.square().sum(1)  # residual times preconditioned one, squared residual
        goal = self.tolerance**2 * rr
        iterations = self.iterations or 2 * operator.p
        for _ in range(iterations):
            active = (rr > goal).nonzero().squeeze(1)
            if not len(active):
                return x
            direction = d[active]
            image = operator.product(direction)
            curvature = (direction * image).sum(1)
            check_finite(curvature)
            if (curvature <= 0).any():
                raise ValueError(
                    "Conjugate gradients met a direction of negative curvature. Use GaussNewton(), or pass a (larger) "
                    "damping."
                )
            step = (rz[active] / curvature)[:, None]
            x[active] += step * direction
            residual = r[active] - step * image
            r[active], rr[active] = residual, residual.square().sum(1)
            z = precondition(residual)
            new = (residual * z).sum(1)
            d[active] = z + (new / rz[active])[:, None] * direction
            rz[active] = new
        remedy = "Allow more iterations, pass a larger damping, or a preconditioner such as Nystroem(rank=100)"
        warn_unconverged("Conjugate gradients", rr, b.square().sum(1), self.tolerance, iterations, remedy)
        return x
