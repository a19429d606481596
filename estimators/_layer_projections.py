"""Projections of gradients layer by layer, `U^T G V`, from the factors of G.

The gradient of a layer on one example is `G = sum_t rows_t cols_t^T` (`recipe/layers.py`). With a few columns `U`, `V`
for each side it becomes `sum_t (U^T rows_t) (V^T cols_t)^T`, and G is never formed. The bias of a layer is one more
input. What is no matrix, such as a scale, is a vector with one side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._blocks import WIDEST, MatrixBlock, VectorBlock, blocks_of
from estimators._draws import generator
from estimators._fisher import Fisher
from estimators._kronecker import sample
from estimators._projections import Numbers, Projection, rows_and_columns, times
from recipe import batch as batches
from recipe.calculus import Point
from recipe.layers import Factors, Lookup, Matrix, Pass
from recipe.setting import Parameters, Setting

Step = tuple[Pass, Tensor, Tensor, bool]  # a pass, a cotangent, shares (b,), and whether it is the pass's first


@dataclass(frozen=True, eq=False)
class MatrixSketch:
    """A weight, with the bias of its layer: `U^T G V`.

    Args:
        block: of parameters.
        sides: `U (R, u)` and `V (C, v)`.
    """

    block: MatrixBlock
    sides: tuple[Tensor, Tensor]

    @property
    def size(self) -> int:
        """Features an example."""
        return self.sides[0].shape[1] * self.sides[1].shape[1]

    def features(self, factors: list[Factors]) -> Tensor | None:
        """Features `(b, size)` of gradients; None where the model does not call the layer."""
        found = []
        for layer, pair in self.uses(factors):
            rows, cols = (self._kept(x, side, layer) for side, x in enumerate(pair))
            once = rows.shape[1] == 1  # a plain product beats a batch of matrix products
            found.append(rows[:, 0, :, None] * cols[:, 0, None, :] if once else rows.transpose(1, 2) @ cols)
        return _sum(found)

    def _kept(self, x: Tensor, side: int, layer: Matrix) -> Tensor:
        columns = self.sides[side]
        if self.has_bias(side, layer):
            return times(x, columns[:-1]) + columns[-1]
        return times(x, columns)

    def has_bias(self, side: int, layer: Matrix) -> bool:
        """Whether a side has one more input, which is 1."""
        return self.block.bias is not None and (side == 0) == layer.input_first

    def vectors(self, parts: Parameters) -> Tensor:
        """Features `(b, size)` of vectors over the parameters, by name."""
        block, (u, v) = self.block, self.sides
        matrices = parts[block.weight].reshape(-1, *block.shape)
        if block.bias is not None:
            axis = 1 if block.input_first else 2
            matrices = torch.cat([matrices, parts[block.bias].unsqueeze(axis)], axis)
        return (u.T @ matrices @ v).flatten(1)

    def uses(self, factors: list[Factors]) -> Iterator[tuple[Matrix, tuple[Tensor, Tensor]]]:
        """Rows and columns of every use of the weight, without the 1 for the bias."""
        for layer, inputs, outputs in factors:
            if isinstance(layer, Matrix) and layer in self.block.layers:
                yield layer, rows_and_columns(layer, inputs, outputs)


@dataclass(frozen=True, eq=False)
class VectorSketch:
    """Parameters without a matrix: `U^T g`.

    Args:
        block: of parameters.
        side: `U (size, u)`.
    """

    block: VectorBlock
    side: Tensor

    @property
    def size(self) -> int:
        """See `MatrixSketch.size`."""
        return self.side.shape[1]

    def features(self, factors: list[Factors]) -> Tensor | None:
        """See `MatrixSketch.features`."""
        return _sum([self._gradients(f) @ self.side for f in factors if f.layer is self.block.layer])

    def vectors(self, parts: Parameters) -> Tensor:
        """See `MatrixSketch.vectors`."""
        return torch.cat([parts[name] for name in self.block.names], 1) @ self.side

    def _gradients(self, factors: Factors) -> Tensor:
        layer, inputs, outputs = factors
        return torch.cat(
            [outputs.sum(1) if name == layer.bias else layer.product(inputs, outputs) for name in self.block.names], 1
        )


Sketches = list[MatrixSketch | VectorSketch]


class LayerProjection(Projection):
    """The features of all layers, one after the other.

    Args:
        setting: whose parameters.
        sketches: of its layers.
    """

    def __init__(self, setting: Setting, sketches: Sketches) -> None:
        self._sketches, self.sizes = sketches, [sketch.size for sketch in sketches]
        super().__init__(setting, sum(self.sizes))

    def vectors(self, vectors: Tensor) -> Tensor:
        """See `Projection.vectors`."""
        parts = self.setting.split(vectors)
        return torch.cat([sketch.vectors(parts) for sketch in self._sketches], 1)

    def pulled(self, run: Pass, cotangent: Tensor) -> Tensor:
        """See `Projection.pulled`."""
        factors, found = run.pull(cotangent), []
        for sketch, size in zip(self._sketches, self.sizes, strict=True):
            features = sketch.features(factors)
            found.append(cotangent.new_zeros(run.b, size) if features is None else features)
        return torch.cat(found, 1)


class Basis(Protocol):
    """Which columns are kept of each side of a layer."""

    def sketches(self, point: Point, fisher: Fisher, rank: int, numbers: Numbers) -> Sketches:
        """Of all layers, with at most `rank` columns a side."""


@dataclass(frozen=True)
class RandomBasis:
    """Orthonormal columns at random, scaled such that inner products are kept in expectation."""

    def sketches(self, point: Point, fisher: Fisher, rank: int, numbers: Numbers) -> Sketches:
        """See `Basis.sketches`."""
        setting, initial = point.setting, point.setting.initial(0)
        found: Sketches = []

        def side(name: str, width: int, most: int) -> Tensor:
            return _orthonormal(name, width, most, numbers).to(point.theta)

        for block in blocks_of(setting):
            if isinstance(block, MatrixBlock):
                R, C = block.spectrum.shape
                u, v = side(f"{block.weight} rows", R, rank), side(f"{block.weight} cols", C, rank)
                found.append(MatrixSketch(block, (u, v)))
            else:
                width = sum(initial[name].numel() for name in block.names)
                found.append(VectorSketch(block, side(block.names[0], width, rank**2)))
        return found


@dataclass(frozen=True)
class PrincipalBasis:
    """The leading eigenvectors of the second moments of rows and of columns, among examples that say enough.

    Random ones for vectors, for a vocabulary and for what is wider than `WIDEST`.
    """

    def sketches(self, point: Point, fisher: Fisher, rank: int, numbers: Numbers) -> Sketches:
        """See `Basis.sketches`."""
        start = RandomBasis().sketches(point, fisher, rank, numbers)
        moments = [_Moments(sketch, rank) for sketch in start if isinstance(sketch, MatrixSketch)]
        if any(moment.sums for moment in moments):
            some, _ = sample(point, draw=0)
            point = replace(point, weights=point.weights[some], data=batches.take(point.data, some))
            for run, cotangent, shares, first in passes(point, LayerProjection(point.setting, start), fisher, stage=0):
                factors = run.pull(cotangent)
                for moment in moments:
                    moment.add(factors, shares, first)
        leading = iter(moments)
        return [next(leading).principal(rank) if isinstance(sketch, MatrixSketch) else sketch for sketch in start]


def passes(point: Point, projection: Projection, fisher: Fisher, stage: int) -> Iterator[Step]:
    """For every block of data and label, the examples without weight left out."""
    setting, used = point.setting, point.shares.nonzero().squeeze(1)
    data, shares = batches.take(point.data, used), point.shares[used]
    draws = generator(getattr(fisher, "seed", 0), point.number, stage)
    start = 0
    for part in projection.blocks(data):
        run = setting.layers.forward(point.parameters, part)
        share = shares[start : start + run.b]
        start += run.b
        for k, cotangent in enumerate(fisher.cotangents(setting, run.prediction.detach(), part, draws)):
            yield run, cotangent, share, k == 0


class _Moments:
    """Second moments of the sides of a matrix that are wider than the rank, `sums` by side."""

    def __init__(self, sketch: MatrixSketch, rank: int) -> None:
        widths, block = sketch.block.spectrum.shape, sketch.block
        hot = any(isinstance(layer, Lookup) for layer in block.layers)  # the rows are a vocabulary
        wide = [side for side in (0, 1) if rank < widths[side] <= WIDEST and not (hot and side == 0)]
        self.sketch, self.sums = sketch, {side: block.spectrum.new_zeros(widths[side], widths[side]) for side in wide}

    def add(self, factors: list[Factors], shares: Tensor, first: bool) -> None:
        """Those of the inputs are the same for every label."""
        for layer, pair in self.sketch.uses(factors):
            for side in self.sums:
                if first or (side == 0) != layer.input_first:
                    x = F.pad(pair[side], (0, 1), value=1.0) if self.sketch.has_bias(side, layer) else pair[side]
                    self.sums[side] += (x * shares.view(-1, 1, 1)).flatten(0, 1).T @ x.flatten(0, 1)

    def principal(self, rank: int) -> MatrixSketch:
        """The sketch with the leading eigenvectors for sides."""
        u, v = (
            torch.linalg.eigh(self.sums[side])[1].flip(1)[:, :rank] if side in self.sums else old
            for side, old in enumerate(self.sketch.sides)
        )
        return MatrixSketch(self.sketch.block, (u, v))


def _orthonormal(name: str, width: int, most: int, numbers: Numbers) -> Tensor:
    """`(width, most)` orthonormal columns times `sqrt(width / most)`; the identity where there is room for it."""
    if width <= most:
        return torch.eye(width)
    return torch.linalg.qr(numbers.normal(name, width, most))[0] * (width / most) ** 0.5


def _sum(found: list[Tensor]) -> Tensor | None:
    return sum(found[1:], start=found[0]).flatten(1) if found else None
