"""The inverse by the Cholesky factor of the whole matrix: exact.

On the digits MLP (9 610 parameters, one model): LDS .69, or .80 with a damping of .01; 20 s of a core and 1.2 GB.

Cost: p products with the curvature, `p^3 / 3` operations, and `p^2` numbers to keep.
"""

import os
from dataclasses import dataclass, replace

import torch

from recipe.calculus import Operator, Product
from recipe.cost import Cost
from recipe.work import Products


@dataclass(frozen=True)
class Dense:
    """The matrix itself and its Cholesky factor: exact, `(p, p)` memory.

    Raises on use:
        ValueError: the matrix does not fit into memory, or is not positive definite.

    Example:
        >>> operator = Operator(lambda v: v * torch.tensor([1.0, 10.0]), p=2, like=torch.zeros(1))
        >>> Dense().of(operator)(torch.tensor([[1.0, 1.0]]))
        tensor([[1.0000, 0.1000]])
    """

    def cost(self, products: Products, vectors: float) -> Cost:
        """See `Inverse.cost`."""
        p, number = products.p, products.work.number
        matrix = products.product(p) + products.machine.cholesky(p, vectors)
        return replace(matrix, bytes=max(matrix.bytes, (3 * p**2 + 3 * vectors * p) * number))

    def of(self, operator: Operator) -> Product:
        """See `Inverse.of`."""
        _check_room(operator)
        matrix = operator.dense()
        factor, minor = torch.linalg.cholesky_ex(matrix)
        if minor:
            raise ValueError(
                f"The curvature is not positive definite (its leading minor of order {int(minor)} is not). Train "
                "closer to the optimum, use GaussNewton(), or pass a (larger) damping: a tenth of the curvature's "
                f"mean diagonal is damping={0.1 * float(matrix.diagonal().abs().mean()):.1g}."
            )
        return lambda vectors: torch.cholesky_solve(vectors.T, factor).T


def _check_room(operator: Operator) -> None:
    """Raise `ValueError` for a matrix that does not fit: the system would end the process without a word."""
    p, number = operator.p, operator.like.element_size()
    needed, free = 3 * p**2 * number, available(operator.like.device)  # as measured: factoring takes a copy
    if needed > free:
        raise ValueError(
            f"Dense() needs {needed / 2**30:.3g} GiB for the curvature of {p:,} parameters and its factor; "
            f"{free / 2**30:.3g} GiB are free on {operator.like.device}. Use Influence(inverse=CG()) or EKFAC(), or "
            "freeze layers (`requires_grad_(False)`)."
        )


def available(device: torch.device) -> int:
    """Bytes that can be allocated on a device without giving up what others hold."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as lines:  # counts the system's caches as available, which sysconf does not
            kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
            return 1024 * kibibytes
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
