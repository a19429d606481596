"""Outputs' gradients times a Kronecker-factored inverse, and their products with examples by the factors of layers.

Where a layer is used once, gradients are products `r c^T` of what comes back and what enters, of an output j and of an
example i alike. With both turned into the eigenbasis, and `V` the eigenvalues of the inverse,

    <G_j, F^-1 G_i> = sum_ab V_ab (r_j r_i)_a (c_j c_i)_b,        V_ab = sum_k u_ka v_kb,

so that k pairs of vectors make it k products of `(m, R) (R, b)` and `(m, C) (C, b)` matrices, multiplied entry by
entry: no gradient is formed, and work falls from `R C` to `k (R + C)` for every output and example. Weighed by what
the gradients of outputs and of examples are like, `V = 1 / (Lambda + l2)` needs few pairs: 10 for the 128 x 65 weight
of the digits MLP, 11 for the 128 x 785 of the MNIST MLP.

Where a layer is used at many positions, the gradient of an example is formed, layer by layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from estimators._blocks import MatrixBlock, single
from estimators._kronecker import KroneckerInverse
from estimators._tangent import moving_decay
from recipe import calculus
from recipe.batch import Batch
from recipe.layers import Factors, Matrix
from recipe.setting import Parameters, Setting

ACCURACY = 2e-2  # of the products, relative and in the mean square, with examples like those of training or targets
EXAMPLES = 512  # at once, so that their products stay in the cache


@dataclass(frozen=True, eq=False)
class Separated:
    """A block of a layer that is used once: `sum_k (left_k outputs^T) * (right_k inputs^T)`.

    Args:
        left: `(k, m, out)`.
        right: `(k, m, in)`, with one more entry where the layer has a bias.
    """

    left: Tensor
    right: Tensor

    def __call__(self, factors: Factors) -> Tensor:
        """Products `(m, b)` with examples."""
        outputs, inputs = factors.outputs[:, 0], factors.inputs[:, 0]
        if self.right.shape[2] > inputs.shape[1]:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
        parts = zip(outputs.split(EXAMPLES), inputs.split(EXAMPLES), strict=True)
        return torch.cat([self._products(g.T, a.T) for g, a in parts], 1)

    def _products(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        total = outputs.new_zeros(self.left.shape[1], outputs.shape[1])
        for left, right in zip(self.left, self.right, strict=True):
            total.addcmul_(left @ outputs, right @ inputs)
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
                turned = _turned(block, uses[0])
                pairs = separate(values, *_sizes(eigenvalues, turned))
                if len(pairs[0]) * sum(values.shape) < values.numel():
                    self._separated[block.weight] = _separated(block, turned, *pairs)
                    continue
            if not gradients:
                gradients = _named(setting, found)
            gradients |= block.apply(gradients, values)
        done = {name for f in found if f.layer.weight in self._separated for name in (f.layer.weight, f.layer.bias)}
        self._dense = {name: t for name, t in gradients.items() if name not in done}
        nothing = found[0].outputs.new_zeros(len(found[0].outputs))
        self._steady = self._along(inverse, found) if moving_decay(setting) else nothing

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


def _turned(block: MatrixBlock, factors: Factors) -> list[Tensor]:
    """Rows `(m, R)` and columns `(m, C)` of outputs' gradients in the block's basis."""
    outputs, inputs = factors.outputs[:, 0], factors.inputs[:, 0]
    if block.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    sides = (inputs, outputs) if block.input_first else (outputs, inputs)
    bases = (block.basis(side) for side in (0, 1))
    return [x if basis is None else x @ basis for x, basis in zip(sides, bases, strict=True)]


def _sizes(energies: Tensor, turned: list[Tensor]) -> tuple[Tensor, Tensor]:
    """How large the products of outputs' and examples' gradients are, in the root mean square, `(R, C)` each.

    Examples are like those that were trained on, whose `energies` are known, or like the targets: added ones may have
    what no other has, a trigger, say, where the inverse is largest.
    """
    rows, cols = turned
    own = rows.square().T @ cols.square()
    own = own * (energies.sum() / own.sum().clamp_min(torch.finfo(own.dtype).tiny))
    return (own * energies).sqrt(), own


def separate(values: Tensor, *sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The fewest pairs `u (k, R)`, `v (k, C)` whose products sum to `values (R, C)`, to `ACCURACY`.

    Args:
        values: what is wanted.
        sizes: `(R, C)`, how large is what is multiplied with them, and errors weigh as much; with every one of these.

    Example:
        >>> u, v = separate(torch.outer(torch.arange(1., 4.), torch.ones(2)), torch.ones(3, 2))
        >>> len(u), (u.T @ v).round(decimals=6).tolist()
        (1, [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    """
    sizes, values = tuple(size.double() for size in sizes), values.double()
    together = torch.stack([size / size.sum().clamp_min(1e-300) for size in sizes]).sum(0)
    sides = [together.sum(1), together.sum(0)]
    a, b = ((side / side.max()).nan_to_num().clamp_min(1e-8) for side in sides)
    U, S, V = torch.linalg.svd(a[:, None] * values * b, full_matrices=False)
    u, v = (U * S / a[:, None]).T, V / b
    left, k = values.clone(), 0
    while k < len(S) and any((left * size).norm() > ACCURACY * (values * size).norm() for size in sizes):
        left -= torch.outer(u[k], v[k])
        k += 1
    return u[: max(k, 1)], v[: max(k, 1)]


def _separated(block: MatrixBlock, turned: list[Tensor], u: Tensor, v: Tensor) -> Separated:
    sides = [_scaled(x, t.to(x), block.basis(side)) for side, (x, t) in enumerate(zip(turned, (u, v), strict=True))]
    return Separated(*(sides[::-1] if block.input_first else sides))


def _scaled(x: Tensor, scales: Tensor, basis: Tensor | None) -> Tensor:
    """`x (m, d)` in the basis times each of the scales `(k, d)`, out of the basis again, `(k, m, d)`."""
    return x * scales[:, None] if basis is None else (x * scales[:, None]) @ basis.T


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
