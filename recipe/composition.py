"""Datamodels made of datamodels: the mean of several, and one in another unit.

    Ensemble([f_1 .. f_k])(w)           =  mean_k f_k(w)
    Scaled(f_hat, slope, intercept)(w)  =  intercept + slope f_hat(w)

Both have the signature of what they are made of, so a task does not know. The estimators behind them, `Ensembling` and
`Scaling`, fit the parts and compose again, so that a refit of a composed datamodel is composed as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import diags_array
from torch import Tensor
from torch.autograd.functional import jacobian

from recipe.batch import Batch
from recipe.cost import Cost, cost_of
from recipe.datamodel import LinearDatamodel, Origin, OutputFunction, measure_alike, records_origin, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting


class Ensemble(OutputFunction):
    """The mean of several datamodels: what one of them gets wrong by chance averages out.

    Linear where its members are: `cvxpy` traces it, and it has `effects` and `effect`. Members are asked one after the
    other, so that effects on disk stay there.

    Args:
        members: at least one fitted datamodel, all of the same outputs of the same training points.

    Raises:
        TypeError: an estimator in place of a datamodel.
        ValueError: no members, or members that disagree in n, in their outputs or in what these measure.

    Example:
        >>> from recipe import LinearDatamodel
        >>> one = LinearDatamodel(torch.tensor([1.0]), torch.tensor([[2.0, -1.0]]))
        >>> two = LinearDatamodel(torch.tensor([3.0]), torch.tensor([[0.0, 1.0]]))
        >>> Ensemble([one, two])(torch.tensor([1.0, 0.0]))
        tensor([3.])
    """

    def __init__(self, members: Sequence[OutputFunction]) -> None:
        self.members = tuple(members)
        _check_alike(self.members)
        self.n, self.output_shape = self.members[0].n, self.members[0].output_shape
        self.origin = _common_origin(self.members)
        worth = [member.effect for member in self.members]
        if all(effect is not None for effect in worth):
            self.effect = lambda batch: _mean([effect(batch) for effect in worth])  # type: ignore[misc]

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`; a cvxpy variable `(n,)` gives an expression where every member does."""
        return _mean([member(weights, added) for member in self.members])

    @property
    def effects(self) -> Tensor:
        """The mean of the members' effects, `(m, n)`: see `effects_of`."""
        return _mean([effects_of(member) for member in self.members])

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`."""
        return same_origin(self, Ensemble([m.on(targets, output) for m in self.members]), targets, output)

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """The members' predicted parameters, one after the other along the first axis."""
        each = [member.parameters(weights, added) for member in self.members]
        return {name: torch.cat([parameters[name] for parameters in each]) for name in each[0]}


@dataclass(frozen=True)
class Ensembling:
    """The estimator behind `Ensemble`: fits several and takes the mean.

    Args:
        estimators: of different kinds, or one kind with several hyperparameters.

    Example:
        >>> from recipe import Newton
        >>> from estimators.influence import Influence
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> Ensembling([Influence(damping=0.1), Influence(damping=1.0)]).fit(setting).effects.shape
        torch.Size([20, 20])
    """

    estimators: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimators", tuple(self.estimators))

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return sum((cost_of(one, setting) for one in self.estimators), Cost())

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> Ensemble:
        """Fit every estimator and take the mean."""
        return Ensemble([estimator.fit(setting, at) for estimator in self.estimators])


class Scaled(OutputFunction):
    """`intercept + slope * f_hat(w, added)`: a datamodel in another unit, or with its scale put right.

    Linear where `f_hat` is. `calibrated` finds slope and intercept by a few retrainings.

    Args:
        f_hat: the datamodel.
        slope: `(m,)`, or one number for all outputs.
        intercept: `(m,)`, or one number for all outputs.
        on: how to measure something else, `(targets, output) -> OutputFunction`; slope and intercept are those of the
            outputs at hand, so without it other outputs need a new calibration.

    Raises:
        ValueError: a slope or intercept that is neither one number nor one for every output, or that is not finite.

    Example:
        >>> from recipe import LinearDatamodel
        >>> f_hat = Scaled(LinearDatamodel(torch.tensor([1.0]), torch.tensor([[2.0, -1.0]])), slope=10.0, intercept=5.0)
        >>> f_hat(torch.tensor([1.0, 0.0])), f_hat.effects
        (tensor([35.]), tensor([[ 20., -10.]]))
    """

    def __init__(
        self,
        f_hat: OutputFunction,
        slope: Tensor | float,
        intercept: Tensor | float = 0.0,
        *,
        on: Callable[[Any, Measure | None], OutputFunction] | None = None,
    ) -> None:
        self.f_hat = f_hat
        self.n, self.output_shape = f_hat.n, f_hat.output_shape
        self.slope = _one_each(slope, f_hat.m, "slope")
        self.intercept = _one_each(intercept, f_hat.m, "intercept")
        self.origin = origin_of(f_hat, lambda estimator: Scaling(estimator, self.slope, self.intercept))
        worth = f_hat.effect
        if worth is not None:
            self.effect = lambda batch: _times(self.slope, worth(batch))
        self._on = on

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`; a cvxpy variable `(n,)` gives an expression where `f_hat` does."""
        outputs = self.f_hat(weights, added)
        if isinstance(outputs, Tensor):
            return self.intercept.to(outputs) + self.slope.to(outputs) * outputs
        return self.intercept.cpu().numpy() + diags_array(self.slope.cpu().numpy()) @ outputs  # traced by cvxpy

    @property
    def effects(self) -> Tensor:
        """The effects of `f_hat` times the slope, `(m, n)`: see `effects_of`."""
        return _times(self.slope, effects_of(self.f_hat))

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`."""
        if self._on is None:
            return super().on(targets, output)
        return same_origin(self, self._on(targets, output), targets, output)


