"""Regression datamodels: retrain on random subsets and regress the outputs on which points were in.

With `S_1 .. S_r` random subsets of `round(alpha n)` points, `X[k, i] = 1` if point i is in `S_k`, and `Y[k, j]` the
output j after training on `S_k`,

    bias, effects = argmin  |Y - X effects^T - bias|^2 + penalty(effects),

for each output by itself; the bias is not penalised, so predictions are right on average over the subsets.

With a prior, the effects `A` that a cheaper estimator found, only what it leaves unexplained is regressed:

    effects[j] = scale[j] A[j] + residual[j],      scale[j] = argmin |Y[:, j] - bias - scale X A[j]|^2,

so that the penalty draws effects to the prior's in the right unit, not to zero. Ridge also expects the residual to lie
along the effects `A` of *all* outputs (see `Ridge`): what moves one target moves its neighbours.

All subsets have one size. So adding a constant to all effects of an output, and subtracting it times that size from the
bias, changes no prediction: *the level of the effects is not identified*, only differences between points are. The
lasso answers with those effects that are smallest in absolute sum, ridge with effects that sum to zero, both on top of
the prior's, whose level stays. What follows without a prior: predictions are for sets of about `alpha n` points, and
what the mere size of a set does (more data, better models) is not in them: with ridge, `f_hat(1) = f_hat(0)`, about the
mean output over the subsets, not that of the full model. Comparisons of sets of one size, as selection and the LDS
make, do not need the level.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (the lasso).
Deviations: every run has a seed of its own, so that the noise of initialisation averages out; the prior. Cost: the
retrainings and the prior. The regression itself takes about a second for 1 000 points, 200 outputs and 2 000 subsets.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators._penalties import Lasso, Penalty, Ridge, Solver, regression_cost
from estimators._subset_training import SubsetTraining
from recipe import batch as batches
from recipe.batch import Batch
from recipe.composition import streamed
from recipe.cost import Cost, cost_of
from recipe.datamodel import Estimator, LinearDatamodel, OutputFunction, product, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.stores import collected_by_outputs
from recipe.work import Work

__all__ = ["Lasso", "Penalty", "Regression", "Ridge", "regress", "regress_residual"]


@dataclass(frozen=True)
class Regression:
    """The datamodel that regression on random subsets gives.

    Args:
        subsets: how many models to train; run i trains with the seed `seed + i`.
        alpha: the share of the points in a subset, between 0 and 1. Fit near the size that you will ask about.
        penalty: `Lasso()`, or `Ridge()`, the better one for few subsets on top of a prior.
        prior: a cheaper estimator, such as `Influence(models=5)`, whose residual is regressed: with the same accuracy
            it saves most of the retrainings. Of a datamodel that is not linear, its gradient at full weights.
        seed: of the subsets and of the first run.

    Raises:
        ValueError: fewer than two subsets, or a share that is not between 0 and 1.

    Example:
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = Regression(subsets=100).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.5, seed=0)).mean > 0.9
        True
    """

    subsets: int
    alpha: float = 0.5
    penalty: Penalty = Lasso()
    prior: Estimator | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise ValueError(f"Regression needs at least two subsets, better hundreds; got {self.subsets}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"The share alpha of the points in a subset must be between 0 and 1; got {self.alpha}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        work = Work(setting)
        prior = Cost() if self.prior is None else cost_of(self.prior, setting)
        retraining = work.retraining(self.subsets, round(self.alpha * setting.n))
        return prior + retraining + regression_cost(self.penalty, self.subsets, setting)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train on the subsets and regress.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: subsets are drawn from the points with positive weight, whatever it is (others get
                the effect 0, or what the prior says), and the added examples are in every training set, so that the
                bias holds what they contribute. The prior is fitted there. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)`. Its `on` measures the same models again, as far as `Retrain` remembers them, and
            regresses. Its `effect` is the prior's, in the prior's scale: retraining on subsets says nothing about
            examples from outside the universe, nor corrects it. Without a prior, or with one that has none, there is no
            `effect`.

        Raises:
            ValueError: weights that do not fit the setting, so few points that every subset is empty or full, or a
                prior that is not differentiable in the weights.
        """
        training = SubsetTraining.of(setting, at)
        subsets = training.draw(self.subsets, self.alpha, self.seed)
        prior = None if self.prior is None else self.prior.fit(setting, at)
        return self._regressed(training, subsets, prior, None if at is None else at[1])

    def _regressed(
        self, training: SubsetTraining, subsets: Tensor, prior: OutputFunction | None, added: Batch | None
    ) -> LinearDatamodel:
        def on(targets: Any, output: Measure | None) -> LinearDatamodel:
            other = None if prior is None else prior.on(targets, output)
            return self._regressed(training.on(targets, output), subsets, other, added)

        shape, known = training.f.output_shape, None if prior is None else streamed(prior)  # known before training
        masks, outputs = training.spread(subsets), training(subsets, range(self.seed, self.seed + self.subsets))
        fit = _Regression.of(masks, outputs, self.penalty, known)
        effects = collected_by_outputs(fit.effects, shape, training.n)
        level, there = fit.y.to(outputs.dtype), fit.x.to(outputs.dtype)
        worth = None if prior is None else prior.effect
        if worth is None:
            return LinearDatamodel(level, effects, at=there, output_shape=shape, on=on)

        def effect(batch: Batch) -> Tensor:
            return fit.scale.to(outputs.dtype)[:, None] * worth(batch)

        if added is not None and batches.size(added):
            level = level - effect(added).sum(1).detach()
        return LinearDatamodel(level, effects, effect, at=there, output_shape=shape, on=on)


