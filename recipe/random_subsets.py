"""Random subsets of the training points, to fit datamodels on and to score them with."""

import torch
from torch import Tensor


def random_subsets(n: int, r: int, alpha: float, seed: int) -> Tensor:
    """Draw r subsets of `round(alpha n)` of n points, each uniformly and independently.

    The first subsets of a longer draw with the same seed are those of a shorter one.

    Args:
        n: the number of points.
        r: the number of subsets.
        alpha: the share of the points in a subset, above 0 and at most 1.
        seed: decides the draw.

    Returns:
        `(r, n)` weights, 1 for a point in the subset, 0 for another.

    Raises:
        ValueError: no points, no subsets, or subsets that are empty or larger than the universe.

    Example:
        >>> random_subsets(n=6, r=3, alpha=0.5, seed=0).sum(1)
        tensor([3., 3., 3.])
    """
    if n < 1 or r < 1:
        raise ValueError(f"Expected at least one point and one subset; got n={n} points and r={r} subsets.")
    size = round(alpha * n) if 0 < alpha <= 1 else 0
    if size < 1:
        raise ValueError(
            f"Expected a share alpha, above 0 and at most 1, with some of the {n} points in a subset; got {alpha}."
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(r)])
    return torch.zeros(r, n).scatter_(1, chosen, 1.0)
