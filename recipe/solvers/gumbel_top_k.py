"""Gumbel top-k: a random selection that prefers good points.

    decision = argmax over feasible x of  (score / (temperature * std(score)) + g) @ x,     g_i ~ Gumbel,

where the scores are those of top-k. With a size alone it draws k points without replacement, one after the other, each
in proportion to `exp(score / (temperature std))` among those left. Temperature 0 is top-k; infinity is uniform.

References: Kool, van Hoof & Welling, "Stochastic Beams and Where to Find Them", 2019, arXiv:1903.06059; as a way of
selecting data: Xie et al., "Data Selection for Language Models via Importance Resampling" (DSIR), 2023,
arXiv:2302.03169; Wettig et al., "QuRating", 2024, arXiv:2402.09739 (temperatures 1 and 2).
Deviation: scores are divided by their standard deviation, so that a temperature means the same for every objective.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.problem import Problem


@dataclass(frozen=True)
class GumbelTopK:
    """Top-k of scores with noise, within all limits; another `seed` draws another selection.

    Args:
        temperature: how much the noise counts, in standard deviations of the scores.
        seed: of the noise.

    Raises:
        ValueError: a temperature that is negative or NaN.

    Example:
        >>> from recipe.feasible import Subset
        >>> from recipe.problem import Minimize
        >>> effects = torch.tensor([0.3, -0.2, 0.1, -0.5])
        >>> problem = Problem(Minimize(lambda w: effects @ w), torch.ones(4), Subset(4, size=2), lambda w: (w, None))
        >>> GumbelTopK(temperature=0.0).solve(problem)
        tensor([0., 1., 0., 1.])
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"Expected a temperature of at least 0; got {self.temperature}.")

    def solve(self, problem: Problem) -> Tensor:
        """A decision of `problem.start`'s shape. Raises as `TopK.solve`."""
        score = (problem.objective.sense * problem.gradient(problem.start)).double()
        spread = self.temperature * (float(score.std()) if score.numel() > 1 else 1.0)
        generator = torch.Generator().manual_seed(self.seed)
        uniform = torch.rand(score.shape, generator=generator, dtype=torch.double)
        gumbel = -(-uniform.clamp(min=torch.finfo(torch.double).tiny).log()).log()
        # Multiplied through by the spread, which changes no order and allows the temperature 0.
        noisy = gumbel if math.isinf(spread) else score.cpu() + spread * gumbel
        return problem.feasible.best(noisy.to(score.device)).to(problem.start)
