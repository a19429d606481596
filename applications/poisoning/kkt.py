"""The KKT attack: poisons that make chosen parameters the optimum of a linear two-class model, by convex programs.

Parameters are optimal where the gradient of the training objective is zero (its Karush-Kuhn-Tucker condition). Choose
them first, a decoy theta_d (`decoys.py`); then look for one poison a class, x_0 and x_1, added e_0 and e_1 times, with

    minimise  | sum_i w_i l'_i x_i  +  N l2 theta_d  +  sum_y e_y l'_y x_y |_2      x_y in the feasible set,

in the slope of the decision and its bias (`linear_view.py`), l' the derivatives of the losses in z_1 - z_0 at theta_d
and N the number of points, poisons included. The hinge's l'_y is -1 or 1 for every poison with a margin below 1, so
that this is convex. Other losses have an l'_y that depends on x_y: there a few Gauss-Newton steps are taken, each a
convex program. Every answer is a candidate only: the problem's objective decides, by training if `Retrain` is plugged
in.

Reference: Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741, section 4.3. Additions: where poisons must pass a cap on the loss, margins at theta_d are *stretched*
by the least factor at which they can (decisions stay the same); fractions of whole inputs are *dealt out* over the e_y
poisons of a class (`dealing.py`), so that their sum, which is all that the condition looks at, stays what was found.
Deviation: the division of the budget into e_0 and e_1 belongs to the task (`ThreatModel.splits`), not to the solver.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from applications.poisoning._imitation import Candidate, Imitation
from applications.poisoning.decoys import Decoy, label_flip_decoys
from recipe.batch import Batch
from recipe.problem import Minimize, Problem
from recipe.setting import Setting


@dataclass(frozen=True, eq=False)
class KKT:
    """Solve a poisoning problem by imitating decoys, one after the other; the best by the problem's objective is kept.

    Leaves in `problem.notes`: `value`; `decoy`, `stretch`, `margins` and `residual` (the gradient's length at the
    decoy) of the best candidate; the number of `candidates`, and of decoys that were `infeasible`. The answer is
    allowed exactly, and never worse than the problem's start. Rows of one label get the same point, which loses nothing
    where their feasible sets are the same.

    Args:
        setting: the attacker's: the clean data and the victim's objective.
        decoys: from `label_flip_decoys`.
        loss_cap: a percentile of the clean losses of a class under the decoy, which poisons do not exceed; None for no
            cap.
        accept: `poisons -> bool`, asked about the best candidates first until one is accepted: whether the attacker's
            own run of the defences lets them through, say. Where it accepts none, the start is the answer.
        entry: of the inputs in a batch.
        seed: of what is dealt out to whole poisons.
        measured: value each candidate by a datamodel fitted around it: a tangent to retraining says there what
            retraining gave. Needless where `Retrain` itself is plugged in.

    Raises on use:
        ValueError: a model that is not linear or not of two classes, inputs that are not `(b, d)` floating numbers, a
            percentile outside 0 to 100, no decoy, or none that anything in the feasible set could imitate; `measured`
            and a problem that cannot be refitted.
        TypeError: a feasible set that does not hold for every example by itself.

    Example:
        >>> from applications.poisoning import Sanitation, ThreatModel, label_flip_decoys
        >>> from recipe import LBFGS, Loss, Retrain, solve
        >>> x, y = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(80) % 2
        >>> x[:, 0] += 2 * y
        >>> data = (x[:60], y[:60]), (x[60:], y[60:])
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), *data, LBFGS(l2=0.1), output=Loss())
        >>> task, f = ThreatModel(0.1, passes=Sanitation()).task(setting), Retrain(setting)
        >>> found = solve(task, f, KKT(setting, label_flip_decoys(setting)))
        >>> found.predicted > float(f(torch.ones(60), task.start).mean()) > float(f(torch.ones(60)).mean())
        True
    """

    setting: Setting
    decoys: Sequence[Decoy]
    loss_cap: float | None = None
    accept: Callable[[Batch], bool] | None = None
    entry: int | str = 0
    seed: int = 0
    measured: bool = False

    def solve(self, problem: Problem) -> Tensor:
        """The poisons' inputs, of `problem.start`'s shape and type."""
        self._check(problem)
        imitation = Imitation.of(self.setting, problem, self.entry, self.loss_cap)
        candidates = [c for c in map(imitation.candidate, self.decoys) if c is not None]
        if not candidates:
            raise ValueError(
                f"No allowed point is called a training point by any of {len(self.decoys)} decoys. Pass milder decoys "
                f"(smaller shares), a wider feasible set, or another percentile than loss_cap={self.loss_cap}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        tried: list[tuple[Tensor, Candidate | None]] = [(imitation.decision(c, generator), c) for c in candidates]
        if problem.feasible.contains(problem.start):
            tried.append((problem.start, None))
        values = [self._value(problem, decision) for decision, _ in tried]
        order = sorted(range(len(tried)), key=lambda i: -problem.objective.sense * values[i])
        best = next((i for i in order if tried[i][1] is None or self._accepts(problem, tried[i][0])), None)
        decision, candidate = (problem.start, None) if best is None else tried[best]
        problem.notes.update(
            {
                "value": self._value(problem, decision),
                "candidates": len(candidates),
                "infeasible": len(self.decoys) - len(candidates),
                **(_notes(candidate) if candidate else {"decoy": "none: the start is kept"}),
            }
        )
        return decision.clone()

    def _value(self, problem: Problem, decision: Tensor) -> float:
        here = problem.refit(decision) if self.measured and problem.refit is not None else problem
        return here.value(decision)

    def _accepts(self, problem: Problem, decision: Tensor) -> bool:
        added = problem.arguments(decision)[1]
        return self.accept is None or added is None or self.accept(added)

    def _check(self, problem: Problem) -> None:
        start = problem.start
        if not start.is_floating_point() or start.ndim != 2:
            raise ValueError(
                f"The KKT attack needs inputs that are floating numbers, a row for each poison; got {start.dtype} of "
                f"the shape {tuple(start.shape)}. Flatten them; give counts as floats with Range(whole=True)."
            )
        if not self.decoys or not (self.loss_cap is None or 0 < self.loss_cap <= 100):
            raise ValueError(
                f"Expected a decoy at least, and as the loss cap a percentile above 0 and at most 100, or None; got "
                f"{len(self.decoys)} decoys and loss_cap={self.loss_cap}."
            )
        if self.measured and problem.refit is None:
            raise ValueError(
                "This problem cannot be refitted: pass estimator and setting to solve(), or measured=False."
            )


@dataclass(frozen=True)
class LabelFlipKKT:
    """The KKT attack by numbers alone: on the setting that is solved, through decoys made of mislabelled targets.

    What the command line calls `kkt`. Every candidate is valued by a datamodel fitted around it.

    Args:
        shares: of the targets that are mislabelled, see `label_flip_decoys`.
        repeats: how often each is repeated.
        one_sided: mislabel shares of the targets of one label alone, too.
        loss_cap: as in `KKT`.
        entry: of the inputs in a batch.
        seed: of what is dealt out to whole poisons.

    Raises on use:
        ValueError: as `KKT` and `label_flip_decoys`, or a problem that does not know its setting.

    Example:
        >>> from applications.poisoning import ThreatModel
        >>> from estimators.influence import Influence
        >>> from recipe import LBFGS, Loss, solve
        >>> x, y = torch.randn(80, 2, generator=torch.Generator().manual_seed(0)).double(), torch.arange(80) % 2
        >>> x[:, 0] += 2 * y
        >>> data = (x[:60], y[:60]), (x[60:], y[60:])
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), *data, LBFGS(l2=0.1), output=Loss())
        >>> f_hat = Influence().fit(setting)
        >>> found = solve(ThreatModel(0.1).task(setting), f_hat, LabelFlipKKT(shares=(0.2, 0.5)))
        >>> found.predicted > float(f_hat(torch.ones(60)).mean())
        True
    """

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    repeats: tuple[int, ...] = (1, 2)
    one_sided: bool = True
    loss_cap: float | None = None
    entry: int | str = 0
    seed: int = 0

    def solve(self, problem: Problem) -> Tensor:
        """See `KKT.solve`."""
        setting = problem.setting
        if setting is None:
            raise ValueError("The decoys are trained on the data that is attacked: pass setting=... to solve().")
        towards = isinstance(problem.objective, Minimize)
        decoys = label_flip_decoys(setting, self.shares, self.repeats, self.one_sided, towards)
        return KKT(setting, decoys, self.loss_cap, entry=self.entry, seed=self.seed, measured=True).solve(problem)


def _notes(candidate: Candidate) -> dict[str, object]:
    return {
        "decoy": candidate.decoy.name,
        "stretch": candidate.stretch,
        "margins": candidate.margins.tolist(),
        "residual": candidate.residual,
    }
