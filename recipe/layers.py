"""The layers of a model, and the gradients of every example at once by them.

The gradient of a layer that multiplies with a matrix is, on example i, a sum over the positions t at which it is used,

    G_i = sum_t rows_it cols_it^T,

of activations times output gradients: both come out of one pass over the whole batch, whatever its size. A scale and
shift after a normalisation have `sum_t g_it * xhat_it` and `sum_t g_it`.

Covered are `Linear`, `Conv2d` without groups, `Embedding`, the `Conv1D` of transformers, `LayerNorm`, `GroupNorm`,
`RMSNorm` and `BatchNorm` (whose statistics are fixed here), weights shared between layers included.

Reference: Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv:1510.01799.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe import batch as batches
from recipe.batch import Batch

if TYPE_CHECKING:
    from recipe.setting import Parameters, Setting

Pair = tuple[int, int]

CHECKED = 3  # examples on which the factors are compared with autograd


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with trained parameters.

    Args:
        path: of the module in the model.
        module: the layer itself.
        weight: the name of its weight among the setting's parameters; None where it has none that is trained.
        bias: the same of its bias.
    """

    path: str
    module: Any
    weight: str | None
    bias: str | None

    def inputs(self, x: Tensor, b: int) -> Tensor:
        """What of the layer's input its gradients need, for b examples and T positions `(b, T, ...)`."""
        raise NotImplementedError

    def outputs(self, g: Tensor, b: int) -> Tensor:
        """The gradients of the layer's output, `(b, T, out)`."""
        return _by_example(g, b, g.shape[-1])

    def product(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """The weight's gradients `(b, ...)` from the two above, flattened or as a matrix."""
        raise NotImplementedError

    def gradients(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        """Gradients `(b, size)` by parameter."""
        found = {} if self.bias is None else {self.bias: outputs.sum(1)}
        return found if self.weight is None else {**found, self.weight: self.product(inputs, outputs).flatten(1)}


class Matrix(Layer):
    """A layer that multiplies with a matrix; `input_first` where its weight is `(in, out)` and not `(out, in)`."""

    input_first = False

    def inputs(self, x: Tensor, b: int) -> Tensor:
        """Activations `(b, T, in)`."""
        return _by_example(x, b, x.shape[-1])

    def product(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """`sum_t rows_t cols_t^T`, `(b, R, C)`."""
        rows, cols = (inputs, outputs) if self.input_first else (outputs, inputs)
        if rows.shape[1] == 1:
            return rows[:, 0, :, None] * cols[:, 0, None, :]
        return rows.transpose(1, 2) @ cols


class Convolution(Matrix):
    """A two-dimensional convolution without groups: a matrix on patches."""

    def inputs(self, x: Tensor, b: int) -> Tensor:
        """Patches `(b, T, in * height * width)`."""
        m = self.module
        mode = m.padding_mode.replace("zeros", "constant")
        x = F.pad(x, m._reversed_padding_repeated_twice, mode=mode)
        index = _patches(*x.shape[1:], m.kernel_size, m.dilation, m.stride).to(x.device)  # one gather beats `unfold`
        return _by_example(x.flatten(1).index_select(1, index.flatten()), b, index.shape[1])

    def outputs(self, g: Tensor, b: int) -> Tensor:
        """See `Layer.outputs`."""
        g = g.flatten(2).transpose(1, 2)
        return _by_example(g, b, g.shape[-1])


class Lookup(Matrix):
    """An embedding: a matrix on one-hot inputs, which are kept as indices `(b, T)`."""

    input_first = True

    def inputs(self, x: Tensor, b: int) -> Tensor:
        """The indices."""
        return _by_example(x, b)

    def product(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """See `Matrix.product`."""
        if self.module.padding_idx is not None:
            outputs = outputs * (inputs != self.module.padding_idx).unsqueeze(2)
        zeros = outputs.new_zeros(len(outputs), self.module.num_embeddings, outputs.shape[2])
        return zeros.scatter_add(1, inputs.unsqueeze(2).expand_as(outputs), outputs)


class Transposed(Matrix):
    """A linear layer whose weight is stored as `(in, out)`."""

    input_first = True


class Scale(Layer):
    """Scale and shift of a normalisation."""

    def inputs(self, x: Tensor, b: int) -> Tensor:
        """The normalised input, `(b, T, width)`."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            x = F.layer_norm(x, m.normalized_shape, eps=m.eps)
        elif isinstance(m, nn.RMSNorm):
            x = F.rms_norm(x, m.normalized_shape, eps=m.eps)
        elif isinstance(m, nn.GroupNorm):
            x = F.group_norm(x, m.num_groups, eps=m.eps)
        else:
            x = F.batch_norm(x, m.running_mean, m.running_var, eps=m.eps)
        return self.outputs(x, b)

    def outputs(self, g: Tensor, b: int) -> Tensor:
        """See `Layer.outputs`."""
        if not isinstance(self.module, (nn.LayerNorm, nn.RMSNorm)):  # channels come second
            g = g.flatten(2).transpose(1, 2)
        return _by_example(g, b, self.module.weight.numel())

    def product(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """`sum_t xhat_t g_t`, `(b, width)`."""
        return (inputs * outputs).sum(1)


class Factors(NamedTuple):
    """What one use of a layer in a pass leaves behind, as the layer's `inputs` and `outputs`."""

    layer: Layer
    inputs: Tensor
    outputs: Tensor


class Layers:
    """The trained layers of a setting's model.

    Args:
        setting: whose model; nothing is trained.

    `uncovered` names what has trained parameters and no rule here; `covered` says that all has one and that the
    gradients of a few examples equal autograd's, so that no layer is used in a way that its module does not show;
    `shared` says of each use whether its input is one for all examples; `floats` is how many numbers an example leaves
    behind in a pass, in the inputs and outputs of all uses; `in_place` says that the model overwrites layers' outputs.
    """

    def __init__(self, setting: "Setting") -> None:
        self.setting = setting
        blank, bound = setting._blank, setting._bound.model  # calls may leave other tensors in the bound one
        names = {id(t): name for name, t in blank.named_parameters() if t.requires_grad}
        self.layers: list[Layer] = []
        described: set[str] = set()
        for path, module in blank.named_modules():
            own = {k: names[id(t)] for k, t in module.named_parameters(recurse=False) if id(t) in names}
            rule = _rule(module)
            if own and rule is not None and set(own) <= {"weight", "bias"}:
                self.layers.append(rule(path, bound.get_submodule(path), own.get("weight"), own.get("bias")))
                described |= set(own.values())
        self.uncovered = tuple(
            f"{name} (of {_owner(blank, name)})" for name in setting.trained if name not in described
        )
        self.shared: tuple[bool, ...] = ()
        self.floats, self.in_place = 1, False
        self.covered = not self.uncovered and self._agrees()

    def forward(self, at: "Parameters", batch: Batch) -> "Pass":
        """The model's prediction on a batch, remembering what went through the layers."""
        return Pass(self, at, batch)

    def _agrees(self) -> bool:
        setting = self.setting
        few = batches.take(setting.pool, torch.arange(CHECKED) % setting.n)
        generator = torch.Generator().manual_seed(0)
        noise = 0.02 * torch.randn(setting.p, generator=generator)  # so that no layer sits behind a zero
        start = setting.initial(0)
        theta = (setting.flat(start) + noise.to(setting.flat(start))).requires_grad_()
        at = setting.unflat(theta.detach(), start)
        try:
            lengths = [self._lengths(at, part) for part in (few, batches.take(few, slice(1, None)))]
            self.shared = tuple(a == b for a, b in zip(*lengths, strict=True))
            run = self.forward(at, few)
            factors = run.pull(*run.slopes(lambda z: setting.loss(z, few)))
            self.floats = sum(f.inputs.numel() + f.outputs.numel() for f in factors) // CHECKED
            found = run.flat(factors)
        except (RuntimeError, ValueError, TypeError, IndexError):  # what is not called as a layer of examples
            return False
        with torch.enable_grad():
            losses = setting.losses(setting.unflat(theta, start), few).unbind()
        true = torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])
        return found.shape == true.shape and bool((found - true).abs().max() <= 1e-3 * true.abs().max())

    def _lengths(self, at: "Parameters", batch: Batch) -> list[int]:
        """The first dimensions of the inputs of the layers, in the order of use."""
        found: list[int] = []

        def note(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
            found.append(len(x))
            return y

        with torch.no_grad(), _watched(self.layers, note):
            self.setting.predict(at, batch)
        return found


class Pass:
    """One pass of a batch through a model whose layers are watched.

    Args:
        layers: of the setting.
        at: parameters.
        batch: b examples; gradients can be followed back to its tensors where they ask for them.

    `prediction` is the model's.
    """

    def __init__(self, layers: Layers, at: "Parameters", batch: Batch) -> None:
        setting = layers.setting
        self.b, self._setting = batches.size(batch), setting
        self._graph = any(t.requires_grad for t in batches.tensors(batch))
        self._shared = layers.shared
        self._seen: list[tuple[Layer, Tensor, Tensor, int]] = []  # `layer.inputs`, the layer's output and its version
        self._copies = layers.in_place
        live = {name: t.detach().requires_grad_() if name in setting.trained else t for name, t in at.items()}
        with torch.enable_grad(), _watched(layers.layers, self._note):
            self.prediction = setting.predict(live, batch)
            if any(y._version != version for _, _, y, version in self._seen):
                # An output that was overwritten is not the layer's any more: once more, on copies of them.
                layers.in_place = self._copies = True
                self._seen.clear()
                self.prediction = setting.predict(live, batch)

    def _note(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        if self._shared and self._shared[len(self._seen)]:  # such as the positions of a text, alike for all examples
            one = len(x) == 1
            x, y = (t.expand(self.b, *t.shape[1:]) if one else t.expand(self.b, *t.shape) for t in (x, y))
        inputs = layer.inputs(x if self._graph else x.detach(), self.b)  # now, while the module has its buffers
        self._seen.append((layer, inputs, y, y._version))
        return y.clone() if self._copies else y

    def pull(self, cotangent: Tensor) -> list[Factors]:
        """Factors of the gradient of `<cotangent, prediction>`, for every use of a layer."""
        with torch.enable_grad():
            gs = torch.autograd.grad(
                self.prediction,
                [y for _, _, y, _ in self._seen],
                cotangent,
                retain_graph=True,
                create_graph=self._graph,
                allow_unused=True,
            )
        return [
            Factors(layer, inputs, layer.outputs(torch.zeros_like(y) if g is None else g, self.b))
            for (layer, inputs, y, _), g in zip(self._seen, gs, strict=True)
        ]

    def slopes(self, measure: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The gradients in the prediction of what is measured on it, `(b,)` or `(b, columns)`, column by column.

        With a graph where the batch asks for one.
        """
        with torch.enable_grad():
            z = self.prediction if self._graph else self.prediction.detach().requires_grad_()
            values = measure(z)
            columns = (values if values.ndim > 1 else values.unsqueeze(1)).flatten(1).sum(0)
            if not columns.requires_grad:  # a measure that jumps, such as the accuracy
                return [torch.zeros_like(z) for _ in columns]
            return [
                torch.autograd.grad(column, z, retain_graph=True, create_graph=self._graph)[0] for column in columns
            ]

    def named(self, factors: list[Factors]) -> dict[str, Tensor]:
        """The examples' gradients `(b, size)` by parameter, of what the factors are about."""
        found: dict[str, Tensor] = {}
        for layer, inputs, outputs in factors:
            for name, t in layer.gradients(inputs, outputs).items():
                found[name] = found[name] + t if name in found else t
        return found

    def flat(self, factors: list[Factors]) -> Tensor:
        """The examples' gradients `(b, p)` from the factors of all layers."""
        found = self.named(factors)
        blank = self._setting.split(torch.zeros(1, self._setting.p, device=self.prediction.device))
        missing = {n: t.to(self.prediction).expand(self.b, -1) for n, t in blank.items() if n not in found}
        return torch.cat([{**found, **missing}[name] for name in self._setting.trained], 1)


def _by_example(x: Tensor, b: int, *shape: int) -> Tensor:
    """`(b, T, *shape)`, of no examples too."""
    return x.reshape(b, -1, *shape) if b else x.reshape(0, 1, *shape)


@contextmanager
def _watched(layers: list[Layer], note: Callable[[Layer, Tensor, Tensor], Tensor]) -> Iterator[None]:
    def hook(layer: Layer) -> Any:
        return lambda _, inputs, named, y: note(layer, (*inputs, *named.values())[0], y)

    handles = [layer.module.register_forward_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@lru_cache(maxsize=64)
def _patches(
    channels: int, height: int, width: int, kernel: Pair, dilation: Pair, stride: Pair
) -> Tensor:  # (T, channels * kernel), where in a flat padded image the entries of a patch lie
    y, x = (
        torch.arange(0, size - d * (k - 1), s)
        for size, k, d, s in zip((height, width), kernel, dilation, stride, strict=True)
    )
    dy, dx = (torch.arange(k) * d for k, d in zip(kernel, dilation, strict=True))
    corners = (y[:, None] * width + x).flatten()
    offsets = torch.arange(channels)[:, None, None] * height * width + dy[:, None] * width + dx
    return corners[:, None] + offsets.flatten()


def _rule(module: nn.Module) -> type[Layer] | None:
    """How a module's gradients factorise; None where it is not known here."""
    if isinstance(module, nn.Conv2d):
        return Convolution if module.groups == 1 else None
    if isinstance(module, nn.Embedding):
        return Lookup if module.max_norm is None and not module.scale_grad_by_freq else None
    if isinstance(module, nn.Linear):
        return Matrix
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)):
        return Scale
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return Scale if module.running_mean is not None else None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers, without importing it
        return Transposed
    return None


def _owner(model: nn.Module, name: str) -> str:
    path = name.rpartition(".")[0]
    return type(model.get_submodule(path)).__name__
