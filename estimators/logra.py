"""LoGra: influence functions between gradients that are projected layer by layer.

The gradient of a layer on one example is `G = sum_t rows_t cols_t^T` (`recipe/layers.py`). With a few columns `U`, `V`
for each side it becomes

    phi = vec(U^T G V) = vec(sum_t (U^T rows_t) (V^T cols_t)^T),

of at most `rank^2` numbers, and is never formed. Between them, summed over the layers,

    effects[j, i] = -sum_l tau_l psi_jl^T (F_l + tau_l (l2 + damping))^-1 (phi_il + l2 theta_l) / W,

with `F_l` the second moments of the features under the labels that the model expects, `theta_l` the projected
parameters, and `tau_l` the layer's share of the trace of F (see `estimators/_kronecker.py`; 1 for independent layers).

The sides of `PrincipalBasis()` are the leading eigenvectors of the second moments of rows and columns: best for one
model. Those of `RandomBasis()` are orthonormal and keep inner products in expectation: best for an ensemble, whose
members then miss different things. A side that is no wider than the rank is kept as it is, so that a rank without limit
gives the exact Gauss-Newton matrix of each layer.

Reference: Choe et al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence Functions", 2024,
arXiv:2405.13954.
Deviations: the paper takes the labels of the data for F (`fisher=EmpiricalFisher()`) and layers as independent
(`coupled=False`): on the digits MLP that costs a tenth of the score and the unit. Biases belong to the matrix of their
layer, and scales and shifts have a block of their own, which it leaves out. The weight decay moves its balance when a
point is left out (see `Influence`).

Cost for each model: a pass over the data a label, another for principal sides, one for the gradients, and
`n C rank^4 + rank^6` a layer; memory `rank^4` a layer, the effects, and the features `(n, layers rank^2)` while they
fit (`estimators/_projected.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from estimators._anchored import where
from estimators._ensemble import check_differentiable, members
from estimators._fisher import Fisher, TrueFisher
from estimators._head import residuals
from estimators._kronecker import check_layers
from estimators._layer_projections import Basis, LayerProjection, PrincipalBasis, RandomBasis, passes
from estimators._projected import Features, Featuriser, Member, cholesky, projected_datamodel
from estimators._projections import Numbers
from recipe import calculus
from recipe.batch import Batch
from recipe.calculus import Point, Product
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.notes import note
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.training import progress
from recipe.work import Work

__all__ = ["EmpiricalFisher", "LoGra", "PrincipalBasis", "RandomBasis"]


@dataclass(frozen=True)
class LoGra:
    """The datamodel tangent to retraining, in a small projection of every layer.

    Args:
        rank: columns kept of each side of a layer.
        basis: which, `PrincipalBasis()` or `RandomBasis()`.
        fisher: how the expectation over labels is taken, `TrueFisher()`, `ExactFisher()`, `SampledFisher(samples)`, or
            `EmpiricalFisher()`.
        coupled: layers share what they learn and the weight decay; False: independent layers, as in the paper.
        damping: added to the diagonal beside the weight decay; None: nothing where there is weight decay, else a tenth
            of the mean eigenvalue of each layer.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model, and of the bases.

    Example:
        >>> from recipe import SGD, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2), torch.arange(30) % 2)
        >>> model = lambda: torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> setting = Setting(model, data, data, SGD(epochs=5, batch_size=10, lr=0.1, weight_decay=1e-2))
        >>> LoGra(rank=4, models=2).fit(setting).effects.shape
        torch.Size([30, 30])
    """

    rank: int = 24
    basis: Basis = PrincipalBasis()
    fisher: Fisher = TrueFisher()
    coupled: bool = True
    damping: float | None = None
    models: int = 1
    seed: int = 0

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
            A datamodel with `effect`, differentiable in the examples, and `on`, which reuses models and features.

        Raises:
            ValueError: a rank below 1, a layer whose gradients do not factorise, a curvature that is not positive
                definite, or outputs without a gradient.
        """
        if self.rank < 1:
            raise ValueError(f"LoGra keeps at least one column of each side of a layer; got rank={self.rank}.")
        check_layers(setting)
        there = where(setting, at)
        check_differentiable(setting)
        trained = members(setting, self.models, self.seed, at)
        data, weights = calculus.training_set(setting, *there)
        found = []
        for k, theta in enumerate(progress(trained, "projected curvature")):
            point = Point(setting, theta, weights, data, self.seed + k)
            with torch.no_grad():
                found.append(self._member(point, Numbers(self.seed + k), len(trained)))
        return projected_datamodel(setting, found, there)

    def _member(self, point: Point, numbers: Numbers, models: int) -> Member:
        setting, theta, goal = point.setting, point.parameters, point.setting.algorithm.objective
        projection = LayerProjection(setting, self.basis.sketches(point, self.fisher, self.rank, numbers))

        def features(batch: Batch) -> Features:
            gradients = projection.gradients(theta, batch, setting.loss)[:, 0]
            ones = gradients.new_ones(len(gradients))
            return Features(-gradients, ones, 0 * ones)  # of minus the loss itself

        total = calculus.normaliser(setting, point.weights)
        inverse = self._inverse(point, projection)
        drift = (goal.l2 if goal.mean else 0.0) * projection.vectors(setting.flat(theta)[None])[0]
        return Member(Featuriser(theta, projection, features, models), lambda v: inverse(v) / total, drift)

    def _inverse(self, point: Point, projection: LayerProjection) -> Product:
        kernels = [torch.zeros(size, size).to(point.weights) for size in projection.sizes]
        for run, cotangent, shares, _ in passes(point, projection, self.fisher, stage=1):
            phi = projection.pulled(run, cotangent)
            for kernel, part in zip(kernels, phi.split(projection.sizes, 1), strict=True):
                kernel += (part * shares[:, None]).T @ part
        traces = [float(kernel.trace()) for kernel in kernels]
        l2, whole = point.setting.algorithm.objective.l2, sum(traces)
        factors, dampings = [], []
        for kernel, trace in zip(kernels, traces, strict=True):
            if trace == 0:  # a layer without gradients stays where it is
                factors.append(torch.eye(len(kernel)).to(kernel))
                continue
            kernel = kernel * (whole / trace) if self.coupled else kernel
            mean = float(kernel.diagonal().mean())
            damping = 0.1 * mean if self.damping is None and l2 == 0 else self.damping or 0.0
            dampings.append(damping)
            factors.append(cholesky(kernel, l2 + damping))
        if self.damping is None:
            note(damping=dampings)

        def product(vectors: Tensor) -> Tensor:
            parts = zip(vectors.split(projection.sizes, 1), factors, strict=True)
            return torch.cat([torch.cholesky_solve(part.T, factor).T for part, factor in parts], 1)

        return product


@dataclass(frozen=True)
class EmpiricalFisher:
    """The labels of the data in place of those that the model expects: no unit, since a learned example has none."""

    def cotangents(self, setting: Setting, z: Tensor, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Fisher.cotangents`."""
        yield residuals(setting, z, batch)
