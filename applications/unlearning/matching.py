"""Matching: train the deployed model towards the outputs that it should have.

    targets(x) = outputs(x; deployed) + f(w) - f(1)      on the forget set and on a sample of what is retained,

with predicted outputs `f` (datamodel matching, DMM), or with the mean of really retrained models (oracle matching, OM:
the upper bound of what matching can do). Training is a new `Setting`: start, the deployed model; data, those points
labelled with the wanted logits; loss, squared error.

Reference: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, arXiv:2410.23232.
Deviation: retained points are sampled once, not anew each epoch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.unlearning.deployed import Deployed, FromDeployed, Unlearned
from applications.unlearning.forget_sets import retained as weights_without
from recipe import batch as batches
from recipe.algorithms import AdamW, Algorithm
from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.losses import SquaredError
from recipe.outputs import Logits
from recipe.setting import Parameters, Setting


@dataclass(frozen=True)
class DatamodelMatching(FromDeployed):
    """DMM: fine-tune on the forget set and some retained points towards the predicted logits.

    Args:
        algorithm: of the fine-tuning; the default is close to the paper's, for ResNets on CIFAR.
        retained: how many retained points go with a forgotten one.
    """

    algorithm: Algorithm = AdamW(epochs=5, batch_size=512, lr=5e-4)
    retained: float = 3.0

    def start(self, deployed: Deployed) -> Unlearned:
        """The deployed model. Raises `ValueError` without a datamodel, here and not at the first request."""
        _ = deployed.predictor
        return super().start(deployed)

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`. The datamodel is asked for logits on the points, so it needs `on`."""
        data = sampled(deployed.setting, keep, self.retained, seed)
        return match(deployed, data, deployed.logits(keep, data), self.algorithm, seed)


@dataclass(frozen=True, eq=False)
class OracleMatching(FromDeployed):
    """OM: fine-tune towards the mean logits of models that were really retrained without the forget set.

    Args:
        oracles: `Retrain(setting, seeds)`; the paper takes up to ten.
        algorithm: of the fine-tuning.
        retained: how many retained points go with a forgotten one.
    """

    oracles: OutputFunction
    algorithm: Algorithm
    retained: float = 3.0

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        data = sampled(deployed.setting, keep, self.retained, seed)
        oracles = self.oracles.on(data, Logits())
        with torch.no_grad():
            wanted = oracles(keep).view(oracles.output_shape)
        return match(deployed, data, wanted, self.algorithm, seed)


def datamodel_matching(
    setting: Setting,
    deployed: Parameters,
    f_hat: OutputFunction,
    forget: Tensor,
    algorithm: Algorithm,
    retained: float = 3.0,
    seed: int = 0,
) -> Parameters:
    """Train the deployed model towards its unlearned logits on the forget set and on a retained sample.

    Args:
        setting: of the deployed model.
        deployed: its parameters.
        f_hat: a datamodel of the setting that has `on`; it is asked for logits on the points.
        forget: indices of the forget set.
        algorithm: of the fine-tuning.
        retained: how many retained points go with a forgotten one.
        seed: of the retained sample and of the fine-tuning.

    Returns:
        The parameters of the unlearned model.
    """
    keep = weights_without(forget, setting.n)
    return DatamodelMatching(algorithm, retained).unlearn(Deployed(setting, deployed, f_hat), keep, seed)


def sampled(setting: Setting, keep: Tensor, retained: float, seed: int) -> Batch:
    """The forget set and `retained` times as many retained points, drawn at random."""
    forgotten, rest = (keep == 0).nonzero().squeeze(1), keep.nonzero().squeeze(1)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    points = torch.cat([forgotten, rest[order[: round(retained * len(forgotten))]]])
    return batches.take(setting.pool, points)


def match(deployed: Deployed, data: Batch, wanted: Tensor, algorithm: Algorithm, seed: int) -> Parameters:
    """Train the deployed model until its logits on `data` are the wanted ones `(b, C)`."""
    setting = deployed.setting
    labelled = batches.relabel(data, wanted)
    matching = Setting(
        setting.module(deployed.parameters), labelled, labelled, algorithm, SquaredError(), Logits(), setting.forward,
        device=setting.device,
    )  # fmt: skip
    return algorithm.train(matching, torch.ones(len(wanted)), seed)
