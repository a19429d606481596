"""Dealing out a mean: rows of whole numbers whose mean is a given point, alike along some directions.

Rounding one point and copying it loses what is below a half in every copy. Rounding every copy at random keeps the mean
but scatters the copies along the directions that a defence looks at, so that some are thrown away. Here an entry's
fraction says how many rows get one more, and those rows get it that are farthest back along what it adds: the greedy
rule for equal loads, largest entries first, in several directions at once.

Reference: Graham, "Bounds on Multiprocessing Timing Anomalies", 1969, for the rule in one direction.
"""

import numpy as np
import torch
from torch import Tensor


def dealt(point: Tensor, rows: int, directions: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers `(rows, d)`, each entry the point's rounded down or up, its mean within `1 / rows` of the point's.

    Args:
        point: `(d,)`.
        rows: how many.
        directions: `(k, d)`, along which the rows are to be alike; their lengths do not matter.
        generator: rounds the number of rows that get one more, so that the mean is right on average.

    Example:
        >>> point, along = torch.tensor([2.0, 0.5, 0.5]), torch.tensor([[0.0, 1.0, 1.0]])
        >>> dealt(point, 2, along, torch.Generator().manual_seed(0)).sum(1)  # one of the halves each
        tensor([3., 3.])
    """
    down, drawn = point.floor(), torch.rand(len(point), generator=generator)
    more = ((point - down) * rows + drawn.to(point)).floor().clamp(max=rows).long().cpu().numpy()
    step = torch.nn.functional.normalize(directions.double(), dim=1).cpu().numpy()  # (k, d)
    order = np.argsort(-np.abs(step).max(0), kind="stable")
    up, totals = np.zeros((rows, len(point))), np.zeros((rows, len(step)))
    noise = 1e-9 * torch.rand(rows, generator=generator).double().numpy()  # decides among equals
    for j in order[more[order] > 0]:
        behind = np.argsort(totals @ step[:, j] + noise)[: more[j]]
        up[behind, j] = 1
        totals[behind] += step[:, j]
    return down + torch.from_numpy(up).to(point)
