"""Outputs' gradients times a Kronecker-factored inverse, and their products with examples by the factors of layers.

Where a layer is used once, gradients are products `r c^T` of what comes back and what enters, of an output j and of an
example i alike. With both turned into the eigenbasis, and `V` the eigenvalues of the inverse,

    <G_j, F^-1 G_i> = sum_ab V_ab (r_j r_i)_a (c_j c_i)_b,        V_ab = sum_k u_ka v_kb,

so that k pairs of vectors make it k products of `(m, R) (R, b)` and `(m, C) (C, b)` matrices, multiplied entry by
entry: no gradient is formed, and work falls from `R C` to `k (R + C)` for every output and example. Weighed by what
gradients are like, `V = 1 / (Lambda + l2)` needs few pairs and not all directions: 9 pairs on 111 x 52 directions for
the 128 x 65 weight of the digits MLP, 11 on 118 x 441 for the 128 x 785 of the MNIST MLP.

Where a layer is used at many positions, the gradient of an example is formed, layer by layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from estimators._blocks import MatrixBlock, single
from estimators._kronecker import KroneckerInverse
from recipe import calculus
from recipe.batch import Batch
from recipe.layers import Factors, Matrix
from recipe.setting import Parameters, Setting

ACCURACY = 2e-2  # of the products, relative and in the mean square, where gradients are like those of the training set
EXAMPLES = 512  # at once, so that their products stay in the cache


@dataclass(frozen=True, eq=False)
class Separated:
    """A block of a layer that is used once: `sum_k (rows_k rows^T) * (cols_k cols^T)`, in the leading directions.

    Args:
        block: of the layer.
        rows: of the outputs' gradients, `(k, m, R')`.
        cols: `(k, m, C')`.
        bases: what takes the rows `(R, R')` and columns `(C, C')` of an example there.
    """

    block: MatrixBlock
    rows: Tensor
    cols: Tensor
    bases: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, block: MatrixBlock, factors: Factors, pairs: tuple[Tensor, Tensor]) -> "Separated":
        """The block from the factors of the outputs' gradients, and pairs that sum to the inverse's eigenvalues."""
        sides, bases = [], []
        for side, (x, scales) in enumerate(zip(rows_and_columns(block, factors), pairs, strict=True)):
            kept, basis = scales.any(0), block.basis(side)
            bases.append((torch.eye(len(kept)).to(x) if basis is None else basis)[:, kept])
            sides.append(x @ bases[side] * scales[:, None, kept].to(x))
        return cls(block, sides[0], sides[1], (bases[0], bases[1]))

    def __call__(self, factors: Factors) -> Tensor:
        """Products `(m, b)` with examples."""
        rows, cols = (x @ basis for x, basis in zip(rows_and_columns(self.block, factors), self.bases, strict=True))
        parts = zip(rows.split(EXAMPLES), cols.split(EXAMPLES), strict=True)
        return torch.cat([self._products(r.T, c.T) for r, c in parts], 1)

    def _products(self, rows: Tensor, cols: Tensor) -> Tensor:
        total = rows.new_zeros(self.rows.shape[1], rows.shape[1])
        for u, v in zip(self.rows, self.cols, strict=True):
            total.addcmul_(u @ rows, v @ cols)
        return total


class FactoredQueries:
    """`grad f_j^T F^-1` for all outputs, ready for examples (see `estimators/_tangent.py`).

    Args:
        setting: whose outputs.
        theta: parameters of a trained model.
        inverse: of its curvature.
    """

    def __init__(self, setting: Setting, theta: Parameters, inverse: KroneckerInverse) -> None:
        self._setting, self._theta = setting, theta
        self._separated: dict[str, Separated] = {}  # by the weight's name
        found = _output_factors(setting, theta)
        calculus.check_gradient(setting, *(f.outputs for f in found))
        gradients: Parameters = {}
        for block, eigenvalues in inverse.decomposition.spectra:
            values, uses = inverse.of(eigenvalues), [f for f in found if f.layer.weight == block.names[0]]
            if isinstance(block, MatrixBlock) and len(block.layers) == 1 and len(uses) == 1 and single(*uses[0]):
                pairs = separate(values, eigenvalues)
                if len(pairs[0]) * sum(int(side.any(0).sum()) for side in pairs) < values.numel():
                    self._separated[block.weight] = Separated.of(block, uses[0], pairs)
                    continue
            if not gradients:
                gradients = _named(setting, found)
            gradients |= block.apply(gradients, values)
        done = {name for f in found if f.layer.weight in self._separated for name in (f.layer.weight, f.layer.bias)}
        self._dense = {name: t for name, t in gradients.items() if name not in done}
        moves = setting.algorithm.objective.l2 and setting.algorithm.objective.mean
        self._steady = self._along(inverse, found) if moves else found[0].outputs.new_zeros(len(found[0].outputs))

    def examples(self, batch: Batch) -> Tensor:
        """Products `(m, b)` with the gradients of the examples' losses, differentiable in them."""
        run = self._setting.layers.forward(self._theta, batch)
        factors = run.pull(*run.slopes(lambda z: self._setting.loss(z, batch)))
        products = [self._separated[f.layer.weight](f) for f in factors if f.layer.weight in self._separated]
        rest = run.named([f for f in factors if f.layer.weight not in self._separated])
        total = sum(products[1:], start=products[0]) if products else self._steady.new_zeros(len(self._steady), run.b)
        for name, gradients in rest.items():
            total = total.addmm(self._dense[name], gradients.T)
        return total

    def parameters(self) -> Tensor:
        """Products `(m,)` with the parameters themselves."""
        return self._steady

    def _along(self, inverse: KroneckerInverse, found: list[Factors]) -> Tensor:
        """From the outputs' gradients, since the inverse is symmetric."""
        moved = self._setting.split(inverse(self._setting.flat(self._theta)[None]))
        total = torch.zeros(len(found[0].outputs)).to(found[0].outputs)
        for layer, inputs, outputs in found:
            if layer.weight in self._separated:
                matrix = moved[str(layer.weight)].view(len(layer.module.weight), -1)
                matrix = matrix.T if isinstance(layer, Matrix) and layer.input_first else matrix
                total = total + ((outputs[:, 0] @ matrix) * inputs[:, 0]).sum(1)
                if layer.bias is not None:
                    total = total + outputs[:, 0] @ moved[layer.bias][0]
            else:
                for name, gradient in layer.gradients(inputs, outputs).items():
                    total = total + gradient @ moved[name][0]
        return total


def separate(values: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
    """The fewest pairs `u (k, R)`, `v (k, C)` whose products sum to `values (R, C)`, to `ACCURACY`.

    They are zero in directions that hardly count.

    Args:
        values: what is wanted.
        energies: `(R, C)`, how large squared gradients are there: errors weigh as much.

    Example:
        >>> u, v = separate(torch.outer(torch.arange(1., 4.), torch.ones(2)), torch.ones(3, 2))
        >>> len(u), (u.T @ v).round(decimals=6).tolist()
        (1, [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    """
    energies, values = energies.double(), values.double()
    squares = (values * energies).square()
    allowed = ACCURACY * squares.sum().sqrt()
    rows, cols = (_leading(squares.sum(side), (0.5 * allowed).square()) for side in (1, 0))
    a, b = ((side / side.max()).nan_to_num().clamp_min(1e-8) for side in (energies.sum(1), energies.sum(0)))
    U, S, V = torch.linalg.svd((a[:, None] * values * b)[rows][:, cols], full_matrices=False)
    u, v = values.new_zeros(len(S), len(rows)), values.new_zeros(len(S), len(cols))
    u[:, rows], v[:, cols] = (U * S).T / a[rows], V / b[cols]
    left, k = values.clone(), 0
    while k < len(S) and (left * energies).norm() > allowed:
        left -= torch.outer(u[k], v[k])
        k += 1
    return u[: max(k, 1)], v[: max(k, 1)]


def _leading(masses: Tensor, negligible: Tensor) -> Tensor:
    """Which are left, `(d,)` booleans, when the smallest are, that together are no more than a negligible mass."""
    order = masses.argsort()
    kept = torch.ones_like(masses, dtype=torch.bool)
    kept[order[masses[order].cumsum(0) <= negligible]] = False
    return kept


def rows_and_columns(block: MatrixBlock, factors: Factors) -> tuple[Tensor, Tensor]:
    """The rows `(b, R)` and columns `(b, C)` of a layer that is used once, the 1 of its bias among them."""
    outputs, inputs = factors.outputs[:, 0], factors.inputs[:, 0]
    if block.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    return (inputs, outputs) if block.input_first else (outputs, inputs)


def _output_factors(setting: Setting, theta: Parameters) -> list[Factors]:
    """Factors of the gradients of all m outputs, for every use of a layer."""
    columns = setting.m // setting.output_shape[0]
    found = []
    for part in calculus.factored(setting, setting.probe, copies=2 * columns):
        run = setting.layers.forward(theta, part)

        def measured(z: Tensor, part: Batch = part) -> Tensor:
            return setting.output(z, part)

        found.append([run.pull(slope) for slope in run.slopes(measured)])
    return [
        Factors(
            found[0][0][use].layer,
            torch.cat([torch.stack([column[use].inputs for column in part], 1).flatten(0, 1) for part in found]),
            torch.cat([torch.stack([column[use].outputs for column in part], 1).flatten(0, 1) for part in found]),
        )
        for use in range(len(found[0][0]))
    ]


def _named(setting: Setting, factors: list[Factors]) -> Parameters:
    """The outputs' gradients `(m, size)` by name, zero where the model does not call the layer."""
    m = len(factors[0].outputs)
    zeros = {name: t.expand(m, -1) for name, t in setting.split(factors[0].outputs.new_zeros(1, setting.p)).items()}
    found: Parameters = {}
    for layer, inputs, outputs in factors:
        for name, t in layer.gradients(inputs, outputs).items():
            found[name] = found[name] + t if name in found else t
    return {**zeros, **found}
