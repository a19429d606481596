"""L-BFGS: training to the optimum of convex models that have too many parameters for Newton's dense Hessian.

Reference: Liu & Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", 1989. The steps are scipy's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from recipe import batch as batches
from recipe import calculus
from recipe.algorithms import Objective
from recipe.batch import Batch
from recipe.setting import Parameters, Setting
from recipe.training import DivergedError, stack


@dataclass(frozen=True)
class LBFGS:
    """The minimum of `sum w l / sum w + l2/2 |theta|^2` by L-BFGS, for convex models; the seed decides the start only.

    Args:
        l2: the factor of half the squared norm.
        tolerance: stops when the gradient's largest entry is below it, or when the objective no longer falls; a loss
            with corners, the hinge, ends in the second way.
        steps: at most.
        memory: how many steps are remembered.

    Raises on training:
        DivergedError: an objective that is not finite, or no end within `steps`.

    Example:
        >>> from recipe import Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, LBFGS(l2=0.1, tolerance=1e-9))
        >>> w = torch.ones(30)
        >>> exact, quick = (setting.flat(a.train(setting, w, seed=0)) for a in (Newton(l2=0.1), setting.algorithm))
        >>> torch.allclose(exact, quick, atol=1e-7)
        True
    """

    l2: float = 0.0
    tolerance: float = 1e-6
    steps: int = 2000
    memory: int = 20

    @property
    def objective(self) -> Objective:
        """The mean loss with `l2`."""
        return Objective(l2=self.l2)

    def train(self, setting: Setting, weights: Tensor, seed: int, added: Batch | None = None) -> Parameters:
        """Parameters of one run."""
        w = setting.check_weights(weights).detach().to(setting.dtype)
        if added is not None:
            added = batches.apply(Tensor.detach, setting.check_added(added))
        data, w = calculus.training_set(setting, w, added)
        start = setting.initial(seed)

        def value_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.from_numpy(vector).to(w).requires_grad_()
            with torch.enable_grad():
                value = calculus.objective(setting, theta, start, w, data)
            (gradient,) = torch.autograd.grad(value, theta)
            return float(value.detach()), gradient.double().cpu().numpy()

        options = {"gtol": self.tolerance, "maxiter": self.steps, "maxcor": self.memory, "ftol": 1e-15, "maxfun": 10**9}
        first = setting.flat(start).double().cpu().numpy()
        found = minimize(value_and_gradient, first, jac=True, method="L-BFGS-B", options=options)
        if not np.isfinite(found.fun) or not np.isfinite(found.x).all() or found.nit >= self.steps:
            raise DivergedError(
                f"L-BFGS ended after {found.nit} of {self.steps} steps at {found.fun:.4g}: {found.message}. "
                "Is the model convex in its parameters? Raise `l2`, `steps` or `tolerance`, and look for NaN and "
                "infinity in the training examples."
            )
        return setting.unflat(torch.from_numpy(found.x).to(w), start)

    def train_many(
        self, setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None
    ) -> Parameters:
        """Parameters of r runs, stacked."""
        w = setting.check_weights(weights)
        return stack([self.train(setting, row, seed, added) for row, seed in zip(w, seeds, strict=True)])
