"""The Newton-step datamodel: one Newton step, or a few, from the fully trained model towards each weighted objective.

    theta_hat(w) = theta - (H_w + damping)^-1 grad L(theta; w),      f_hat(w) = f(theta_hat(w)),

with `L(theta; w)` what the algorithm minimises on the weights `w`, and `H_w` its Hessian (or Gauss-Newton matrix)
there. Not linear in the weights: the curvature is that of the remaining points. Exact where the objective is
quadratic.

References: Guo et al., "Certified Data Removal from Machine Learning Models", 2020, arXiv:1911.03030; Koh et al., "On
the Accuracy of Influence Functions for Measuring Group Effects", 2019, arXiv:1905.13289. Deviation: where training
has not reached the optimum, the gradient of the start is subtracted, so that `f_hat(1)` is the trained model and only
the change is predicted.
Cost: beside the models one gradient to fit; then for every weight vector and model one inverse of the curvature
(`Dense`: p products and `p^3 / 3`) and one solve, and as much again for its gradient.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from estimators._ensemble import members
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Curvature, Hessian, Point
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.inverses import Dense, Inverse
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.training import stack
from recipe.work import Work


@dataclass(frozen=True)
class NewtonStep:
    """Newton steps for every weight vector.

    Args:
        curvature: `Hessian()` (exact on quadratics), or `GaussNewton()` for models that are not convex.
        inverse: `Dense()`, `CG()` or another of `Influence`'s, used once for every weight vector.
        damping: added to the diagonal of the curvature.
        models: an ensemble of as many seeds, whose outputs are averaged.
        seed: of the first model.
        steps: how many Newton steps, each as dear as the first. One is the published method. Where training solves a
            convex problem, a second one squares the error that is left, for sets that move the model far; where it
            stops early, one is enough: the steps lead to a minimum that training does not reach. The gradient in the
            weights is that of the last step.

    Raises:
        ValueError: fewer than one step.

    Example:
        On least squares, the prediction of any subset is exact:

        >>> from recipe import Newton, Retrain, Setting, SquaredError
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3).double(), torch.randn(20, 1).double())
        >>> setting = Setting(lambda: torch.nn.Linear(3, 1).double(), data, data, Newton(l2=0.1),
        ...                   loss=SquaredError(), output=lambda z, batch: z[:, 0])
        >>> half = (torch.arange(20) < 10).double()
        >>> torch.allclose(NewtonStep().fit(setting)(half), Retrain(setting)(half))
        True
    """

    curvature: Curvature = Hessian()
    inverse: Inverse = Dense()
    damping: float = 0.0
    models: int = 1
    seed: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"NewtonStep takes at least one step; got steps={self.steps}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "NewtonStepDatamodel":
        """Train at `at` (default: all points at weight 1); the steps are taken when the datamodel is called."""
        trained = members(setting, self.models, self.seed, at)
        weights, added = at or (torch.ones(setting.n, dtype=setting.dtype, device=setting.device), None)
        return NewtonStepDatamodel(self, setting, trained, setting.check_weights(weights).to(setting.dtype), added)


class NewtonStepDatamodel(OutputFunction):
    """What `NewtonStep` fits: differentiable in the weights and in added examples, not linear."""

    def __init__(
        self, step: NewtonStep, setting: Setting, trained: list[Parameters], weights: Tensor, added: Batch | None
    ) -> None:
        self.n, self.output_shape = setting.n, setting.output_shape
        self._step, self._setting, self._trained = step, setting, trained
        self._start = (weights, added)
        self._residuals = [self._gradient(theta, weights, added).detach() for theta in trained]

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`; one linear solve for every weight vector and model.

        Raises:
            ValueError: weights of the wrong length, negative or NaN, or a curvature that is not positive definite.
        """
        w = self._setting.check_weights(weights).to(self._setting.dtype)
        rows = [self._outputs(row, added) for row in w.reshape(-1, self.n)]
        return torch.stack(rows).view(*w.shape[:-1], self.m)

    def on(self, targets: Any = None, output: Measure | None = None) -> "NewtonStepDatamodel":
        """The same trained models, measured on other targets or by another output."""
        setting = self._setting.on(targets, output)
        other = NewtonStepDatamodel(self._step, setting, self._trained, *self._start)
        same_origin(self, other, targets, output)
        return other

    def parameters(self, weights: Tensor, added: Batch | None = None) -> Parameters:
        """Parameters after the step for `(n,)` weights, stacked over the models."""
        w = self._setting.check_weights(weights).to(self._setting.dtype)
        return stack([self._moved(i, w, added) for i in range(len(self._trained))])

    def _outputs(self, w: Tensor, added: Batch | None) -> Tensor:
        outputs = [self._setting.outputs(self._moved(i, w, added)) for i in range(len(self._trained))]
        return torch.stack(outputs).mean(0)

    def _moved(self, member: int, w: Tensor, added: Batch | None) -> Parameters:
        """Parameters after the steps; only the last one has a graph."""
        at = self._trained[member]
        with torch.no_grad():
            for _ in range(self._step.steps - 1):
                at = self._stepped(at, self._residuals[member], w.detach(), added)
        return self._stepped(at, self._residuals[member], w, added)

    def _stepped(self, at: Parameters, residual: Tensor, w: Tensor, added: Batch | None) -> Parameters:
        """`theta - H_w^-1 (grad L(theta; w) - residual)`, with the derivatives of the exact solution of that system.

        The solution `s` is found without a graph, then refined once with one: `s + H^-1 (g(w) - H(w) s)` changes no
        value, and its derivative `H^-1 (dg - dH s)` is that of the solution.
        """
        setting = self._setting
        theta = setting.flat(at)
        data, weights = calculus.training_set(setting, w, added)
        point = Point(setting, at, weights, data)
        with torch.no_grad():
            operator = self._step.curvature.at(point, self._step.damping)
            inverse = self._step.inverse.of(operator)
        gradient = self._gradient(at, w, added) - residual
        s = inverse(gradient.detach()[None])
        if gradient.requires_grad:
            live = self._step.curvature.at(point, self._step.damping)
            s = s + calculus.applied(inverse, gradient[None] - live.product(s))
        return setting.unflat(theta - s[0], at)

    def _gradient(self, at: Parameters, w: Tensor, added: Batch | None) -> Tensor:
        setting = self._setting
        data, weights = calculus.training_set(setting, w, added)
        return grad(lambda t: calculus.objective(setting, t, at, weights, data))(setting.flat(at))
