"""Leakage: targets whose near copy is in the training data, and training points that are copies of each other.

A pair counts as a copy where its distance is below `tolerance` times the usual one, the median distance of a training
point to its nearest neighbour. Features decide what "near" means: pixels find copies, a network's representation also
finds crops and recolourings. With a datamodel, each pair shows what the copy does to the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from applications.debugging.blame import by_target
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Examples, Exhibit, Exhibits, Finding, Grid, Strip, Term

DISTANCE = Term("distance", "Between the features of a target and its copy; 1 is usual between neighbours.")
EFFECT = Term("effect", "What the copy does to the target's output, and its place among all points that help it.")


@dataclass(frozen=True)
class Copy:
    """A target and its nearest training point.

    Args:
        target: which target.
        point: which training point.
        distance: between their features, in units of the usual distance of neighbours.
        effect: of the point on the target, where a datamodel told; None elsewhere.
        rank: 1 where no point helps the target more; None without a datamodel.
    """

    target: int
    point: int
    distance: float
    effect: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Leakage:
    """Copies across training data and targets, and groups of copies within the training data.

    Args:
        copies: targets with a near copy in the training data, the nearest first.
        duplicates: groups of training points that are near copies of each other, the largest first.
        targets: how many targets were looked at.
        points: how many training points.
        tolerance: below which distance a pair counts.
    """

    copies: Sequence[Copy]
    duplicates: Sequence[Sequence[int]]
    targets: int
    points: int
    tolerance: float

    def to_pandas(self) -> Any:
        """A row a copy: `target`, `point`, `distance`, `effect`, `rank`."""
        import pandas as pd

        rows = [(c.target, c.point, c.distance, c.effect, c.rank) for c in self.copies]
        return pd.DataFrame(rows, columns=["target", "point", "distance", "effect", "rank"])

    def finding(self, points: Examples, targets: Examples, most: int = 24) -> Finding:
        """A section of a report."""
        extra = sum(len(group) - 1 for group in self.duplicates)
        items = [
            Exhibit(
                Card(targets[c.target], f"target {c.target}", f"distance {c.distance:.3g}"),
                [Strip("Its nearest training point", [Card(points[c.point], f"point {c.point}", _said(c))], EFFECT)],
            )
            for c in self.copies[:most]
        ]
        strips = [
            Strip(f"{len(group)} copies", [Card(points[i], f"point {i}") for i in group[:8]])
            for group in self.duplicates[:6]
        ]
        known = [c for c in self.copies if c.rank is not None]
        top = sum(c.rank == 1 for c in known)
        near = f"closer than {self.tolerance:g} of the usual distance between neighbours"
        columns = [Term("", ""), Term("count", f"How many there are; copies lie {near}.")]
        rows = [
            (Term("targets with a copy in training", f"Targets with a training point {near}."), len(self.copies)),
            (Term("superfluous training copies", "Training points beyond the first of each group of copies."), extra),
        ]
        answer = (
            f"{len(self.copies)} of {self.targets} targets have a near copy among the {self.points} training points"
        )
        answer += f"; for {top} of them no training point helps the target more." if known else "."
        return Finding(
            "Leakage and duplicates",
            "Are targets, or copies of them, in the training data?",
            f"{answer} {extra} training points repeat another one.",
            [
                Grid("Near copies", columns, rows),
                *([Exhibits("Targets with a copy", items, DISTANCE)] if items else []),
                *strips,
            ],
            frame=self.to_pandas,
        )


def leakage(train: Tensor, targets: Tensor, f_hat: OutputFunction | None = None, tolerance: float = 0.25) -> Leakage:
    """Find near copies by nearest neighbours.

    Args:
        train: `(n, d)` features of the training points.
        targets: `(t, d)` features of the targets.
        f_hat: a datamodel of these targets' outputs, to see what copies do.
        tolerance: what counts as near, in units of the median distance between neighbours in the training data.

    Raises:
        ValueError: features that do not fit together, or a datamodel of other points or targets.
    """
    from sklearn.neighbors import NearestNeighbors

    x, z = (np.asarray(t.detach().cpu().flatten(1), dtype=np.float64) for t in (train, targets))
    if x.shape[1] != z.shape[1] or len(x) < 2:
        raise ValueError(f"Expected features (n >= 2, d) and (t, d); got {tuple(x.shape)} and {tuple(z.shape)}.")
    if f_hat is not None and (f_hat.n, f_hat.output_shape[0]) != (len(x), len(z)):
        raise ValueError(
            f"The datamodel knows {f_hat.n} training points and {f_hat.output_shape[0]} targets; there are features of "
            f"{len(x)} and {len(z)}."
        )
    near = NearestNeighbors(n_neighbors=2).fit(x)
    within, _ = near.kneighbors(x)
    apart = within[:, 1][within[:, 1] > 0]
    usual = float(np.median(apart)) if len(apart) else 1.0
    distance, point = (found[:, 0] for found in near.kneighbors(z, 1))
    pairs = [(j, int(point[j]), float(distance[j]) / usual) for j in np.argsort(distance, kind="stable")]
    near_pairs = [pair for pair in pairs if pair[2] <= tolerance]
    effects = None if f_hat is None or not near_pairs else by_target(f_hat, [int(j) for j, *_ in near_pairs])
    copies = [_copy(None if effects is None else effects[row], *pair) for row, pair in enumerate(near_pairs)]
    return Leakage(copies, _groups(near, x, tolerance * usual), len(z), len(x), tolerance)


def _copy(effects: Tensor | None, target: int, point: int, distance: float) -> Copy:
    if effects is None:
        return Copy(int(target), point, distance)
    rank = 1 + int((effects > effects[point]).sum())
    return Copy(int(target), point, distance, float(effects[point]), rank)


def _groups(near: Any, x: np.ndarray, radius: float) -> list[list[int]]:
    """Connected training points, by pairs closer than the radius."""
    from scipy.sparse.csgraph import connected_components

    graph = near.radius_neighbors_graph(x, radius)
    count, of = connected_components(graph, directed=False)
    sizes = np.bincount(of, minlength=count)
    groups = [np.flatnonzero(of == k).tolist() for k in np.flatnonzero(sizes > 1)]
    return sorted(groups, key=len, reverse=True)


def _said(copy: Copy) -> str:
    return "" if copy.effect is None else f"effect {copy.effect:+.3g}, rank {copy.rank}"
