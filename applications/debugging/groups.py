"""Group effects: which groups or sources of training data help or hurt the targets.

    effect(g) = mean_j [f_j(1) - f_j(1 without g)],

of a linear datamodel the sum of its points' effects. The confidence interval is over targets: a percentile bootstrap of
the mean, so it says how far another draw of targets would agree, not how well the datamodel predicts. That is what
retraining without the group tells, where `f` is given.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe.datamodel import OutputFunction
from recipe.findings import Examples, Finding, Grid, Scatter, Term
from recipe.lds import check_comparable
from recipe.retrain import Retrain
from recipe.run import Measured

DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class GroupEffect:
    """What a group does to the mean output of the targets.

    Args:
        group: its name.
        size: how many training points it has.
        effect: predicted, of having it against leaving it out.
        low: the lower end of the confidence interval over targets.
        high: the upper end; both NaN for fewer than two targets.
        actual: the same by retraining, where it was asked for.
    """

    group: Hashable
    size: int
    effect: float
    low: float
    high: float
    actual: Measured | None = None


@dataclass(frozen=True)
class GroupEffects:
    """The effects of all groups, the most helpful first; `level` of the intervals, over `targets` targets."""

    groups: Sequence[GroupEffect]
    level: float
    targets: int

    def to_pandas(self) -> Any:
        """A row a group."""
        import pandas as pd

        rows = [
            (
                str(g.group),
                g.size,
                g.effect,
                g.low,
                g.high,
                *((g.actual.mean, g.actual.error) if g.actual else (None, None)),
            )
            for g in self.groups
        ]
        return pd.DataFrame(rows, columns=["group", "size", "effect", "low", "high", "actual", "error"])

    def finding(
        self, points: Examples | None = None, targets: Examples | None = None, *, what: str = "output"
    ) -> Finding:
        """A section of a report; `what` the targets' output is. No example is shown."""
        columns = [
            Term("group", "Training points that belong together: a source, a class, a writer."),
            Term("points", "How many training points the group has."),
            Term("effect", f"The predicted change of the targets' mean {what} by having the group."),
            Term("from", f"Lower end of the {self.level:.0%} interval over targets (bootstrap)."),
            Term("to", f"Upper end of the {self.level:.0%} interval over targets (bootstrap)."),
            Term("each", "The effect divided by the number of points."),
            Term("actual", "The same change by retraining with and without the group, ± standard error over seeds."),
        ]
        rows = [
            (str(g.group), g.size, g.effect, g.low, g.high, g.effect / g.size, str(g.actual) if g.actual else None)
            for g in self.groups
        ]
        best, worst = self.groups[0], self.groups[-1]
        checked = [(g.effect, g.actual.mean, str(g.group)) for g in self.groups if g.actual]
        plot = Scatter(
            "Groups: predicted and actual",
            Term("predicted effect", "By the datamodel."),
            Term("actual effect", "By retraining with and without the group."),
            [(x, y) for x, y, _ in checked],
            [name for _, _, name in checked],
        )
        single = [str(g.group) for g in self.groups if g.size == 1]
        notes = [f"{', '.join(single)}: one point only, so that the group says no more than its point."] * bool(single)
        if self.targets < 2:
            notes.append("One target alone has no confidence interval.")
        return Finding(
            "Groups and sources",
            f"Which groups of training data raise or lower the targets' {what}?",
            f"{best.group} raises it most ({best.effect:+.3g}), {worst.group} least ({worst.effect:+.3g}).",
            [*([plot] if checked else []), Grid("Effects of groups", columns, rows)],
            notes,
            frame=self.to_pandas,
        )


def group_effects(
    f_hat: OutputFunction,
    groups: Sequence[Hashable] | Tensor,
    targets: Sequence[int] | None = None,
    f: Retrain | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> GroupEffects:
    """What each group does to the targets' mean output.

    Args:
        f_hat: a datamodel.
        groups: n names, the group of every training point.
        targets: which targets; default all.
        f: true outputs of the same targets: retrains without each group.
        level: of the confidence intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: another number of names, a single group, a name that is NaN, no targets, a level outside 0 to 1, or
            true outputs of another universe, other targets or another output.
        IndexError: there is no such target.

    Example:
        >>> from recipe import LinearDatamodel
        >>> f_hat = LinearDatamodel(torch.zeros(2), torch.tensor([[1.0, 2.0, -1.0], [1.0, 0.0, -1.0]]))
        >>> [(g.group, g.effect) for g in group_effects(f_hat, ["web", "web", "books"]).groups]
        [('web', 2.0), ('books', -1.0)]
    """
    groups = groups.tolist() if isinstance(groups, Tensor | np.ndarray) else list(groups)
    names = list(dict.fromkeys(groups))
    if f is not None:
        check_comparable(f_hat, f)
    if unknown := [i for i, name in enumerate(groups) if name != name]:
        raise ValueError(f"The group of training point {unknown[0]} is NaN; name the points of no group, say 'none'.")
    if len(groups) != f_hat.n or len(names) < 2:
        raise ValueError(
            f"Expected the group of each of {f_hat.n} training points, at least two groups; got {len(groups)} names "
            f"and {len(names)} groups."
        )
    chosen = range(f_hat.output_shape[0]) if targets is None else targets
    if not len(chosen) or not 0 < level < 1:
        raise ValueError(f"Expected targets and a level between 0 and 1; got {len(chosen)} targets and {level}.")
    rows = [f_hat.rows(int(j)) for j in chosen]
    without = torch.stack([torch.tensor([float(group != name) for group in groups]) for name in names])

    def lost(outputs: Tensor) -> Tensor:  # (1 + groups, m) -> (groups, targets)
        each = torch.stack([outputs[:, row].mean(1) for row in rows], 1)
        return each[0] - each[1:]

    weights = torch.cat([torch.ones(1, f_hat.n), without])
    with torch.no_grad():
        effects = lost(f_hat(weights)).double().cpu()
        true = None if f is None else torch.stack([lost(one).mean(1) for one in f.per_seed(weights)], 1)
    sizes = (without == 0).sum(1).tolist()
    found = [
        GroupEffect(
            name,
            sizes[k],
            float(effects[k].mean()),
            *_interval(effects[k], level, seed),
            None if true is None else Measured.of(true[k].tolist()),
        )
        for k, name in enumerate(names)
    ]
    return GroupEffects(sorted(found, key=lambda g: -g.effect), level, len(chosen))


def _interval(values: Tensor, level: float, seed: int) -> tuple[float, float]:
    if len(values) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).choice(values.numpy(), (DRAWS, len(values))).mean(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
