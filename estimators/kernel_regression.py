"""Kernel regression datamodels: retrain without sets such as will be asked about, and interpolate between them.

With `r = 1 - w` what is left out and runs `r_1 .. r_k`, each beside the run of the same seed on all points,

    f_hat(w) = f(1) + scale (prior(w) - prior(1)) + sum_k k(r, r_k) A[k],
    A        = (K + noise mean(diag K) 1)^-1 (Y[k] - Y_full[seed of k] - scale (prior(w_k) - prior(1))),

ridge regression in the space of a kernel, or the posterior mean of a Gaussian process. A kernel of the form `<r, r'>
s(r, r')` says that every point has an effect, as in a linear datamodel, and that effects vary with what else is left
out. That is what it takes where forgetting moves the outputs far: of half a class, the last points cost more than the
first. Predictions are good near the sets that were drawn, and fall back to the prior far from them.

An output that is measured on a training point is another function once that point is left out. So for targets that are
in the universe the kernel is `k(r, r') + r_i r'_i (k(r, r') + mean(diag K))`, with i the target's own place; unless
`own` says that the prior knows this, which saves most of the time: the cubes of how often each such point is left out.

With seeds enough, `spread` is predicted too: how the standard deviation over seeds changes. Leaving run k out of the
regression, `e_k` is what it missed, and `e_k + Y_full[seed of k] - mean Y_full` varies as the outputs do; its squares,
less the variance of the prediction, are regressed in the same way with more noise.

Reference: Saunders, Gammerman & Vovk, "Ridge Regression Learning Algorithm in Dual Variables", ICML 1998; regression on
retrainings is Ilyas et al., "Datamodels", 2022, arXiv:2202.00622. Deviations: the sets are drawn as they will be asked
for, instead of uniformly; seeds are shared, and changes regressed, which takes the seed's noise out of both sides; the
prior. Cost: the retrainings, and the cube of their number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from estimators._removal_kernel import RemovalKernel
from estimators._subset_training import SubsetTraining
from recipe import batch as batches
from recipe.batch import Batch
from recipe.cost import Cost, Machine, cost_of
from recipe.datamodel import Estimator, OutputFunction, records_origin, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.work import Work

__all__ = ["KernelDatamodel", "KernelRegression", "RandomRemovals", "RemovalKernel", "Varying"]

WIDE = 12_000  # runs, at most, that say how the spread over seeds changes
ROUGH = 16.0  # noise of a squared deviation, in units of the kernel's mean diagonal
MOST = 10.0  # factor by which a variance is thought to change

Kernel = Callable[[Tensor, Tensor], Tensor]  # what is left out, (a, n) and (b, n) -> (a, b); 0 where nothing is


@dataclass(frozen=True)
class RandomRemovals:
    """Sets of random size that leave out random points, `setting -> (r, n)` weights.

    Args:
        sets: how many.
        share: the largest of them, of all points.
        seed: decides the draw.

    Example:
        >>> from recipe import Newton, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, Newton(l2=0.1))
        >>> RandomRemovals(sets=4, share=0.5)(setting).shape
        torch.Size([4, 20])
    """

    sets: int
    share: float = 0.1
    seed: int = 0

    def __call__(self, setting: Setting) -> Tensor:
        """The sets."""
        draw, most = torch.Generator().manual_seed(self.seed), max(1, round(self.share * setting.n))
        sizes = torch.randint(1, most + 1, (self.sets, 1), generator=draw)
        ranks = torch.rand(self.sets, setting.n, generator=draw).argsort(1).argsort(1)
        return (ranks >= sizes).float()


@dataclass(frozen=True)
class Varying:
    """`<r, r'> (1 + exp(-rate |r - r'|^2 / n))`: effects of points, a part of which holds for similar sets only.

    Args:
        rate: the larger, the more alike sets must be; 0 for effects that do not vary.

    Example:
        >>> Varying(rate=0.0)(torch.ones(1, 3), torch.eye(3))
        tensor([[2., 2., 2.]])
    """

    rate: float = 5.0

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """`(a, b)`, of what is left out `(a, n)` and `(b, n)`."""
        inner = left @ right.T
        distance = left.square().sum(1)[:, None] + right.square().sum(1) - 2 * inner
        return inner * (1 + (-self.rate / left.shape[1] * distance.clamp_min(0)).exp())


@dataclass(frozen=True)
class KernelRegression:
    """The datamodel that interpolates between retrainings.

    Args:
        draw: `setting -> (r, n)` weights of zeros and ones, what to train on: sets like those to ask about.
        kernel: `(a, n) x (b, n) -> (a, b)` of what is left out, positive definite, 0 where nothing is; `Varying`, or
            a `RemovalKernel`, which knows which points are alike.
        noise: added to the kernel's diagonal, times its mean.
        prior: a cheaper estimator, of which only what it leaves unexplained is regressed.
        seeds: run k trains with the seed `seed + k % seeds`, and each of these seeds once on all points.
        seed: the first.
        own: whether targets that are in the universe have a kernel of their own.
        precision: in which to solve; the kernel of 30 000 runs takes three times 3.6 GB in single precision.

    Raises:
        ValueError: no noise, or no seeds.

    Example:
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = KernelRegression(RandomRemovals(sets=200, share=0.5)).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.7, seed=0)).mean > 0.9
        True
    """

    draw: Callable[[Setting], Tensor] = RandomRemovals(sets=1000)
    kernel: Kernel = Varying()
    noise: float = 0.005
    prior: Estimator | None = None
    seeds: int = 1
    seed: int = 0
    own: bool = True
    precision: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if not self.noise > 0 or self.seeds < 1:
            raise ValueError(f"KernelRegression needs noise above 0 and a seed; got {self.noise} and {self.seeds}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        runs = len(self.draw(setting))
        machine = Machine.of(torch.zeros((), dtype=self.precision))
        prior = Cost() if self.prior is None else cost_of(self.prior, setting)
        solved = 3 * machine.cholesky(runs) + machine.cholesky(runs, setting.m)
        return prior + Work(setting).retraining(runs + self.seeds) + solved

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "KernelDatamodel":
        """Train without the sets, and on all points, and regress the changes.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: the sets are of the points with positive weight, the others are never in, and added
                examples are in every training set. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)`, differentiable in the weights and not linear. Its `on` measures the same models
            again, as far as `Retrain` remembers them. It has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting, or sets that are not `(r, n)` zeros and ones.
        """
        sets = self.draw(setting)
        if sets.ndim != 2 or sets.shape[1] != setting.n or not ((sets == 0) | (sets == 1)).all():
            raise ValueError(
                f"KernelRegression.draw must give zeros and ones (r, {setting.n}), 1 for a point to train on and 0 "
                f"for one to leave out; got {tuple(sets.shape)} {sets.dtype}."
            )
        training = SubsetTraining.of(setting, at)
        sets = sets.to(training.points.device).index_select(1, training.points)
        prior = None if self.prior is None else self.prior.fit(setting, at)
        return KernelDatamodel(self, setting, training, sets, prior)


@dataclass(frozen=True, eq=False)
class _Runs:
    """What does not depend on the outputs.

    Args:
        left_out: `(r, n)`.
        K: `(r, r)`, their kernel.
        level: the mean of its diagonal.
        noise: in units of it.
        inverse: of the kernel with the noise.
    """

    left_out: Tensor
    K: Tensor
    level: Tensor
    noise: float
    inverse: Tensor

    @classmethod
    def of(cls, kernel: Kernel, noise: float, left_out: Tensor) -> "_Runs":
        """By one factorisation."""
        K = kernel(left_out, left_out)
        level = K.diagonal().mean()
        factor = K.clone()
        factor.diagonal().add_(noise * level)
        torch.linalg.cholesky(factor, out=factor)
        return cls(left_out, K, level, noise, torch.cholesky_inverse(factor))

    def coefficients(self, changes: Tensor, own: Tensor) -> "_Coefficients":
        """Regress.

        Args:
            changes: `(r, m)`.
            own: `(m,)` places of the targets in the universe, or -1.
        """
        shared, diagonal = self.inverse @ changes, self.inverse.diagonal()[:, None]
        if not (own >= 0).any():
            return _Coefficients(shared, None, diagonal)
        if_left_out, diagonal = torch.zeros_like(changes), diagonal.repeat(1, changes.shape[1])
        for place in own[own >= 0].unique():
            runs, outputs = self.left_out[:, place].nonzero().squeeze(1), (own == place).nonzero().squeeze(1)
            # K + P M P^T, with P the runs that left the target out: Woodbury, by blocks of the inverse that is there.
            rows = self.inverse[runs]
            M, R = self.K[runs[:, None], runs] + self.level, rows[:, runs]
            system = torch.eye(len(runs)).to(M) + R @ M
            solved = torch.linalg.solve(system, torch.cat([shared[runs[:, None], outputs], R], 1))
            b = solved[:, : len(outputs)]
            shared[:, outputs] -= rows.T @ (M @ b)
            if_left_out[runs[:, None], outputs] = b
            diagonal[runs[:, None], outputs] = solved[:, len(outputs) :].diagonal()[:, None]
        return _Coefficients(shared, if_left_out, diagonal)

    def spread(self, of_runs: "_Coefficients", seeds: Tensor) -> Tensor:
        """Coefficients of the first runs for the variance over seeds, less 1, in units of that on all points.

        Args:
            of_runs: of the changes.
            seeds: `(r, m)`, outputs of each run's seed on all points, less their mean.
        """
        missed = of_runs.shared / of_runs.diagonal  # by a regression without that run
        unit = (missed.square() * of_runs.diagonal).mean(0)
        uncertain = unit * (1 / of_runs.diagonal - self.noise * self.level).clamp_min(0)
        square = ((missed + seeds).square() - uncertain)[:WIDE] / seeds.square().mean(0)
        return torch.cholesky_solve((square - 1).clamp_max(MOST), self._rough)

    @cached_property
    def _rough(self) -> Tensor:
        factor = self.K[:WIDE, :WIDE].clone()
        factor.diagonal().add_(ROUGH * self.level)
        return torch.linalg.cholesky(factor)


@dataclass(frozen=True, eq=False)
class _Coefficients:
    """Of the runs.

    Args:
        shared: `(r, m)`, what they say by the kernel.
        if_left_out: and what by the own one, where the target is left out; None where no target has one.
        diagonal: `(r, m)` or `(r, 1)`, of the inverse of each output's kernel with the noise.
    """

    shared: Tensor
    if_left_out: Tensor | None
    diagonal: Tensor


class KernelDatamodel(OutputFunction):
    """What `KernelRegression` fits."""

    def __init__(
        self,
        estimator: KernelRegression,
        setting: Setting,
        training: SubsetTraining,
        sets: Tensor,
        prior: OutputFunction | None,
        runs: _Runs | None = None,
    ) -> None:
        self.n, self.output_shape = setting.n, setting.output_shape
        self._estimator, self._setting, self._training, self._sets = estimator, setting, training, sets
        self._prior = prior
        seeds = range(estimator.seed, estimator.seed + estimator.seeds)
        full = training(torch.ones_like(sets[:1]).expand(len(seeds), -1), seeds)  # (seeds, m)
        of_run = torch.arange(len(sets)) % len(seeds)
        changes = (training(sets, [seeds[int(k)] for k in of_run]) - full[of_run]).to(estimator.precision)
        self._full = full.mean(0)
        self._all = training.spread(torch.ones_like(sets[0], dtype=estimator.precision))
        left_out = training.spread(1 - sets.to(estimator.precision))  # (r, n)
        self._runs = runs or _Runs.of(estimator.kernel, estimator.noise, left_out)
        self._scale = torch.zeros_like(changes[0])
        if prior is not None:
            known = self._known(self._all - left_out).detach()
            power = known.square().sum(0)
            self._scale = torch.where(power > 0, (known * changes).sum(0) / power, 0)
            changes = changes - self._scale * known
        self._own = own_places(setting, self.m) if estimator.own else torch.full((self.m,), -1, device=setting.device)
        found = self._runs.coefficients(changes, self._own)
        self._shared, self._if_left_out = found.shared, found.if_left_out
        self._spread = None
        if len(seeds) > 1:
            self._spread = self._runs.spread(found, (full - self._full)[of_run].to(changes))

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`.

        Raises:
            ValueError: weights of another length, negative or NaN.
            NotImplementedError: added examples.
        """
        if added is not None and batches.size(added):
            raise NotImplementedError(
                "Kernel regression cannot value examples from outside the universe (poisons). Use an estimator that is "
                "differentiable in added data, such as Influence or NewtonStep."
            )
        runs = self._runs
        w = self._setting.check_weights(weights).to(self._all)
        rows = w.reshape(-1, self.n)
        out = self._all - rows
        k = self._estimator.kernel(out, runs.left_out)  # (rows, r)
        change = k @ self._shared
        if self._if_left_out is not None:
            change = change + out[:, self._own.clamp_min(0)] * ((k + runs.level) @ self._if_left_out)
        if self._prior is not None:
            change = change + self._scale * self._known(rows)
        return (self._full + change.to(self._full)).view(*w.shape[:-1], self.m)

    def spread(self, weights: Any) -> Tensor:
        """Predicted standard deviations of the outputs over seeds `(..., m)`, in units of those on all points.

        Raises:
            ValueError: the estimator has one seed only.
        """
        if self._spread is None:
            raise ValueError("A spread over seeds needs several of them; pass seeds=100, say, to KernelRegression.")
        w = self._setting.check_weights(weights).to(self._all)
        out = self._all - w.reshape(-1, self.n)
        k = self._estimator.kernel(out, self._runs.left_out[:WIDE])
        variance = (1 + k @ self._spread).clamp(1 / MOST, MOST)
        return variance.sqrt().to(self._full).view(*w.shape[:-1], self.m)

    def on(self, targets: Any = None, output: Measure | None = None) -> "KernelDatamodel":
        """The same runs, measured on other targets or by another output."""
        training, prior = self._training.on(targets, output), self._prior
        other = KernelDatamodel(
            self._estimator, self._setting.on(targets, output), training, self._sets,
            None if prior is None else prior.on(targets, output), self._runs,
        )  # fmt: skip
        same_origin(self, other, targets, output)
        return other

    def _known(self, weights: Tensor) -> Tensor:
        """The changes that the prior predicts, `(r, m)`."""
        assert self._prior is not None
        return (self._prior(weights) - self._prior(self._all)).to(self._all)


def own_places(setting: Setting, m: int) -> Tensor:
    """Of each output `(m,)`, where in the universe the example is that it is measured on; -1 for none."""
    universe = {row.tobytes(): i for i, row in reversed(list(enumerate(batches.example_hashes(setting.pool))))}
    places = torch.tensor([universe.get(row.tobytes(), -1) for row in batches.example_hashes(setting.probe)])
    return places.to(setting.device).repeat_interleave(m // len(places))
