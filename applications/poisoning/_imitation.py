"""The convex program of the KKT attack: points at which chosen parameters of a linear model would be optimal."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from applications.poisoning._rounding import normals, spare
from applications.poisoning._stationarity import CORNER, Stationarity
from applications.poisoning._stretching import least_margins, stretch_of
from applications.poisoning.dealing import dealt
from applications.poisoning.decoys import Decoy
from applications.poisoning.linear_view import Line, LinearView
from recipe import batch as batches
from recipe.example_sets import Integers, examples_of
from recipe.problem import Minimize, Problem
from recipe.setting import Setting
from recipe.solvers.convex import Convex

STEPS = 8  # of Gauss-Newton, at most
SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step's length
STEP = 1e-4  # of differences of derivatives
FLAT = 1e-3  # a curvature that is none
COUPLED = 200  # entries of an input: tangents couple all of them, and programs that are dense in more take seconds
GAIN = 0.02  # of the residual, less than which ends the steps


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one decoy leads to.

    Args:
        decoy: it.
        line: it as a decision function, stretched.
        stretch: by how much.
        points: `(k, d)`, one for each label that has poisons.
        residual: the gradient of the training objective at the line, poisons included, as a length in theta.
        margins: `(k,)` of the points at the line.
    """

    decoy: Decoy
    line: Line
    stretch: float
    points: Tensor
    residual: float
    margins: Tensor


@dataclass(frozen=True, eq=False)
class _Tangent:
    """Derivatives of the poisons' losses in `z_1 - z_0` as a function of it, `(k,)` each, at points `(k, d)`."""

    slopes: Tensor
    curvature: Tensor
    margins: Tensor
    points: Tensor


