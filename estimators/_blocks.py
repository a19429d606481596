"""A matrix over the parameters in independent blocks, each a weight with its bias in a Kronecker-factored eigenbasis.

The gradient of a layer on one example is `G = sum_t rows_t cols_t^T` (`recipe/layers.py`); with `Q_R`, `Q_C` the
eigenvectors of the second moments of rows and columns, the second moment of G is taken to be diagonal in the basis
`Q_R x Q_C`. Scales, shifts and biases without a matrix have a full block.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.layers import Factors, Layer, Lookup, Matrix
from recipe.setting import Parameters, Setting

WIDEST = 8192  # a factor that is wider keeps its coordinates as its basis

Pulls = Sequence[list[Factors]]  # the factors of one part of the data for every label: alike but for the outputs


class Block:
    """Parameters that are taken to be independent of all others; `spectrum` are its eigenvalues."""

    names: tuple[str, ...]
    spectrum: Tensor


class MatrixBlock(Block):
    """A weight `(R, C)`, with the bias of its layer as one more input where it has one.

    Args:
        weight: its name.
        bias: the name of the bias, or None.
        layers: that use the weight.
    """

    def __init__(self, weight: str, bias: str | None, layers: tuple[Matrix, ...]) -> None:
        self.weight, self.bias, self.layers = weight, bias, layers
        self.names = (weight,) if bias is None else (weight, bias)
        self.input_first = layers[0].input_first
        shape = layers[0].module.weight.shape
        self.shape = (shape[0], shape[1:].numel())
        whole = [
            d + (bias is not None and first == self.input_first)
            for d, first in zip(self.shape, (True, False), strict=True)
        ]
        hot = any(isinstance(layer, Lookup) for layer in layers)  # the rows are a vocabulary: diagonal
        self._free = [whole[0] > WIDEST or hot, whole[1] > WIDEST]
        self._moments: list[Any] = [0.0, 0.0]  # of rows and of columns
        self._count: Any = 0.0
        self._bases: list[Tensor | None] = [None, None]
        self._scale: list[Tensor] | None = None  # of rows and of columns
        self.spectrum = layers[0].module.weight.new_zeros(whole)

    def rescale(self, parts: Parameters) -> None:
        """Before anything is fitted: take the scale of the block from that of all parameters, `(1, size)` each."""
        logs = self.matrix(parts)[0].log()  # so that a few that are huge leave the others alone
        self._scale = [(logs.mean(1 - side) - logs.mean() / 2).exp() for side in (0, 1)]

    def add_moments(self, pulls: Pulls, shares: Tensor) -> None:
        """Second moments of rows and columns; those of the inputs are the same for every label."""
        for label, factors in enumerate(pulls):
            for layer, inputs, outputs in self.uses(factors):
                self._add_moment(1 - _inward(layer), outputs, shares, one=False)
                if label == 0:
                    self._count = self._count + shares.sum() * inputs.shape[1]
                    self._add_moment(_inward(layer), inputs, shares, one=self.bias is not None)

    def decompose(self) -> None:
        """Eigenvectors of both factors; the products of their eigenvalues are K-FAC's spectrum."""
        if not isinstance(self._count, Tensor):
            return  # a layer that the model does not call
        values = []
        for side, moment in enumerate(self._moments):
            scale = 1.0 if self._scale is None else self._scale[side]
            if self._free[side]:
                values.append(moment * scale**2)
            else:
                scaled = moment if self._scale is None else self._scale[side][:, None] * moment * scale
                eigenvalues, self._bases[side] = eigh(scaled, self.weight)
                values.append(eigenvalues)
        self.spectrum = (values[0][:, None] * values[1][None, :] / self._count).clamp_min(0)

    def reset(self) -> None:
        """Before the eigenvalues are fitted."""
        self.spectrum = torch.zeros_like(self.spectrum)

    def empty(self) -> "MatrixBlock":
        """The same in the same basis, without what was added."""
        other = copy.copy(self)
        other._moments, other._count, other.spectrum = [0.0, 0.0], 0.0, torch.zeros_like(self.spectrum)
        return other

    @property
    def sums(self) -> Any:
        """What was added."""
        return *self._moments, self._count, self.spectrum

    def absorb(self, sums: Any) -> None:
        """Add the sums of another part of the data."""
        *moments, count, spectrum = sums
        self._moments = [_plus(mine, theirs) for mine, theirs in zip(self._moments, moments, strict=True)]
        self._count, self.spectrum = _plus(self._count, count), self.spectrum + spectrum

    def add_eigenvalues(self, pulls: Pulls, shares: Tensor) -> None:
        """Second moments of the gradients in the basis of the factors."""
        uses = [list(self.uses(factors)) for factors in pulls]
        if all(len(use) == 1 and single(*use[0]) for use in uses):
            # The square of a product is the product of squares, and the inputs are the same for every label.
            layer, inputs, _ = uses[0][0]
            inward = self._turned(_inward(layer), inputs, one=self.bias is not None)[:, 0].square()
            outward = sum(self._turned(1 - _inward(layer), use[0][2])[:, 0].square() for use in uses)
            rows, cols = (inward, outward) if layer.input_first else (outward, inward)
            self.spectrum += (rows * shares[:, None]).T @ torch.as_tensor(cols)
            return
        for use in uses:
            if use:
                gradients = torch.as_tensor(sum(self._turned_product(*factors) for factors in use))
                self.spectrum += (shares @ gradients.square().flatten(1)).view_as(self.spectrum)

    def apply(self, parts: Parameters, values: Tensor) -> Parameters:
        """The parameters of the block in k vectors, times the matrix with these eigenvalues."""
        v = self._unrotate(self._rotate(self.matrix(parts)) * values)
        if self.bias is None:
            return {self.weight: v.flatten(1)}
        axis = 1 if self.input_first else 2
        weight, bias = v.split([self.shape[axis - 1], 1], axis)
        return {self.weight: weight.flatten(1), self.bias: bias.squeeze(axis)}

    def matrix(self, parts: Parameters) -> Tensor:
        """The parameters of the block in k vectors, `(k, R, C)` with the bias."""
        v = parts[self.weight].reshape(-1, *self.shape)
        if self.bias is None:
            return v
        axis = 1 if self.input_first else 2
        return torch.cat([v, parts[self.bias].unsqueeze(axis)], axis)

    def uses(self, factors: list[Factors]) -> Iterator[tuple[Matrix, Tensor, Tensor]]:
        """Those of the factors that are about the weight."""
        for layer, inputs, outputs in factors:
            if isinstance(layer, Matrix) and layer in self.layers:
                yield layer, inputs, outputs

    def basis(self, side: int) -> Tensor | None:
        """The eigenvectors of rows (0) or columns (1); None where they are the coordinates."""
        return self._bases[side]

    def _add_moment(self, side: int, x: Tensor, shares: Tensor, one: bool) -> None:
        """`one`: with the bias's input, which is 1, behind the others."""
        if x.ndim == 2:  # indices
            moment = torch.zeros(self.spectrum.shape[side]).to(shares)
            moment.index_add_(0, x.flatten(), shares.repeat_interleave(x.shape[1]))
        elif self._free[side]:
            moment = torch.einsum("b,btd->d", shares, x.square())
            moment = F.pad(moment, (0, 1), value=float(shares.sum() * x.shape[1])) if one else moment
        else:
            even = bool((shares == shares[0]).all())  # then one pass over x less
            flat = x.flatten(0, 1)
            weighted = flat if even else (x * shares.view(-1, 1, 1)).flatten(0, 1)
            moment = weighted.T @ flat
            if one:
                total = weighted.new_ones(1, len(flat)) @ weighted  # faster than a sum over the first axis
                corner = shares.sum().view(1, 1) / (shares[0] if even else 1) * x.shape[1]
                moment = torch.cat([torch.cat([moment, total]), torch.cat([total, corner], 1).T], 1)
            moment = moment * shares[0] if even else moment
        self._moments[side] = self._moments[side] + moment

    def _turn(self, side: int) -> Tensor | None:
        """What takes a side into the basis, its scale included."""
        basis, scale = self._bases[side], None if self._scale is None else self._scale[side]
        if scale is None:
            return basis
        return scale.diag() if basis is None else scale[:, None] * basis

    def _turned(self, side: int, x: Tensor, one: bool = False) -> Tensor:
        """Rows or columns `(b, T, d)` in the basis; `one` as above."""
        turn = self._turn(side)
        if turn is None:
            return F.pad(x, (0, 1), value=1.0) if one else x
        return x @ turn[:-1] + turn[-1] if one else x @ turn

    def _turned_product(self, layer: Matrix, inputs: Tensor, outputs: Tensor) -> Tensor:
        """A weight's gradients `(b, R, C)` in the basis, with the bias's."""
        inward, one = _inward(layer), self.bias is not None
        outputs = self._turned(1 - inward, outputs)
        if not isinstance(layer, Lookup) and outputs.shape[1] <= outputs.shape[2]:  # fewer positions than outputs
            return layer.product(self._turned(inward, inputs, one), outputs)
        gradients, turn = layer.product(inputs, outputs), self._turn(inward)
        if one:
            gradients = torch.cat([gradients, outputs.sum(1).unsqueeze(inward + 1)], inward + 1)
        if turn is None:
            return gradients
        return gradients @ turn if inward == 1 else turn.T @ gradients

    def _rotate(self, v: Tensor) -> Tensor:
        rows, cols = self._bases
        v = v if rows is None else rows.T @ v
        return v if cols is None else v @ cols

    def _unrotate(self, v: Tensor) -> Tensor:
        rows, cols = self._bases
        v = v if rows is None else rows @ v
        return v if cols is None else v @ cols.T


