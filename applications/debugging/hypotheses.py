"""Tests of hypotheses: change the data or the targets, retrain, and compare with what was predicted.

    Remove(points)               weights 0
    Relabel(points, labels)      weights 0, and the same inputs added with other labels
    Edit(points, change)         weights 0, and changed copies added
    Transform(change)            the training stays; the targets are changed (blur the sky, drop a word)

`try_out` measures the mean output of the chosen targets before and after, run by run with the same seeds, and gives
a p-value over seeds: a paired t-test of "nothing changes". Fewer than three seeds, or runs that do not differ, allow
none, and the answer says so. Sets of as many random points stand beside a removal: a change that they make as well is
no evidence about the points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.findings import Examples, Finding, Grid, Scatter, Term
from recipe.findings.words import counted
from recipe.lds import check_comparable
from recipe.problem import Arguments
from recipe.retrain import Retrain
from recipe.run import Measured
from recipe.setting import Setting

FEWEST = 3  # seeds for a p-value
CONTROLS = 3  # random removals
P_VALUE = "Of 'nothing changes': a paired t-test over seeds, two-sided."
ROUNDING = 1e-6  # of an output: seeds that differ by less do not differ


@dataclass(frozen=True, eq=False)
class Remove:
    """Train without some points."""

    points: Sequence[int] | Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _index(self.points))

    def training(self, setting: Setting) -> Arguments:
        """Weights and added examples."""
        return _without(setting, self.points), None

    def __str__(self) -> str:
        return f"remove {len(self.points)} points"


@dataclass(frozen=True, eq=False)
class Relabel:
    """Give some points other labels, one each."""

    points: Sequence[int] | Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _index(self.points))

    def training(self, setting: Setting) -> Arguments:
        """Weights and added examples. Raises `ValueError` for another number of labels."""
        if len(self.labels) != len(self.points):
            raise ValueError(f"Expected a label for each of {len(self.points)} points; got {len(self.labels)}.")
        weights = _without(setting, self.points)
        return weights, batches.relabel(batches.take(setting.pool, _index(self.points)), self.labels)

    def __str__(self) -> str:
        return f"relabel {len(self.points)} points"


@dataclass(frozen=True, eq=False)
class Edit:
    """Change some points: `change(batch) -> batch` gets them and returns as many."""

    points: Sequence[int] | Tensor
    change: Callable[[Batch], Batch]
    name: str = "edit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", _index(self.points))

    def training(self, setting: Setting) -> Arguments:
        """Weights and added examples."""
        weights = _without(setting, self.points)
        return weights, _changed(self.change, batches.take(setting.pool, _index(self.points)), "points")

    def __str__(self) -> str:
        return f"{self.name} {len(self.points)} points"


@dataclass(frozen=True, eq=False)
class Transform:
    """Change the targets: `change(batch) -> batch` gets all of them and returns as many, in their order."""

    change: Callable[[Batch], Batch]
    name: str = "transform the targets"

    def __str__(self) -> str:
        return self.name


Hypothesis = Remove | Relabel | Edit | Transform


@dataclass(frozen=True, eq=False)
class Trial:
    """Before, predicted and actual.

    Args:
        name: what was done.
        before: the targets' mean output, over seeds.
        predicted: what the datamodel says it becomes; None where it cannot say, and `notes` tell why.
        predicted_change: the datamodel's own change, from what it says of everything.
        actual: after retraining, over the same seeds.
        change: actual minus before, paired by seed.
        p: two-sided, of "nothing changes"; None where the seeds allow none.
        control: of a removal, the change by removing as many random points.
        before_each: `(targets,)` outputs before, the mean over seeds.
        predicted_each: `(targets,)`, or None.
        predicted_change_each: `(targets,)`, or None.
        actual_each: `(targets,)` after.
        notes: what to know before believing it.
    """

    name: str
    before: Measured
    predicted: float | None
    predicted_change: float | None
    actual: Measured
    change: Measured
    p: float | None
    control: Measured | None
    before_each: Tensor
    predicted_each: Tensor | None
    predicted_change_each: Tensor | None
    actual_each: Tensor
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [f"{self.name}, {self.before.runs} seeds", f"  before     {self.before}"]
        rows += [f"  predicted  {_figure(self.predicted)}", f"  actual     {self.actual}"]
        rows += [f"  change     {self.change} ({_figure(self.predicted_change)} was predicted)"]
        rows += [f"  p          {'none' if self.p is None else format(self.p, '.2g')}"]
        rows += [f"  random     {self.control} (the change by as many random points)"] if self.control else []
        return "\n".join([*rows, *(f"  note: {note}" for note in self.notes)])

    def to_pandas(self) -> Any:
        """A row a target: `before`, `predicted`, `predicted change`, `actual`."""
        import pandas as pd

        unknown = [None] * len(self.before_each)
        told = {"predicted": self.predicted_each, "predicted change": self.predicted_change_each}
        predicted = {name: unknown if t is None else t.tolist() for name, t in told.items()}
        columns = {"before": self.before_each.tolist(), **predicted, "actual": self.actual_each.tolist()}
        return pd.DataFrame(columns).rename_axis("target")

    def finding(
        self, points: Examples | None = None, targets: Examples | None = None, *, what: str = "output"
    ) -> Finding:
        """A section of a report; `what` the targets' output is. No example is shown."""
        seeds, error = counted(self.before.runs, "seed"), "after ±, its standard error over seeds"
        mean = f"The targets' mean {what}"
        columns = [Term("", ""), Term("mean " + what, f"The mean over the targets; {error}.")]
        rows = [
            (Term("before", f"{mean} after training on everything; {error}."), str(self.before)),
            (Term("predicted", f"{mean} after the change, as the datamodel has it."), _figure(self.predicted)),
            (Term("actual", f"{mean} after retraining with the change; {error}."), str(self.actual)),
            (Term("change", f"Actual minus before, paired by seed; {error}."), str(self.change)),
            (
                Term("predicted change", "The datamodel's, from what it says of everything."),
                _figure(self.predicted_change),
            ),
            (
                Term("p-value", P_VALUE),
                "none" if self.p is None else f"{self.p:.2g}",
            ),
        ]
        if self.control:
            draws = f"The change by removing as many random points: the mean over {counted(self.control.runs, 'draw')}"
            draws += "; after ±, its standard error over draws."
            rows += [(Term("change by random points", draws), str(self.control))]
        parts: list[Any] = [Grid(f"{self.name}: tested with {seeds}", columns, rows, best=2)]
        if self.predicted_change_each is not None and len(self.before_each) > 1:
            moved = self.predicted_change_each.tolist(), (self.actual_each - self.before_each).tolist()
            x, y = (
                Term("predicted change", "By the datamodel, a dot a target."),
                Term("actual change", "By retraining."),
            )
            names = [f"target {j}" for j in range(len(moved[0]))]
            parts.insert(0, Scatter("Predicted and actual changes", x, y, list(zip(*moved, strict=True)), names))
        verdict = "could not be tested for significance" if self.p is None else f"has p = {self.p:.2g}"
        return Finding(
            f"Test: {self.name}",
            f"Does the targets' {what} really change?",
            f"It goes from {self.before} to {self.actual}"
            + ("" if self.predicted is None else f"; {self.predicted:.4g} was predicted")
            + f". The change {verdict}.",
            parts,
            self.notes,
            [Term("±", "The standard error over seeds.")] * (self.before.runs > 1)
            + [Term("p", P_VALUE)] * (self.p is not None),
            frame=self.to_pandas,
        )


