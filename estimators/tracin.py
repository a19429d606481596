"""TracIn: what the steps on a training point did to the outputs, summed along the run.

To first order a step moves output j by the product of its gradient and the step. With `rate_c` the sum of the learning
rates of the steps for which checkpoint c stands (momentum included),

    effects[j, i] = -sum_c rate_c <grad f_j(theta_c), P_c (grad l_i(theta_c) - g(theta_c))> / W,

averaged over the runs; `g` is the mean gradient, since in a mean loss one point's weight is taken from the others, `W`
the sum of the weights, `P` Adam's preconditioner, 1 for SGD (`_trajectory.py` derives it). The minus is that of
descent: a step on a point like the target lowers the target's loss.

What a step changes in all later ones is left out; SOURCE and MAGIC put it in. So the unit is right for short runs only:
a long one forgets most of what it learned early, and on the digits MLP (40 epochs; score .34) the changes that TracIn
predicts are over a hundred times too large. There trust the ranks, or use `Calibrated`.

`GradDot` takes the run as if all of it had happened at its end; `GradCos` takes the cosine there, which has no unit.

References: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", 2020, arXiv:2002.08484;
Grad-Dot and Grad-Cos by these names: Hanawa et al., "Evaluation of Similarity-based Explanations", 2021,
arXiv:2006.04528.
Deviations: the paper sums over checkpoints and not over the steps between them, so that its scores have no unit; it
leaves out `g`, momentum and Adam, and calls what lowers a loss positive.
Cost: the training runs; the gradients of all points and outputs once a checkpoint; `(m, p)` memory for each.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from estimators._anchored import where
from estimators._ensemble import check_differentiable, members
from estimators._trajectory import Phase, Trajectory, trajectories, unrolled
from estimators.gas import compared
from recipe import calculus
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.work import Work


@dataclass(frozen=True)
class TracIn:
    """Effects by the products of gradients along training runs by `SGD` or `AdamW`.

    Args:
        checkpoints: for as many equally long stretches of a run. Ignored where the setting has checkpoints: all of
            theirs are used, each for the steps nearest to it; they need `lr` and `step`, and AdamW's second moments.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        For a run of one step it is the derivative of retraining:

        >>> import torch
        >>> from recipe import SGD, Retrain, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> algorithm = SGD(epochs=1, batch_size=30, lr=1e-3, replay=True)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, algorithm)
        >>> f, f_hat, w = Retrain(setting), TracIn().fit(setting), torch.ones(30, dtype=torch.float64)
        >>> step = 1e-2 * torch.eye(30, dtype=torch.float64)[7]
        >>> torch.allclose((f(w + step) - f(w - step)) / 2e-2, f_hat.effects[:, 7], atol=1e-7)
        True
    """

    checkpoints: int = 10
    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models, checkpoints=self.checkpoints, apart=True)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and sum along the runs.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable in the examples, and `on`, which reuses the runs.

        Raises:
            ValueError: checkpoints that do not fit or do not say how far training went, or outputs without a gradient.
            NotImplementedError: an algorithm without steps, and no checkpoints.
        """
        there = where(setting, at)
        return _traced(setting, trajectories(setting, self.checkpoints, self.models, self.seed, at), there)


@dataclass(frozen=True)
class GradDot:
    """Effects by the product of gradients of the trained model: `TracIn` with all steps taken at the end.

    Args:
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints:
            then the last of each member, with the rates of all.
        seed: of the first model.

    Example:
        >>> import torch
        >>> from recipe import SGD, Loss, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> algorithm = SGD(epochs=5, batch_size=5, lr=0.1)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, algorithm, output=Loss())
        >>> bool((GradDot().fit(setting).effects.diagonal() < 0).all())  # a point lowers its own loss
        True
    """

    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models, apart=True)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and multiply gradients. See `TracIn.fit`."""
        there = where(setting, at)
        runs = trajectories(setting, 1, self.models, self.seed, at)
        return _traced(setting, [run.at_end(setting, there) for run in runs], there)


@dataclass(frozen=True)
class GradCos:
    """Effects by the cosine of gradients of the trained model; nominal, as the cosine has no unit. See `GAS`.

    Args:
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints:
            then the last of each member.
        seed: of the first model.

    Example:
        >>> import torch
        >>> from recipe import Loss, Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1), output=Loss())
        >>> GradCos().fit(setting).effects.diagonal() * 20  # a point's own loss: its gradient is like itself
        tensor([-1.0000, -1.0000, ..., -1.0000])
    """

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
        return compared(setting, final, [[(1.0, theta)] for theta in final], [setting.p], there)


def _traced(setting: Setting, runs: list[Trajectory], at: Arguments) -> LinearDatamodel:
    return unrolled(setting, runs, [partial(_queries, run.phases) for run in runs], at)


def _queries(phases: list[Phase], setting: Setting) -> list[Tensor]:
    """What the outputs owe to the moves of each phase."""
    return [phase.carry(calculus.output_gradients(setting, phase.parameters)) for phase in phases]
