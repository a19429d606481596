"""Influence functions: how the outputs move when one training point gains weight.

At the optimum the gradient of the objective is zero. Keeping it zero, to first order, while `w[i]` moves gives

    effects[j, i] = -grad f_j(theta)^T  (H + damping)^-1  (grad l_i(theta) + l2 theta) / W,

with `H` the Hessian (or Gauss-Newton matrix) of the objective `sum w l / W + l2/2 |theta|^2` and `W = sum w`. For an
algorithm that minimises a sum, `l2 theta` and `W` drop out.

Reference: Koh & Liang, "Understanding Black-box Predictions via Influence Functions", 2017, arXiv:1703.04730.
Deviations: the paper leaves out `l2 theta`; with a mean loss it belongs there, since removing a point also shifts the
balance of data and regulariser. Outputs need not be losses. Effects are averaged over an ensemble of models, since
those of one non-convex model are noisy. Models that are not at an optimum are treated as if they were.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators._ensemble import members
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Curvature, Dense, GaussNewton, Inverse, Product
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.training import progress, stack


@dataclass(frozen=True)
class Influence:
    """The datamodel tangent to retraining.

    Args:
        curvature: `GaussNewton()`, or `Hessian()` (exact for convex models).
        inverse: `Dense()` (exact, `(p, p)` memory) or `CG()`.
        damping: added to the diagonal of the curvature.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        The effect of a point equals a finite difference of retraining:

        >>> from recipe import Newton, Retrain, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, Newton(l2=0.1))
        >>> f, f_hat, w = Retrain(setting), Influence().fit(setting), torch.ones(30, dtype=torch.float64)
        >>> step = 1e-4 * torch.eye(30, dtype=torch.float64)[7]
        >>> torch.allclose((f(w + step) - f(w - step)) / 2e-4, f_hat.effects[:, 7], atol=1e-7)
        True
    """

    curvature: Curvature = GaussNewton()
    inverse: Inverse = Dense()
    damping: float = 0.0
    models: int = 1
    seed: int = 0

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and linearise.

        Args:
            setting: what to attribute.
            at: `(weights, added)` where to linearise; default all points at weight 1.

        Returns:
            A datamodel with `effect`, `on` and `parameters`; `on` reuses trained models and factored curvature.

        Raises:
            ValueError: a curvature that is not positive definite, or outputs without a gradient.
        """
        weights, added = at or (torch.ones(setting.n, dtype=setting.dtype, device=setting.device), None)
        weights = setting.check_weights(weights).to(setting.dtype)
        trained = members(setting, self.models, self.seed, at)
        tangents = [self._tangent(setting, theta, weights, added) for theta in progress(trained, "curvature")]
        return _datamodel(setting, tangents, weights, added)

    def _tangent(self, setting: Setting, theta: Parameters, weights: Tensor, added: Batch | None) -> "_Tangent":
        data, all_weights = calculus.training_set(setting, weights, added)
        operator = self.curvature.at(setting, theta, all_weights, data, self.damping)
        return _Tangent(theta, self.inverse.of(operator), calculus.normaliser(setting, all_weights))


@dataclass(frozen=True, eq=False)
class _Tangent:
    """One trained model, the inverse of its curvature and the total weight that it was trained with."""

    theta: Parameters
    inverse: Product
    total: Tensor

    def moves(self, setting: Setting, batch: Batch) -> Tensor:
        """`d theta / d w` of the examples of a batch, `(b, p)`, without the inverse curvature."""
        return -calculus.pulls(setting, self.theta, batch) / self.total


def _datamodel(setting: Setting, tangents: list[_Tangent], weights: Tensor, added: Batch | None) -> LinearDatamodel:
    queries = [t.inverse(calculus.output_gradients(setting, t.theta)) for t in tangents]  # (m, p) each

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        parts = [q @ t.moves(setting, batch).T for q, t in zip(queries, tangents, strict=True)]
        return torch.stack(parts).mean(0)  # (m, b)

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), tangents, weights, added)

    def parameters(w: Tensor, new: Batch | None) -> Parameters:
        return stack([_moved(setting, t, w - weights, added, new) for t in tangents])

    with torch.no_grad():
        effects = torch.cat([effect(block) for block in calculus.blocks(setting, setting.pool)], 1)
        outputs = torch.stack([setting.outputs(t.theta) for t in tangents]).mean(0)
        bias = outputs - effects @ weights  # the tangent touches at `weights`; weight 0 is an extrapolation
        if added is not None and batches.size(added):
            bias = bias - effect(added).sum(1)
    return LinearDatamodel(bias, effects, effect, output_shape=setting.output_shape, on=on, parameters=parameters)


def _moved(setting: Setting, tangent: _Tangent, change: Tensor, old: Batch | None, new: Batch | None) -> Parameters:
    """Parameters after a change of the weights and of the added examples, to first order."""
    with torch.no_grad():
        parts = calculus.blocks(setting, setting.pool)
        shares = change.to(tangent.total).split([batches.size(part) for part in parts])
        move = sum(share @ tangent.moves(setting, part) for share, part in zip(shares, parts, strict=True))
        for sign, batch in ((1, new), (-1, old)):
            if batch is not None and batches.size(batch):
                move = move + sign * tangent.moves(setting, batch).sum(0)
        step = tangent.inverse(torch.as_tensor(move)[None])[0]
        return setting.unflat(setting.flat(tangent.theta) + step, tangent.theta)
