"""Representer points: the part of a prediction that each training point carries in the last layer.

Where the last linear layer minimises `sum_i w_i l_i / W + l2/2 |Theta|^2`, its gradient is zero, and so

    Theta = sum_i w_i alpha_i [phi_i, 1]^T,     z(target) = sum_i w_i alpha_i (phi_i . phi_target + 1),
    alpha_i = -(d l_i / d z) / (l2 W),

with `phi` the layer's input: predictions are a weighted sum over training points. In the output's unit, by its
derivative in the prediction,

    effects[j, i] = <d f_j / d z, alpha_i> (phi_i . phi_target + 1).

The decomposition is exact; reading it as what happens *without* a point is not, since the other points' alphas would
change, and take over: effects are far too large, the more so the smaller l2 is. The slope that is printed beside an LDS
says by how much.

Where training penalised less than `l2` (not at all, say), or has not converged, the decomposition needs a fit that it
can hold for: the layer is refitted with the larger of the two, the layers below held fixed. Effects are those of the
refitted layer; the outputs where the datamodel was fitted stay those of the trained model.

Reference: Yeh et al., "Representer Point Selection for Explaining Deep Neural Networks", 2018, arXiv:1811.09720.
Deviations: the paper's lambda is `l2 / 2`; biases are penalised, as the algorithms here do, and a bias that is not
trained belongs to no point. The paper explains predictions, the chain to other outputs is ours.
Cost: a pass over the data, the refit (some hundred evaluations of a linear model), `t n d`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import members
from estimators._head import Head, residuals
from estimators._representation import blocks
from estimators._votes import slopes
from recipe import calculus
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.training import progress
from recipe.work import Work


@dataclass(frozen=True)
class RepresenterPoints:
    """Effects by the representer theorem of the last linear layer.

    Args:
        l2: the least penalty, of the mean loss; the layer is refitted with it where the algorithm's own is smaller.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Raises:
        ValueError: a penalty that is not positive.

    Example:
        Predictions are the sum of what the points carry:

        >>> from recipe import Logits, Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3).double(), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2).double(), data, data, Newton(l2=0.1), output=Logits())
        >>> f_hat = RepresenterPoints().fit(setting)
        >>> torch.allclose(f_hat.effects.sum(1), f_hat(torch.ones(20)))
        True
    """

    l2: float = 0.01
    models: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ValueError(f"Without a penalty no point carries anything: l2 must be above 0; got {self.l2}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints), refit the last layer and take its predictions apart.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable through the representation, and `on`.

        Raises:
            ValueError: a model whose prediction is not its last linear layer's, or outputs without a gradient.
        """
        there = where(setting, at)
        head = Head.of(setting, setting.initial(0))  # what cannot be done fails before anything is trained
        _Carried.of(setting, head, 1.0)
        trained = members(setting, self.models, self.seed, at)
        data, weights = calculus.training_set(setting, *there)
        W, goal = float(weights.sum()), setting.algorithm.objective
        l2 = max(self.l2, goal.l2 if goal.mean else goal.l2 / W)
        heads = [_refitted(setting, theta, data, weights, l2) for theta in progress(trained, "last layer")]
        return _datamodel(setting, trained, heads, l2 * W, there)


def _datamodel(
    setting: Setting, trained: list[Parameters], heads: list[Head], strength: float, at: Arguments
) -> LinearDatamodel:
    carried = [_Carried.of(setting, head, strength) for head in heads]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        return torch.stack([one.effect(setting, batch) for one in carried]).mean(0)

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), trained, heads, strength, at)

    with torch.no_grad():
        effects = collected(effect, blocks(setting.pool))
    return anchored(setting, trained, at, effects, effect, on)


def _refitted(setting: Setting, theta: Parameters, data: Batch, weights: Tensor, l2: float) -> Head:
    head = Head.of(setting, theta)
    with torch.no_grad():
        features = torch.cat([head.features(block) for block in blocks(data)])
    return head.refitted(setting, features, data, weights / weights.sum(), l2)


@dataclass(frozen=True, eq=False)
class _Carried:
    """A head, seen from targets with features `(t, d)` and slopes `(m, C)`; its penalty is `strength = l2 W`."""

    head: Head
    strength: float
    features: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, setting: Setting, head: Head, strength: float) -> "_Carried":
        with torch.no_grad():
            features = torch.cat([head.features(block) for block in blocks(setting.probe)])
        return cls(head, strength, features, slopes(setting, head.logits(features)))

    def effect(self, setting: Setting, batch: Batch) -> Tensor:
        """`<d f_j / d z, alpha_i> (phi_i . phi_target + 1)`, `(m, b)`."""
        phi = self.head.features(batch)
        alpha = -residuals(setting, self.head.logits(phi), batch) / self.strength  # (b, C)
        alike = self.features @ phi.T  # (t, b)
        width = len(self.slopes) // len(self.features)
        return alike.repeat_interleave(width, 0) * (self.slopes @ alpha.T)
