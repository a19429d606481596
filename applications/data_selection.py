"""Data selection: which training points make the targets' losses small?

    minimise  mean_j loss(f_j(w))   over subsets w of the wanted size (per group, within a budget),

with f the losses on target examples, or their margins, `loss = log(1 + exp(-margin))`. A linear datamodel of losses
makes it a sum over points, so that the best subset is a top-k.

Reference: Engstrom, Feldmann, Madry, "DsDm: Model-Aware Dataset Selection with Datamodels", 2024, arXiv:2401.12926.

The targets are what is optimised: measure the gain on other examples, `f.on(test, Correct())`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from applications._target_loss import target_loss
from recipe.datamodel import OutputFunction
from recipe.feasible import Subset
from recipe.outputs import Loss
from recipe.problem import Baseline, Minimize, Problem


@dataclass(frozen=True, eq=False)
class DataSelection:
    """Choose `size` training points that make the mean target loss small.

    Args:
        size: how many points, `k` or `(at least, at most)`.
        groups: `(n,)` integers, a group for every point; goes with `quotas`.
        quotas: for a group, how many of its points, `k` or `(at least, at most)`.
        costs: `(n,)`, what a point costs; goes with `budget`.
        budget: what the chosen points may cost together.
        draws: how many random subsets the baseline averages over.
        seed: of the random baseline.

    Raises on use:
        ValueError: no subset is allowed.

    Example:
        >>> import torch
        >>> from recipe import LinearDatamodel, TopK, solve
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> solve(DataSelection(size=1), f_hat, TopK()).decision
        tensor([0., 0., 1.])
    """

    size: int | tuple[int, int]
    groups: Tensor | None = None
    quotas: Mapping[int, int | tuple[int, int]] | None = None
    costs: Tensor | None = None
    budget: float | None = None
    draws: int = 3
    seed: int = 0

    def problem(self, f: OutputFunction) -> Problem:
        """Minimise the mean target loss; the decision is `(n,)` zeros and ones.

        Baselines: everything ("do nothing"), random subsets, and the points of lowest loss under a model trained on
        everything, the filter that needs no attribution.
        """
        feasible = Subset(f.n, self.size, groups=self.groups, quotas=self.quotas, costs=self.costs, budget=self.budget)
        generator, loss = torch.Generator().manual_seed(self.seed), target_loss(f)

        def lowest_loss(true: OutputFunction) -> Tensor:
            assert true.setting is not None
            losses = true.on(true.setting.pool, Loss())(torch.ones(true.n))
            return feasible.best(-losses)

        baselines: dict[str, Baseline] = {
            "do nothing": torch.ones(f.n),
            "random": [feasible.sample(generator) for _ in range(self.draws)],
            **({} if f.setting is None else {"lowest loss": lowest_loss}),
        }
        return Problem(Minimize(lambda w: loss(f(w)).mean()), torch.ones(f.n), feasible, lambda w: (w, None), baselines)
