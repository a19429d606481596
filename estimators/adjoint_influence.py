"""Adjoint influence: the tangent to retraining, asked one question at a time, for attacks that refit at every step.

    f_hat(w, added) = f(theta) - J H^-1 ( sum_i (w_i - w0_i) pull_i + sum_k pull(x_k) - sum_k pull(x0_k) ) / W,

the same function as `Influence`, with `pull = grad l + l2 theta` and J the outputs' gradient, but neither effects nor a
row of `H^-1` for each output are ever formed. A value away from the tangent point costs one solve, a gradient another,
whatever the number of outputs, training points and poisons: what an ascent on poison inputs needs, which asks each
datamodel for one gradient and then fits the next.

References: Koh & Liang 2017, arXiv:1703.04730, section 5.2 (`s_test`); Koh, Steinhardt & Liang 2022, arXiv:1811.00741,
section 4.1. Deviations as in `influence.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from estimators._damping import damped
from estimators._ensemble import check_differentiable, members
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Curvature, GaussNewton, Point, Product
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.inverses import CG, Inverse
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.work import Work


@dataclass(frozen=True)
class AdjointInfluence:
    """The datamodel tangent to retraining, without effects.

    Args:
        curvature: `GaussNewton()`, or `Hessian()`.
        inverse: how systems are solved.
        damping: added to the diagonal of the curvature; None: nothing where there is weight decay, else a tenth of its
            mean eigenvalue.
        seed: of the model.

    Example:
        >>> from estimators.influence import Influence
        >>> from recipe import Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, Newton(l2=0.1))
        >>> w, added = torch.rand(30, dtype=torch.float64), (torch.ones(1, 2).double(), torch.tensor([1]))
        >>> quick, exact = AdjointInfluence().fit(setting)(w, added), Influence().fit(setting)(w, added)
        >>> torch.allclose(quick, exact, atol=1e-6)
        True
    """

    curvature: Curvature = GaussNewton()
    inverse: Inverse = CG(tolerance=1e-6)
    damping: float | None = None
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`, of the fit: every question costs solves of its own."""
        return Work(setting).fitted(self, 1)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "AdjointDatamodel":
        """Train (or take the setting's checkpoints); `at = (weights, added)` is where the tangent touches.

        Raises:
            ValueError: outputs without a gradient.
        """
        weights, added = at or (torch.ones(setting.n, dtype=setting.dtype, device=setting.device), None)
        weights = setting.check_weights(weights).detach().to(setting.dtype)
        check_differentiable(setting)
        theta = members(setting, 1, self.seed, at)[0]
        if added is not None:
            added = batches.apply(Tensor.detach, setting.check_added(added))
        data, all_weights = calculus.training_set(setting, weights, added)
        inverse = self.inverse.of(
            damped(self.curvature, self.inverse, Point(setting, theta, all_weights, data), self.damping)
        )
        return AdjointDatamodel(setting, theta, inverse, calculus.normaliser(setting, all_weights), (weights, added))


class AdjointDatamodel(OutputFunction):
    """What `AdjointInfluence` fits; differentiable in weights and added examples.

    Args:
        setting: what is attributed.
        theta: the trained parameters.
        inverse: of the curvature there.
        total: what the sum of losses was divided by.
        at: where the tangent touches.
    """

    def __init__(self, setting: Setting, theta: Parameters, inverse: Product, total: Tensor, at: Arguments) -> None:
        self._setting, self._theta, self._inverse, self._total, self._at = setting, theta, inverse, total, at
        self.n, self.output_shape = setting.n, setting.output_shape
        self._touched = setting.outputs(theta).detach()
        some = torch.randn(1, self.m, generator=torch.Generator().manual_seed(0)).to(self._touched)
        calculus.check_gradient(setting, calculus.pulled(setting, theta, setting.outputs, some))
        with torch.no_grad():
            self._old = self._pull(at[1])

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`."""
        w = self._setting.check_weights(weights).to(self._touched)
        change = w - self._at[0]
        move = (self._pull(added) - self._old).expand(*w.shape[:-1], -1)
        if bool((change != 0).any()) or change.requires_grad:
            move = move + _Weighted.apply(change.reshape(-1, self.n), self).view(move.shape)
        return self._touched + _Pushed.apply(-move.reshape(-1, move.shape[-1]) / self._total, self).view(
            *w.shape[:-1], self.m
        )

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`; the trained model and its curvature are reused."""
        new = AdjointDatamodel(self._setting.on(targets, output), self._theta, self._inverse, self._total, self._at)
        return same_origin(self, new, targets, output)

    def _pull(self, added: Batch | None) -> Tensor:
        """The sum of the added examples' pulls, `(p,)`."""
        if added is None or not batches.size(added):
            return torch.zeros_like(self._setting.flat(self._theta))
        return calculus.pulls(self._setting, self._theta, self._setting.check_added(added)).sum(0)

    @property
    def decay(self) -> Tensor:
        """What of the weight decay moves with the weights, `(p,)`."""
        goal = self._setting.algorithm.objective
        return (goal.l2 if goal.mean else 0.0) * self._setting.flat(self._theta)

    @property
    def losses(self) -> Any:
        """The losses of the universe as a function of the parameters."""
        return partial(self._setting.losses, batch=self._setting.pool)


class _Weighted(torch.autograd.Function):
    """`sum_i change_i pull_i`, `(k, n) -> (k, p)`."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, f: AdjointDatamodel) -> Tensor:
        ctx.f = f
        pulled = calculus.pulled(f._setting, f._theta, f.losses, change)
        return pulled + change.sum(1, keepdim=True) * f.decay

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        f = ctx.f
        pushed = calculus.pushed(f._setting, f._theta, f.losses, gradient)
        return pushed + (gradient @ f.decay)[:, None], None


class _Pushed(torch.autograd.Function):
    """`J H^-1 move`, `(k, p) -> (k, m)`; no solve where nothing moves."""

    @staticmethod
    def forward(ctx: Any, move: Tensor, f: AdjointDatamodel) -> Tensor:
        ctx.f = f
        if not bool((move != 0).any()):
            return move.new_zeros(len(move), f.m)
        return calculus.pushed(f._setting, f._theta, f._setting.outputs, f._inverse(move))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        f = ctx.f
        return f._inverse(calculus.pulled(f._setting, f._theta, f._setting.outputs, gradient)), None