def try_out(
    hypothesis: Hypothesis, f: Retrain, f_hat: OutputFunction | None = None, targets: Sequence[int] | None = None
) -> Trial:
    """Change the data or the targets, retrain, and compare.

    Args:
        hypothesis: what to change.
        f: true outputs.
        f_hat: a datamodel of the same outputs, for the prediction.
        targets: which targets count; default all.

    Raises:
        IndexError: no such target, or no such training point.
        ValueError: a change that returns another number of examples, a datamodel of another universe, other targets or
            another output, no targets.
    """
    chosen = list(range(f.output_shape[0])) if targets is None else [int(j) for j in targets]
    rows = [f.rows(j) for j in chosen]
    if not rows:
        raise ValueError("No targets were chosen; pass at least one.")
    if f_hat is not None:
        check_comparable(f_hat, f)

    def each(outputs: Tensor) -> Tensor:  # (..., m) -> (..., targets)
        return torch.stack([outputs[..., row].mean(-1) for row in rows], -1).detach().double().cpu()

    ones = torch.ones(f.n)
    before = each(f.per_seed(ones))  # (seeds, targets)
    actual = each(_actual(hypothesis, f))
    predicted, why = _predicted(hypothesis, f, f_hat)
    told = None if predicted is None else each(predicted)
    moved = None if told is None or f_hat is None else told - each(f_hat(ones))
    p, reason = _p_value((actual - before).mean(1))
    return Trial(
        name=str(hypothesis),
        before=Measured.of(before.mean(1).tolist()),
        predicted=None if told is None else float(told.mean()),
        predicted_change=None if moved is None else float(moved.mean()),
        actual=Measured.of(actual.mean(1).tolist()),
        change=Measured.of((actual - before).mean(1).tolist()),
        p=p,
        control=_control(hypothesis, f, each, before) if isinstance(hypothesis, Remove) else None,
        before_each=before.mean(0),
        predicted_each=told,
        predicted_change_each=moved,
        actual_each=actual.mean(0),
        notes=tuple(note for note in (why, reason) if note),
    )


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _actual(hypothesis: Hypothesis, f: Retrain) -> Tensor:
    if isinstance(hypothesis, Transform):
        changed = _changed(hypothesis.change, f.setting.probe, "targets")
        return f.on(changed).per_seed(torch.ones(f.n))
    return f.per_seed(*hypothesis.training(f.setting))


