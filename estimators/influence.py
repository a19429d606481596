"""Influence functions: how the outputs move when one training point gains weight.

At the optimum the gradient of the objective is zero. Keeping it zero, to first order, while `w[i]` moves gives

    effects[j, i] = -grad f_j(theta)^T  (H + damping)^-1  (grad l_i(theta) + l2 theta) / W,

with `H` the Hessian (or Gauss-Newton matrix) of the objective `sum w l / W + l2/2 |theta|^2` and `W = sum w`. For an
algorithm that minimises a sum, `l2 theta` and `W` drop out.

The inverse is a piece of its own (`recipe/inverses/`). On the digits MLP (9 610 parameters, 200 outputs, one model),
with the LDS and the seconds of a core:

    Dense() .69, 20       CG(1e-2) .69, 17      CG(1e-2, preconditioner=Nystroem(200)) .69, 2      DataInf() .30, .2
    Arnoldi(50) .78, 1    Nystroem(1000) .68, 8                    LiSSA(iterations=300) .80, about 80

An inverse that leaves small eigenvalues unsolved damps them, which predicts retraining better; so does `damping=0.01`
with an exact one: .80.

Cost for each model: the inverse's (`Dense`: p products with the curvature and `p^3 / 3`; the others a few products for
every output or once), gradients of all outputs and points, and `2 m p n`; `(m, p)` memory, and the inverse's.

Reference: Koh & Liang, "Understanding Black-box Predictions via Influence Functions", 2017, arXiv:1703.04730.
Deviations: the paper leaves out `l2 theta`; with a mean loss it belongs there, since removing a point also shifts the
balance of data and regulariser. Outputs need not be losses. Effects are averaged over an ensemble of models, since
those of one non-convex model are noisy. Models that are not at an optimum are treated as if they were.
"""

from dataclasses import dataclass
from functools import partial

from estimators._damping import asked, damped
from estimators._tangent import fit_tangent, tangent_cost
from recipe.calculus import Curvature, GaussNewton, Point, Product
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.inverses import Dense, Inverse
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.work import Products, Work


@dataclass(frozen=True)
class Influence:
    """The datamodel tangent to retraining.

    Args:
        curvature: `GaussNewton()`, or `Hessian()` (exact for convex models).
        inverse: `Dense()` (exact, `(p, p)` memory), `CG()`, `LiSSA()`, `Arnoldi(rank)`, `Nystroem(rank)`, `DataInf()`.
        damping: added to the diagonal of the curvature; None: nothing where there is weight decay, else a tenth of its
            mean eigenvalue.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.
        lazy: never compute all effects: a vector of weights costs one product with the inverse curvature, and its
            gradient another, where the effects cost one for every output. For objectives over many targets.

    Example:
        The effect of a point equals a finite difference of retraining:

        >>> import torch
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
    damping: float | None = None
    models: int = 1
    seed: int = 0
    lazy: bool = False

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        work = Work(setting)
        products = Products(work, self.curvature, asked(setting, self.damping))
        return tangent_cost(work, self.models, partial(self.inverse.cost, products), self.lazy)

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
        return fit_tangent(setting, self.models, self.seed, at, self._invert, self.lazy)

    def _invert(self, point: Point) -> Product:
        return self.inverse.of(damped(self.curvature, self.inverse, point, self.damping))
