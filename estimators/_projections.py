"""Random projections of gradients, `phi = P^T g`, that keep their inner products.

    E[P P^T] = 1,        so that        E <phi, phi'> = <g, g'>        with an error of about |g| |g'| / sqrt(k)

for `P (p, k)` (Johnson & Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984). The numbers in
P follow from a seed and from the parameter that they belong to: batches, types and devices change nothing.

`ByLayers` goes layer by layer, in one of two ways. A weight `(R, C)` that an example uses once has the gradient
`rows cols^T` (`recipe/layers.py`), and gets the columns `u_m v_m^T`, both normal, so that

    phi_m = (u_m . rows) (v_m . cols) / sqrt(k)

takes R + C multiplications where a dense column takes R C, and the gradient is never formed. Where it is used at many
positions, and has no more entries than those columns have, forming the gradient is cheaper: every entry is added, with
a random sign, to one random feature, which takes one addition an entry whatever k is, and keeps inner products as a
dense P does (the variance of `<phi, phi'>` is at most `(|g|^2 |g'|^2 + <g, g'>^2) / k`; products of two normals have
more).

Reference: Sun et al., "Tensor Random Projection for Low Memory Dimension Reduction", 2021, arXiv:2105.00105; Charikar,
Chen & Farach-Colton, "Finding Frequent Items in Data Streams", 2002; Weinberger et al., "Feature Hashing for Large
Scale Multitask Learning", 2009, arXiv:0902.2206.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from estimators._blocks import single
from estimators._draws import generator
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import BLOCK_BYTES, CACHE_BYTES
from recipe.layers import Factors, Lookup, Matrix, Pass
from recipe.setting import Measure, Parameters, Setting

TILE = 4096  # parameters whose rows of a dense P are drawn together


@dataclass(frozen=True, eq=False)
class Numbers:
    """Random numbers by name, kept while they fit `BLOCK_BYTES`, else drawn again.

    Args:
        seed: other seeds give other numbers.

    Example:
        >>> torch.equal(Numbers(3).normal("a", 4, 2), Numbers(3).normal("a", 4, 2))
        True
    """

    seed: int
    _kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def normal(self, name: str, rows: int, columns: int) -> Tensor:
        """Standard normal ones `(rows, columns)`, in float32 on the CPU."""
        return self._drawn(name, partial(torch.randn, rows, columns, dtype=torch.float32))

    def below(self, name: str, most: int, size: int) -> Tensor:
        """Whole ones `(size,)` from 0 on and smaller than `most`, all as likely, on the CPU."""
        return self._drawn(name, partial(torch.randint, most, (size,)))

    def _drawn(self, name: str, draw: Callable[..., Tensor]) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        drawn = draw(generator=generator(self.seed, name))
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
        live = any(t.requires_grad for t in batches.tensors(batch))
        slopes = run.slopes(lambda z: measure(z, batch))
        z = run.prediction if live else run.prediction.detach()
        return z, torch.stack([self.pulled(run, slope) for slope in slopes], 1)

    def _one_by_one(self, at: Parameters, batch: Batch, measure: Measure) -> Tensor:
        setting = self.setting

        def values(theta: Tensor, one: Batch) -> Tensor:
            one = batches.example(one)
            return measure(setting.predict(setting.unflat(theta, at), one), one).reshape(-1)

        with calculus.explained(setting):
            gradients = vmap(jacrev(values), in_dims=(None, 0))(setting.flat(at), batch)  # (b, columns, p)
        return self.vectors(gradients.flatten(0, 1)).view(*gradients.shape[:2], -1)

    def blocks(self, batch: Batch) -> list[Batch]:
        """The batch in parts that go through the model together and stay in the cache."""
        if not self.setting.layers.covered:
            return calculus.blocks(self.setting, batch)
        rows = max(1, CACHE_BYTES // (4 * (self._width + 2 * self.k)))
        return [batches.take(batch, slice(i, i + rows)) for i in range(0, batches.size(batch), rows)]

    @property
    def _width(self) -> int:
        """The numbers that one example leaves behind."""
        return sum(f.inputs.numel() + f.outputs.numel() for f in self._factors)

    @cached_property
    def _factors(self) -> list[Factors]:
        """Those of one example, for their shapes."""
        run = self.setting.layers.forward(self.setting.initial(0), batches.take(self.setting.probe, slice(0, 1)))
        return run.pull(torch.zeros_like(run.prediction))


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


class ByLayers(Dense):
    """Layer by layer: products of two normal numbers for weights that are used once, entries thrown together else."""

    def vectors(self, vectors: Tensor) -> Tensor:
        """See `Projection.vectors`."""
        thrown, found = vectors.new_zeros(len(vectors), 2 * self.k), []
        for name, part in self.setting.split(vectors).items():
            if name in self._shapes:
                u, v = self._pair(name, part)
                found.append(((part.view(-1, *self._shapes[name]) @ v) * u).sum(1))
            else:
                thrown.index_add_(1, self._places(name, part), part)
        return self._sum(thrown, found)

    def pulled(self, run: Pass, cotangent: Tensor) -> Tensor:
        """See `Projection.pulled`."""
        thrown, found = cotangent.new_zeros(run.b, 2 * self.k), []
        for layer, inputs, outputs in run.pull(cotangent):
            if layer.weight in self._shapes and isinstance(layer, Matrix):
                pair = self._pair(layer.weight, outputs)
                found.append(_products(*rows_and_columns(layer, inputs, outputs), *pair))
            elif isinstance(layer, Lookup) and layer.weight:  # of most entries the gradient is zero
                index, gradients = rows_and_columns(layer, inputs, outputs)
                places = self._places(layer.weight, outputs).view(layer.module.weight.shape)
                thrown.scatter_add_(1, places[index].flatten(1), gradients.flatten(1))
            elif layer.weight:
                gradients = layer.product(inputs, outputs).flatten(1)
                thrown.index_add_(1, self._places(layer.weight, gradients), gradients)
            if layer.bias:
                gradients = outputs.sum(1)
                thrown.index_add_(1, self._places(layer.bias, gradients), gradients)
        return self._sum(thrown, found)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        """The weights that are projected by their factors, as `(R, C)`."""
        found = {}
        for factors in self._factors:
            layer = factors.layer
            if isinstance(layer, Matrix) and layer.weight:
                shape = layer.module.weight.shape
                R, C = shape[0], shape[1:].numel()
                if single(*factors) or self.k * (R + C) < R * C:
                    found[layer.weight] = (R, C)
        return found

    @property
    def _width(self) -> int:
        layers = [f.layer for f in self._factors if isinstance(f.layer, Matrix) and not isinstance(f.layer, Lookup)]
        formed = [layer.module.weight.numel() for layer in layers if layer.weight and layer.weight not in self._shapes]
        return super()._width + max(formed, default=0)

    def _pair(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = self._shapes[name]
        u, v = (self._numbers.normal(f"{name} {side}", size, self.k) for side, size in (("rows", rows), ("cols", cols)))
        return u.to(like) / self.k**0.5, v.to(like)

    def _places(self, name: str, like: Tensor) -> Tensor:
        """Where every entry of a parameter goes: to one of k features, or, k further, what is taken away from it."""
        return self._numbers.below(name, 2 * self.k, self._sizes[name]).to(like.device)

    def _sum(self, thrown: Tensor, found: list[Tensor]) -> Tensor:
        return torch.stack([thrown[:, : self.k] - thrown[:, self.k :], *found]).sum(0)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: t.shape[1] for name, t in self.setting.split(torch.zeros(1, self.setting.p)).items()}


def projection(setting: Setting, k: int, seed: int) -> Projection:
    """A projection to k features an example; the identity where k is no less than p."""
    if k >= setting.p:
        return Projection(setting, setting.p)
    return (ByLayers if setting.layers.covered else Dense)(setting, k, Numbers(seed))


def rows_and_columns(layer: Matrix, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of the weight's gradient, in the order of its axes; indices stay indices."""
    if isinstance(layer, Lookup) and layer.module.padding_idx is not None:
        outputs = outputs * (inputs != layer.module.padding_idx).unsqueeze(2)
    return (inputs, outputs) if layer.input_first else (outputs, inputs)


def _products(rows: Tensor, cols: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """`sum_t (u^T rows_t) * (v^T cols_t)`, `(b, k)`; indices stand for one-hot rows or columns."""
    step = max(1, BLOCK_BYTES // (16 * u.shape[1] * rows.shape[1]))
    parts = zip(rows.split(step), cols.split(step), strict=True)
    found = [(times(r, u) * times(c, v)).sum(1) for r, c in parts]
    return torch.cat(found) if len(rows) else u.new_zeros(0, u.shape[1])


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix` for `(b, T, d)`; indices `(b, T)` stand for one-hot vectors."""
    return matrix[x] if x.ndim == 2 else x @ matrix
