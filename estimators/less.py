"""LESS: low-rank gradient similarity search, by the step that Adam would take on a training example.

At checkpoint c, with the learning rates there as weights that sum to 1, R a random projection and `g_i` the gradient of
the loss of example i,

    effects[j, i] = -sum_c lr_c cos(R grad f_j(theta_c), R Gamma_i(theta_c)) / n,
    Gamma_i = (b1 m + (1 - b1) g_i) / (sqrt(b2 v + (1 - b2) g_i^2) + eps),

averaged over the runs. `Gamma_i` is the direction of Adam's next step, were the example its batch; targets keep their
plain gradients. For SGD it is `g_i`. A cosine has no unit: effects are nominal (see `estimators/gas.py`), so trust the
ranks, or put `Calibrated` around.

Reference: Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", 2024, arXiv:2402.04333.
Deviations: the first moment `m` is taken to be the mean gradient over the training set at the checkpoint, which it
averages over steps; `v` is kept above 1 % of its mean divisor (`_trajectory.py`). The paper warms up LoRA adapters on
5 % of the data: freeze what is not to be trained (`requires_grad`), and pass `checkpoints` of a warm-up, or train here.
Of several target sets it takes the one with the largest score: see `TargetSets(worst=True)` for what counts then.
Cost: the gradients of all points and outputs once a checkpoint, `(b, p)` at a time; features `(m, k)`.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._projections import Projection, projection
from estimators._trajectory import Phase, Trajectory, trajectories
from recipe import calculus
from recipe.algorithms import AdamW
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.stores import collected
from recipe.training import progress
from recipe.work import Work


@dataclass(frozen=True)
class LESS:
    """Effects by the cosine of projected gradients, those of training examples as Adam's steps.

    Args:
        dimension: features an example; parameters fewer than that are not projected.
        checkpoints: for as many equally long stretches of a run. Ignored where the setting has checkpoints: all of
            theirs are used; they need `lr` and `step`, and AdamW's second moments.
        models: an ensemble of as many seeds. Ignored where the setting has checkpoints.
        seed: of the first model, and of the projection.

    Raises on use:
        ValueError: a dimension below 1.

    Example:
        >>> import torch
        >>> from recipe import AdamW, Loss, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> algorithm = AdamW(epochs=5, batch_size=5, lr=0.01)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, algorithm, output=Loss())
        >>> effects = LESS(checkpoints=2).fit(setting).effects
        >>> bool(effects.diagonal().mean() < effects.mean())  # a point lowers its own loss more than others do
        True
    """

    dimension: int = 1024
    checkpoints: int = 4
    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models, checkpoints=self.checkpoints, apart=True)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and compare gradients.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable in the examples, and `on`, which reuses the runs.

        Raises:
            ValueError: a dimension below 1, checkpoints that do not fit, or outputs without a gradient.
            NotImplementedError: an algorithm without steps, and no checkpoints.
        """
        if self.dimension < 1:
            raise ValueError(f"LESS projects to at least one feature; got dimension={self.dimension}.")
        there = where(setting, at)
        runs = trajectories(setting, self.checkpoints, self.models, self.seed, at)
        return _compared(setting, runs, projection(setting, self.dimension, self.seed), there)


def _compared(setting: Setting, runs: list[Trajectory], down: Projection, at: Arguments) -> LinearDatamodel:
    shares = [(phase, phase.rate / sum(p.rate for p in run.phases) / len(runs)) for run in runs for phase in run.phases]
    queries = [
        share * F.normalize(down.vectors(calculus.output_gradients(setting, phase.parameters)), dim=1)
        for phase, share in progress(shares, "output gradients")
    ]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        alike: Any = 0
        for query, (phase, _) in zip(queries, shares, strict=True):
            alike = alike + query @ F.normalize(down.vectors(_steps(setting, phase, batch)), dim=1).T
        return -alike / setting.n

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _compared(setting.on(targets, output), runs, down, at)

    effects = collected(effect, calculus.blocks(setting, setting.pool))
    return anchored(setting, [run.end for run in runs], at, effects, effect, on)


def _steps(setting: Setting, phase: Phase, batch: Batch) -> Tensor:
    """The directions of Adam's next steps, each on one example `(b, p)`; gradients for SGD."""
    gradients = calculus.loss_gradients(setting, phase.parameters, batch)
    algorithm = setting.algorithm
    if phase.preconditioner is None or not isinstance(algorithm, AdamW):
        return gradients
    b1, b2 = algorithm.betas
    second = (1 / phase.preconditioner - algorithm.eps) ** 2
    divisor = (b2 * second + (1 - b2) * gradients**2).sqrt() + algorithm.eps
    return (b1 * phase.mean + (1 - b1) * gradients) / divisor
