"""Threat models as data: what an attacker may do, wants, knows, and must get past.

    ThreatModel(budget=0.03, inputs=PixelRange(0, 1), labels=Inverse(), goal=Indiscriminate(), passes=Sanitation())

A threat model and a setting give a task: how many poisons, where they start, which inputs are allowed, which targets
count. Nothing in it says how the attack is found; that is the estimator's and the solver's part.

Reference for the axes: Koh, Steinhardt & Liang 2022, arXiv:1811.00741; Goldblum et al., "Dataset Security for Machine
Learning", 2020, arXiv:2012.10544.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from applications.defences._geometry import inputs_of
from applications.poisoning._inputs import replaced
from applications.poisoning.goals import Goal, Indiscriminate, Trigger
from applications.poisoning.sanitation import Sanitation
from applications.poisoning.task import Poisoning
from recipe import batch as batches
from recipe.batch import Batch
from recipe.composition import Ensemble
from recipe.datamodel import Estimator, OutputFunction
from recipe.example_sets import Balls, Integers, Intersection
from recipe.feasible import Box
from recipe.problem import Feasible
from recipe.setting import Setting


class Inputs(Protocol):
    """Which inputs an attacker may choose."""

    @property
    def whole(self) -> bool:
        """Whether only whole numbers."""

    def box(self, setting: Setting, start: Tensor, entry: int | str) -> Box:
        """The box around them."""

    def within(self, box: Box, start: Tensor) -> Box | Intersection:
        """What of the box is allowed."""


@dataclass(frozen=True)
class Range:
    """Any input between two numbers.

    Args:
        low: the least; None takes the universe's.
        high: the largest.
        whole: counts, such as bags of words.
        each: take the least and largest of every entry over the universe, instead of one range for all.
    """

    low: float | None = None
    high: float | None = None
    whole: bool = False
    each: bool = False

    def box(self, setting: Setting, start: Tensor, entry: int | str) -> Box:
        """The range, for every poison."""
        x = inputs_of(setting.pool, entry)
        least, most = (x.amin(0), x.amax(0)) if self.each else x.aminmax()
        low = least if self.low is None else torch.as_tensor(self.low)
        high = most if self.high is None else torch.as_tensor(self.high)
        return Box.between(low.to(start).expand_as(start), high.to(start).expand_as(start))

    def within(self, box: Box, start: Tensor) -> Box | Intersection:
        """All of it."""
        return box


@dataclass(frozen=True)
class Near:
    """Inputs near those that the poisons start from, inside a range.

    Args:
        linf: at most so much in every entry.
        l2: at most so far.
        range: of valid inputs.
    """

    linf: float | None = None
    l2: float | None = None
    range: Range = field(default_factory=Range)

    @property
    def whole(self) -> bool:
        """Whether the range is of whole numbers."""
        return self.range.whole

    def box(self, setting: Setting, start: Tensor, entry: int | str) -> Box:
        """The valid range, and what `linf` leaves of it."""
        valid = self.range.box(setting, start, entry)
        return valid if self.linf is None else valid.intersect(Box(start, self.linf))

    def within(self, box: Box, start: Tensor) -> Box | Intersection:
        """The box, and what `l2` leaves of it. Raises `ValueError` where that is nothing."""
        if self.l2 is None:
            return box
        near, inside = Balls(start, self.l2), box.project(start)
        away = near.excess(inside)
        if bool((away > 0).any()):
            raise ValueError(
                f"Poison {int(away.argmax())} starts {float(away.max()) + self.l2:.3g} outside of the range, farther "
                f"than it may move, l2={self.l2}. Widen the range, or raise l2."
            )
        return Intersection((box, near), inside)


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """What an attacker may do, wants and must get past.

    Args:
        budget: how many poisons: a count, or a share of the training points.
        inputs: which inputs: `Range()`, `Near(linf=8/255)`.
        flipped: poisons start as training points with another label, or (False) with their own: clean labels.
        label: all poisons carry this label; they start from points of other classes (or, clean, of this one).
        modify: poisons replace the training points that they start from, instead of joining them.
        goal: what is wanted.
        trigger: a patch that every poison wears.
        passes: the defences that poisons must get past.
        entry: of the inputs in a batch.

    Raises on use:
        ValueError: a budget above the data, or below one poison.
    """

    budget: float
    inputs: Inputs = field(default_factory=Range)
    flipped: bool = True
    label: int | None = None
    modify: bool = False
    goal: Goal = Indiscriminate()
    trigger: Trigger | None = None
    passes: Sanitation | None = None
    entry: int | str = 0

    def count(self, n: int) -> int:
        """How many poisons beside (or among) n training points."""
        if not math.isfinite(self.budget):
            raise ValueError(f"The budget is a share below 1 or a count from 1 to {n}; got {self.budget}.")
        share = isinstance(self.budget, float) and self.budget < 1
        count = round(self.budget * n) if share else int(self.budget)
        if not 1 <= count <= n or (not share and count != self.budget):
            raise ValueError(
                f"The budget is a share below 1 or a count from 1 to the {n} training points; got {self.budget}, "
                f"which is {count} poisons."
            )
        return count

    def task(self, setting: Setting, seed: int = 0) -> Poisoning:
        """The task on a setting; the seed draws the points that poisons start from."""
        return self._task(setting, *self._start(setting, seed))

    def splits(self, setting: Setting, parts: int = 5, seed: int = 0) -> list[Poisoning]:
        """Tasks of the same budget, divided between two classes in `parts` ways: from one for label 0 to one for 1.

        Which division does most harm depends on the attack; Koh, Steinhardt & Liang 2022 go through a grid of them.

        Raises:
            ValueError: not two classes, a threat model with a label of its own, or no part.
        """
        classes, count = batches.labels(setting.pool).unique(), self.count(setting.n)
        if len(classes) != 2 or self.label is not None or parts < 1:
            raise ValueError(
                f"A budget is divided between two classes in one way at least; got {len(classes)} classes, "
                f"label={self.label} and parts={parts}."
            )
        first = torch.linspace(0, count, parts + 2)[1:-1].round().long().tolist()
        return [self._divided(setting, (k, count - k), classes.tolist(), seed) for k in first]

    def _divided(self, setting: Setting, counts: tuple[int, int], classes: list[int], seed: int) -> Poisoning:
        """The task with so many poisons of each class."""
        parts = [
            replace(self, budget=k, label=c)._start(setting, seed) for k, c in zip(counts, classes, strict=True) if k
        ]
        start = parts[0][1] if len(parts) == 1 else batches.concatenate(parts[0][1], parts[1][1])
        return self._task(setting, torch.cat([index for index, _ in parts]), start)

    def _task(self, setting: Setting, index: Tensor, start: Batch) -> Poisoning:
        """The task whose poisons start from training points `index` as `start` has them."""
        entries = range(len(start)) if isinstance(start, tuple) else list(start)
        if self.entry not in entries:
            raise ValueError(f"Expected an entry of the batch, one of {list(entries)}; got {self.entry!r}.")
        x = start[self.entry]  # type: ignore[index]
        if not x.is_floating_point():
            raise ValueError(
                f"Poison inputs are changed in small steps, so they are floating numbers; got {x.dtype}. Give counts "
                "as floats with Range(whole=True); tokens can only have their labels flipped."
            )
        allowed = self._allowed(setting, x, batches.labels(start))
        begin = allowed.project(x)  # flipped training points seldom pass for their new class
        start = replaced(start, self.entry, begin)
        replaces = tuple(index.tolist()) if self.modify else ()
        return Poisoning(start, allowed, self.entry, towards=self.goal.towards, replaces=replaces)

    def _allowed(self, setting: Setting, x: Tensor, y: Tensor) -> Feasible:
        """The inputs that poisons may have which start at `x` with labels `y`."""
        box = self.inputs.box(setting, x, self.entry)
        if self.trigger is not None:
            box, x = self.trigger.worn(box), self.trigger.stamp(x)
        allowed = self.inputs.within(box.whole() if self.inputs.whole else box, x)
        if self.passes is not None:
            return self.passes.allowed(setting, y, allowed, self.inputs.whole)
        return Integers(allowed) if self.inputs.whole else allowed

    def _start(self, setting: Setting, seed: int) -> tuple[Tensor, Batch]:
        """Training points, `(b,)` indices, and what becomes of their labels."""
        count, y = self.count(setting.n), batches.labels(setting.pool)
        suits = torch.ones_like(y, dtype=torch.bool)
        if self.label is not None:
            suits = y != self.label if self.flipped else y == self.label
        order = torch.randperm(setting.n, generator=torch.Generator().manual_seed(seed))
        index = order[suits.cpu()[order]][:count]
        if len(index) < count:
            raise ValueError(f"Only {len(index)} training points suit this threat model; the budget is {count}.")
        chosen = batches.take(setting.pool, index)
        if self.label is not None:
            return index, batches.relabel(chosen, torch.full_like(batches.labels(chosen), self.label))
        if self.flipped:
            classes = y.unique()
            rank = torch.searchsorted(classes, batches.labels(chosen))
            generator = torch.Generator().manual_seed(seed + 1)
            shift = torch.randint(1, max(2, len(classes)), (count,), generator=generator).to(rank)
            return index, batches.relabel(chosen, classes[(rank + shift) % len(classes)])
        return index, chosen


@dataclass(frozen=True)
class Surrogates:
    """What the attacker knows of the victim: an ensemble of models that may not be it, averaged.

    Args:
        estimator: fitted on each.
        settings: the surrogates, with the attacker's own training set, targets and models.
    """

    estimator: Estimator
    settings: tuple[Setting, ...]

    def fit(self, setting: Setting | None = None, at: tuple[Tensor, Batch | None] | None = None) -> OutputFunction:
        """An ensemble over the surrogates; the victim's own setting is not looked at."""
        return Ensemble([self.estimator.fit(own, at) for own in self.settings])
