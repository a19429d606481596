"""Certified removal: a Newton step whose error is bounded, hidden by noise in the objective that was trained on.

Training minimises, over the points S that are there, with `b ~ N(0, noise^2)` drawn once,

    L(theta; S) = sum_S l_i(theta) + |S| l2/2 |theta|^2 + b^T theta.

A request takes the step `s = -H^-1 grad L(theta; S')` on the objective of what remains, S', `H` its Hessian at theta.
The gradient that is left, the residual, is what could give a removed point away. It adds up over requests, and each
adds at most

    gamma |J|_2 max_i |J_i|_2 |s| |J s|,

`J` the derivative of the predictions in the parameters (the features), gamma the Lipschitz constant of the loss's
Hessian in the predictions. While the sum stays within `noise * epsilon / c`, `c = sqrt(2 log(1.5 / delta))`, the model
is (epsilon, delta)-indistinguishable from one that was trained without the removed points; a request that would leave
that budget is answered by training anew, with a new b.

Reference: Guo, Goldstein, Hannun & van der Maaten, "Certified Data Removal from Machine Learning Models", 2020,
arXiv:1911.03030: theorem 3, and the data-dependent bound of corollaries 1 and 2.
Deviations: the paper trains one binary classifier a class, with gamma = 1/4 and inputs of norm 1; here the softmax is
one loss, whose gamma is sqrt(2) / (3 sqrt(3)) = .272 (the third central moment of a variable of range sqrt(2) is at
most that), and the largest norm stands in the bound. The gradient that training itself leaves counts as spent.
Everything is computed in float64.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from applications.unlearning.deployed import Deployed, Unlearned
from recipe import batch as batches
from recipe.losses import CrossEntropy, SquaredError
from recipe.setting import Parameters, Setting
from recipe.training import DivergedError

SOFTMAX = math.sqrt(2) / (3 * math.sqrt(3))  # how fast the Hessian of a softmax's loss changes with the logits
MEMORY_BYTES = 2**31  # of the features J
DOUBLE = torch.float64


@dataclass(frozen=True)
class CertifiedRemoval:
    """Removal with a certificate, for models that are linear in their parameters and trained with weight decay.

    It deploys a model of its own, trained on the perturbed objective.

    Args:
        epsilon: how far apart removal and retraining may be, as log-odds.
        delta: the probability with which they may be farther.
        noise: the standard deviation of `b`; the paper's experiments use up to 10. More buys more removals, and costs
            accuracy.
        gamma: the Lipschitz constant of the loss's Hessian in the predictions; None knows it of `CrossEntropy` and
            `SquaredError`.
        seed: of `b`. None draws one that nobody knows, which is what the certificate presumes; a number is for tests.

    Raises on use:
        ValueError: a model that is not linear in its parameters, no weight decay, or a loss without a known gamma.
    """

    epsilon: float = 1.0
    delta: float = 1e-4
    noise: float = 1.0
    gamma: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and 0 < self.delta < 1 and self.noise > 0):
            raise ValueError(
                "A certificate needs epsilon > 0, 0 < delta < 1 and noise > 0; got "
                f"epsilon={self.epsilon}, delta={self.delta}, noise={self.noise}."
            )

    @property
    def budget(self) -> float:
        """The largest residual that the noise hides."""
        return self.noise * self.epsilon / math.sqrt(2 * math.log(1.5 / self.delta))

    def start(self, deployed: Deployed) -> "Certified":
        """Train on the perturbed objective."""
        return self._train(_Linear.of(deployed.setting, self.gamma), torch.ones(deployed.setting.n), 0, deployed.secret)

    def forget(self, deployed: Deployed, now: Unlearned, keep: Tensor) -> "Certified":
        """One step, or training anew where the budget does not allow it."""
        if not isinstance(now, Certified):
            raise ValueError(
                "CertifiedRemoval goes on from a model that it trained: begin with method.start(deployed)."
            )
        objective = now.objective
        theta, there = now.theta, keep.to(now.theta)
        step = -torch.cholesky_solve(
            objective.gradient(theta, there, now.b)[:, None], torch.linalg.cholesky(objective.hessian(theta, there))
        )[:, 0]
        spent = now.spent + objective.bound(step, there)
        if spent > self.budget:
            return self._train(objective, keep, now.retrainings + 1, deployed.secret)
        return self._model(objective, theta + step, keep, now.b, spent, now.retrainings)

    def _train(self, objective: "_Linear", keep: Tensor, retrainings: int, secret: int | None) -> "Certified":
        there = keep.to(objective.J)
        b = self.noise * torch.randn(objective.p, generator=self._draw(retrainings, secret), dtype=DOUBLE).to(there)
        theta = objective.minimum(there, b)
        left = float(objective.gradient(theta, there, b).norm())
        return self._model(objective, theta, keep, b, left, retrainings)

    def _draw(self, retrainings: int, secret: int | None) -> torch.Generator:
        known = self.seed if self.seed is not None else secret
        return torch.Generator().manual_seed(secrets.randbits(62) if known is None else known + retrainings)

    def _model(
        self, objective: "_Linear", theta: Tensor, keep: Tensor, b: Tensor, spent: float, retrainings: int
    ) -> "Certified":
        report = {
            "epsilon": self.epsilon, "delta": self.delta, "residual_bound": spent, "budget": self.budget,
            "retrainings": retrainings,
        }  # fmt: skip
        return Certified(objective.parameters(theta), keep, report, theta, b, spent, retrainings, objective)


@dataclass(frozen=True, eq=False)
class Certified(Unlearned):
    """A model with a certificate.

    Args:
        parameters: of the model.
        keep: `(n,)` zeros and ones.
        report: ε, δ, the residual's bound, its budget, and how often training began anew.
        theta: the parameters as a float64 vector.
        b: the perturbation; secret.
        spent: the bound on the residual.
        retrainings: how often the budget was spent.
        objective: what was trained on.
    """

    report: Mapping[str, Any] = field(default_factory=dict)
    theta: Tensor = field(default_factory=lambda: torch.empty(0))
    b: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    spent: float = 0.0
    retrainings: int = 0
    objective: Any = field(default=None, repr=False)

    @property
    def residual(self) -> float:
        """The residual itself, by one pass over the data: never above `spent`."""
        return float(self.objective.gradient(self.theta, self.keep.to(self.theta), self.b).norm())


@dataclass(frozen=True, eq=False)
class _Linear:
    """A convex objective: predictions `J_i theta + c_i` of shape (C,), weight decay, and a loss of them."""

    setting: Setting
    start: Parameters
    J: Tensor  # (n, C, p)
    c: Tensor  # (n, C)
    gamma: float
    norm: float  # |J|_2 over all points, which bounds that of any subset
    norms: Tensor  # |J_i|_2, (n,)

    @classmethod
    def of(cls, setting: Setting, gamma: float | None) -> "_Linear":
        """The objective of a setting. Raises `ValueError` where it is not convex, or not known to be."""
        goal = setting.algorithm.objective
        if not goal.l2 > 0 or not goal.mean:
            raise ValueError(
                "A certificate needs a mean loss with weight decay: without it a point's influence has no bound. Give "
                f"the algorithm a weight_decay (or l2) above 0; got {goal}."
            )
        J, c = _affine(setting)
        rows = J.reshape(-1, J.shape[-1])
        norm = float(torch.linalg.eigvalsh(rows.T @ rows)[-1].sqrt())
        norms = torch.linalg.matrix_norm(J, ord=2)
        return cls(setting, setting.initial(0), J, c, _gamma(setting, gamma), norm, norms)

    @property
    def p(self) -> int:
        return self.J.shape[-1]

    @property
    def l2(self) -> float:
        return self.setting.algorithm.objective.l2

    def gradient(self, theta: Tensor, keep: Tensor, b: Tensor) -> Tensor:
        """Of the sum over the points that are there, `(p,)`."""
        slopes = self._slopes(self.J @ theta + self.c) * keep[:, None]
        return torch.einsum("nc,ncp->p", slopes, self.J) + keep.sum() * self.l2 * theta + b

    def hessian(self, theta: Tensor, keep: Tensor) -> Tensor:
        """`(p, p)`."""
        index = keep.nonzero().squeeze(1)
        J = self.J[index]
        curvature = self._curvature(J @ theta + self.c[index], index)  # (k, C, C)
        weighted = (curvature @ J).reshape(-1, self.p)
        decay = keep.sum() * self.l2 * torch.eye(self.p, dtype=DOUBLE).to(J)
        return J.reshape(-1, self.p).T @ weighted + decay

    def bound(self, step: Tensor, keep: Tensor) -> float:
        """How much gradient a Newton step can leave at most."""
        there = keep > 0
        return self.gamma * self.norm * float(self.norms[there].max() * step.norm() * (self.J[there] @ step).norm())

    def minimum(self, keep: Tensor, b: Tensor) -> Tensor:
        """Newton's method with halved steps, down to rounding."""
        theta = self.J.new_zeros(self.p)
        best = self.gradient(theta, keep, b).norm()
        for _ in range(100):
            gradient = self.gradient(theta, keep, b)
            step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(self.hessian(theta, keep)))[:, 0]
            for halving in range(30):
                trial = theta - step / 2**halving
                norm = self.gradient(trial, keep, b).norm()
                if norm < best:
                    break
            else:
                return theta  # no step makes the gradient smaller: rounding
            theta, best = trial, norm
            if best < 1e-12 * len(keep):
                return theta
        raise DivergedError("Newton did not converge on the perturbed objective; is the loss convex?")

    def parameters(self, theta: Tensor) -> Parameters:
        """As the model has them."""
        return self.setting.unflat(theta.to(self.setting.dtype), self.start)

    def _slopes(self, z: Tensor) -> Tensor:
        """Gradients of the losses in the predictions, `(n, C)`."""
        pool = self.setting.pool
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.setting.loss(z, pool).sum(), z)[0]

    def _curvature(self, z: Tensor, index: Tensor) -> Tensor:
        if isinstance(self.setting.loss, CrossEntropy):
            q = z.softmax(1)
            return torch.diag_embed(q) - q[:, :, None] * q[:, None, :]
        y = batches.take(self.setting.pool, index)

        def loss(one: Tensor, example: batches.Batch) -> Tensor:
            return self.setting.loss(one[None], batches.example(example)).squeeze(0)

        return vmap(torch.func.hessian(loss))(z, y)


