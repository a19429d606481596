"""Influence functions by conjugate gradients with EK-FAC as the preconditioner.

The inverse of `Influence`, the exact Gauss-Newton matrix's, reached in a few products: EK-FAC (`estimators/ekfac.py`)
brings the solution close, and conjugate gradients correct what it gets wrong, between layers first of all.

Cost for each model: that of EK-FAC, and about ten products with the Gauss-Newton matrix for every output, each twice as
dear as a gradient of the training loss; with `lazy`, for every vector of weights and its gradient instead.

Reference: Wang et al., "Better Training Data Attribution via Better Inverse Hessian-Vector Products", 2025,
arXiv:2507.14740. Deviations: conjugate gradients where theirs is a preconditioned Neumann series; the preconditioner
takes layers as independent, since the solver finds what they share; weight decay as in `Influence`.
"""

from dataclasses import dataclass
from functools import partial

from estimators._damping import asked, damped
from estimators._fisher import ExactFisher, Fisher, SampledFisher, TrueFisher
from estimators._kronecker import Kronecker, check_layers
from estimators._tangent import fit_tangent, tangent_cost
from recipe.calculus import GaussNewton, Point, Product
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.inverses import CG
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.work import Products, Work

__all__ = ["EKFACCG", "ExactFisher", "SampledFisher", "TrueFisher"]


@dataclass(frozen=True)
class EKFACCG:
    """The datamodel tangent to retraining, its curvature exact up to a tolerance.

    Args:
        tolerance: solves stop where `|residual| <= tolerance |right-hand side|`.
        fisher: of the preconditioner.
        damping: added to the diagonal of the curvature; None: nothing where there is weight decay, else a tenth of its
            mean eigenvalue.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.
        lazy: never compute all effects: a vector of weights costs one solve, and its gradient another, where the
            effects cost one for every output. For objectives over many targets.

    Example:
        >>> import torch
        >>> from recipe import SGD, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2), torch.arange(30) % 2)
        >>> model = lambda: torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> setting = Setting(model, data, data, SGD(epochs=5, batch_size=10, lr=0.1, weight_decay=1e-2))
        >>> EKFACCG(models=2).fit(setting).effects.shape
        torch.Size([30, 30])
    """

    tolerance: float = 0.1
    fisher: Fisher = TrueFisher()
    damping: float | None = None
    models: int = 1
    seed: int = 0
    lazy: bool = False

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        work = Work(setting)
        products = Products(work, GaussNewton(), asked(setting, self.damping))
        return tangent_cost(work, self.models, partial(self._solver().cost, products), self.lazy)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and linearise; arguments and errors as of `EKFAC.fit`."""
        check_layers(setting)
        return fit_tangent(setting, self.models, self.seed, at, self._invert, self.lazy)

    def _invert(self, point: Point) -> Product:
        return self._solver().of(damped(GaussNewton(), self._solver(), point, self.damping))

    def _solver(self) -> CG:
        preconditioner = Kronecker(fisher=self.fisher, coupled=False)  # the residual tells what layers share
        return CG(self.tolerance, preconditioner=preconditioner)
