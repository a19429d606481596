"""The convex program of the KKT attack: points at which chosen parameters of a linear model would be optimal."""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from applications.defences._geometry import inputs_of
from applications.poisoning.dealing import dealt
from applications.poisoning.decoys import Decoy
from applications.poisoning.linear_view import Line, LinearView, loss_slopes
from recipe import batch as batches
from recipe.example_sets import Balls, Integers, Intersection, Slabs, examples_of
from recipe.problem import Minimize, Problem
from recipe.setting import Setting
from recipe.solvers.convex import Convex

STEPS = 8  # of Gauss-Newton, at most
SHARES = (1.0, 0.5, 0.25, 0.1)  # of a step's length
STEP = 1e-4  # of differences of derivatives
FLAT = 1e-3  # a curvature that is none
COUPLED = 200  # entries of an input: tangents couple all of them, and programs that are dense in more take seconds
GAIN = 0.02  # of the residual, less than which ends the steps
STRETCHES = 1 + 0.02 * torch.arange(51, dtype=torch.float64)  # 1 to 2
FAR = 36.0  # a margin beyond which no loss has a derivative that a double can tell from zero
CORNER = 1e-6  # kept from the margin where a loss ends
SPARE = 0.02  # of a radius or a slab's width, kept for what rounding adds by chance
WHOLES = 4  # of a whole entry whose squares are counted as rounding makes them


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
        view: of its model.
        problem: to be solved.
        owners: `(k, b)`, true where a row of the decision has the k-th label.
        y: `(k,)`, the labels that have poisons.
        copies: `(k,)`, how many poisons carry each.
        weights: `(n,)` of the clean points.
        feasible: for one point a label.
        loss_cap: a percentile, or None.
    """

    setting: Setting
    view: LinearView
    problem: Problem
    owners: Tensor
    y: Tensor
    copies: Tensor
    weights: Tensor
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
        view = LinearView.of(setting, entry)
        return cls(setting, view, problem, owners, y, copies.double(), weights.double(), one, loss_cap)

    @cached_property
    def clean(self) -> tuple[Tensor, Tensor]:
        """Inputs `(n, d)` and labels of the clean data."""
        return inputs_of(self.setting.pool, self.view.entry).double(), batches.labels(self.setting.pool)

    @property
    def sign(self) -> Tensor:
        """-1 for label 0, 1 for label 1, `(k,)`."""
        return 2.0 * self.y.double() - 1

    @property
    def decay(self) -> float:
        """What the penalty's gradient is multiplied with beside a sum of losses: `N l2`."""
        goal = self.setting.algorithm.objective
        return goal.l2 * (float(self.weights.sum() + self.copies.sum()) if goal.mean else 1.0)

    # ---- from a decoy to points --------------------------------------------------------------------------------------
    def candidate(self, decoy: Decoy) -> Candidate | None:
        """The points at which the decoy is nearest to optimal; None where no allowed point has an allowed margin.

        By Gauss-Newton steps, each a convex program; a loss without curvature, the hinge, needs the first one only. Of
        inputs with many entries the derivatives are held fixed for a step instead, as far as the gradient falls.
        """
        line = self.view.line(self.setting, decoy.parameters)
        stretch = self._stretch(line)
        line = line.stretched(stretch)
        low = self._least_margins(line)
        start = torch.where(low.isfinite(), low, 0.0)
        none = torch.zeros(len(self.y), self.clean[0].shape[1], dtype=torch.float64)
        points = self._points(line, low, _Tangent(self._slopes(start), torch.zeros_like(start), start, none))
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
        slope, bias = self._clean_gradient(line)
        margins = self.sign * line(points)
        pull = self.copies * self._slopes(margins)
        left = self.view.norm(slope + pull @ points.double(), bias + float(pull.sum())) / self._count
        return Candidate(decoy, line, stretch, points, left, margins)

    def _tangent(self, candidate: Candidate) -> "_Tangent":
        """The derivatives of the poisons' losses around a candidate."""
        slopes = self._slopes(candidate.margins)
        before = self._slopes(candidate.margins.clamp(max=self._corner - CORNER) - STEP)
        curvature = self.sign * (slopes - before) / STEP
        return _Tangent(slopes, curvature, candidate.margins, candidate.points.double())

    def _points(self, line: Line, low: Tensor, tangent: "_Tangent") -> Tensor | None:
        """The program for derivatives that are linear in the margin, `(k, d)`; None where it is infeasible."""
        slope, bias = self._clean_gradient(line)
        rest, rest_bias = slope / self._count, bias / self._count
        pull, turn = (self.copies * t / self._count for t in (tangent.slopes, tangent.curvature))
        turned, at = turn[:, None] * tangent.points, self.sign * tangent.margins  # in z_1 - z_0 from here on
        scale, bias_scale = self.view.a, self.view.c

        def left(x: Any) -> Any:
            moved = x @ line.slope + (line.bias - at)
            others = ((moved @ turn + (rest_bias + float(pull.sum()))) ** 2).sum()
            return scale * ((pull @ x + moved @ turned + rest) ** 2).sum() + bias_scale * others

        def limits(x: Any) -> list[Any]:
            margins = [sign * (x[k] @ line.slope.numpy() + line.bias) for k, sign in enumerate(self.sign.tolist())]
            least = [m >= bound for m, bound in zip(margins, low.tolist(), strict=True) if bound > -torch.inf]
            spare = _spare(self.feasible, x) if isinstance(self.problem.feasible, Integers) else []
            return least + [m <= self._corner for m in margins] + spare

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
                normals = [normal[k] for normal in _normals(self.feasible)]
                seen = torch.stack([candidate.line.slope, *normals])  # what the loss and the slab defence look along
                answer[rows] = dealt(point, int(rows.sum()), seen, generator)
            else:
                answer[rows] = point
        outside = (whole.excess(answer) > 0).nonzero().squeeze(1)  # type: ignore[attr-defined]
        if len(outside):
            answer[outside] = examples_of(whole, outside).project(answer[outside])
        return answer

    # ---- at a line ---------------------------------------------------------------------------------------------------
    @property
    def _count(self) -> float:
        """What the sum of losses is divided by."""
        goal = self.setting.algorithm.objective
        return float(self.weights.sum() + self.copies.sum()) if goal.mean else 1.0

    @cached_property
    def _corner(self) -> float:
        """The largest margin with a loss that still falls: 1 for the hinge, `FAR` for losses that never end."""
        low, high = -FAR, FAR
        one = torch.ones(1, dtype=torch.long)
        if float(loss_slopes(self.setting.loss, torch.tensor([high]), one)[1]) < 0:
            return FAR
        while high - low > CORNER / 2:
            middle = (low + high) / 2
            falls = float(loss_slopes(self.setting.loss, torch.tensor([middle]).double(), one)[1]) < 0
            low, high = (middle, high) if falls else (low, middle)
        return low

    def _slopes(self, margins: Tensor) -> Tensor:
        """Derivatives of the poisons' losses in `z_1 - z_0`, `(k,)`; at a corner those before it."""
        inner = margins.clamp(max=self._corner - CORNER)
        return loss_slopes(self.setting.loss, self.sign * inner, self.y)[1]

    def _clean_gradient(self, line: Line) -> tuple[Tensor, float]:
        """Of the clean losses' sum and the penalty, in slope `(d,)` and bias."""
        x, y = self.clean
        slopes = self.weights * loss_slopes(self.setting.loss, line(x), y)[1]
        slope, bias = self.view.penalty_slopes(line)
        return slopes @ x + self.decay * slope, float(slopes.sum()) + self.decay * bias

    def _least_margins(self, line: Line) -> Tensor:
        """Those at which a poison's loss is that of the percentile of its class, `(k,)`."""
        if self.loss_cap is None:
            return torch.full_like(self.copies, -torch.inf)
        x, y = self.clean
        margins, kept = (2 * y - 1) * line(x), self.weights > 0
        share = 1 - self.loss_cap / 100
        return torch.stack([torch.quantile(margins[kept & (y == c)], share) for c in self.y])

    def _stretch(self, line: Line) -> float:
        """The least factor at which the condition can hold along the line itself, where the poisons' losses pass.

        The condition times the line is `sum_i w_i l'_i m_i + N l2 (|slope|^2 / a + ...) = -sum_y e_y l'_y m_y`.
        """
        if self.loss_cap is None:
            return 1.0
        x, y = self.clean
        d, (slope, bias) = line(x), self.view.penalty_slopes(line)
        penalty = self.decay * float(slope @ line.slope + bias * line.bias)
        low = self._least_margins(line)
        for stretch in STRETCHES.tolist():
            clean = self.weights @ (loss_slopes(self.setting.loss, stretch * d, y)[1] * stretch * d)
            if float(clean) + stretch**2 * penalty >= self._least_pull(stretch * low):
                return stretch
        return 1.0

    def _least_pull(self, low: Tensor) -> float:
        """The least of `-sum_y e_y l'_y m_y` over allowed margins."""
        share = torch.linspace(0, 1, 200, dtype=torch.float64)
        total = 0.0
        for copies, bound in zip(self.copies.tolist(), low.tolist(), strict=True):
            margins = bound + share * max(0.0, self._corner - CORNER - bound)
            slopes = loss_slopes(self.setting.loss, margins, torch.ones(len(margins), dtype=torch.long))[1]
            total += copies * float((-slopes * margins).min())
        return total


