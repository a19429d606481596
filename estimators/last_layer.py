r"""Leave-one-out on the last layer: exact for least squares, corrected by the leverage for other losses.

With everything below the last linear layer held fixed, the model is a generalised linear one on the representation
`phi`. Weight `d` more on a point i moves its parameters `theta`, by one Newton step of the objective with that weight,

    theta_i(d) - theta = -d [W H + d (H_i + l2)]^-1 (grad l_i + l2 theta)
                       = -d [W H + d l2]^-1 (r_i phi_i^T + l2 theta),      r_i = s_i - d (1 + d A_i K_i)^-1 A_i J_i v_i,

with `s_i` and `A_i` the first and second derivative of the loss in the prediction `z = J theta`, `H_i = J_i^T A_i J_i`,
`H` the Hessian, `K_i = J_i [W H + d l2]^-1 J_i^T` and `v_i = [W H + d l2]^-1 (grad l_i + l2 theta)`. For least squares
without l2 and `d = -1` this is `r_i = residual / (1 - leverage)`, the textbook's leave-one-out. For an algorithm that
minimises a sum, the `d l2` and `l2 theta` drop out, and `W = 1`. Then

    effects[j, i] = f_j(theta_i(1 - w_i)) - f_j(theta_i(-w_i)),

with `w_i` the weight where it was fitted: the output with the point minus that without. So these are *differences over
the whole step of a weight from 0 to 1*, not the derivative at `w = 1` that `Influence` gives; the two differ by
`1 / (1 - leverage)`, and by the curvature of the output. `f_hat` is exact where one point is left out, and adds such
effects up where several are. An example from outside has weight 0, and its effect is what adding it does (`d = 1`,
leverage `1 / (1 + K)`): adding a training point a second time has a smaller effect than its first copy has, so
`effect(universe[i])` is *not* `effects[:, i]`.

References: Wang et al., "Approximate Leave-One-Out for Fast Parameter Tuning in High Dimensions", 2018,
arXiv:1807.02694; Rad & Maleki, "A Scalable Estimate of the Out-of-Sample Prediction Error via Approximate
Leave-One-Out Cross-Validation", 2020, arXiv:1801.10243.
Deviations: the papers minimise a sum; for a mean loss, leaving out a point also shifts the balance of data and
regulariser, which is in the formula. Heads that are not at an optimum are treated as if they were.
Cost: a pass over the data, an eigendecomposition of the `(C d, C d)` Hessian, `n (C d)^2 C` for the leverages, and
outputs of `n` heads on the targets.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from estimators._anchored import anchored, where
from estimators._ensemble import members
from estimators._head import Head, curvatures, residuals
from estimators._representation import blocks
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import BLOCK_BYTES
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.training import progress
from recipe.work import Work


@dataclass(frozen=True)
class LastLayer:
    """What each point adds to the fit of the last linear layer, the layers below held fixed.

    Args:
        damping: added to the diagonal of the Hessian.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        On least squares, leaving a point out is predicted exactly:

        >>> from recipe import Newton, Retrain, Setting, SquaredError
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 3).double(), torch.randn(20, 1).double())
        >>> setting = Setting(lambda: torch.nn.Linear(3, 1).double(), data, data, Newton(l2=0.1),
        ...                   loss=SquaredError(), output=lambda z, batch: z[:, 0])
        >>> all_but_one = 1 - torch.eye(20).double()
        >>> torch.allclose(LastLayer().fit(setting)(all_but_one), Retrain(setting)(all_but_one))
        True
    """

    damping: float = 0.0
    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        damped = replace(self, damping=self.damping or 1.0)  # a few points may not determine the layer
        return Work(setting).fitted(damped, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints), and leave every point out of the last layer's fit.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect`, differentiable through the representation, and `on`.

        Raises:
            ValueError: a model whose prediction is not its last linear layer's, or a Hessian of that layer that is not
                positive definite.
        """
        there = where(setting, at)
        Head.of(setting, setting.initial(0))  # what cannot be done fails before anything is trained
        trained = members(setting, self.models, self.seed, at)
        fits = [_Fit.of(setting, theta, there, self.damping) for theta in progress(trained, "last layer")]
        return _datamodel(setting, trained, fits, there)