@dataclass(frozen=True, eq=False)
class Scaling:
    """The estimator behind `Scaled`: fits another one and scales it by the same numbers."""

    estimator: Any
    slope: Tensor | float
    intercept: Tensor | float = 0.0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return cost_of(self.estimator, setting)

    def fit(self, setting: Setting, at: Arguments | None = None) -> Scaled:
        """Fit and scale."""
        return Scaled(self.estimator.fit(setting, at), self.slope, self.intercept)


def effects_of(f_hat: OutputFunction) -> Tensor:
    """How predicted outputs change with every weight, at full weights: `(m, n)`.

    The effects of a linear datamodel; for any other the gradient of its predictions, one backward pass an output.

    Raises:
        ValueError: predictions that are not differentiable in the weights, such as those of `Retrain`.
    """
    if isinstance(f_hat, LinearDatamodel):
        return f_hat.effects if isinstance(f_hat.effects, Tensor) else torch.from_numpy(np.array(f_hat.effects))
    if isinstance(f_hat, (Ensemble, Scaled)):
        return f_hat.effects
    ones = torch.ones(f_hat.n)
    try:
        outputs = f_hat(ones)
        return jacobian(f_hat, ones.to(outputs), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{type(f_hat).__name__} has no gradient in the training weights ({error}), so its effects are unknown. "
            "Compare it by its predictions instead, as `lds` does."
        ) from error


def streamed(f_hat: OutputFunction) -> Any:
    """`effects_of` a datamodel, those on disk as they are: to be read in blocks or rows."""
    return f_hat.effects if isinstance(f_hat, LinearDatamodel) else effects_of(f_hat)


def origin_of(f_hat: OutputFunction, wrapped: Callable[[Any], Any]) -> Origin | None:
    """The origin of a datamodel made of `f_hat`: `wrapped(estimator)` refits it, where an estimator fitted `f_hat`."""
    origin = f_hat.origin
    if origin is None or origin.estimator is None:
        return origin
    return replace(origin, estimator=wrapped(origin.estimator))


def _one_each(value: Tensor | float, m: int, name: str) -> Tensor:
    """A number, or one for every output, as `(m,)`."""
    t = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype()).detach()
    if t.shape not in {(), (m,)} or not t.isfinite().all():
        raise ValueError(
            f"Expected a finite {name} for every output ({m},), or one number; got {tuple(t.shape)} with "
            f"{int((~t.isfinite()).sum())} values that are not finite."
        )
    return t.expand(m)


def _times(slope: Tensor, rows: Tensor) -> Tensor:
    return slope.to(rows)[:, None] * rows


def _mean(parts: Sequence[Any]) -> Any:
    """The mean by plain operators, which trace with cvxpy too."""
    return sum(parts[1:], parts[0]) / len(parts)


def _common_origin(members: Sequence[OutputFunction]) -> Origin | None:
    """Where the members come from; members that were linearised apart have no point in common."""
    origins = [member.origin for member in members if member.origin is not None]
    if len(origins) < len(members):
        return None
    first, seconds = origins[0], sum(origin.seconds for origin in origins)
    at = first.at if all(origin.at is first.at for origin in origins) else None
    whole = all(origin.estimator is not None for origin in origins)
    estimator = Ensembling([origin.estimator for origin in origins]) if whole else None
    notes = {f"member {i}": origin.notes for i, origin in enumerate(origins) if origin.notes}
    return Origin(estimator, first.setting, at, seconds, notes)


def _check_alike(members: Sequence[OutputFunction]) -> None:
    if not members:
        raise ValueError("An ensemble needs at least one datamodel; got none.")
    for member in members:
        if not isinstance(member, OutputFunction):
            raise TypeError(
                f"An ensemble is made of fitted datamodels; got {member!r}. Fit it first, or pass the estimators to "
                "`Ensembling([...])` and fit that."
            )
    sizes = [(member.n, member.output_shape) for member in members]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"n={n} with outputs {shape}" for n, shape in sizes)
        raise ValueError(
            f"The members of an ensemble must predict the same outputs of the same training points; got {listed}. Fit "
            "all of them to one setting."
        )
    known = [member.setting for member in members if member.setting is not None]
    if not all(measure_alike(known[0], setting) for setting in known):
        raise ValueError(
            "The members of an ensemble predict different things: their outputs "
            f"({', '.join(str(setting.output) for setting in known)}), universes or targets differ. Fit all of them to "
            "one setting."
        )