@dataclass(frozen=True, eq=False)
class _Regression:
    """What is regressed.

    Args:
        x: `(n,)`, mean weights.
        y: `(m,)`, mean outputs.
        unexplained: `(r, m)`, what known effects leave of the centred outputs.
        solve: by what it is explained.
        known: `(m, n)` effects, on disk perhaps.
        scale: `(m,)`, in which they count.
        dtype: of the answer.
    """

    x: Tensor
    y: Tensor
    unexplained: Tensor
    solve: Solver
    known: Any
    scale: Tensor
    dtype: torch.dtype

    @classmethod
    def of(
        cls, masks: Tensor, outputs: Tensor, penalty: Penalty, known: Any = None, along: Any = None
    ) -> "_Regression":
        """In float64; known effects are directions too."""
        X, Y = masks.to(outputs.device, torch.float64), outputs.detach().double()
        x, y = X.mean(0), Y.mean(0)
        X, Y = X - x, Y - y
        scale = torch.zeros_like(y)
        if known is not None:
            P = product(known, X)  # the changes that the prior predicts, (r, m)
            power = P.square().sum(0)
            scale = torch.where(power > 0, (P * Y).sum(0) / power, 0)
            Y = Y - scale * P
        return cls(x, y, Y, penalty.solver(X, known if along is None else along), known, scale, outputs.dtype)

    def effects(self, some: slice) -> Tensor:
        """On some of the outputs, `(k, n)`."""
        found = self.solve(self.unexplained[:, some]).T
        if self.known is not None:
            found = found + self.scale[some, None] * torch.as_tensor(self.known[some]).to(found)
        return found.contiguous().to(self.dtype)


def regress(
    masks: Tensor, outputs: Tensor, penalty: Penalty = Lasso(), along: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fit outputs by a linear function of the weights, from retrainings that you have already.

    Args:
        masks: `(r, n)` weights of r retrainings, 1 for a point that was in and 0 for another.
        outputs: `(r, m)` what each gave.
        penalty: `Lasso()` or `Ridge()`.
        along: `(k, n)` effects to expect, whatever their size and sign; only ridge has a use for them.

    Returns:
        `bias (m,)` and `effects (m, n)`, in the outputs' type; computed in float64. A point that was always in, or
        never, gets the effect 0.

    Raises:
        ValueError: fewer than two retrainings, shapes that do not fit, outputs that are not finite, or weights that are
            the same in every retraining.

    Example:
        >>> from recipe import random_subsets
        >>> masks = random_subsets(n=8, r=100, alpha=0.5, seed=0)
        >>> bias, effects = regress(masks, 3 * masks[:, :1], Ridge(penalty=1e-6))
        >>> (effects[0, 0] - effects[0, 1:]).round(decimals=3)  # differences between points are identified
        tensor([3., 3., 3., 3., 3., 3., 3.])
    """
    _check(masks, outputs)
    fit = _Regression.of(masks, outputs.double(), penalty, along=along)
    effects = fit.effects(slice(None))
    return (fit.y - effects @ fit.x).to(outputs.dtype), effects.to(outputs.dtype)


def regress_residual(
    masks: Tensor, outputs: Tensor, prior: Tensor, penalty: Penalty = Lasso()
) -> tuple[Tensor, Tensor, Tensor]:
    """Regress what known effects leave unexplained.

    Args:
        masks: `(r, n)` as for `regress`.
        outputs: `(r, m)`.
        prior: `(m, n)` effects that another estimator found, in any unit.
        penalty: `Lasso()` or `Ridge()`.

    Returns:
        `bias (m,)`, `effects (m, n)`, and `scale (m,)`: how much of the prior is in the effects, 0 for an output whose
        prior predicts no change.

    Raises:
        ValueError: as `regress` does, or a prior of another shape.

    Example:
        >>> from recipe import random_subsets
        >>> masks, truth = random_subsets(n=8, r=100, alpha=0.5, seed=0), torch.randn(2, 8)
        >>> bias, effects, scale = regress_residual(masks, masks @ truth.T, prior=truth / 3)
        >>> scale.round(decimals=4)
        tensor([3., 3.])
        >>> torch.allclose(effects, truth, atol=1e-5)  # the level is the prior's
        True
    """
    _check(masks, outputs)
    if prior.shape != (outputs.shape[1], masks.shape[1]):
        raise ValueError(
            f"The prior needs one effect for each of {outputs.shape[1]} outputs and {masks.shape[1]} points; got the "
            f"shape {tuple(prior.shape)}."
        )
    fit = _Regression.of(masks, outputs.double(), penalty, prior.detach().to(outputs))
    effects = fit.effects(slice(None))
    bias = fit.y - effects @ fit.x
    return bias.to(outputs.dtype), effects.to(outputs.dtype), fit.scale.to(outputs.dtype)


def _check(masks: Tensor, outputs: Tensor) -> None:
    if masks.ndim != 2 or outputs.ndim != 2 or len(masks) != len(outputs) or len(masks) < 2:
        raise ValueError(
            "Regression needs weights (r, n) and outputs (r, m) of the same r >= 2 retrainings; got "
            f"{tuple(masks.shape)} and {tuple(outputs.shape)}."
        )
    if not outputs.isfinite().all():
        run = int((~outputs.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"Outputs must be finite; retraining {run} gave NaN or infinity. Leave it out, or train it again."
        )
    if (masks == masks[0]).all():
        raise ValueError(
            "All retrainings have the same weights, so there is nothing to regress on. Draw random subsets."
        )