def _datamodel(setting: Setting, trained: list[Parameters], fits: list["_Fit"], at: Arguments) -> LinearDatamodel:
    leavings = [_Outputs.of(setting, fit) for fit in fits]

    def differences(batch: Batch, weights: Tensor) -> Tensor:
        return torch.stack([one.differences(batch, weights) for one in leavings]).mean(0)

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        weights = at[0].new_zeros(batches.size(batch))
        return torch.cat([differences(block, w) for block, w in leavings[0].blocks(batch, weights)], 1)

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), trained, fits, at)

    parts = list(leavings[0].blocks(setting.pool, at[0]))
    effects = collected(lambda part: differences(*part), parts, [len(w) for _, w in parts])
    return anchored(setting, trained, at, effects, effect, on)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A head and its Hessian, `W H = V diag(values) V^T`; `ridge` is what weight on a point adds to it besides H_i."""

    head: Head
    values: Tensor  # (p,), p = C d
    vectors: Tensor  # (C, d, p)
    ridge: float
    total: float  # W

    @classmethod
    def of(cls, setting: Setting, parameters: Parameters, at: Arguments, damping: float) -> "_Fit":
        head, goal = Head.of(setting, parameters), setting.algorithm.objective
        data, weights = calculus.training_set(setting, *at)
        with torch.no_grad():
            W = calculus.normaliser(setting, weights)
            H = W * (goal.l2 + damping) * torch.eye(head.theta.numel()).to(head.theta)
            for block, w in _blocks(data, weights, len(head.theta) * head.theta.numel()):
                H += _hessian(setting, head, block, w)
            values, vectors = torch.linalg.eigh(H)
        ridge = goal.l2 if goal.mean else 0.0
        rounding = torch.finfo(values.dtype).eps * len(values) * float(values[-1])
        if values[0] <= max(rounding, ridge * float(weights.max())):
            raise ValueError(_undetermined(float(values[-1] / W)))
        return cls(head, values, vectors.view(*head.theta.shape, -1), ridge, float(W))

    def moved(self, setting: Setting, batch: Batch, steps: Tensor) -> Tensor:
        """`theta_i(d) - theta` for the examples of a batch and a step `d (b,)` of each one's weight, `(b, C, d)`."""
        phi = self.head.features(batch)
        z = self.head.logits(phi)
        s, A, d = residuals(setting, z, batch), curvatures(setting, z, batch), steps[:, None, None]
        values = self.values + steps[:, None] * self.ridge  # (b, p), of W H + d l2
        J = torch.einsum("bd,cdp->bcp", phi, self.vectors)  # rows of J_i in the basis of the eigenvectors
        pull = self.ridge * torch.einsum("cd,cdp->p", self.head.theta, self.vectors)  # l2 theta in that basis
        K = torch.einsum("bcp,bp,bkp->bck", J, 1 / values, J)
        Jv = torch.einsum("bck,bk->bc", K, s) + torch.einsum("bcp,bp->bc", J, pull / values)
        inner = torch.eye(s.shape[1]).to(s) + d * A @ K  # for a squared error and d = -1, 1 - leverage
        if (torch.linalg.det(inner.detach()) <= torch.finfo(s.dtype).eps ** 0.5).any():
            raise ValueError(_undetermined(float(self.values[-1]) / self.total))
        r = s - steps[:, None] * torch.linalg.solve(inner, (A @ Jv[..., None])).squeeze(-1)
        step = -steps[:, None] * (torch.einsum("bc,bcp->bp", r, J) + pull) / values
        return torch.einsum("bp,cdp->bcd", step, self.vectors)


@dataclass(frozen=True, eq=False)
class _Outputs:
    """A fit, seen from targets: how its outputs change with the weight of a point."""

    setting: Setting
    fit: _Fit
    features: Tensor  # (t, d)

    @classmethod
    def of(cls, setting: Setting, fit: _Fit) -> "_Outputs":
        with torch.no_grad():
            return cls(setting, fit, torch.cat([fit.head.features(block) for block in blocks(setting.probe)]))

    def differences(self, batch: Batch, weights: Tensor) -> Tensor:
        """`f_j(theta_i(1 - w_i)) - f_j(theta_i(-w_i))`, `(m, b)`, for examples whose weights were `w (b,)`."""
        return (self._at(batch, 1 - weights) - self._at(batch, -weights)).T

    def _at(self, batch: Batch, steps: Tensor) -> Tensor:
        z = self.fit.head.logits(self.features)  # (t, C)
        if not steps.any():
            return self.setting.output(z, self.setting.probe).reshape(1, -1)
        moves = self.features @ self.fit.moved(self.setting, batch, steps).mT  # (b, t, C)
        return vmap(lambda move: self.setting.output(z + move, self.setting.probe).reshape(-1))(moves)

    def blocks(self, batch: Batch, weights: Tensor) -> list[tuple[Batch, Tensor]]:
        """The examples and their weights in parts that fit `BLOCK_BYTES`."""
        return _blocks(batch, weights, len(self.fit.vectors) * max(len(self.fit.values), len(self.features)))


def _hessian(setting: Setting, head: Head, block: Batch, weights: Tensor) -> Tensor:
    """`sum_i w_i A_i x phi_i phi_i^T`, `(C d, C d)`."""
    phi = head.features(block)
    A = weights[:, None, None] * curvatures(setting, head.logits(phi), block)
    rows = [phi.T @ (a[:, :, None] * phi[:, None, :]).flatten(1) for a in A.unbind(1)]  # class by class, (d, C d) each
    return torch.cat(rows)


def _blocks(batch: Batch, weights: Tensor, width: int) -> list[tuple[Batch, Tensor]]:
    """Examples and their weights in parts of which `width` numbers an example fit `BLOCK_BYTES`."""
    rows = max(1, BLOCK_BYTES // (8 * width))
    starts = range(0, len(weights), rows)
    return [(batches.take(batch, slice(i, i + rows)), weights[i : i + rows]) for i in starts]


def _undetermined(largest: float) -> str:
    return (
        "The last layer's fit is not determined once a point is left out: its Hessian is not positive definite, or a "
        "point has the leverage 1. Train with an l2, or pass a damping: a thousandth of the Hessian's largest "
        f"eigenvalue is damping={1e-3 * largest:.1g}."
    )