class VectorBlock(Block):
    """Parameters without a matrix: their whole Fisher block.

    Args:
        names: of the parameters.
        layer: that they belong to.
    """

    def __init__(self, names: tuple[str, ...], layer: Layer) -> None:
        self.names, self.layer = names, layer
        own = {layer.weight: "weight", layer.bias: "bias"}
        tensors = [getattr(layer.module, own[name]) for name in names]
        self.spectrum = tensors[0].new_zeros(sum(t.numel() for t in tensors))
        self._moment: Any = 0.0
        self._basis: Tensor | None = None
        self._scale: Tensor | None = None

    def rescale(self, parts: Parameters) -> None:
        """See `MatrixBlock.rescale`; here the scale is whole."""
        self._scale = torch.cat([parts[name][0] for name in self.names])

    def add_moments(self, pulls: Pulls, shares: Tensor) -> None:
        """Second moments of the gradients."""
        for factors in pulls:
            uses = [f.layer.gradients(f.inputs, f.outputs) for f in factors if f.layer is self.layer]
            if uses:
                g = torch.cat([sum(use[name] for use in uses) for name in self.names], 1)  # type: ignore[misc]
                self._moment = self._moment + (g * shares[:, None]).T @ g

    def decompose(self) -> None:
        """Eigenvectors and eigenvalues; exact, so that nothing is left to correct."""
        if not isinstance(self._moment, Tensor):
            return  # a layer that the model does not call
        scaled = self._moment if self._scale is None else self._scale[:, None] * self._moment * self._scale
        spectrum, self._basis = eigh(scaled, ", ".join(self.names))
        self.spectrum = spectrum.clamp_min(0)

    def reset(self) -> None:
        """Nothing is fitted anew."""

    def empty(self) -> "VectorBlock":
        """See `MatrixBlock.empty`."""
        other = copy.copy(self)
        other._moment = 0.0
        return other

    @property
    def sums(self) -> Any:
        """See `MatrixBlock.sums`."""
        return self._moment

    def absorb(self, sums: Any) -> None:
        """See `MatrixBlock.absorb`."""
        self._moment = _plus(self._moment, sums)

    def add_eigenvalues(self, pulls: Pulls, shares: Tensor) -> None:
        """Nothing is fitted anew."""

    def apply(self, parts: Parameters, values: Tensor) -> Parameters:
        """See `MatrixBlock.apply`."""
        v = torch.cat([parts[name] for name in self.names], 1)
        v = v * values if self._basis is None else (v @ self._basis * values) @ self._basis.T
        return dict(zip(self.names, v.split([parts[name].shape[1] for name in self.names], 1), strict=True))