def _normals(feasible: Any) -> list[Tensor]:
    """Of all slabs in a set, `(k, d)` each."""
    if isinstance(feasible, Intersection):
        return [normal for s in feasible.sets for normal in _normals(s)]
    return [feasible.normal.double()] if isinstance(feasible, Slabs) else []


def _spare(feasible: Any, x: Any) -> list[Any]:
    """Constraints on a mean of whole points under which the points pass, up to chance.

    Rounded to 0 or 1 with the mean p, an entry's expected square is p and not p^2: so squares are counted along the
    line through the whole numbers, `x + sum_k 2 max(0, x - k)`, which for a non-negative x is convex again.
    """
    if isinstance(feasible, Intersection):
        return [c for s in feasible.sets for c in _spare(s, x)]
    if isinstance(feasible, Balls):
        radius = torch.as_tensor(feasible.radius).double().expand(len(feasible.center)) * (1 - SPARE)
        squares, found = x, []
        for step in range(1, WHOLES):
            above = type(x)(x.shape)  # max(0, x - step), as a variable: cvxpy is imported by Convex alone
            found += [above >= 0, above >= x - step]
            squares = squares + 2 * above
        for k, (center, r) in enumerate(zip(feasible.center.double(), radius.tolist(), strict=True)):
            found.append(squares[k].sum() - 2 * (x[k] @ center.numpy()) + float(center @ center) <= r**2)
        return found
    if isinstance(feasible, Slabs):
        width = torch.where((feasible.high - feasible.low).isfinite(), feasible.high - feasible.low, 0.0)
        return Slabs(feasible.normal, feasible.low + SPARE * width, feasible.high - SPARE * width).constraints(x)
    return []
