"""The largest of many scores: exact, and in little memory beside the scores themselves.

Sorting a hundred million scores takes several times their memory. The k-th largest is found instead in blocks: a sample
brackets it (its rank among s of them has a standard deviation of at most sqrt(s)/2), one pass counts what is above the
bracket and collects what is inside, and selection among these is exact. Where the bracket misses, all are selected
from.
"""

import math

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
    threshold = kth_largest(score, count)
    parts = list(zip(score.split(BLOCK), chosen.split(BLOCK), strict=True))
    for part, mask in parts:
        torch.ge(part, threshold, out=mask)
    surplus = int(chosen.count_nonzero()) - count
    for part, mask in reversed(parts):
        if not surplus:
            break
        ties = (part == threshold).nonzero().squeeze(1)[-surplus:]
        mask[ties] = False
        surplus -= len(ties)
    return chosen


def kth_largest(score: Tensor, k: int) -> Tensor:
    """The k-th largest score, a scalar.

    Example:
        >>> kth_largest(torch.tensor([3.0, 1.0, 2.0]), 2)
        tensor(2.)
    """
    n = len(score)
    if n > 4 * SAMPLE:
        low, high = _bracket(score, k)
        inside, above = [], 0
        for part in score.split(BLOCK):
            part = part[part >= low]
            above += int((part > high).count_nonzero())
            inside.append(part[part <= high])
        within = torch.cat(inside)
        if above < k <= above + len(within):
            score, n, k = within, len(within), k - above
    return score.kthvalue(n - k + 1).values


def _bracket(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Two scores between which the k-th largest lies but once in a billion times."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(score), (SAMPLE,), generator=generator).sort().values  # read in order, which is faster
    sample = score[index.to(score.device)].sort(descending=True).values
    rank, slack = k / len(score) * SAMPLE, DEVIATIONS * math.sqrt(SAMPLE) / 2
    top, bottom = int(rank - slack), math.ceil(rank + slack)
    infinite = score.new_tensor(math.inf)
    return sample[bottom] if bottom < SAMPLE else -infinite, sample[top] if top >= 0 else infinite
