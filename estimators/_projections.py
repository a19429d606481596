"""Random projections of gradients, `phi = P^T g`, that keep their inner products.

    E[P P^T] = 1,        so that        E <phi, phi'> = <g, g'>        with an error of about |g| |g'| / sqrt(k)

for `P (p, k)` (Johnson & Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984). The numbers in
P follow from a seed and from the parameter that they belong to: batches, types and devices change nothing.

`Factored` takes for a weight the columns `u_m v_m^T`, both normal, so that the gradient of a layer on one example
(`recipe/layers.py`) becomes

    phi_m = sum_t (u_m . rows_t) (v_m . cols_t) / sqrt(k),

which takes R + C multiplications where a dense column takes R C, and never forms the gradient. Reference: Sun et al.,
"Tensor Random Projection for Low Memory Dimension Reduction", 2021, arXiv:2105.00105. On the digits MLP both give TRAK
the same scores; on the CIFAR-2 CNN (256 dimensions, mean of four draws) this one .154 and a dense P .173.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import BLOCK_BYTES
from recipe.layers import Factors, Lookup, Matrix, Pass
from recipe.setting import Measure, Parameters, Setting

TILE = 4096  # parameters whose rows of a dense P are drawn together


@dataclass(frozen=True, eq=False)
class Numbers:
    """Standard normal numbers by name, kept while they fit `BLOCK_BYTES`, else drawn again.

    Args:
        seed: other seeds give other numbers.

    Example:
        >>> torch.equal(Numbers(3).normal("a", 4, 2), Numbers(3).normal("a", 4, 2))
        True
    """

    seed: int
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def normal(self, name: str, rows: int, columns: int) -> Tensor:
        """`(rows, columns)` in float32 on the CPU."""
        if name in self._kept:
            return self._kept[name]
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
        if sum(t.nbytes for t in self._kept.values()) + drawn.nbytes <= BLOCK_BYTES:
            self._kept[name] = drawn
        return drawn


class Projection:
    """A linear map of gradients `(b, p)` to features `(b, k)`; this one is the identity.

    Args:
        setting: whose parameters.
        k: features an example.
    """

    def __init__(self, setting: Setting, k: int) -> None:
        self.setting, self.k = setting, k

    def vectors(self, vectors: Tensor) -> Tensor:
        """Features `(b, k)` of vectors over the parameters `(b, p)`."""
        return vectors

    def pulled(self, run: Pass, cotangent: Tensor) -> Tensor:
        """Features `(b, k)` of the gradients of `<cotangent, prediction>`."""
        return self.vectors(run.flat(run.pull(cotangent)))

    def gradients(self, at: Parameters, batch: Batch, measure: Measure) -> Tensor:
        """Features `(b, columns, k)` of the gradients of what is measured on each example, differentiable in the batch.

        By the factors of the model's layers, or, where one is not known, example by example under `vmap`.
        """
        return self.predicted(at, batch, measure)[1]

    def predicted(self, at: Parameters, batch: Batch, measure: Measure) -> tuple[Tensor, Tensor]:
        """The prediction on a batch, and `gradients`, from one pass."""
        setting = self.setting
        if not setting.layers.covered:
            return setting.predict(at, batch), self._one_by_one(at, batch, measure)
        run = setting.layers.forward(at, batch)

        def total(column: int, z: Tensor) -> Tensor:
            return measure(z, batch).reshape(run.b, -1)[:, column].sum()

        live = any(t.requires_grad for t in batches.tensors(batch))
        z = run.prediction if live else run.prediction.detach()
        columns = range(measure(z.detach(), batch).reshape(run.b, -1).shape[1])
        return z, torch.stack([self.pulled(run, run.slope(partial(total, c))) for c in columns], 1)

    def _one_by_one(self, at: Parameters, batch: Batch, measure: Measure) -> Tensor:
        setting = self.setting

        def values(theta: Tensor, one: Batch) -> Tensor:
            one = batches.example(one)
            return measure(setting.predict(setting.unflat(theta, at), one), one).reshape(-1)

        gradients = vmap(jacrev(values), in_dims=(None, 0))(setting.flat(at), batch)  # (b, columns, p)
        return self.vectors(gradients.flatten(0, 1)).view(*gradients.shape[:2], -1)

    def blocks(self, batch: Batch) -> list[Batch]:
        """The batch in parts that go through the model together, within `BLOCK_BYTES` or so."""
        if not self.setting.layers.covered:
            return calculus.blocks(self.setting, batch)
        rows = max(1, BLOCK_BYTES // (16 * self._width + 16 * self.k))
        return [batches.take(batch, slice(i, i + rows)) for i in range(0, batches.size(batch), rows)]

    @cached_property
    def _width(self) -> int:
        """The numbers that one example leaves in its factors."""
        run = self.setting.layers.forward(self.setting.initial(0), batches.take(self.setting.probe, slice(0, 1)))
        return sum(f.inputs.numel() + f.outputs.numel() for f in run.pull(torch.zeros_like(run.prediction)))


class Dense(Projection):
    """Independent normal numbers, drawn tile by tile: for models whose layers are not all known.

    Args:
        setting: whose parameters.
        k: features an example.
        numbers: where they come from.
    """

    def __init__(self, setting: Setting, k: int, numbers: Numbers) -> None:
        super().__init__(setting, k)
        self._numbers = numbers

    def vectors(self, vectors: Tensor) -> Tensor:
        """See `Projection.vectors`."""
        found = vectors.new_zeros(len(vectors), self.k)
        for i, part in enumerate(vectors.split(TILE, 1)):
            found = found + part @ self._numbers.normal(f"tile {i}", part.shape[1], self.k).to(vectors)
        return found / self.k**0.5


class Factored(Dense):
    """Products of two normal numbers for weights, from the factors of their gradients, which are never formed."""

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        """The weights that are matrices, as `(R, C)`."""
        layers = [layer for layer in self.setting.layers.layers if isinstance(layer, Matrix) and layer.weight]
        shapes = {str(layer.weight): layer.module.weight.shape for layer in layers}
        return {name: (shape[0], shape[1:].numel()) for name, shape in shapes.items()}

    def vectors(self, vectors: Tensor) -> Tensor:
        """See `Projection.vectors`."""
        found = vectors.new_zeros(len(vectors), self.k)
        for name, part in self.setting.split(vectors).items():
            if name in self._shapes:
                u, v = self._pair(name, part)
                found = found + ((part.view(-1, *self._shapes[name]) @ v) * u).sum(1)
            else:
                found = found + self._plain(name, part)
        return found / self.k**0.5

    def pulled(self, run: Pass, cotangent: Tensor) -> Tensor:
        """See `Projection.pulled`."""
        found = cotangent.new_zeros(run.b, self.k)
        for factors in run.pull(cotangent):
            for part in self._parts(factors):
                found = found + part
        return found / self.k**0.5

    def _parts(self, factors: Factors) -> list[Tensor]:
        """Features of the parameters of a layer."""
        layer, inputs, outputs = factors
        parts = [] if layer.bias is None else [self._plain(layer.bias, outputs.sum(1))]
        if layer.weight is None:
            return parts
        if not isinstance(layer, Matrix):
            return [*parts, self._plain(layer.weight, layer.product(inputs, outputs))]
        return [*parts, _products(*rows_and_columns(layer, inputs, outputs), *self._pair(layer.weight, outputs))]

    def _pair(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = self._shapes[name]
        u, v = (self._numbers.normal(f"{name} {side}", size, self.k) for side, size in (("rows", rows), ("cols", cols)))
        return u.to(like), v.to(like)

    def _plain(self, name: str, gradients: Tensor) -> Tensor:
        """Features of a parameter that is no matrix, from its gradients `(b, size)`."""
        return gradients @ self._numbers.normal(name, gradients.shape[1], self.k).to(gradients)


def projection(setting: Setting, k: int, seed: int) -> Projection:
    """A projection to k features an example; the identity where k is no less than p."""
    if k >= setting.p:
        return Projection(setting, setting.p)
    return (Factored if setting.layers.covered else Dense)(setting, k, Numbers(seed))


def rows_and_columns(layer: Matrix, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the weight's gradient, in the order of its axes; indices stay indices."""
    if isinstance(layer, Lookup) and layer.module.padding_idx is not None:
        outputs = outputs * (inputs != layer.module.padding_idx).unsqueeze(2)
    return (inputs, outputs) if layer.input_first else (outputs, inputs)


def _products(rows: Tensor, cols: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`sum_t (u^T rows_t) * (v^T cols_t)`, `(b, k)`; indices stand for one-hot rows or columns."""
    b, T = rows.shape[:2]
    k, hot = u.shape[1], rows.ndim == 2 or cols.ndim == 2
    # By positions, or by the gradient itself where the positions are many: two orders of the same sums.
    by_gradient = not hot and T * k * (len(u) + len(v)) > T * len(u) * len(v) + k * len(u) * len(v)
    if by_gradient and len(u) > len(v):
        rows, cols, u, v = cols, rows, v, u
    step = max(1, BLOCK_BYTES // (16 * k * (len(u) if by_gradient else T)))
    found = []
    for r, c in zip(rows.split(step), cols.split(step), strict=True):
        if by_gradient:
            found.append(((r.transpose(1, 2) @ c @ v) * u).sum(1))
        else:
            found.append((times(r, u) * times(c, v)).sum(1))
    return torch.cat(found) if b else u.new_zeros(0, k)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix` for `(b, T, d)`; indices `(b, T)` stand for one-hot vectors."""
    return matrix[x] if x.ndim == 2 else x @ matrix
