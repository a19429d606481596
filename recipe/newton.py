"""Newton's method: exact training of convex models, for any weights, many at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from recipe import batch as batches
from recipe import calculus
from recipe.algorithms import Objective
from recipe.batch import Batch
from recipe.setting import Parameters, Setting
from recipe.training import CHUNK_BYTES, DivergedError, stack

HALVINGS = 30  # of a step, before giving up


@dataclass(frozen=True)
class Newton:
    """The minimum of `sum w l / sum w + l2/2 |theta|^2` by Newton steps with backtracking, for convex models.

    The answer does not depend on the seed. Works on dense `(p, p)` Hessians: for up to a few thousand parameters.

    Args:
        l2: the factor of half the squared norm; must be positive where the data alone do not fix the parameters.
        tolerance: stops when the gradient's largest entry is below it; default 1e-10 in float64, 1e-5 in float32.
        steps: at most.

    Raises on training:
        DivergedError: no convergence within `steps`, or a Hessian that is not positive definite.

    Example:
        >>> from recipe import Newton, Setting, SquaredError
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> data = (x, 3 * x)
        >>> setting = Setting(lambda: torch.nn.Linear(1, 1, bias=False), data, data, Newton(), loss=SquaredError(),
        ...                   output=lambda z, batch: z[:, 0])
        >>> Newton().train(setting, torch.ones(2), seed=0)["weight"].round(decimals=4)
        tensor([[3.]])
    """

    l2: float = 0.0
    tolerance: float | None = None
    steps: int = 50

    @property
    def objective(self) -> Objective:
        """The mean loss with `l2`."""
        return Objective(l2=self.l2)

    def train(self, setting: Setting, weights: Tensor, seed: int, added: Batch | None = None) -> Parameters:
        """Parameters of one run."""
        return {name: t[0] for name, t in self.train_many(setting, weights[None], [seed], added).items()}

    def train_many(
        self, setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None
    ) -> Parameters:
        """Parameters of r runs, stacked."""
        w = setting.check_weights(weights).to(setting.dtype)
        data = setting.pool
        if added is not None:
            added = batches.apply(Tensor.detach, setting.check_added(added))
            data = batches.concatenate(data, added)
            w = torch.cat([w, w.new_ones(len(w), batches.size(added))], 1)
        room = max(1, 4 * CHUNK_BYTES // (8 * setting.p**2 + 8 * batches.size(data) * setting.p))
        parts = zip(w.split(room), torch.tensor(list(seeds)).split(room), strict=True)
        runs = [run for part, s in parts for run in self._minimise(setting, data, part, s.tolist())]
        return stack(runs)

    def _minimise(self, setting: Setting, data: Batch, w: Tensor, seeds: list[int]) -> list[Parameters]:
        starts = [setting.initial(seed) for seed in seeds]
        at = stack(starts)  # what is frozen may differ from run to run
        theta = torch.stack([setting.flat(start) for start in starts])  # (r, p)

        def value(t: Tensor, weights: Tensor, start: Parameters) -> Tensor:
            return calculus.objective(setting, t, start, weights, data)

        tolerance = self.tolerance or (1e-10 if theta.dtype == torch.float64 else 1e-5)
        with torch.no_grad():
            for _ in range(self.steps):
                gradient = vmap(grad(value))(theta, w, at)
                _check_finite(gradient)
                if gradient.abs().max() <= tolerance:
                    break
                step = _newton_step(vmap(hessian(value))(theta, w, at), gradient)
                theta = _backtrack(lambda t: vmap(value)(t, w, at), theta, step, (gradient * step).sum(1))
            else:
                gradient = vmap(grad(value))(theta, w, at)
        if not gradient.abs().max() <= tolerance:
            raise DivergedError(
                f"Newton did not converge in {self.steps} steps: the gradient's largest entry is "
                f"{float(gradient.abs().max()):.1e}, above {tolerance:.1e}. Is the model convex in its parameters? Use "
                "SGD for others; else raise `l2`, `steps` or `tolerance`."
            )
        return [setting.unflat(t, start) for t, start in zip(theta, starts, strict=True)]


def _check_finite(gradient: Tensor) -> None:
    if not gradient.isfinite().all():
        raise DivergedError(
            "The objective's gradient is not finite. Look for NaN and infinity in the training examples and weights."
        )


def _newton_step(curvature: Tensor, gradient: Tensor) -> Tensor:
    factor, minor = torch.linalg.cholesky_ex(curvature)
    if minor.any():
        raise DivergedError(
            "The Hessian is not positive definite. Newton is for convex models: give it an `l2` above 0 where the data "
            "do not fix all parameters, or use SGD."
        )
    return torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)


def _backtrack(value: Callable[[Tensor], Tensor], theta: Tensor, step: Tensor, decrease: Tensor) -> Tensor:
    """Halve each run's step until it decreases its objective (Armijo, up to rounding)."""
    before = value(theta)
    slack = 1e-6 if theta.dtype == torch.float32 else 1e-13
    size = torch.ones_like(before)
    for _ in range(HALVINGS):
        bad = ~(value(theta - size[:, None] * step) <= before - 1e-4 * size * decrease + slack * (1 + before.abs()))
        if not bad.any():
            break
        size = torch.where(bad, size / 2, size)
    return theta - size[:, None] * step