def _affine(setting: Setting) -> tuple[Tensor, Tensor]:
    """`J (n, C, p)` and `c (n, C)` of the predictions. Raises `ValueError` where they are not linear in theta."""
    start = setting.initial(0)
    theta = setting.flat(start)
    with torch.no_grad():
        z = setting.predict(start, setting.pool)
        if z.ndim != 2:
            raise ValueError(f"A certificate is for predictions (n, C); the model's are {tuple(z.shape)}.")
        if z.numel() * setting.p * 8 > MEMORY_BYTES:
            raise ValueError(
                f"The features of a certified removal would take {z.numel() * setting.p * 8 / 2**30:.1f} GiB (n x C x p"
                f" = {setting.n} x {z.shape[1]} x {setting.p}). Certify a last layer on fewer features."
            )
        move = torch.randn(setting.p, generator=torch.Generator().manual_seed(0)).to(theta)
        sides = [setting.predict(setting.unflat(theta + s * move, start), setting.pool) for s in (1, -1)]
    bend = float((sides[0] + sides[1] - 2 * z).abs().max() / (sides[0] - sides[1]).abs().max().clamp_min(1e-30))
    if bend > 1e-3:
        raise ValueError(
            "Certified removal is for models that are linear in their parameters, where the objective is convex; this "
            f"one is not (its predictions bend by {bend:.1e} of their slope). Freeze all but the last layer, or use "
            "DatamodelMatching, which promises nothing but is measured."
        )

    def predict(t: Tensor, one: batches.Batch) -> Tensor:
        return setting.predict(setting.unflat(t, start), batches.example(one)).squeeze(0)

    J = vmap(jacrev(predict), in_dims=(None, 0), chunk_size=256)(theta, setting.pool).detach().to(DOUBLE)
    return J, z.to(DOUBLE) - J @ theta.to(DOUBLE)


def _gamma(setting: Setting, gamma: float | None) -> float:
    if gamma is not None:
        return gamma
    if isinstance(setting.loss, CrossEntropy):
        return SOFTMAX
    if isinstance(setting.loss, SquaredError):
        return 0.0  # its Hessian is constant, and the step exact
    raise ValueError(
        f"How fast the Hessian of {setting.loss} changes with the prediction is not known; pass gamma=, its Lipschitz "
        "constant (0 for a quadratic), of a loss that is convex in the prediction."
    )
