"""The largest of many scores: exact, and in little memory beside the scores themselves.

Sorting a hundred million scores takes several times their memory. The k-th largest is found instead in blocks: a sample
brackets it (its rank among s of them has a standard deviation of at most sqrt(s)/2), one pass marks what is above the
bracket's lower end and collects what is inside, and selection among these is exact. Where the bracket misses, all are
selected from.
"""

import math

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**18  # scores looked at together: they stay in the processor's cache
SAMPLE = 2**18
DEVIATIONS = 6  # of the bracket, to either side


def largest(score: Tensor, low: int, high: int) -> Tensor:
    """Where the largest scores are, a mask `(n,)`: as many as are positive, but `low` to `high` of them.

    Ties go to the first points.

    Example:
        >>> largest(torch.tensor([0.1, 0.9, -1.0, 0.5]), 2, 2)
        tensor([False,  True, False,  True])
    """
    count = low
    if low < high:
        count = min(max(sum(int((part > 0).count_nonzero()) for part in score.split(BLOCK)), low), high)
    chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    if count == 0:
        return chosen
    inside, above = _inside(score, *_bracket(score, count), chosen)
    if not above < count <= above + len(inside):
        inside, above = _inside(score, *_everything(score), chosen)
    within, left = score[inside], count - above  # as many of these are chosen
    threshold = within.kthvalue(len(within) - left + 1).values
    ties = inside[within == threshold]
    spare = int((within >= threshold).count_nonzero()) - left
    chosen[inside[within < threshold]] = False
    chosen[ties[len(ties) - spare :]] = False
    return chosen


def _inside(score: Tensor, low: Tensor, high: Tensor, marked: Tensor) -> tuple[Tensor, int]:
    """Mark scores of at least `low`; where those up to `high` are, in order, and how many are above."""
    found, above = [], 0
    for start in range(0, len(score), BLOCK):
        part = score[start : start + BLOCK]
        where = _mark(part, low, marked[start : start + BLOCK])
        within = where[part[where] <= high]
        above += len(where) - len(within)
        found.append(start + within)
    return torch.cat(found), above


def _mark(part: Tensor, low: Tensor, mask: Tensor) -> Tensor:
    """`mask = part >= low`, and where it is true: by numpy where it can, which takes a third of torch's time."""
    if part.device.type == "cpu" and part.dtype != torch.bfloat16:
        np.greater_equal(part.numpy(), low.numpy(), out=mask.numpy())
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    torch.ge(part, low, out=mask)
    return mask.nonzero().squeeze(1)


def _bracket(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Two scores between which the k-th largest lies but once in a billion times."""
    if len(score) <= 4 * SAMPLE:
        return _everything(score)
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(score), (SAMPLE,), generator=generator).sort().values  # read in order, which is faster
    sample = score[index.to(score.device)].sort(descending=True).values
    rank, slack = k / len(score) * SAMPLE, DEVIATIONS * math.sqrt(SAMPLE) / 2
    top, bottom = int(rank - slack), math.ceil(rank + slack)
    least, most = _everything(score)
    return sample[bottom] if bottom < SAMPLE else least, sample[top] if top >= 0 else most


def _everything(score: Tensor) -> tuple[Tensor, Tensor]:
    return score.new_tensor(-math.inf), score.new_tensor(math.inf)
