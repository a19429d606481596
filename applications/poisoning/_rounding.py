"""What rounding a mean to whole points may add, as constraints on the mean; and what slabs look along."""

from typing import Any

import torch
from torch import Tensor

from recipe.example_sets import Balls, Intersection, Slabs

SPARE = 0.02  # of a radius or a slab's width, kept for what rounding adds by chance
WHOLES = 4  # of a whole entry whose squares are counted as rounding makes them


def normals(feasible: Any) -> list[Tensor]:
    """Of all slabs in a set, `(k, d)` each."""
    if isinstance(feasible, Intersection):
        return [normal for s in feasible.sets for normal in normals(s)]
    return [feasible.normal.double()] if isinstance(feasible, Slabs) else []


def spare(feasible: Any, x: Any) -> list[Any]:
    """Constraints on a mean of whole points under which the points pass, up to chance.

    Rounded to 0 or 1 with the mean p, an entry's expected square is p and not p^2: so squares are counted along the
    line through the whole numbers, `x + sum_k 2 max(0, x - k)`, which for a non-negative x is convex again.
    """
    if isinstance(feasible, Intersection):
        return [c for s in feasible.sets for c in spare(s, x)]
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