def blocks_of(setting: Setting) -> list[MatrixBlock | VectorBlock]:
    """The trained parameters in blocks: matrices with the bias of their layer, and what is left, layer by layer."""
    weights: dict[str, list[Matrix]] = {}
    for layer in setting.layers.layers:
        if isinstance(layer, Matrix) and layer.weight is not None:
            weights.setdefault(layer.weight, []).append(layer)
    found: list[MatrixBlock | VectorBlock] = []
    for name, layers in weights.items():
        bias = layers[0].bias if len(layers) == 1 else None  # the bias of shared weights stands alone
        found.append(MatrixBlock(name, bias, tuple(layers)))
    taken = {name for block in found for name in block.names}
    for layer in setting.layers.layers:
        names = tuple(name for name in (layer.weight, layer.bias) if name is not None and name not in taken)
        taken |= set(names)
        if names:
            found.append(VectorBlock(names, layer))
    return found


def single(layer: Layer, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether an example uses the layer once, so that its gradient is a product of one row and one column."""
    return outputs.shape[1] == 1 and not isinstance(layer, Lookup)


def _plus(mine: Any, theirs: Any) -> Any:
    """The sum, of which a part to which nothing was added is the number 0."""
    return mine if isinstance(theirs, float) else theirs if isinstance(mine, float) else mine + theirs


def _inward(layer: Matrix) -> int:
    """The side of a layer's inputs: rows (0) or columns (1)."""
    return 0 if layer.input_first else 1


def eigh(moment: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of second moments.

    Raises:
        ValueError: moments that are not finite.
    """
    if not moment.isfinite().all():
        raise ValueError(
            f"The gradients of {name} are not finite: the model has diverged, or its loss overflows. Look at the "
            "trained parameters before anything is attributed."
        )
    return torch.linalg.eigh(0.5 * (moment + moment.T))
