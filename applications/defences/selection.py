"""The datamodel defence: points whose joint removal the datamodel predicts to help a clean validation set.

That is data selection itself, with the validation set as targets: keep all but a share, minimise the mean loss. Points
that the solution leaves out are more suspicious than all others, and among either the score is the derivative of the
objective in the point's weight at the solution.

References: Koh & Liang 2017, arXiv:1703.04730; Engstrom, Feldmann & Madry, "DsDm: Model-Aware Dataset Selection with
Datamodels", 2024, arXiv:2401.12926.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.data_selection import DataSelection
from recipe.datamodel import Estimator
from recipe.outputs import Loss
from recipe.problem import Solver
from recipe.run import solve
from recipe.setting import Setting


@dataclass(frozen=True)
class Selection:
    """What a selection of training points for clean data would leave out.

    Args:
        estimator: of the datamodel.
        solver: for subsets: `TopK()`, or `Greedy(refit=5)`, which goes there in stages.
        share: of the points that are left out.
        clean: `(inputs, labels)` that nobody has tampered with; default the setting's targets.
    """

    estimator: Estimator
    solver: Solver
    share: float = 0.1
    clean: tuple[Tensor, ...] | None = None

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`.

        Raises:
            ValueError: a share of no point, or of all.
        """
        out = round(self.share * setting.n)
        if not 0 < out < setting.n:
            raise ValueError(f"share={self.share} of {setting.n} points leaves {out} out; it must be some, not all.")
        aimed = setting.on(self.clean, Loss())
        f_hat = self.estimator.fit(aimed)
        task = DataSelection(size=setting.n - out)
        solution = solve(task, f_hat, self.solver, self.estimator, aimed)
        harm = task.problem(f_hat).gradient(torch.ones(setting.n, dtype=aimed.dtype))
        spread = (harm.max() - harm.min()).clamp_min(torch.finfo(harm.dtype).tiny)
        return (harm - harm.min()) / spread + 2 * (solution.decision == 0).to(harm)