@dataclass(frozen=True, eq=False)
class Imitation:
    """What all decoys of a problem share.

    Args:
        setting: the attacker's.
        condition: that poisons are to meet.
        problem: to be solved.
        owners: `(k, b)`, true where a row of the decision has the k-th label.
        feasible: for one point a label.
        loss_cap: a percentile, or None.
    """

    setting: Setting
    condition: Stationarity
    problem: Problem
    owners: Tensor
    feasible: Any
    loss_cap: float | None

    @classmethod
    def of(cls, setting: Setting, problem: Problem, entry: int | str, loss_cap: float | None) -> "Imitation":
        """Read off a problem which row of its decision becomes poisons of which label, and how many."""
        b = len(problem.start)
        marked = torch.arange(b).to(problem.start)[:, None].expand_as(problem.start)
        weights, added = problem.arguments(marked)
        assert added is not None
        row, labels = added[entry][:, 0].round().long(), batches.labels(added)  # type: ignore[index]
        y, copies = labels.unique(return_counts=True)
        owners = torch.zeros(len(y), b, dtype=torch.bool)
        owners[torch.searchsorted(y, labels), row] = True
        every = problem.feasible.within if isinstance(problem.feasible, Integers) else problem.feasible
        one = examples_of(every, owners.to(torch.uint8).argmax(1))
        condition = Stationarity(setting, LinearView.of(setting, entry), y, copies.double(), weights.double())
        return cls(setting, condition, problem, owners, one, loss_cap)

    # ---- from a decoy to points --------------------------------------------------------------------------------------
    def candidate(self, decoy: Decoy) -> Candidate | None:
        """The points at which the decoy is nearest to optimal; None where no allowed point has an allowed margin.

        By Gauss-Newton steps, each a convex program; a loss without curvature, the hinge, needs the first one only. Of
        inputs with many entries the derivatives are held fixed for a step instead, as far as the gradient falls.
        """
        condition = self.condition
        line = condition.view.line(self.setting, decoy.parameters)
        stretch = stretch_of(condition, line, self.loss_cap)
        line = line.stretched(stretch)
        low = least_margins(condition, line, self.loss_cap)
        start = torch.where(low.isfinite(), low, 0.0)
        none = torch.zeros(len(condition.y), condition.clean[0].shape[1], dtype=torch.float64)
        points = self._points(line, low, _Tangent(condition.slopes(start), torch.zeros_like(start), start, none))
        if points is None:
            return None
        best = self._measured(decoy, line, stretch, points)
        for _ in range(STEPS):
            tangent = self._tangent(best)
            curved = bool((tangent.curvature.abs() > FLAT).any())
            if best.points.shape[1] > COUPLED:
                tangent = replace(tangent, curvature=torch.zeros_like(tangent.curvature))
            aim = self._points(line, low, tangent) if curved else None
            if aim is None:
                break
            way = [best.points + share * (aim - best.points) for share in SHARES]
            nearer = min((self._measured(decoy, line, stretch, x) for x in way), key=lambda c: c.residual)
            if nearer.residual > (1 - GAIN) * best.residual:
                break
            best = nearer
        return replace(best, points=self.feasible.project(best.points))

    def _measured(self, decoy: Decoy, line: Line, stretch: float, points: Tensor) -> Candidate:
        """Points with their margins and what is left of the gradient."""
        margins = self.condition.sign * line(points)
        left = self.condition.residual(line, points, margins)
        return Candidate(decoy, line, stretch, points, left, margins)

    def _tangent(self, candidate: Candidate) -> "_Tangent":
        """The derivatives of the poisons' losses around a candidate."""
        condition = self.condition
        slopes = condition.slopes(candidate.margins)
        before = condition.slopes(candidate.margins.clamp(max=condition.corner - CORNER) - STEP)
        curvature = condition.sign * (slopes - before) / STEP
        return _Tangent(slopes, curvature, candidate.margins, candidate.points.double())

    def _points(self, line: Line, low: Tensor, tangent: "_Tangent") -> Tensor | None:
        """The program for derivatives that are linear in the margin, `(k, d)`; None where it is infeasible."""
        condition, sign = self.condition, self.condition.sign
        slope, bias = condition.clean_gradient(line)
        rest, rest_bias = slope / condition.count, bias / condition.count
        pull, turn = (condition.copies * t / condition.count for t in (tangent.slopes, tangent.curvature))
        turned, at = turn[:, None] * tangent.points, sign * tangent.margins  # in z_1 - z_0 from here on
        scale, bias_scale = condition.view.a, condition.view.c

        def left(x: Any) -> Any:
            moved = x @ line.slope + (line.bias - at)
            others = ((moved @ turn + (rest_bias + float(pull.sum()))) ** 2).sum()
            return scale * ((pull @ x + moved @ turned + rest) ** 2).sum() + bias_scale * others

        def limits(x: Any) -> list[Any]:
            margins = [s * (x[k] @ line.slope.numpy() + line.bias) for k, s in enumerate(sign.tolist())]
            least = [m >= bound for m, bound in zip(margins, low.tolist(), strict=True) if bound > -torch.inf]
            room = spare(self.feasible, x) if isinstance(self.problem.feasible, Integers) else []
            return least + [m <= condition.corner for m in margins] + room

        start = self.problem.start[self.owners.to(torch.uint8).argmax(1)].double()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ends with the status")  # an inaccurate answer is tried too
            try:
                found = Convex(limits).solve(Problem(Minimize(left), start, self.feasible, lambda x: (x, None)))
            except ValueError:  # infeasible
                return None
        return self.feasible.project(found.to(self.problem.start))

    def decision(self, candidate: Candidate, generator: torch.Generator) -> Tensor:
        """The points in every row of their label, dealt out where inputs are whole numbers, exactly feasible."""
        answer, whole = self.problem.start.clone(), self.problem.feasible
        for k, (point, rows) in enumerate(zip(candidate.points, self.owners, strict=True)):
            if isinstance(whole, Integers):
                across = [normal[k] for normal in normals(self.feasible)]
                seen = torch.stack([candidate.line.slope, *across])  # what the loss and the slab defence look along
                answer[rows] = dealt(point, int(rows.sum()), seen, generator)
            else:
                answer[rows] = point
        outside = (whole.excess(answer) > 0).nonzero().squeeze(1)  # type: ignore[attr-defined]
        if len(outside):
            answer[outside] = examples_of(whole, outside).project(answer[outside])
        return answer
