"""Metagradient selection: counts that are improved by steps along the gradient through training.

    c <- project(c + sense * sign(g) * b),        g = d objective / d c at the current counts,  b_i ~ Bernoulli(share),

with a new datamodel around the counts at every step (`problem.refit`; with `MAGIC` its gradient is that of the training
run itself). A fixed share of random points moves by one each time; what the size and other limits do not allow is
undone by the projection, ties by the gradient. With as many counts as there are points and a few targets this overfits
them, so progress is judged on a meta-validation split apart from the targets, and the best counts seen are returned.

Reference: Engstrom et al., "Optimizing ML Training with Metagradient Descent", 2025, arXiv:2503.13751 (section 4,
about 40 steps with a share of .2).
Deviations: the paper differentiates in the weight of one late step; here it is the weight in the whole run.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.feasible import Subset
from recipe.problem import Problem


@dataclass(frozen=True)
class Metagradient:
    """Signed steps of counts, stopped by a validation split.

    Leaves in `problem.notes`: `values`, the objective on the targets at each step, `validation`, that on the split, and
    `best step`, whose counts are returned (0 is the start).

    Args:
        steps: how many at most.
        share: of the points that move in a step.
        validate: `counts -> value` of the objective on the meta-validation split, for example
            `lambda w: float(f.on(validation, Loss())(w).mean())` with `f = Retrain(setting)`. None: the objective on
            the targets themselves, which says little.
        patience: stop after as many steps in a row without a better validation.
        seed: of the points that move.

    Raises:
        ValueError: no steps, no patience, or a share outside 0 to 1.
    """

    steps: int = 20
    share: float = 0.2
    validate: Callable[[Tensor], float] | None = None
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.patience < 1 or not 0 < self.share <= 1:
            raise ValueError(
                f"Expected at least one step and patience, and a share above 0 and at most 1; got steps={self.steps}, "
                f"patience={self.patience}, share={self.share}."
            )

    def solve(self, problem: Problem) -> Tensor:
        """Feasible counts `(n,)`.

        Raises:
            TypeError: the feasible set is not a `Subset`.
            ValueError: the problem cannot be refitted, or the objective is not differentiable.
        """
        feasible, sense = problem.feasible, problem.objective.sense
        if not isinstance(feasible, Subset):
            raise TypeError(
                f"Metagradient moves counts of points, so it needs a Subset; got {type(feasible).__name__}. Use "
                "GradientAscent."
            )
        if problem.refit is None:
            raise ValueError(
                "Metagradient fits a datamodel at every step: pass estimator (such as MAGIC()) and setting to solve(), "
                "or use Greedy(refresh=k)."
            )
        generator = torch.Generator().manual_seed(self.seed)
        counts = best = feasible.project(problem.start)
        values: list[float] = []
        judged: list[float] = []
        best_step = 0
        for step in range(self.steps + 1):
            here = problem.refit(counts)
            value, gradient = here.value_and_gradient(counts)
            values.append(value)
            judged.append(value if self.validate is None else float(self.validate(counts)))
            if problem.objective.better(judged[-1], judged[best_step]):
                best, best_step = counts, step
            if step - best_step >= self.patience:
                break
            moving = torch.rand(len(counts), generator=generator) < self.share
            pull = sense * gradient / gradient.abs().max().clamp(min=torch.finfo(gradient.dtype).tiny)
            # A thousandth of the gradient itself decides between counts that are equally near.
            counts = feasible.project(counts + pull.sign() * moving.to(pull) + 1e-3 * pull)
        if best_step < step:
            problem.refit(best)  # predictions come from the datamodel fitted last: a tangent elsewhere says little
        problem.notes.update({"values": values, "validation": judged, "best step": best_step})
        return best
