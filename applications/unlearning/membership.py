"""U-LiRA: can an attacker tell whether a point was forgotten, or never seen?

For every point the attacker knows margins of shadow models of both kinds, unlearned and retrained, fits a Gaussian to
each, and calls a model at hand by the larger likelihood. Its advantage is true minus false positive rate: 0 is a coin,
1 certainty. Both halves of the models are shadows and targets in turn.

Reference: Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy", 2024,
arXiv:2403.01218, after Carlini et al. 2022, arXiv:2112.03570.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Advantage:
    """True minus false positive rate, with a 95 % interval by resampling points.

    Args:
        mean: over the points.
        low: of the interval.
        high: of the interval.
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def u_lira(oracles: Tensor, unlearned: Tensor, draws: int = 1000, seed: int = 0) -> Advantage:
    """The advantage of the attack on forgotten points.

    Args:
        oracles: `(N, points)`, margins of models that never saw the points.
        unlearned: `(N, points)`, margins of models that unlearned them.
        draws: resamplings for the interval.
        seed: of the resampling.

    Raises:
        ValueError: fewer than four models of a kind, or shapes that do not fit.

    Example:
        >>> draw = torch.Generator().manual_seed(0)
        >>> a, b = (torch.randn(100, 50, generator=draw) for _ in range(2))
        >>> abs(u_lira(a, b).mean) < 0.05, u_lira(a, b + 9).mean > 0.99
        (True, True)
    """
    if oracles.ndim != 2 or oracles.shape[1:] != unlearned.shape[1:] or min(len(oracles), len(unlearned)) < 4:
        raise ValueError(
            "The attack needs at least four models of each kind and margins (N, points) of the same points; got "
            f"{tuple(oracles.shape)} and {tuple(unlearned.shape)}."
        )
    groups = [t.detach().double() for t in (oracles, unlearned)]
    halves = [(t[0::2], t[1::2]) for t in groups]
    each = torch.stack([_advantages(*(h[i] for h in halves), *(h[1 - i] for h in halves)) for i in (0, 1)]).mean(0)
    generator = torch.Generator().manual_seed(seed)
    means = each[torch.randint(len(each), (draws, len(each)), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Advantage(float(each.mean()), low, high)


def _advantages(shadow_out: Tensor, shadow_in: Tensor, out: Tensor, seen: Tensor) -> Tensor:
    """`(points,)`: of a likelihood-ratio test fitted to shadows."""

    def likelihood(t: Tensor, shadow: Tensor) -> Tensor:
        scale = shadow.std(0).clamp_min(1e-6)
        return -0.5 * ((t - shadow.mean(0)) / scale) ** 2 - scale.log()

    said = [(likelihood(t, shadow_in) > likelihood(t, shadow_out)).double().mean(0) for t in (seen, out)]
    return said[0] - said[1]
