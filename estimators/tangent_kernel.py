"""Retraining what is left in the tangent space of the trained network: convex, free of noise, milliseconds a set.

With the tangent kernel, averaged over trained models and over the C logits, in units of its mean diagonal,

    K(x, x') ~ mean <grad z_c(x), grad z_c(x')>,      K = U diag(e) U^T on the universe,      Phi = U sqrt(e),

of which the leading eigenvectors are kept, logistic regression is trained on these features without the points,

    W(w) = argmin  sum_i w_i l(W^T Phi_i, y_i) / sum_i w_i + l2/2 |W|^2,
    f_hat(w) = f(1) + output(W(w)^T Phi(target)) - output(W(1)^T Phi(target)).

No straight line: of a class that goes, the last points cost most. It is too timid by a third or so; in a scale that
regression on retrainings finds it explains 93 % of what forgetting fifty points of a kind does to the margins of the
digits MLP. So it is above all a *prior* of `KernelRegression`, and what it moves (`embedding`) tells which removals
are alike. Training is short: sixty accelerated steps from `W(1)`, each scaled by the features' sizes; a fit that goes
on gains nothing, for neither does the network's.

Reference: Jacot et al., "Neural Tangent Kernel", 2018, arXiv:1806.07572; for attribution, Park et al., "TRAK", 2023,
arXiv:2303.14186, who take one Newton step of it. Deviation: the kernel of trained models, one for all logits.
Cost: the models; gradients of all logits, held for the universe, model by model; the cube of n for the eigenvectors.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import where
from estimators._ensemble import members
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.losses import CrossEntropy
from recipe.outputs import Logits
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.work import Work

TARGETS = 50  # whose gradients are held at once
ROWS = 250  # sets that are trained together
FIRST = 1000  # steps of the first fit
SMALL = 1e-7  # eigenvalues below are noise, in units of the largest


@dataclass(frozen=True)
class TangentKernel:
    """The datamodel that retrains logistic regression on the network's tangent features.

    Args:
        models: an ensemble of as many seeds, whose kernels are averaged. Ignored where the setting has checkpoints.
        rank: features that are kept.
        l2: of the logistic regression, in units of the kernel's mean diagonal.
        steps: from the first fit.
        seed: of the first model.

    Raises:
        ValueError: no features, no steps, or a negative l2.

    Example:
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = TangentKernel(l2=0.1).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.7, seed=0)).mean > 0.9
        True
    """

    models: int = 1
    rank: int = 100
    l2: float = 2e-5
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 1 or self.l2 < 0:
            raise ValueError(f"TangentKernel needs rank and steps from 1 on and l2 from 0; got {self}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "TangentKernelDatamodel":
        """Train the models, find the features and fit them to the points at `at`.

        Args:
            setting: what to attribute.
            at: `(weights, added)`, where models are trained and every later training starts. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)`, differentiable in the weights and not linear, with `on`. It remembers the
            training sets it was asked about. It has no `effect`.

        Raises:
            ValueError: a loss that is not cross entropy of one label an example.
            NotImplementedError: added examples.
        """
        weights, added = where(setting, at)
        _refuse(added)
        logits = setting.on(setting.pool, Logits())
        if setting.loss != CrossEntropy() or batches.labels(setting.pool).ndim != 1 or len(logits.output_shape) != 2:
            raise ValueError(
                "TangentKernel retrains a classifier by logistic regression, so it needs logits (b, C), one label an "
                f"example and the loss CrossEntropy(); got {setting.loss} and outputs {logits.output_shape}."
            )
        trained = members(setting, self.models, self.seed, at)
        features = _Features.of(logits, trained, self.rank)
        return TangentKernelDatamodel(setting, features, _Solutions.of(self, logits, features, weights))


class TangentKernelDatamodel(OutputFunction):
    """What `TangentKernel` fits."""

    def __init__(self, setting: Setting, features: "_Features", solutions: "_Solutions") -> None:
        self.n, self.output_shape = setting.n, setting.output_shape
        self._here, self._features, self._solutions = setting, features, solutions
        self._targets = features(setting.probe)  # (targets, rank)
        with torch.no_grad():
            there = torch.stack([setting.outputs(theta) for theta in features.trained]).mean(0)
            self._level = there - self._measured(solutions.start.permute(2, 0, 1))[0]

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`.

        Raises:
            ValueError: weights of another length, negative or NaN.
            NotImplementedError: added examples.
        """
        _refuse(added)
        w = self._here.check_weights(weights).to(self._targets)
        found = [self._measured(self._solutions(some)) for some in w.reshape(-1, self.n).split(ROWS)]
        return (self._level + torch.cat(found)).view(*w.shape[:-1], self.m)

    def on(self, targets: Any = None, output: Measure | None = None) -> "TangentKernelDatamodel":
        """The same training, measured on other targets or by another output."""
        other = TangentKernelDatamodel(self._here.on(targets, output), self._features, self._solutions)
        same_origin(self, other, targets, output)
        return other

    def embedding(self, left_out: Tensor) -> Tensor:
        """How far leaving `left_out (r, n)` out of all points moves the universe's logits, `(r, rank C)` coordinates.

        The distance of two rows is that of the two models' logits on the universe. A geometry for `RemovalKernel`.
        """
        everything = self._solutions(torch.ones_like(left_out[:1]))
        moved = torch.cat([self._solutions(1 - some) for some in left_out.split(ROWS)]) - everything
        moved = moved - moved.mean(2, keepdim=True)  # logits count up to a constant
        return (moved * self._features.sizes.sqrt()[:, None]).flatten(1).to(left_out)

    def _measured(self, W: Tensor) -> Tensor:
        logits = torch.einsum("td,rdc->rtc", self._targets, W)
        return torch.stack([self._here.output(z, self._here.probe).flatten() for z in logits])


def _refuse(added: Batch | None) -> None:
    if added is not None and batches.size(added):
        raise NotImplementedError(
            "TangentKernel knows the points of the universe only, no added examples (poisons). Use an estimator that "
            "is differentiable in added data, such as Influence or NewtonStep."
        )


@dataclass(frozen=True, eq=False)
class _Features:
    """Of any examples.

    Args:
        logits: the setting, with logits of the universe as its outputs.
        trained: the models.
        maps: of each, `(C p, rank)`, from the gradients of an example's logits.
        sizes: `(rank,)`, the kernel's eigenvalues.
    """

    logits: Setting
    trained: list[Parameters]
    maps: list[Tensor]
    sizes: Tensor

    @classmethod
    def of(cls, logits: Setting, trained: list[Parameters], rank: int) -> "_Features":
        """By an eigendecomposition of the kernel on the universe."""
        kernel = torch.zeros(logits.n, logits.n, dtype=torch.float64, device=logits.device)
        for theta in trained:
            G = _gradients(logits, theta)
            kernel += (G @ G.T).double()
        unit = kernel.diagonal().mean()
        e, U = torch.linalg.eigh(kernel / unit)
        e, U = e.flip(0)[:rank], U.flip(1)[:, :rank]
        e, U = e[e > SMALL * e[0]], U[:, e > SMALL * e[0]]
        back = (U / (unit * e.sqrt())).to(logits.dtype)
        return cls(logits, trained, [_gradients(logits, theta).T @ back for theta in trained], e.to(logits.dtype))

    def __call__(self, data: Batch) -> Tensor:
        """`(b, rank)`."""
        blocks = torch.arange(batches.size(data)).split(TARGETS)
        return torch.cat([self._block(batches.take(data, block)) for block in blocks])

    def _block(self, data: Batch) -> Tensor:
        there = self.logits.on(data, Logits())
        mapped = [_gradients(there, theta) @ back for theta, back in zip(self.trained, self.maps, strict=True)]
        return torch.stack(mapped).sum(0)


def _gradients(logits: Setting, theta: Parameters) -> Tensor:
    """Of all logits of every target, `(targets, C p)`."""
    return calculus.output_gradients(logits, theta).view(logits.output_shape[0], -1)


@dataclass(frozen=True, eq=False)
class _Solutions:
    """Logistic regressions `weights (r, n) -> (r, rank, C)`; what was asked once is remembered.

    Args:
        Phi: `(n, rank)`.
        wanted: `(n, C)`, one for the label and else zero.
        sizes: `(rank,)`, squares of the features, summed over the universe.
        l2: of the regression.
        steps: from the start.
        start: `(rank, C, 1)`.
        known: by the weights.
    """

    Phi: Tensor
    wanted: Tensor
    sizes: Tensor
    l2: float
    steps: int
    start: Tensor
    known: dict[bytes, Tensor]

    @classmethod
    def of(cls, estimator: TangentKernel, logits: Setting, features: _Features, weights: Tensor) -> "_Solutions":
        """Train on `(n,)` weights, where later ones start."""
        Phi, labels = features(logits.pool), batches.labels(logits.pool)
        wanted = torch.nn.functional.one_hot(labels, logits.output_shape[1]).to(Phi)
        zero = Phi.new_zeros(Phi.shape[1], wanted.shape[1], 1)
        first = cls(Phi, wanted, features.sizes, estimator.l2, FIRST, zero, {})
        return replace(first, steps=estimator.steps, start=first._trained(weights[None]).detach())

    def __call__(self, weights: Tensor) -> Tensor:
        """All of one batch together."""
        w = weights.to(self.Phi)
        if w.requires_grad and torch.is_grad_enabled():
            return self._trained(w).permute(2, 0, 1)
        keys = [hashlib.sha256(row.tobytes()).digest() for row in w.detach().cpu().numpy()]
        if new := [i for i, key in enumerate(keys) if key not in self.known]:
            with torch.no_grad():
                solved = self._trained(w[new]).permute(2, 0, 1).contiguous()
            self.known.update((keys[i], W) for i, W in zip(new, solved, strict=True))
        return torch.stack([self.known[key] for key in keys])

    def _trained(self, weights: Tensor) -> Tensor:
        """`(r, n) -> (rank, C, r)`: accelerated gradient descent, started anew where the momentum points uphill."""
        r, total = len(weights), weights.sum(1, keepdim=True)
        shares = (weights / torch.where(total > 0, total, 1)).T[:, None]  # (n, 1, r)
        # The softmax' curvature is at most half the identity, and the features are orthogonal.
        rate = 1 / (0.5 * self.sizes[:, None, None] * shares.amax(0) + self.l2)
        W = ahead = self.start.repeat(1, 1, r)
        t = 1.0
        for _ in range(self.steps):
            logits = (self.Phi @ ahead.flatten(1)).view(len(self.Phi), -1, r)
            pull = (logits.softmax(1) - self.wanted[:, :, None]) * shares
            gradient = (self.Phi.T @ pull.flatten(1)).view_as(W) + self.l2 * ahead
            new = ahead - rate * gradient
            t, before = 0.5 * (1 + math.sqrt(1 + 4 * t * t)), t
            uphill = ((ahead - new) * (new - W)).sum((0, 1), keepdim=True) > 0
            ahead, W = new + torch.where(uphill, 0.0, (before - 1) / t) * (new - W), new
        return W
