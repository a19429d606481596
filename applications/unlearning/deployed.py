"""The deployed model: its parameters, its setting, and a datamodel that predicts what forgetting changes.

    outputs(z; theta without F)  =  outputs(z; theta) + f_hat_z(w) - f_hat_z(1)          ("DM-Direct")

for any targets and outputs, also those that come after the fit, where the datamodel has `on`.

Reference: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, arXiv:2410.23232.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from applications.unlearning.forget_sets import ForgetSets, retained
from applications.unlearning.task import Unlearning
from recipe.datamodel import OutputFunction
from recipe.outputs import Logits
from recipe.setting import Checkpoint, Measure, Parameters, Setting


@dataclass(frozen=True, eq=False)
class Deployed:
    """What is in use.

    Args:
        setting: that the model was trained in.
        parameters: of the model.
        f_hat: a datamodel of the setting, for what needs predictions. One that was fitted to this very model
            (`Deployed.fitted`) also moves its parameters; one of an ensemble predicts outputs better.
        seed: of the model, and of what a method draws.
        secret: what a certificate's noise is drawn from, so that a restart draws the same; None draws anew.

    Raises:
        ValueError: a datamodel of another universe.
    """

    setting: Setting
    parameters: Parameters
    f_hat: OutputFunction | None = None
    seed: int = 0
    secret: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.f_hat is not None and self.f_hat.n != self.setting.n:
            raise ValueError(
                f"The datamodel is of a universe of {self.f_hat.n} points, the deployed model of {self.setting.n}. Fit "
                "the estimator to the deployed model's setting."
            )

    @classmethod
    def trained(cls, setting: Setting, estimator: Any = None, seed: int = 0) -> "Deployed":
        """Train a model on everything, and fit an estimator as it is (with ensembles of its own, if it has any)."""
        parameters = setting.algorithm.train(setting, torch.ones(setting.n), seed)
        return cls(setting, parameters, None if estimator is None else estimator.fit(setting), seed)

    def fitted(self, estimator: Any) -> "Deployed":
        """The same model with a datamodel of *this* model: the estimator looks at it instead of training its own."""
        checkpoint = Checkpoint(self.parameters)
        return replace(self, f_hat=estimator.fit(replace(self.setting, checkpoints=(checkpoint,))))

    def outputs(self, forget: ForgetSets, targets: Any = None, output: Measure | None = None) -> Tensor:
        """Unlearned outputs without weights, `(m,)`, or `(k, m)` for k forget sets.

        Args:
            forget: as in `Unlearning`.
            targets: where; default those that the datamodel was fitted to.
            output: what; default what the datamodel was fitted to.

        Raises:
            ValueError: a bad forget set, or no datamodel.
            NotImplementedError: new targets, and a datamodel that knows its own only.
        """
        f_hat = self.predictor
        if targets is not None or output is not None:
            f_hat = f_hat.on(targets, output)
        setting = self.setting.on(targets, output) if f_hat.setting is None else f_hat.setting
        with torch.no_grad():
            now = setting.outputs(self.parameters)
        return Unlearning(forget, now).wanted(f_hat)

    def logits(self, keep: Tensor, data: Any, f: OutputFunction | None = None) -> Tensor:
        """The logits `(b, C)` that the model would have on `data` after training on the weights `keep`.

        Raises:
            ValueError: logits of another number of classes than the model's.
        """
        setting = self.setting.on(data, Logits())
        with torch.no_grad():
            now = setting.outputs(self.parameters).view(setting.output_shape)
        predicted = (f or self.predictor).on(data, Logits())
        if tuple(predicted.output_shape) != tuple(now.shape):
            raise ValueError(
                f"The datamodel predicts logits of the shape {tuple(predicted.output_shape)} where the deployed model "
                f"has {tuple(now.shape)}. Fit it to the setting of this model, with as many classes."
            )
        return Unlearning(keep == 0, now.reshape(-1)).wanted(predicted).view(now.shape)

    @property
    def predictor(self) -> OutputFunction:
        """The datamodel. Raises `ValueError` where there is none."""
        if self.f_hat is None:
            raise ValueError(
                "This needs predicted outputs, and the deployed model has no datamodel: pass "
                "`Deployed(setting, parameters, f_hat)` with f_hat = estimator.fit(setting)."
            )
        return self.f_hat

    def kept(self, forget: ForgetSets) -> Tensor:
        """The weights without a forget set."""
        return retained(forget, self.setting.n)


@dataclass(frozen=True, eq=False)
class Unlearned:
    """A model and the points that it still stands on.

    Args:
        parameters: of the model.
        keep: `(n,)` zeros and ones.
        report: what a receipt says of how it was made, such as the ε and δ of a certified removal.
    """

    parameters: Parameters
    keep: Tensor
    report: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """How a model forgets: a frozen dataclass."""

    def start(self, deployed: Deployed) -> Unlearned:
        """The model before any request; most methods take the deployed one."""

    def forget(self, deployed: Deployed, now: Unlearned, keep: Tensor) -> Unlearned:
        """The model after a request that leaves the points `keep`, of all that were forgotten so far."""


class FromDeployed:
    """A method that starts at the deployed model at every request: the order of requests does not matter."""

    def start(self, deployed: Deployed) -> Unlearned:
        """The deployed model."""
        return Unlearned(deployed.parameters, torch.ones(deployed.setting.n))

    def forget(self, deployed: Deployed, now: Unlearned, keep: Tensor) -> Unlearned:
        """The model after a request that leaves the points `keep`."""
        return Unlearned(self.unlearn(deployed, keep, deployed.seed), keep)

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """Parameters of the deployed model without all points of weight 0."""
        raise NotImplementedError
