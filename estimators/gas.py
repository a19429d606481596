"""GAS: gradient similarity over training, every gradient brought to length 1.

Over the checkpoints c of a run, with the learning rates there as weights that sum to 1,

    effects[j, i] = -sum_c lr_c cos(grad f_j(theta_c), grad l_i(theta_c)) / n,        averaged over the runs;

layer by layer, the cosine is the mean of those of the layers. Where the setting has checkpoints, all of every member
are used; where it has none, or the datamodel is fitted elsewhere, the final models.

TracIn, its parent, takes the product in place of the cosine: then the few points with a large loss, early in training,
stand before all others, and points that the model has learned well, a backdoor's say, are lost. The price is the unit:
a cosine has none, so effects are nominal. Trust the ranks; the slope that is printed beside an LDS says how far off
the values are.

Reference: Hammoudeh & Lowd, "Identifying a Training-Set Attack's Target Using Renormalized Influence Estimation",
2022, arXiv:2201.10055.
Deviations: the paper sums over the checkpoints, divides by the batch size and not by n, and measures losses only.
Gradients are those of the losses, without the weight decay's part.
Cost: the gradients of all points and outputs once a checkpoint; `(m, p)` memory for each.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import by_member, check_differentiable, members
from recipe import calculus
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.training import progress
from recipe.work import Work

Steps = list[tuple[float, Parameters]]  # the checkpoints of a run, with weights that sum to 1


@dataclass(frozen=True)
class GAS:
    """Effects by the cosine of gradients.

    Args:
        layerwise: bring the gradient of every layer to length 1, and not that of the whole model.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        >>> from recipe import Loss, Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1), output=Loss())
        >>> GAS().fit(setting).effects.diagonal() * 20  # a point's own loss: its gradient is like itself
        tensor([-1.0000, -1.0000, ..., -1.0000])
    """

    layerwise: bool = False
    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and compare gradients.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable in the examples, and `on`.

        Raises:
            ValueError: checkpoints that do not fit the model, or outputs without a gradient.
        """
        there = where(setting, at)
        check_differentiable(setting)
        final = members(setting, self.models, self.seed, at)
        runs = _runs(setting) if setting.checkpoints and at is None else [[(1.0, theta)] for theta in final]
        sizes = _layer_sizes(setting) if self.layerwise else [setting.p]
        return compared(setting, final, runs, sizes, there)


def compared(
    setting: Setting, final: list[Parameters], runs: list[Steps], sizes: list[int], at: Arguments
) -> LinearDatamodel:
    """The datamodel whose effects are cosines of gradients.

    Args:
        setting: what is measured.
        final: the trained models, whose mean outputs it gives at `at`.
        runs: the checkpoints of each, with weights that sum to 1.
        sizes: of the parts of a gradient that are brought to one length, `[p]` for the whole.
        at: checked weights and added examples.
    """
    steps = [(share / len(runs), theta) for run in runs for share, theta in run]
    queries = [
        share * _unit(calculus.output_gradients(setting, theta), sizes)
        for share, theta in progress(steps, "output gradients")
    ]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        alike: Any = 0
        for query, (_, theta) in zip(queries, steps, strict=True):
            alike = alike + query @ _unit(calculus.loss_gradients(setting, theta, batch), sizes).T
        return -alike / setting.n

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return compared(setting.on(targets, output), final, runs, sizes, at)

    with torch.no_grad():
        effects = collected(effect, calculus.blocks(setting, setting.pool))
    return anchored(setting, final, at, effects, effect, on)


def _runs(setting: Setting) -> list[Steps]:
    """The setting's checkpoints by member, weighted by their learning rates; equally where none has one."""
    runs = []
    for points in by_member(setting):
        rates = [c.lr for c in points] if any(c.lr for c in points) else [1.0] * len(points)
        runs.append([(lr / sum(rates), c.parameters) for lr, c in zip(rates, points, strict=True) if lr])
    return runs


def _layer_sizes(setting: Setting) -> list[int]:
    """The numbers of parameters of the layers, in the order of the flat vector."""
    blank = setting.initial(0)
    layers = groupby(setting.trained, key=lambda name: name.rpartition(".")[0])
    return [sum(blank[name].numel() for name in names) for _, names in layers]


def _unit(gradients: Tensor, sizes: list[int]) -> Tensor:
    """Gradients `(b, p)` whose parts have the same length, and together the length 1."""
    tiny = torch.finfo(gradients.dtype).tiny
    # By the largest entry first: the squares of what a well-learned example leaves are lost in float32.
    parts = [part / part.abs().amax(1, keepdim=True).clamp_min(tiny) for part in gradients.split(sizes, 1)]
    return torch.cat([F.normalize(part, dim=1) for part in parts], 1) / len(sizes) ** 0.5
