"""How alike two removals are: a kernel for `KernelRegression` that knows which training points are alike.

With features `F_g (n, d_g)` of the training points, one tensor a geometry, removals r are `phi_g(r) = F_g^T r`, sums
over what is left out; a geometry may also be a function phi_g, such as what a cheap surrogate predicts of r. Then

    k(r, r') = sum_t <r, r'>_t exp(-|r - r'|_t^2 / 2),
    <r, r'>_t = sum_g inner[t, g] <phi_g(r), phi_g(r')>,   |r - r'|_t^2 = sum_g distance[t, g] |phi_g(r) - phi_g(r')|^2.

Each term is a linear datamodel whose effects vary over the removals, as widely as its distance says; with distance 0
they do not vary. The weights are learned: they maximise the marginal likelihood of the changes of some runs.

Reference: Rasmussen & Williams, "Gaussian Processes for Machine Learning", 2006, chapters 4 and 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STARTS = ((-9.0, -1.0), (-3.0, -1.0), (-1.0, -1.0))  # of each term, log weights of distances and of inner products
TILE = 512  # rows and columns of the kernel at once: what is computed of them stays in the processor's cache
RATE = 0.25  # of Adam, falling to a fifth

Features = Tensor | Callable[[Tensor], Tensor]  # (n, d) of the training points, or what is left out (a, n) -> (a, d)


@dataclass(frozen=True, eq=False)
class RemovalKernel:
    """The kernel, of what is left out `(a, n)` and `(b, n)`.

    Args:
        features: one a geometry: `(n, d_g)` of the training points (the identity, effects, classes), or a function of
            what is left out, `(a, n) -> (a, d_g)`, zero where nothing is.
        inner: `(terms, geometries)`, weights of at least 0.
        distance: `(terms, geometries)`, too.

    Example:
        >>> classes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> k = RemovalKernel((classes,), torch.ones(1, 1), torch.ones(1, 1))
        >>> k(torch.eye(3), torch.eye(3))  # of a class alike, else orthogonal
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """

    features: tuple[Features, ...]
    inner: Tensor
    distance: Tensor

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """`(a, b)`."""
        inner, distance = self.inner.to(left), self.distance.to(left)
        a, symmetric = embedded(self.features, left), right is left
        b = a if symmetric else embedded(self.features, right)
        K = left.new_empty(len(left), len(right))
        for i in range(0, len(left), TILE):
            some = [of[i : i + TILE] for of in a]
            for j in range(i if symmetric else 0, len(right), TILE):
                tile = combined(*geometry(some, [of[j : j + TILE] for of in b]), inner, distance)
                K[i : i + TILE, j : j + TILE] = tile
                if symmetric:
                    K[j : j + TILE, i : i + TILE] = tile.T
        return K

    @classmethod
    def learned(
        cls, features: Sequence[Features], left_out: Tensor, changes: Tensor, steps: int = 50
    ) -> tuple["RemovalKernel", float]:
        """The kernel of the greatest marginal likelihood, and its noise, in units of the mean of its diagonal.

        Args:
            features: one a geometry.
            left_out: `(r, n)` of some runs, at most two or three thousand of them: a step takes their cube.
            changes: `(r, m)` of some outputs, each in units of its own noise.
            steps: of Adam.
        """
        X, Y = left_out.double(), changes.double()
        embeddings = embedded(features, X)
        products, distances = geometry(embeddings, embeddings)
        size = [p.diagonal().mean() for p in products]
        products, distances = ([t / s for t, s in zip(ts, size, strict=True)] for ts in (products, distances))
        shape = (len(STARTS), len(size))
        inner, distance = (
            torch.tensor([start[i] for start in STARTS]).double()[:, None].expand(shape).clone().requires_grad_()
            for i in (1, 0)
        )
        noise = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([inner, distance, noise], lr=RATE)
        with torch.enable_grad():
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = RATE * (1 - 0.8 * step / steps)
                optimizer.zero_grad()
                K = combined(products, distances, inner.exp(), distance.exp())
                L = torch.linalg.cholesky(K + noise.exp() * torch.eye(len(X)).to(K))
                white = torch.linalg.solve_triangular(L, Y, upper=False)
                (white.square().sum() / (2 * Y.shape[1]) + L.diagonal().log().sum()).backward()
                optimizer.step()
        with torch.no_grad():
            K = combined(products, distances, inner.exp(), distance.exp())
            scale = torch.stack(size)
            kernel = cls(tuple(features), inner.detach().exp() / scale, distance.detach().exp() / scale)
            return kernel, float(noise.exp() / K.diagonal().mean())


def embedded(features: Sequence[Features], left_out: Tensor) -> list[Tensor]:
    """`(a, d_g)` in each geometry."""
    return [left_out @ F.to(left_out) if isinstance(F, Tensor) else F(left_out) for F in features]


def geometry(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Inner products and squared distances `(a, b)` in each geometry, of embeddings."""
    products, distances = [], []
    for a, b in zip(left, right, strict=True):
        products.append(a @ b.T)
        squares = a.square().sum(1)[:, None] + b.square().sum(1)
        distances.append((squares - 2 * products[-1]).clamp_min(0))
    return products, distances


def combined(products: Sequence[Tensor], distances: Sequence[Tensor], inner: Tensor, distance: Tensor) -> Tensor:
    """The kernel from what belongs to each geometry."""
    total = torch.zeros_like(products[0])
    for a, b in zip(inner, distance, strict=True):
        exponent = sum((w * d for w, d in zip(b, distances, strict=True)), torch.zeros_like(total))
        total = total + sum(w * p for w, p in zip(a, products, strict=True)) * (-exponent / 2).exp()
    return total
