"""Solve a task with predicted outputs; verify the answer by really retraining."""

import copy
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe import exports
from recipe.batch import content_hash
from recipe.datamodel import Origin, OutputFunction
from recipe.problem import Baseline, Problem, Solver, Task
from recipe.record import Folder, summary, versions, write_folder
from recipe.setting import Setting

FORMAT = 1  # of saved folders
BEFORE = "do nothing"  # the baseline that every task has


@dataclass(frozen=True, eq=False)
class Solution:
    """A decision and what it is predicted to do.

    Args:
        task: the task that was solved.
        decision: what the solver chose, a subset's as zeros and ones.
        outputs: predicted outputs `(m,)` at the decision.
        predicted: the objective's predicted value.
        provenance: estimator, solver and task with their parameters, what the fit decided (the damping of an estimator
            that chooses it), seeds, package versions, content hashes of the
            data, seconds, and what the solver noted.
        scores: of the decision's shape: what more of each entry would improve, `sense * gradient` of the objective at
            the decision; None where there is no gradient.
    """

    task: Task
    decision: Tensor
    outputs: Tensor
    predicted: float
    provenance: Mapping[str, Any] = field(repr=False)
    scores: Tensor | None = field(default=None, repr=False)

    @property
    def indices(self) -> Tensor:
        """Indices of the chosen training points, ascending; a point of count 2 stands there twice."""
        return exports.indices_of(self.decision)

    @property
    def mask(self) -> Tensor:
        """Booleans `(n,)`: which training points are chosen."""
        return exports.counts_of(self.decision) > 0

    def frame(self) -> Any:
        """A pandas table of all training points: index, chosen (how often), score, rank."""
        return exports.frame_of(self.decision, self.scores)

    def of(self, data: Any) -> Any:
        """The chosen part of a data set of the universe's length: tensors, a list, a torch or `datasets` data set."""
        return exports.part_of(data, self.decision)

    def write(self, path: str | os.PathLike[str]) -> None:
        """The table as `.csv` or `.parquet`, or the indices as `.npy` or `.txt`."""
        exports.write(path, self.decision, self.scores)

    def __str__(self) -> str:
        lines = [("task", _brief(self.provenance["task"]))]
        lines += [(name, _brief(self.provenance[name])) for name in ("estimator", "solver") if self.provenance[name]]
        lines += [("decision", _describe(self.decision)), ("predicted", f"{self.predicted:.4g}")]
        lines += [(f"solver's {name}", _number(value)) for name, value in self.provenance["notes"].items()]
        lines += [("seconds", ", ".join(f"{k} {v:.2g}" for k, v in self.provenance["seconds"].items()))]
        return _table(lines)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write JSON and `.npy` files to a new folder, whole or not at all.

        Raises:
            FileExistsError: the folder holds another run and `overwrite` is not set.
        """
        write_folder(path, self.fill, overwrite)

    def fill(self, folder: Folder) -> None:
        """Write into a folder that is being filled."""
        names = ("task", "decision", "outputs", "predicted", "scores")
        document = {name: folder.encode(getattr(self, name)) for name in names}
        folder.write("solution.json", {"format": FORMAT, **document, "provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], task: Task | None = None) -> "Solution":
        """Read what `save` wrote.

        Args:
            path: the folder.
            task: instead of the saved one, for tasks that hold functions or live outside an installed plug-in.

        Raises:
            FileNotFoundError: no solution there.
            ValueError: a newer format, or a task that cannot be read back.
        """
        folder, document = _open(path, "solution.json")
        return cls(
            task=folder.decode(document["task"]) if task is None else task,
            decision=folder.decode(document["decision"]),
            outputs=folder.decode(document["outputs"]),
            predicted=folder.decode(document["predicted"]),
            provenance=document["provenance"],
            scores=folder.decode(document.get("scores")),
        )


@dataclass(frozen=True)
class Measured:
    """A mean over `runs` independent values, retrainings or draws, and its standard error (NaN for a single one)."""

    mean: float
    error: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Measured":
        """From the values of single retrainings."""
        t = torch.tensor(values, dtype=torch.float64)
        return cls(float(t.mean()), float(t.std() / len(t) ** 0.5) if len(t) > 1 else float("nan"), len(t))

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.error != self.error else f" ± {self.error:.2g}")


@dataclass(frozen=True, eq=False)
class Verification:
    """What a decision really does, beside what was predicted and what else could have been done.

    Args:
        name: of the task.
        predicted: the objective as the datamodel predicts it.
        actual: the objective after retraining, the mean over seeds of the objective on that seed's outputs.
        baselines: the same for the task's other decisions, by name; "do nothing" is the state before.
        outputs_predicted: `(m,)` at the decision.
        outputs_actual: `(m,)` after retraining, the mean over seeds.
        outputs_error: `(m,)`, its standard error.
        provenance: of the solution, with the seeds of the retrainings and the seconds they took.
    """

    name: str
    predicted: float
    actual: Measured
    baselines: Mapping[str, Measured]
    outputs_predicted: Tensor
    outputs_actual: Tensor
    outputs_error: Tensor
    provenance: Mapping[str, Any] = field(repr=False)

    @property
    def before(self) -> Measured:
        """The objective of doing nothing."""
        return self.baselines[BEFORE]

    def __str__(self) -> str:
        others = [(name, str(value)) for name, value in self.baselines.items() if name != BEFORE]
        rows = [(f"before ({BEFORE})", str(self.before)), ("predicted", f"{self.predicted:.4g}")]
        rows += [("actual", str(self.actual)), *others]
        seeds = len(self.provenance["verification"]["seeds"])
        return f"{self.name}, retrained with {seeds} seed{'s' * (seeds != 1)}\n" + _table(rows)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """As `Solution.save`."""
        write_folder(path, self.fill, overwrite)

    def fill(self, folder: Folder) -> None:
        """Write into a folder that is being filled."""
        names = ("name", "predicted", "actual", "baselines", "outputs_predicted", "outputs_actual", "outputs_error")
        document = {name: folder.encode(getattr(self, name)) for name in names}
        folder.write("verification.json", {"format": FORMAT, **document, "provenance": dict(self.provenance)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Verification":
        """Read what `save` wrote. Raises as `Solution.load`."""
        folder, document = _open(path, "verification.json")
        provenance = document.pop("provenance")
        del document["format"]
        return cls(**{name: folder.decode(value) for name, value in document.items()}, provenance=provenance)


def solve(
    task: Task, f_hat: OutputFunction, solver: Solver, estimator: Any = None, setting: Setting | None = None
) -> Solution:
    """Optimise a task over predicted outputs.

    Args:
        task: what we want.
        f_hat: the datamodel, or `Retrain` itself on a tiny problem.
        solver: how to optimise.
        estimator: what `problem.refit` fits anew around a decision; default the one that `f_hat` comes from.
        setting: where it fits; default the one that `f_hat` comes from.

    Example:
        >>> import torch
        >>> from applications.data_selection import DataSelection
        >>> from recipe import LinearDatamodel, TopK
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> solve(DataSelection(size=2), f_hat, TopK()).decision
        tensor([1., 0., 1.])
    """
    if f_hat.origin is None and setting is not None:  # scores made by hand: tasks ask what is measured
        f_hat = copy.copy(f_hat)
        f_hat.origin = Origin(None, setting, None, float("nan"))
    origin = f_hat.origin
    estimator = estimator or (origin.estimator if origin else None)
    setting = setting or f_hat.setting
    newest = [f_hat]  # a refit replaces it: predictions come from the datamodel that was fitted nearest to the decision
    problem = _refittable(task, newest, estimator, setting)
    started = time.perf_counter()
    decision = solver.solve(problem).detach()
    seconds = {"fit": origin.seconds} if origin else {}
    seconds["solve"] = time.perf_counter() - started
    with torch.no_grad():
        outputs = newest[0](*problem.arguments(decision)).detach()
    provenance = {
        "task": summary(task),
        "estimator": summary(origin.estimator if origin and origin.estimator else estimator),
        "decided by the fit": summary(newest[0].origin.notes if newest[0].origin else {}),
        "refitted by": summary(estimator) if newest[0] is not f_hat else None,
        "solver": summary(solver),
        "setting": _setting_summary(setting),
        "notes": summary(problem.notes),
        "seconds": seconds,
        "versions": versions(),
    }
    last = task.problem(newest[0])
    return Solution(task, decision, outputs, last.value(decision), provenance, _scores(last, decision))


def _scores(problem: Problem, decision: Tensor) -> Tensor | None:
    try:
        return problem.objective.sense * problem.gradient(decision)
    except ValueError:  # an objective without a gradient, such as that of really retraining
        return None


def verify(solution: Solution, f: OutputFunction) -> Verification:
    """Evaluate a solution, and the task's baselines, on the true outputs: really retrain.

    Args:
        solution: from `solve`, or loaded.
        f: `Retrain(setting, seeds)`; several seeds give standard errors.
    """
    started = time.perf_counter()
    _check_same_universe(solution, f)
    problem, runs = solution.task.problem(f), f.runs()
    each = [solution.task.problem(run) for run in runs]

    def measured(decisions: Sequence[Tensor]) -> Measured:
        draws = []
        for decision in decisions:
            problem.value(decision)  # trains all seeds together; the single seeds below find their run
            draws.append([one.value(decision) for one in each])
        # Retrainings of one draw share it, so that several draws count as one value each.
        return Measured.of([sum(values) / len(values) for values in draws] if len(draws) > 1 else draws[0])

    actual = measured([solution.decision])
    baselines = {name: measured(_decisions(baseline, f)) for name, baseline in problem.baselines.items()}
    with torch.no_grad():
        arguments = problem.arguments(solution.decision)
        outputs = torch.stack([run(*arguments) for run in runs])
    error = outputs.std(0) / len(runs) ** 0.5 if len(runs) > 1 else torch.full_like(outputs[0], torch.nan)
    record = {"seeds": list(f.seeds), "seconds": time.perf_counter() - started, "setting": _setting_summary(f.setting)}
    return Verification(
        name=_brief(summary(solution.task)),
        predicted=solution.predicted,
        actual=actual,
        baselines=baselines,
        outputs_predicted=solution.outputs,
        outputs_actual=outputs.mean(0),
        outputs_error=error,
        provenance={**solution.provenance, "verification": record},
    )


def _refittable(task: Task, newest: list[OutputFunction], estimator: Any, setting: Setting | None) -> Problem:
    """The task over the newest datamodel, with a `refit` that replaces it."""
    problem = replace(task.problem(newest[0]), setting=setting)
    if estimator is None or setting is None:
        return problem

    def refit(decision: Tensor) -> Problem:
        newest[0] = estimator.fit(setting, problem.arguments(decision))
        return _refittable(task, newest, estimator, setting)

    return replace(problem, refit=refit)


def _decisions(baseline: Baseline, f: OutputFunction) -> Sequence[Tensor]:
    answer = baseline(f) if callable(baseline) and not isinstance(baseline, Tensor) else baseline
    return [answer] if isinstance(answer, Tensor) else list(answer)


def _check_same_universe(solution: Solution, f: OutputFunction) -> None:
    solved = solution.provenance["setting"]
    if solved is not None and f.setting is not None and solved["universe"] != content_hash(f.setting.pool):
        raise ValueError(
            f"The solution is about a universe with the content hash {solved['universe']}; these true outputs train on "
            f"{content_hash(f.setting.pool)}. Verify with Retrain on the setting that was solved."
        )


def _setting_summary(setting: Setting | None) -> Any:
    if setting is None:
        return None
    return {
        "universe": content_hash(setting.pool),
        "targets": content_hash(setting.probe),
        "n": setting.n,
        "p": setting.p,
        "model": type(setting.module(setting.initial(0))).__name__,
        **{name: summary(getattr(setting, name)) for name in ("algorithm", "loss", "output")},
    }


def _open(path: str | os.PathLike[str], name: str) -> tuple[Folder, dict[str, Any]]:
    folder = Folder(Path(path))
    document = folder.read(name)
    if document["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version of the package (format {document['format']}).")
    return folder, document


def _brief(record: Any) -> str:
    """A summary as `Name(field=value)`."""
    if isinstance(record, list):
        return f"[{', '.join(_brief(v) for v in record)}]"
    if not isinstance(record, dict) or "type" not in record:
        return str(record)
    return (
        f"{record['type']}({', '.join(f'{k}={_brief(v)}' for k, v in record.items() if k != 'type' and v is not None)})"
    )


def _describe(decision: Tensor) -> str:
    if decision.ndim == 1 and ((decision == 0) | (decision == 1)).all():
        return f"{int(decision.sum())} of {len(decision)} training points"
    if decision.ndim == 1 and (decision == decision.round()).all() and (decision >= 0).all():
        return f"{int((decision > 0).sum())} of {len(decision)} training points, {int(decision.sum())} with repeats"
    return f"{tuple(decision.shape)} values between {float(decision.min()):.3g} and {float(decision.max()):.3g}"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} values, {_number(value[0])} to {_number(value[-1])}" if value else "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
