"""Representation similarity: similar training points vote for their label. The baseline that an estimator has to beat.

With `phi` the representation that a trained model has of an example and `z` its prediction on the target of output j,

    effects[j, i] = cos(phi(target), phi(x_i)) <d f_j / d z, onehot(y_i) - 1/C> / n,        averaged over the models.

The first factor says how alike the two are, the second in which direction a vote for the class `y_i` moves the output:
up for a margin of that class, down for its loss, and for any other output whatever its derivative says.

Reference: the cosine score is the baseline of Hanawa et al., "Evaluation of Similarity-based Explanations", 2021,
arXiv:2006.04528.
Deviation: the score alone has neither sign nor output; the second factor, the vote of a kernel classifier, gives both.
The unit stays nominal: effects shrink like 1/n as they should, but their size is not that of a retrained output. Trust
the ranks; the slope that is printed beside an LDS says how far off the values are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jacrev, vmap

from estimators._ensemble import members
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.losses import IGNORED, check_classes
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting

BLOCK = 512  # examples whose activations are held at once

Representation = Callable[[nn.Module, Batch], Tensor]  # (model, batch) -> (b, d)


@dataclass(frozen=True)
class Similarity:
    """Effects by cosine similarity of representations; labels must be classes.

    Args:
        representation: `representation(model, batch) -> (b, d)`, of a trained model in eval mode; default: the input of
            the model's last trained layer, flattened.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        >>> from recipe import Newton, Setting
        >>> x = torch.tensor([[2.0, 0.1], [0.1, 2.0]])
        >>> data = (x, torch.tensor([0, 1]))
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> Similarity().fit(setting).effects.sign()  # a point of its own class raises a margin, another lowers it
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """

    representation: Representation | None = None
    models: int = 1
    seed: int = 0

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and compare.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` that gives the models' mean outputs where it was fitted, with `effect` and `on`.

        Raises:
            ValueError: labels that are not one class an example, outputs without a gradient, or a representation that
                is not `(b, d)`.
        """
        _check_labels(setting)
        weights, added = at or (torch.ones(setting.n), None)
        w = setting.check_weights(weights).detach().to(setting.dtype)
        represent = self.representation or _LastLayer.of(setting)
        return _datamodel(setting, represent, members(setting, self.models, self.seed, at), w, added)


@dataclass(frozen=True)
class _LastLayer:
    """The input of the layer that is called last among those that own trained parameters, flattened to `(b, d)`."""

    forward: Callable[[nn.Module, Batch], Tensor]
    layers: frozenset[str]

    @classmethod
    def of(cls, setting: Setting) -> "_LastLayer":
        return cls(setting.forward, frozenset(name.rpartition(".")[0] for name in setting.trained))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        seen: list[Tensor] = []

        def look(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.extend([t for t in (*args, *named.values()) if isinstance(t, Tensor)][:1])

        hooks = [model.get_submodule(n).register_forward_pre_hook(look, with_kwargs=True) for n in self.layers]
        try:
            self.forward(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen:
            raise ValueError(
                f"None of the layers with trained parameters ({', '.join(sorted(self.layers))}) is called as a module, "
                "so there is no last layer to look into. Pass `representation=`."
            )
        return seen[-1].flatten(1)


@dataclass(frozen=True, eq=False)
class _Voter:
    """One trained model: unit representations of the targets `(t, d)` and slopes of the outputs `(m, C)`."""

    model: nn.Module
    represent: Representation
    targets: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, setting: Setting, represent: Representation, theta: Parameters) -> "_Voter":
        model = setting.module(theta).to(setting.device).eval().requires_grad_(False)
        with torch.no_grad():
            targets = torch.cat([_unit(represent(model, block), block) for block in _blocks(setting.probe)])
        return cls(model, represent, targets, _slopes(setting, theta))

    def votes(self, batch: Batch) -> Tensor:
        """`cos(phi(target), phi(x_i)) <d f_j / d z, onehot(y_i) - 1/C>`, `(m, b)`."""
        alike = self.targets @ _unit(self.represent(self.model, batch), batch).T  # (t, b)
        width = len(self.slopes) // len(self.targets)
        return alike.repeat_interleave(width, 0) * (self.slopes @ _votes_of_labels(self.slopes, batch).T)


def _datamodel(
    setting: Setting, represent: Representation, trained: list[Parameters], weights: Tensor, added: Batch | None
) -> LinearDatamodel:
    voters = [_Voter.of(setting, represent, theta) for theta in trained]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        return torch.stack([voter.votes(batch) for voter in voters]).mean(0) / setting.n

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), represent, trained, weights, added)

    with torch.no_grad():
        effects = torch.cat([effect(block) for block in _blocks(setting.pool)], 1)
        bias = torch.stack([setting.outputs(theta) for theta in trained]).mean(0) - effects @ weights
        if added is not None and batches.size(added):
            bias = bias - effect(added).sum(1)
    return LinearDatamodel(bias, effects, effect, output_shape=setting.output_shape, on=on)


def _slopes(setting: Setting, theta: Parameters) -> Tensor:
    """`d f_j / d z`, `(m, C)`, target-major."""

    def output(z: Tensor, one: Batch) -> Tensor:
        return setting.output(z.unsqueeze(0), batches.example(one)).reshape(-1)

    with torch.no_grad():
        z = setting.predict(theta, setting.probe)
    slopes = vmap(jacrev(output))(z, setting.probe).reshape(setting.m, -1)
    if not slopes.any():
        raise ValueError(
            f"The gradient of {setting.output} in the prediction is zero on every target, so a vote cannot move it. "
            "Use Margin or Loss for the datamodel and measure the other by retraining."
        )
    return slopes


def _votes_of_labels(slopes: Tensor, batch: Batch) -> Tensor:
    """`onehot(y) - 1/C`, `(b, C)`; nothing for a label that does not count."""
    y, classes = batches.labels(batch), slopes.shape[1]
    check_classes(slopes, y, "examples")
    votes = F.one_hot(y.long().clamp_min(0), classes).to(slopes) - 1 / classes
    return votes * (y != IGNORED).unsqueeze(1)


def _unit(phi: Tensor, batch: Batch) -> Tensor:
    """Representations of length 1; one of length 0 is like nothing."""
    if phi.ndim != 2 or len(phi) != batches.size(batch) or not torch.is_floating_point(phi):
        raise ValueError(
            f"A representation must be a floating tensor (b, d), here b = {batches.size(batch)}; got {phi.dtype} of "
            f"shape {tuple(phi.shape)}. Pass `representation=`, a function (model, batch) -> (b, d)."
        )
    return F.normalize(phi, dim=1)


def _blocks(batch: Batch) -> list[Batch]:
    return [batches.take(batch, slice(i, i + BLOCK)) for i in range(0, batches.size(batch), BLOCK)]


def _check_labels(setting: Setting) -> None:
    """Before anything is trained."""
    y = batches.labels(setting.pool)
    with torch.no_grad():
        z = setting.predict(setting.initial(0), batches.take(setting.probe, slice(0, 1)))
    if torch.is_floating_point(y) or y.ndim != 1 or z.ndim != 2:
        raise ValueError(
            f"Similarity needs one class an example: integer labels (b,) and predictions (b, C); got {y.dtype} labels "
            f"of shape {tuple(y.shape)} and predictions of shape {tuple(z.shape)}. Use Influence for other models."
        )
    check_classes(z, y, "universe")
