"""The datamodel defence: points whose joint removal the datamodel predicts to help a clean validation set.

That is data selection itself, with the validation set as targets: keep all but a share, minimise the mean loss. Copies
are kept or left out together, since alone none of them seems to matter:

    minimise  mean_j f_j(v[G])   over  v in {0, 1}^g with so many zeros,      G: the group of each point, of g.

Groups that the solution leaves out are more suspicious than all others, and among either the score is the derivative of
the objective in the group's weight: the sum of those of its points.

References: Koh & Liang 2017, arXiv:1703.04730; Engstrom, Feldmann & Madry, "DsDm: Model-Aware Dataset Selection with
Datamodels", 2024, arXiv:2401.12926.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences.copies import Copies, groups_of
from recipe.datamodel import Estimator, OutputFunction
from recipe.feasible import Subset
from recipe.outputs import Loss
from recipe.problem import Minimize, Problem, Solver
from recipe.run import solve
from recipe.setting import Setting


@dataclass(frozen=True)
class Selection:
    """What a selection of training points for clean data would leave out.

    Args:
        estimator: of the datamodel.
        solver: for subsets: `TopK()`, or `Greedy(refit=5)`, which goes there in stages.
        share: of the points that are left out, copies counted once.
        clean: `(inputs, labels)` that nobody has tampered with; default the setting's targets.
        copies: what counts as a copy; None takes every point by itself.
    """

    estimator: Estimator
    solver: Solver
    share: float = 0.1
    clean: tuple[Tensor, ...] | None = None
    copies: Copies | None = Copies()

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`.

        Raises:
            ValueError: a share of no point, or of all.
        """
        groups = groups_of(self.copies, setting)
        count = int(groups.max()) + 1
        out = round(self.share * count)
        if not 0 < out < count:
            raise ValueError(f"share={self.share} of {count} points leaves {out} out; it must be some, not all.")
        aimed = setting.on(self.clean, Loss())
        f_hat, task = self.estimator.fit(aimed), _KeepGroups(groups, count - out)
        solution = solve(task, f_hat, self.solver, self.estimator, aimed)
        harm = task.problem(f_hat).gradient(torch.ones(count, dtype=aimed.dtype))
        spread = (harm.max() - harm.min()).clamp_min(torch.finfo(harm.dtype).tiny)
        return ((harm - harm.min()) / spread + 2 * (solution.decision == 0).to(harm))[groups]


@dataclass(frozen=True, eq=False)
class _KeepGroups:
    """Keep so many groups of points, each whole: the losses of the targets are to be small."""

    groups: Tensor
    kept: int

    def problem(self, f: OutputFunction) -> Problem:
        """The decision is `(g,)` zeros and ones."""
        ones = torch.ones(int(self.groups.max()) + 1)
        return Problem(
            Minimize(lambda v: f(v[self.groups]).mean()),
            ones,
            Subset(len(ones), self.kept),
            lambda v: (v[self.groups], None),
            {"do nothing": ones},
        )
