"""Data selection: which training points make the targets' losses small?

    minimise  mean_j loss(f_j(w)) + redundancy(w)   over subsets w of the wanted size, quotas, costs, points in or out,

with f the losses on target examples, or their margins, `loss = log(1 + exp(-margin))`. A linear datamodel of losses
makes it a sum over points, so that the best subset is a top-k. Of several target sets the mean may be weighted, or the
worst one is what counts: `max_s mean_{j in s} loss(f_j(w))`, which `Convex` solves exactly over datamodels of losses.

Counts (`repeats`) are weights: a point of count 2 counts twice in the weighted mean of its batch.

Reference: Engstrom, Feldmann, Madry, "DsDm: Model-Aware Dataset Selection with Datamodels", 2024, arXiv:2401.12926.

The targets are what is optimised: measure the gain on other examples, `f.on(test, Correct())`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from applications._target_loss import target_loss
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import Estimator, OutputFunction
from recipe.feasible import Subset
from recipe.outputs import Loss
from recipe.problem import Baseline, Minimize, Problem, Solver
from recipe.quotas import Limit, Named
from recipe.retrain import Retrain
from recipe.run import Solution, solve
from recipe.setting import Setting
from recipe.solvers import Greedy, GumbelTopK, TopK
from recipe.subset import Groups, Quotas

Size = int | float | tuple[int | float, int | float]


class Redundancy(Protocol):
    """What the objective pays for points that are alike, such as `Alike` and `FacilityLocation`."""

    def __call__(self, w: Any, size: int) -> Any:
        """A scalar for weights `(n,)`, of which at most `size` are chosen."""


@dataclass(frozen=True, eq=False)
class TargetSets:
    """Several target sets in one: each example of the targets belongs to one.

    Args:
        groups: `(targets,)` integers, the set of each.
        weights: of each set, by its integer; None weighs all alike. They need not sum to 1.
        worst: the worst set counts instead of the mean. `Convex()` minimises it; `TopK()` follows the set that is worst
            with all points.

    Raises:
        ValueError: groups that are no integers, weights that are negative or of other sets, weights with `worst`.

    Example:
        >>> TargetSets(torch.tensor([0, 0, 0, 1]), weights={0: 1.0, 1: 3.0}).of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor(3.5000)
        >>> TargetSets(torch.tensor([0, 0, 0, 1]), worst=True).of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor(4.)
    """

    groups: Tensor
    weights: Mapping[int, float] | None = None
    worst: bool = False

    def __post_init__(self) -> None:
        if self.groups.ndim != 1 or self.groups.is_floating_point() or not len(self.groups):
            raise ValueError(
                f"Expected the set of each target, (targets,) integers; got {tuple(self.groups.shape)} of "
                f"{self.groups.dtype}."
            )
        if self.weights is None:
            return
        if self.worst:
            raise ValueError("The worst set counts whatever its weight: pass weights or worst=True, not both.")
        known = set(self.groups.tolist())
        if set(self.weights) != known or not all(0 <= w < float("inf") for w in self.weights.values()):
            raise ValueError(
                f"Expected a weight of at least 0 for each of the target sets {sorted(known)}; got "
                f"{dict(self.weights)}."
            )
        if not sum(self.weights.values()) > 0:
            raise ValueError("All target sets have the weight 0: there is nothing to optimise. Raise one.")

    def of(self, losses: Any) -> Any:
        """One number of losses `(targets,)`, or of a cvxpy expression."""
        if losses.shape[-1:] != self.groups.shape:
            raise ValueError(f"There are {losses.shape[-1]} outputs; the target sets are for {len(self.groups)}.")
        values, rows, counts = self.groups.cpu().unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(values), len(rows), dtype=torch.double)
        means[rows, torch.arange(len(rows))] = (1 / counts.double())[rows]
        shares = torch.tensor([1.0 if self.weights is None else self.weights[int(v)] for v in values]).double()
        A: Any = means if self.worst else (shares / shares.sum()) @ means
        A = A.to(losses) if isinstance(losses, Tensor) else A.numpy()
        return (A @ losses).max() if self.worst else A @ losses


@dataclass(frozen=True, eq=False)
class DataSelection:
    """Choose `size` training points that make the mean target loss small.

    Args:
        size: how many points, `k`, a share of all such as `0.3`, or `(at least, at most)` of these.
        groups: `(n,)` integers, a group for every point; goes with `quotas`. Or several groupings, a sequence.
        quotas: for a group, how many of its points, `k` or `(at least, at most)`; see `balanced`. Of several groupings,
            a sequence of these.
        costs: `(n,)`, what a point costs; goes with `budget`.
        budget: what the chosen points may cost together.
        include: indices of points that must be chosen.
        exclude: indices of points that must not be.
        repeats: how often a point may be chosen; above 1 the decision holds counts.
        redundancy: what the objective pays for points that are alike, `Alike(...)` or `FacilityLocation(...)`.
        sets: what the targets are made of, where they are several sets.
        draws: how many random subsets the baseline averages over.
        seed: of the random baseline.

    Raises on use:
        ValueError: no subset is allowed, and why.

    Warns on use:
        UserWarning: targets that the universe contains.

    Example:
        >>> import torch
        >>> from recipe import LinearDatamodel, TopK, solve
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> solve(DataSelection(size=1), f_hat, TopK()).decision
        tensor([0., 0., 1.])
        >>> solve(DataSelection(size=3, exclude=torch.tensor([1]), repeats=2), f_hat, TopK()).decision
        tensor([1., 0., 2.])
    """

    size: Size
    groups: Groups | None = None
    quotas: Quotas | None = None
    costs: Tensor | None = None
    budget: float | None = None
    include: Tensor | None = None
    exclude: Tensor | None = None
    repeats: int = 1
    redundancy: Redundancy | None = None
    sets: TargetSets | None = None
    draws: int = 3
    seed: int = 0

    def problem(self, f: OutputFunction) -> Problem:
        """Minimise the mean target loss; the decision is `(n,)` zeros and ones, or counts.

        Baselines: everything ("do nothing"), random subsets, and the points of lowest loss under a model trained on
        everything, the filter that needs no attribution.
        """
        feasible = self.subset(f.n)
        generator, loss = torch.Generator().manual_seed(self.seed), target_loss(f)
        if f.setting is not None and not f.seeds:
            _warn_of_overlap(f.setting)

        def objective(w: Any) -> Any:
            losses = loss(f(w))
            value = losses.mean() if self.sets is None else self.sets.of(losses)
            return value if self.redundancy is None else value + self.redundancy(w, feasible.sizes[1])

        def lowest_loss(true: OutputFunction) -> Tensor:
            assert true.setting is not None
            losses = true.on(true.setting.pool, Loss())(torch.ones(true.n))
            return feasible.best(-losses)

        baselines: dict[str, Baseline] = {
            "do nothing": torch.ones(f.n),
            "random": [feasible.sample(generator) for _ in range(self.draws)],
            **({} if f.setting is None else {"lowest loss": lowest_loss}),
        }
        return Problem(Minimize(objective), torch.ones(f.n), feasible, lambda w: (w, None), baselines)

    def subset(self, n: int) -> Subset:
        """The limits as a feasible set over n points."""
        limits = {name: getattr(self, name) for name in ("groups", "quotas", "costs", "budget", "include", "exclude")}
        subset = Subset(n, _points(self.size, n), **limits, repeats=self.repeats)
        if subset.sizes[1] < 1:
            raise ValueError(f"Expected at least one point to train on; the size {self.size} of {n} is none. Raise it.")
        if (alike := getattr(self.redundancy, "n", n)) != n:
            raise ValueError(f"The redundancy is of {alike} points; there are {n}. Pass all points of the universe.")
        return subset


def select(
    setting: Setting,
    size: Size,
    estimator: Estimator,
    solver: Solver | None = None,
    *,
    groups: Any = None,
    quotas: Mapping[Any, Any] | None = None,
    costs: Any = None,
    **more: Any,
) -> Solution:
    """Fit, and choose training points: the common case in one call.

    Args:
        setting: what to train on what, and the targets.
        size: how many points, or a share of them.
        estimator: fits the datamodel, for example `EKFACCG(models=5, lazy=True)`.
        solver: default `Greedy(refit=4)`: in four stages, with a new datamodel in each.
        groups: `(n,)` of anything that can be compared, such as the names of sources; or several groupings by name,
            `{"class": y, "source": names}`.
        quotas: of these groups; default as many of each as can be (`balanced`). Of several groupings by name,
            `{"source": {"web": (0, 500)}}`.
        costs: `(n,)` numbers; goes with `budget`.
        more: what else `DataSelection` takes: `budget`, `include`, `exclude`, `repeats`, `redundancy`, `sets`. Points
            may be lists.

    Returns:
        A solution with `indices`, `mask`, `frame()`, `of(dataset)`, and `write(path)`; pass it to `verify`.

    Raises:
        ValueError: no subset is allowed, and why, before anything is trained; or the outputs are no losses.

    Warns:
        UserWarning: targets that the universe contains; a solver that does not look at the worst of several `sets`.

    Example:
        >>> from estimators.influence import Influence
        >>> from recipe import Loss, Newton
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), (x, y), (x + 1, y), Newton(l2=0.1), output=Loss())
        >>> solution = select(setting, size=6, estimator=Influence(), groups=["odd" if i % 2 else "even" for i in y])
        >>> y[solution.indices].bincount()
        tensor([3, 3])
    """
    limits: dict[str, Any] = {"size": size, **more}
    limits |= {name: _indices(more[name]) for name in ("include", "exclude") if more.get(name) is not None}
    if costs is not None:
        limits["costs"] = torch.as_tensor(np.asarray(costs, dtype=float))
    if groups is None:
        limits["quotas"] = quotas
    else:
        ungrouped = DataSelection(**limits).subset(setting.n)  # what is wrong without groups is said without them
        several = groups if isinstance(groups, Mapping) else {"": groups}
        asked = (quotas or {}) if isinstance(groups, Mapping) else {"": quotas}
        if unknown := set(asked) - set(several):
            raise ValueError(f"There are quotas for the grouping {unknown.pop()!r}; groupings: {list(several)}.")
        pairs = [_grouping(values, asked.get(name), ungrouped, limits) for name, values in several.items()]
        limits["groups"], limits["quotas"] = zip(*pairs, strict=True) if isinstance(groups, Mapping) else pairs[0]
    task, solver = DataSelection(**limits), solver or Greedy(refit=4)
    _check(task, setting, solver)
    return solve(task, estimator.fit(setting), solver, estimator, setting)


def _check(task: DataSelection, setting: Setting, solver: Solver) -> None:
    """Refuse what is impossible, and warn, before the long work."""
    task.subset(setting.n)
    target_loss(Retrain(setting))
    if task.sets is not None:
        task.sets.of(torch.zeros(batches.size(setting.probe)))
    _warn_of_overlap(setting)
    if task.sets is not None and task.sets.worst and isinstance(solver, (TopK, GumbelTopK)):
        warnings.warn(
            f"{type(solver).__name__} follows the target set that is worst with all points, whichever is worst then. "
            "Convex() minimises the worst of a datamodel of losses, Greedy(refit=k) looks again on the way.",
            stacklevel=3,
        )


def balanced(groups: Tensor, size: int, exclude: Tensor | None = None, repeats: int = 1) -> dict[int, tuple[int, int]]:
    """Quotas that take as equally many points of each group as there are: smaller groups whole, the others alike.

    Points to `exclude` are not counted, others as often as they may be chosen.

    >>> balanced(torch.tensor([0, 1, 1, 1, 1, 2, 2, 2]), size=6)
    {0: (1, 1), 1: (2, 3), 2: (2, 3)}
    """
    left_in = groups if exclude is None else groups[torch.ones(len(groups)).index_fill(0, exclude, 0.0).bool()]
    values, counts = (part.tolist() for part in left_in.repeat(repeats).unique(return_counts=True))
    left, level = size, 0.0
    for done, count in enumerate(sorted(counts)):
        level = left / (len(counts) - done)
        if count > level:
            break
        left -= count
    low, high = int(level), -int(-level // 1)
    return {value: (min(count, low), min(count, high)) for value, count in zip(values, counts, strict=True)}


def overlap(setting: Setting) -> int:
    """How many targets are in the universe too: the same inputs, whatever the label."""
    pool, probe = (_rows(batch) for batch in (setting.pool, setting.probe))
    wanted = set(probe)
    found = {row for row in pool if row in wanted}
    return sum(row in found for row in probe)


def _rows(batch: Batch) -> list[bytes]:
    named = batch.items() if isinstance(batch, Mapping) else enumerate(batch[:-1])
    parts = [t.detach().cpu().flatten(1).contiguous() for k, t in sorted(named) if k != batches.LABELS and t.ndim]
    arrays = [part.view(torch.uint8).numpy() for part in parts]
    return [b"".join(row.tobytes() for row in each) for each in zip(*arrays, strict=True)]


def _warn_of_overlap(setting: Setting) -> None:
    if "overlap" not in setting.__dict__:  # looked at once a setting; the same one is solved again by each refit
        setting.__dict__["overlap"] = overlap(setting)
        if count := setting.__dict__["overlap"]:
            warnings.warn(
                f"{count} of {len(batches.labels(setting.probe))} targets are in the universe too: a point helps "
                "itself most, so that the predicted gain says little. Drop them from one of the two.",
                stacklevel=4,
            )


def _points(size: Size, n: int) -> Any:
    """A size in points: shares of n become whole numbers."""
    if isinstance(size, (tuple, list)):
        return tuple(_points(one, n) for one in size)
    if isinstance(size, float) and not 0 < size < 1:
        raise ValueError(f"Expected a size in points, or a share of all between 0 and 1; got {size}.")
    return round(size * n) if isinstance(size, float) else size


def _grouping(
    values: Any, quotas: Mapping[Any, Limit] | None, ungrouped: Subset, limits: Mapping[str, Any]
) -> tuple[Tensor, Mapping[int, Limit]]:
    """Groups `(n,)` as positions among their sorted values, and quotas by position; balanced where none are asked."""
    array = np.asarray(values)
    if array.shape != (ungrouped.n,):
        raise ValueError(
            f"Expected a group for each of {ungrouped.n} points; got the shape {array.shape}. Several groupings go by "
            "name, groups={'class': ..., 'source': ...}."
        )
    try:
        found, rows = np.unique(array, return_inverse=True)
    except TypeError as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in array.tolist()}))
        raise ValueError(
            f"Expected groups that can be sorted, all numbers or all names; got {kinds}. Give missing ones a name."
        ) from error
    names, groups = found.tolist(), torch.from_numpy(rows)
    if not quotas:
        even = balanced(groups, ungrouped.sizes[1], limits.get("exclude"), limits.get("repeats", 1))
        return groups, {Named(i, names[i]): quota for i, quota in even.items()}
    if not isinstance(quotas, Mapping):
        raise ValueError(
            f"Expected quotas as {{group: k}} or {{group: (fewest, most)}}, of several groupings these by name; got "
            f"{quotas!r}."
        )
    if unknown := [name for name in quotas if name not in names]:
        raise ValueError(f"There is a quota for group {unknown[0]!r}, which has no points; groups: {names}.")
    return groups, {Named(names.index(name), name): quota for name, quota in quotas.items()}


def _indices(points: Any) -> Tensor:
    found = torch.as_tensor(points if isinstance(points, Tensor) else np.asarray(points))
    return found if found.numel() else found.long()  # an empty list has no type
