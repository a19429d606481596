"""KLoM: how far unlearned models are from retrained ones, point by point, as distributions over training seeds.

For every point the margins of N unlearned and N retrained models ("oracles") become histograms on their pooled range:

    KLoM = sum_bins p log(p / max(q, eps)),      the divergence of one histogram from the other.

Three traps. The *direction* is not settled between implementations and changes the number by a factor of three: it is
an argument, and stands in the result. Two groups of N models of the *same* law have a KLoM far from zero when N is
small (about 5 at N = 10, .7 at N = 100, 95th percentile): the floor, another group of oracles against the oracles, is
part of the result. And a point at the pooled maximum must fall into the last bin, not out of it. The Wasserstein
distance beside it has no bins.

Reference: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, arXiv:2410.23232.
"""

import warnings
from typing import Literal

import torch
from torch import Tensor

BINS, CLIP, EPSILON = 20, 100.0, 1e-5  # the authors' values
FEWEST = 80  # models, below which the histograms say more of their own noise than of the models

Direction = Literal["unlearned || oracle", "oracle || unlearned"]
DEFAULT: Direction = "unlearned || oracle"


def klom(oracles: Tensor, unlearned: Tensor, direction: Direction = DEFAULT, bins: int = BINS) -> Tensor:
    """KLoM of every point, `(points,)`, in nats.

    Args:
        oracles: `(N, points)`, margins of retrained models.
        unlearned: `(N', points)`, margins of unlearned models.
        direction: `"unlearned || oracle"`: KL of the unlearned histogram from the oracles', or the other way round.
        bins: of the histograms.

    Raises:
        ValueError: shapes that do not fit, margins that are not finite, or another direction.

    Warns:
        UserWarning: fewer than 80 models.

    Example:
        Half of the unlearned models lie where all oracles are, half where none is:

        >>> oracles, unlearned = torch.zeros(100, 1), torch.arange(100.0)[:, None] % 2
        >>> klom(oracles, unlearned)  # .5 log(.5 / 1) + .5 log(.5 / 1e-5)
        tensor([5.0633])
        >>> klom(oracles, unlearned, "oracle || unlearned")  # log(1 / .5)
        tensor([0.6931])
    """
    _check(oracles, unlearned)
    if direction not in ("unlearned || oracle", "oracle || unlearned"):
        raise ValueError(f'direction must be "unlearned || oracle" or "oracle || unlearned"; got {direction!r}.')
    if min(len(oracles), len(unlearned)) < FEWEST:
        warnings.warn(
            f"KLoM of {len(unlearned)} unlearned and {len(oracles)} retrained models is mostly the noise of its "
            f"histograms below {FEWEST} models: look at the floor, or at the Wasserstein distance.",
            stacklevel=2,
        )
    a, b = (t.detach().double().clamp(-CLIP, CLIP) for t in (oracles, unlearned))
    low, high = (torch.minimum(a.amin(0), b.amin(0)), torch.maximum(a.amax(0), b.amax(0)))
    width = torch.where(high > low, high - low, 1.0)
    share = [_histogram(((t - low) / width * bins).long().clamp_max(bins - 1), bins) for t in (a, b)]
    p, q = share if direction == "oracle || unlearned" else share[::-1]
    return torch.where(p > 0, p * (p / q.clamp_min(EPSILON)).clamp_min(1e-300).log(), 0.0).sum(0).to(oracles.dtype)


def wasserstein(oracles: Tensor, unlearned: Tensor) -> Tensor:
    """The mean distance that margins must be moved to turn one group into the other, `(points,)`, in nats of margin.

    >>> wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]]))
    tensor([2.5000])
    """
    _check(oracles, unlearned)
    a, b = oracles.detach().double().sort(0).values, unlearned.detach().double().sort(0).values
    # The quantile functions are steps; integrate |a - b| over the union of their breaks.
    breaks = torch.cat([torch.arange(1, len(t) + 1).double() / len(t) for t in (a, b)]).unique().to(a)
    lengths = torch.diff(breaks, prepend=breaks.new_zeros(1))
    middle = breaks - lengths / 2
    rows = [t[(middle * len(t)).long().clamp_max(len(t) - 1)] for t in (a, b)]
    return ((rows[0] - rows[1]).abs() * lengths[:, None]).sum(0).to(oracles.dtype)


def margin_error(oracles: Tensor, unlearned: Tensor) -> Tensor:
    """`|mean unlearned margin - mean oracle margin|` of every point, `(points,)`."""
    _check(oracles, unlearned)
    return (unlearned.detach().double().mean(0) - oracles.detach().double().mean(0)).abs().to(oracles.dtype)


def _histogram(index: Tensor, bins: int) -> Tensor:
    """Shares `(bins, points)` of bin indices `(N, points)`."""
    counts = torch.zeros(bins, index.shape[1], dtype=torch.float64, device=index.device)
    counts.scatter_add_(0, index, torch.ones_like(index, dtype=torch.float64))
    return counts / len(index)


def _check(oracles: Tensor, unlearned: Tensor) -> None:
    if oracles.ndim != 2 or unlearned.ndim != 2 or oracles.shape[1] != unlearned.shape[1] or not len(oracles):
        raise ValueError(
            f"Expected margins (N, points) of the same points; got {tuple(oracles.shape)} of the oracles and "
            f"{tuple(unlearned.shape)} of the unlearned models."
        )
    if not (oracles.isfinite().all() and unlearned.isfinite().all()):
        raise ValueError("Margins must be finite; got NaN or infinity. Has an unlearned model diverged?")
