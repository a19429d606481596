"""Updates of the parameters themselves: a Newton step, an influence step, and retraining as the yardstick.

    theta without F  =  theta + (theta_hat(w) - theta_hat(1)),

with the parameters `theta_hat` that a datamodel predicts on its way to outputs: one Newton step on the retained
objective (`NewtonStep`), or its tangent (`Influence`).

References: Guo et al. 2020, arXiv:1911.03030; Koh & Liang 2017, arXiv:1703.04730.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.unlearning.deployed import Deployed, FromDeployed, Unlearned
from recipe.setting import Parameters


@dataclass(frozen=True)
class ParameterUpdate(FromDeployed):
    """The step that the datamodel predicts. Needs `deployed.fitted(NewtonStep())` or `deployed.fitted(Influence())`.

    Raises on use:
        NotImplementedError: a datamodel that does not go through parameters.
        ValueError: a datamodel of another model than the deployed one, whose step would lead elsewhere.
    """

    def start(self, deployed: Deployed) -> Unlearned:
        """The deployed model; a datamodel that cannot move it is refused here, before any request. Raises as above."""
        self.unlearn(deployed, torch.ones(deployed.setting.n))
        return super().start(deployed)

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        setting, f_hat = deployed.setting, deployed.predictor
        before, after = f_hat.parameters(torch.ones_like(keep)), f_hat.parameters(keep)
        own = setting.flat(deployed.parameters)
        models = len(next(iter(before.values())))
        first = setting.flat({name: t[0] for name, t in before.items()})
        if models != 1 or (first - own).abs().max() > 1e-3 * own.abs().max():
            raise ValueError(
                f"A step in parameters holds for the model that it was computed for; the datamodel is of {models} "
                "other model(s). Use deployed.fitted(estimator), or DatamodelMatching, which only needs outputs."
            )
        moved = setting.flat({name: t[0] for name, t in after.items()})
        return setting.unflat(own + (moved - first), deployed.parameters)


@dataclass(frozen=True)
class RetrainFromScratch(FromDeployed):
    """Train anew on what is retained: exact, and as dear as training."""

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        return deployed.setting.algorithm.train(deployed.setting, keep, seed)


@dataclass(frozen=True)
class DoNothing(FromDeployed):
    """The deployed model as it is: what every method must beat."""

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        return deployed.parameters
