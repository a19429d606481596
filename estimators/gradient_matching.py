"""Gradient matching: what a step of length one down the poisons' joint gradient would do to the outputs.

    f_hat(w, added) = f(theta) - <grad f(theta), g / |g|>,      g = sum of grad l(theta) over added.

An attacker who maximises the mean target loss through it makes the poisons' gradient point against the loss's: for an
objective that is linear in the outputs this is, up to constants, the cosine between the two,

    argmax  -cos( sum_p grad l(x_p, y_p),  grad mean_j f_j )          (Witches' Brew, with the sign of f),

another surrogate of the same problem, in which only the direction of the poisons' gradient counts. The weights of the
universe are those it was fitted at, and trained models stay as they are: fit again (`refit`) to follow them.

Reference: Geiping et al., "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching", 2021,
arXiv:2009.02276. Deviations: the start is the user's, not random noise; the mean over an ensemble is offered
(`models`); augmentation and restarts are the solver's and the user's. Cost: a gradient of the poisons for each
question, and a backward pass through it for its gradient; models are trained once.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators._ensemble import check_differentiable, members
from recipe import batch as batches
from recipe import calculus
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.work import Work


@dataclass(frozen=True)
class GradientMatching:
    """The surrogate in which added data take one step together.

    Args:
        models: of the ensemble whose steps are averaged.
        seed: of the first model.

    Example:
        However large the gradients, the step has length one:

        >>> from recipe import Newton, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2).double(), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, Newton(l2=0.1))
        >>> f_hat, w = GradientMatching().fit(setting), torch.ones(20, dtype=torch.float64)
        >>> x, y = torch.randn(3, 2).double(), torch.tensor([0, 1, 1])
        >>> once, twice = f_hat(w, (x, y)), f_hat(w, (torch.cat([x, x]), torch.cat([y, y])))
        >>> torch.allclose(once, twice)
        True
    """

    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "Matched":
        """Train (or take the setting's checkpoints).

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Raises:
            ValueError: outputs without a gradient.
        """
        weights = torch.ones(setting.n, dtype=setting.dtype) if at is None else setting.check_weights(at[0])
        check_differentiable(setting)
        return Matched(setting, members(setting, self.models, self.seed, at), weights)


class Matched(OutputFunction):
    """What `GradientMatching` fits; differentiable in added examples, not in the weights.

    Args:
        setting: what is attributed.
        thetas: trained parameters, one for each model.
        weights: `(n,)`, where they were trained.
    """

    def __init__(self, setting: Setting, thetas: list[Parameters], weights: Tensor) -> None:
        self._setting, self._thetas, self._weights = setting, thetas, weights
        self.n, self.output_shape = setting.n, setting.output_shape
        with torch.no_grad():
            self._base = torch.stack([setting.outputs(theta) for theta in thetas]).mean(0)
        self._slopes = [calculus.output_gradients(setting, theta) for theta in thetas]  # (m, p) each

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Outputs `(..., m)`.

        Raises:
            NotImplementedError: weights other than those that it was fitted at.
        """
        w = self._setting.check_weights(weights).to(self._weights)
        if not torch.equal(w, self._weights.expand_as(w)):
            raise NotImplementedError(
                "Gradient matching values added data; the weights are those it was fitted at. Use GradDot or Influence "
                "for the training points themselves."
            )
        outputs = self._base.expand(*w.shape[:-1], self.m)
        if added is None or not batches.size(added):
            return outputs
        added = self._setting.check_added(added)
        return outputs + torch.stack(
            [self._step(*pair, added) for pair in zip(self._thetas, self._slopes, strict=True)]
        ).mean(0)

    def _step(self, theta: Parameters, slopes: Tensor, added: Batch) -> Tensor:
        g = calculus.loss_gradients(self._setting, theta, added).sum(0)
        return -slopes @ (g / g.norm().clamp_min(torch.finfo(g.dtype).tiny))

    def on(self, targets: Any = None, output: Measure | None = None) -> OutputFunction:
        """See `OutputFunction.on`; trained models are reused."""
        new = Matched(self._setting.on(targets, output), self._thetas, self._weights)
        return same_origin(self, new, targets, output)
