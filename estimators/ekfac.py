"""EK-FAC influence functions: the inverse curvature factorised layer by layer.

    effects[j, i] = -grad f_j(theta)^T  (F + l2 + damping)^-1  (grad l_i(theta) + l2 theta) / W,

with F the true Fisher matrix (for a cross-entropy the Gauss-Newton matrix), each layer's block taken to be diagonal in
the eigenbasis of Kronecker factors (`estimators/_kronecker.py`).

Cost for each model: two passes a label (or a sample) over the data, or over as many examples as say enough where layers
are used at many positions; an eigendecomposition of every factor; one pass for the gradients. Memory does not grow with
n beyond the effects.

Reference: Grosse et al., "Studying Large Language Model Generalization with Influence Functions", 2023,
arXiv:2308.03296.
Deviations: the weight decay of a mean objective moves its balance when a point is left out (see `Influence`); the bias
of a layer shares the factors of its weight; outputs need not be losses; effects are averaged over an ensemble. The
paper takes layers as independent (`coupled=False`); by default they share what they learn, which scores higher and
gives effects of the right size.
"""

from dataclasses import dataclass

from estimators._factored_queries import FactoredQueries
from estimators._fisher import ExactFisher, Fisher, SampledFisher, TrueFisher
from estimators._kronecker import Kronecker, KroneckerInverse, check_layers
from estimators._tangent import fit_tangent
from recipe.calculus import Point
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.work import Work

__all__ = ["EKFAC", "ExactFisher", "Kronecker", "SampledFisher", "TrueFisher"]


@dataclass(frozen=True)
class EKFAC:
    """The datamodel tangent to retraining, with Kronecker-factored curvature: fast, for networks of any size.

    Args:
        corrected: eigenvalues fitted in the factors' basis; False: K-FAC.
        fisher: how the expectation over labels is taken, `TrueFisher()`, `ExactFisher()` or
            `SampledFisher(samples)`.
        coupled: layers share what they learn and the weight decay; False: independent layers, as in the papers.
        damping: added to the eigenvalues beside the weight decay; None: nothing where there is weight decay, else a
            tenth of the mean eigenvalue of each layer.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.
        lazy: never compute all effects: a vector of weights costs one solve, and its gradient another, where the
            effects cost one for every output. For a few questions on many outputs, such as a forget set's logits.

    Example:
        >>> import torch
        >>> from recipe import SGD, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2), torch.arange(30) % 2)
        >>> model = lambda: torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> setting = Setting(model, data, data, SGD(epochs=5, batch_size=10, lr=0.1, weight_decay=1e-2))
        >>> EKFAC(models=2).fit(setting).effects.shape
        torch.Size([30, 30])
    """

    corrected: bool = True
    fisher: Fisher = TrueFisher()
    coupled: bool = True
    damping: float | None = None
    models: int = 1
    seed: int = 0
    lazy: bool = False

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and linearise.

        Args:
            setting: what to attribute.
            at: `(weights, added)` where to linearise; default all points at weight 1.

        Returns:
            A datamodel with `effect`, `on` and `parameters`; `on` reuses trained models and factors.

        Raises:
            ValueError: a layer whose gradients do not factorise, or outputs without a gradient.
        """
        check_layers(setting)
        return fit_tangent(setting, self.models, self.seed, at, self._invert, self.lazy, FactoredQueries)

    def _invert(self, point: Point) -> KroneckerInverse:
        return Kronecker(self.corrected, self.fisher, self.coupled).at(point, self.damping)