def _predicted(hypothesis: Hypothesis, f: Retrain, f_hat: OutputFunction | None) -> tuple[Tensor | None, str]:
    """Predicted outputs, or why there are none."""
    if f_hat is None:
        return None, ""
    try:
        with torch.no_grad():
            if isinstance(hypothesis, Transform):
                changed = _changed(hypothesis.change, f.setting.probe, "targets")
                return f_hat.on(changed)(torch.ones(f.n)), ""
            return f_hat(*hypothesis.training(f.setting)), ""
    except NotImplementedError as error:
        return None, f"no prediction: {error}"


def _p_value(changes: Tensor) -> tuple[float | None, str]:
    """Of paired changes, one a seed."""
    from scipy.stats import ttest_1samp

    if len(changes) < FEWEST:
        had = counted(len(changes), "retraining")
        return None, f"{had} are too few for a p-value; pass at least {FEWEST} seeds, better 10."
    if float(changes.std()) <= ROUNDING * max(1.0, float(changes.abs().max())):
        return None, "All seeds give the same change (training is deterministic), so that there is no p-value."
    return float(ttest_1samp(changes.numpy(), 0.0).pvalue), ""


def _control(hypothesis: Remove, f: Retrain, each: Callable[[Tensor], Tensor], before: Tensor) -> Measured:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randperm(f.n, generator=generator)[: len(hypothesis.points)] for _ in range(CONTROLS)]
    outputs = f.per_seed(torch.stack([_without(f.setting, draw) for draw in draws]))  # (seeds, draws, m)
    return Measured.of((each(outputs) - before[:, None]).mean((0, 2)).tolist())


def _without(setting: Setting, points: Sequence[int] | Tensor) -> Tensor:
    index = _index(points)
    if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= setting.n:
        raise IndexError(f"Expected training points from 0 to {setting.n - 1}, at least one; got {index.tolist()[:5]}.")
    return torch.ones(setting.n).index_fill(0, index, 0.0)


def _index(points: Sequence[int] | Tensor) -> Tensor:
    """Indices, of a mask too. Raises `ValueError` for one that comes twice."""
    index = torch.as_tensor(points).reshape(-1).cpu()
    index = index.nonzero().squeeze(1) if index.dtype == torch.bool else index.long()
    if len(index.unique()) != len(index):
        raise ValueError(f"A training point can be chosen once; got {index.tolist()[:8]}, some of them twice.")
    return index


def _changed(change: Callable[[Batch], Batch], batch: Batch, what: str) -> Batch:
    copy = batches.apply(lambda t: t.clone(), batch)  # a change in place must not reach the setting's data
    changed = change(copy)
    if batches.size(changed) != batches.size(batch):
        raise ValueError(
            f"The change must return as many {what} as it gets, in their order: {batches.size(batch)}; it returned "
            f"{batches.size(changed)}."
        )
    return changed
