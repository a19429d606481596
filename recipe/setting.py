"""The setting: everything that decides what a model outputs, except which training points it saw.

`Setting` holds the model, the training examples there are to choose from (the universe), the targets, the algorithm and
what is measured. It is immutable; nothing in the recipe changes the model you pass.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import default_collate

from recipe import batch as batches
from recipe.batch import LABELS, Batch
from recipe.layers import Layers
from recipe.losses import CrossEntropy, check_classes
from recipe.outputs import Loss, Margin
from recipe.values import distinct

if TYPE_CHECKING:
    from recipe.algorithms import Algorithm


Parameters = dict[str, Tensor]  # by name, buffers included
Measure = Callable[[Tensor, Batch], Tensor]  # (prediction, batch) -> (b,) or (b, C)


@dataclass(frozen=True)
class Forward:
    """How a model is called: `model(*inputs)`, or `model(**batch)` without the labels, and `.logits` of what returns.

    Pass your own `forward(model, batch) -> prediction` for anything else.
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The prediction on a batch."""
        if isinstance(batch, tuple):
            answer = model(*batch[:-1])
        else:
            answer = model(**{name: t for name, t in batch.items() if name != LABELS})
        return answer if isinstance(answer, Tensor) else answer.logits


@dataclass(frozen=True)
class Checkpoint:
    """Parameters that you have already: `lr` and `step` where they were taken, `member` of which ensemble run.

    `second_moments` are what Adam remembers there, `exp_avg_sq` by name of the parameter, for who follows its steps.
    """

    parameters: Parameters
    lr: float = 0.0
    step: int = 0
    member: int = 0
    second_moments: Parameters | None = None


@dataclass(frozen=True, eq=False)
class Setting:
    """A model, the data to choose from, the targets, the algorithm and what is measured.

    Args:
        model: an `nn.Module`, every run's starting point (never changed), or a factory `() -> nn.Module`, called after
            seeding, so that the seed decides the initialisation. Only what has `requires_grad` is trained.
        universe: the n training examples to choose from: a tuple or mapping of tensors, a torch `Dataset` or a
            `datasets.Dataset`. The last tensor of a tuple, the entry `labels` of a mapping, are the labels.
        targets: the examples on which outputs are measured, of the same kind.
        algorithm: how a weighted training set and a seed become parameters: `SGD`, `AdamW`, `Newton`, `Custom`.
        loss: `loss(prediction, batch) -> (b,)`, what training minimises.
        output: `output(prediction, batch) -> (b,)` or `(b, C)`, what is measured on the targets.
        forward: `forward(model, batch) -> prediction`.
        collate: what makes a batch of a list of examples.
        checkpoints: trained parameters that you have already; estimators use them instead of training.
        device: where everything runs.

    Raises:
        ValueError: empty data, targets that do not fit the model, labels outside the classes.

    Example:
        >>> from recipe import SGD, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: nn.Linear(3, 2), data, data, SGD(epochs=1, batch_size=5, lr=0.1))
        >>> setting.n, setting.output_shape
        (20, (20,))
    """

    model: nn.Module | Callable[[], nn.Module]
    universe: Any
    targets: Any
    algorithm: "Algorithm"
    loss: Measure = CrossEntropy()
    output: Measure = Margin()
    forward: Callable[[nn.Module, Batch], Tensor] = Forward()
    collate: Callable[[list[Any]], Any] = default_collate
    checkpoints: tuple[Checkpoint, ...] = field(default=(), repr=False)
    device: str | torch.device = "cpu"
    _sent_with: ClassVar[str | None] = None  # in another process: what the universe must hold there, see `__getstate__`

    def __post_init__(self) -> None:
        if self.output == Loss():
            object.__setattr__(self, "output", Loss(self.loss))
        self._check()

    # ---- data ----------------------------------------------------------------------------------------------------
    @cached_property
    def pool(self) -> Batch:
        """All n examples of the universe as tensors on the device.

        Raises:
            ValueError: this setting came from another process, which read other data.
        """
        pool = self._read(self.universe, "universe")
        if self._sent_with is not None and _contents(batches.example_hashes(pool)) != self._sent_with:
            raise ValueError(
                f"The universe changed under the running job: here {batches.size(pool)} examples are read that are not "
                "those that the job began with. Restore the data, or start a new job on the new ones."
            )
        return pool

    @cached_property
    def probe(self) -> Batch:
        """All targets as tensors on the device."""
        return self._read(self.targets, "targets")

    @cached_property
    def n(self) -> int:
        """The number of training examples."""
        return batches.size(self.pool)

    @cached_property
    def examples(self) -> np.ndarray:
        """What identifies the examples of the universe by their content, `(n, 16)` bytes."""
        return batches.example_hashes(self.pool)

    @property
    def contents(self) -> str:
        """What identifies the universe by its examples and their order."""
        return _contents(self.examples)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """`(targets,)` or `(targets, C)`; outputs are flattened target-major to `m`."""
        return (batches.size(self.probe), *self._one_output.shape[1:])

    @property
    def output_dtype(self) -> torch.dtype:
        """The type of the outputs."""
        return self._one_output.dtype

    @property
    def m(self) -> int:
        """The number of outputs."""
        return int(torch.Size(self.output_shape).numel())

    def on(self, targets: Any = None, output: Measure | None = None) -> "Setting":
        """The same training with other targets or another output; None keeps today's."""
        other = object.__new__(Setting)
        other.__dict__.update(self.__dict__)  # what is read and built already is shared
        for measured in ("probe", "output_shape", "_prediction", "_one_output"):
            other.__dict__.pop(measured, None)
        object.__setattr__(other, "targets", self.probe if targets is None else targets)
        object.__setattr__(other, "output", self.output if output is None else output)
        other.__post_init__()
        return other

    # ---- model ---------------------------------------------------------------------------------------------------
    def initial(self, seed: int) -> Parameters:
        """The parameters, buffers included, that the run of this seed starts from."""
        module = self._blank if isinstance(self.model, nn.Module) or seed == 0 else self._build(seed)
        state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {name: t.detach().to(self.device, copy=True) for name, t in state.items()}

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """The names of what is trained."""
        return tuple(name for name, t in self._blank.named_parameters() if t.requires_grad)

    @cached_property
    def p(self) -> int:
        """The number of trained parameters."""
        return sum(t.numel() for t in self._blank.parameters() if t.requires_grad)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the trained parameters."""
        return next(t.dtype for t in self._blank.parameters() if t.requires_grad)

    @cached_property
    def layers(self) -> Layers:
        """The model's trained layers, by which the gradients of many examples come at once."""
        return Layers(self)

    def module(self, parameters: Parameters) -> nn.Module:
        """A fresh model with these parameters, on the device."""
        module = copy.deepcopy(self._blank).to(self.device)
        module.load_state_dict(parameters, strict=False)  # non-persistent buffers keep the blank's values
        return module

    def flat(self, parameters: Parameters) -> Tensor:
        """The trained parameters as one `(p,)` vector."""
        return torch.cat([parameters[name].reshape(-1) for name in self.trained])

    def unflat(self, vector: Tensor, parameters: Parameters) -> Parameters:
        """`parameters` with the trained ones taken from a `(p,)` vector."""
        sizes = [parameters[name].numel() for name in self.trained]
        parts = zip(self.trained, vector.split(sizes), strict=True)
        return {**parameters, **{name: part.view(parameters[name].shape) for name, part in parts}}

    def split(self, vectors: Tensor) -> Parameters:
        """`(k, p)` vectors as one `(k, size)` tensor for every trained parameter."""
        sizes = [t.numel() for t in self._blank.parameters() if t.requires_grad]
        return dict(zip(self.trained, vectors.split(sizes, 1), strict=True))

    def predict(self, parameters: Parameters, batch: Batch, training: bool = False) -> Tensor:
        """The model's prediction with these parameters; buffers are updated in place when `training`."""
        bound = self._bound
        if bound.training != training:
            bound.train(training)
        return functional_call(bound, {f"model.{name}": t for name, t in parameters.items()}, (batch,))

    def losses(self, parameters: Parameters, batch: Batch, training: bool = False) -> Tensor:
        """The loss of every example, `(b,)`."""
        return self.loss(self.predict(parameters, batch, training), batch)

    def outputs(self, parameters: Parameters, batch: Batch | None = None) -> Tensor:
        """The outputs on a batch (default: the targets), flattened target-major to `(m,)`."""
        batch = self.probe if batch is None else batch
        return self.output(self.predict(parameters, batch), batch).reshape(-1)

    # ---- checks of what callers pass -------------------------------------------------------------------------------
    def check_weights(self, weights: Any) -> Tensor:
        """Weights `(..., n)` as a floating tensor.

        Raises:
            ValueError: wrong length, negative, NaN or infinite entries, or no point with weight.
        """
        w = torch.as_tensor(weights, device=self.device)
        w = w if torch.is_floating_point(w) else w.to(self.dtype)
        if w.ndim == 0 or w.shape[-1] != self.n:
            raise ValueError(
                f"Expected weights of shape (..., {self.n}), one for every training point; got {tuple(w.shape)}."
            )
        check_values(w)
        if not (w.detach() > 0).any(-1).all():
            raise ValueError("Every weight vector needs a point with positive weight; got one that is all zero.")
        return w

    def check_added(self, added: Any) -> Batch:
        """Examples from outside the universe, checked to look like it, in its types and on its device."""
        added = batches.concatenate(batches.take(self.pool, slice(0, 0)), added)
        if isinstance(self.loss, CrossEntropy) and batches.size(added):
            check_classes(self._prediction, batches.labels(added), "added examples")
        return added

    # ---- inside ----------------------------------------------------------------------------------------------------
    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: all but the data that it reads itself, and what it must find there."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("pool", "examples")}
        by_value = isinstance(self.universe, (tuple, list, Mapping))
        return state if by_value else {**state, "_sent_with": self.contents}

    def _read(self, data: Any, what: str) -> Batch:
        return batches.apply(lambda t: t.to(self.device), batches.materialise(data, self.collate, what))

    def _build(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model()

    @cached_property
    def _blank(self) -> nn.Module:
        # A copy: the user's module may be trained on later, and functional calls switch between train and eval mode.
        return copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self._build(0)

    @cached_property
    def _bound(self) -> "_Bound":
        return _Bound(copy.deepcopy(self._blank).to(self.device), self.forward)

    @cached_property
    def _prediction(self) -> Tensor:
        """The prediction of the untrained model on one target."""
        one = batches.take(self.probe, slice(0, 1))
        try:
            with torch.no_grad():
                return self.predict(self.initial(0), one)
        except Exception as error:
            raise ValueError(
                f"The model cannot be called on a target ({batches.describe(one)}): {error}\n"
                "A batch is a tuple (inputs..., labels) or a mapping with `labels`; the model gets all but the labels. "
                "Reshape the targets, or pass `forward=` to call the model in another way."
            ) from error

    @cached_property
    def _one_output(self) -> Tensor:
        return self._measured_once(self.output, "output")

    def _measured_once(self, measure: Measure, what: str) -> Tensor:
        """A loss or output of one target, for its shape."""
        one = batches.take(self.probe, slice(0, 1))
        try:
            return measure(self._prediction, one)
        except Exception as error:
            raise ValueError(
                f"The {what} {measure} cannot be computed on a target ({batches.describe(one)}), whose prediction has "
                f"the shape {tuple(self._prediction.shape)}: {error}"
            ) from error

    def _check(self) -> None:
        if not self.trained:
            raise ValueError("The model has no parameter with requires_grad; there is nothing to train.")
        if batches.describe(batches.take(self.pool, slice(0, 0))) != batches.describe(
            batches.take(self.probe, slice(0, 0))
        ):
            raise ValueError(
                f"Targets must look like the universe ({batches.describe(self.pool)}); got "
                f"{batches.describe(self.probe)}."
            )
        if isinstance(self.loss, CrossEntropy):
            check_classes(self._prediction, batches.labels(self.pool), "universe")
            check_classes(self._prediction, batches.labels(self.probe), "targets")
        one_loss = self._measured_once(self.loss, "loss")
        if one_loss.shape != (1,):
            raise ValueError(
                "A loss must return one number for every example, unaveraged; for a batch of one it returned the shape "
                f"{tuple(one_loss.shape)}. With torch's losses, pass reduction='none'."
            )
        if self._one_output.ndim == 0 or len(self._one_output) != 1:
            raise ValueError(
                "An output must return one value, or one row, for every example; for a batch of one it returned the "
                f"shape {tuple(self._one_output.shape)}."
            )


def _contents(examples: np.ndarray) -> str:
    return batches.content_hash((torch.from_numpy(examples),))


def check_values(weights: Tensor) -> None:
    """Raise `ValueError` for negative, NaN or infinite weights."""
    if not torch.is_floating_point(weights):
        return
    values = distinct(weights.detach())
    smallest, largest = values.aminmax() if values.numel() else (values.new_zeros(()),) * 2
    if not (smallest.isfinite() and largest.isfinite()):
        raise ValueError("Weights must be finite; got NaN or infinity. Look at what produced the decision.")
    if smallest < -1e-6:  # solvers that relax return zeros up to their tolerance
        raise ValueError(f"Weights must not be negative; the smallest is {float(smallest):.3g}. Clamp them at 0.")


class _Bound(nn.Module):
    """The model together with how it is called, so that any `forward` works as a functional call."""

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.rule = forward

    def forward(self, batch: Batch) -> Tensor:
        return self.rule(self.model, batch)
