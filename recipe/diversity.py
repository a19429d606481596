"""Diversity: what a selection loses when its points are alike.

`Alike` is a quadratic price, the mean similarity of two chosen points, and convex:

    weight * |Phi^T w|^2 / k^2  =  weight * mean over ordered pairs of  <phi_i, phi_j>,

with features `phi_i` of length 1, or those behind a similarity matrix. `FacilityLocation` is submodular: how well each
point of the universe is represented by the chosen one most like it,

    -weight * mean_i max_{j chosen} s_ij.

Its greedy maximiser is within 1 - 1/e of the best subset. `FacilityLocation.greedy` evaluates it lazily: gains only
fall as points are chosen, so a gain of an earlier step bounds today's, and a candidate whose bound is below the best
gain found needs no look. Candidates are looked at in blocks, one matrix product each, and nothing of size n x n is ever
formed where features are given.

References: Nemhauser, Wolsey & Fisher, "An analysis of approximations for maximizing submodular set functions", 1978;
Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.composition import effects_of
from recipe.datamodel import OutputFunction

BLOCK = 16  # candidates that are looked at together, after the first in line, and twice as many each time
BLOCK_BYTES = 2**25  # of similarities held at once


@dataclass(frozen=True, eq=False)
class Alike:
    """The mean similarity of chosen points, as a price; `Convex`, `TopK` and `Greedy` can all pay it.

    Args:
        features: `(n, d)`; the similarity of two points is the product of their rows.
        weight: the price, in units of the objective, of a selection of points that are all the same.

    Example:
        >>> alike = Alike.cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), weight=1.0)
        >>> alike(torch.tensor([1.0, 1.0, 0.0]), size=2), alike(torch.tensor([1.0, 0.0, 1.0]), size=2)
        (tensor(1.), tensor(0.5000))
    """

    features: Tensor
    weight: float

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or not self.features.isfinite().all():
            raise ValueError(f"Expected features (n, d) that are finite; got {tuple(self.features.shape)}.")
        _check_weight(self.weight)

    @classmethod
    def cosine(cls, features: Tensor, weight: float) -> "Alike":
        """With the cosine of features, such as pixels or embeddings."""
        return cls(F.normalize(features.flatten(1).float(), dim=1), weight)

    @classmethod
    def by_effects(cls, f_hat: OutputFunction, weight: float) -> "Alike":
        """With the datamodel's own kernel: two points are alike where they move all outputs in the same proportion."""
        return cls.cosine(torch.as_tensor(effects_of(f_hat)).T, weight)

    @classmethod
    def by_similarity(cls, similarity: Tensor, weight: float) -> "Alike":
        """With a symmetric, positive semidefinite matrix `(n, n)`. Raises `ValueError` for others."""
        values, vectors = torch.linalg.eigh(similarity.double())
        tolerance = 1e-6 * float(values.abs().max())
        if not torch.allclose(similarity, similarity.T, atol=1e-6) or float(values.min()) < -tolerance:
            raise ValueError(
                "A similarity must be symmetric and positive semidefinite, so that its price is convex; the least "
                f"eigenvalue is {float(values.min()):.3g}. Pass features instead, or use FacilityLocation."
            )
        return cls(vectors * values.clamp(min=0).sqrt(), weight)

    @property
    def n(self) -> int:
        """How many points."""
        return len(self.features)

    def __call__(self, w: Any, size: int) -> Any:
        """The price of weights `(n,)`, or of a cvxpy variable."""
        scale = self.weight**0.5 / size
        if isinstance(w, Tensor):
            return ((self.features.T.to(w) * scale @ w) ** 2).sum()
        return (((self.features.T.double().cpu().numpy() * scale) @ w) ** 2).sum()


@dataclass(frozen=True, eq=False)
class Cover:
    """What the greedy algorithm chose: `ranking (k,)` in the order of choice, and the `gains (k,)` of each."""

    ranking: Tensor
    gains: Tensor


@dataclass(frozen=True, eq=False)
class FacilityLocation:
    """How well each point is represented by the chosen point most like it.

    Args:
        similarity: `(n, n)`, of each point (row) to each candidate (column), not negative; or None.
        features: `(n, d)` instead; the similarity is the cosine, moved to 0..1.
        weight: of the term in an objective.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> FacilityLocation(features=points).greedy(size=2).ranking
        tensor([1, 2])
    """

    similarity: Tensor | None = None
    features: Tensor | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.similarity is None) == (self.features is None):
            raise ValueError("Pass either a similarity (n, n) or features (n, d).")
        if self.similarity is not None:
            n = len(self.similarity)
            if self.similarity.shape != (n, n) or not bool((self.similarity >= 0).all()):
                raise ValueError(
                    f"Expected similarities (n, n), not negative and no NaN; got {tuple(self.similarity.shape)} with "
                    f"the least {float(self.similarity.min()):.3g}. Shift them."
                )
        _check_weight(self.weight)

    def __call__(self, w: Any, size: int) -> Any:
        """Minus the mean representation, for weights `(n,)` in any objective.

        Raises:
            TypeError: a cvxpy variable.
        """
        if not isinstance(w, Tensor):
            raise TypeError("facility location is not concave as cvxpy sees it; use Greedy or Alike")
        similarity = self._candidates(torch.arange(self.n)).T.to(w)  # (points, candidates)
        return -self.weight * (similarity * w.clamp(max=1)).amax(1).mean()

    @property
    def n(self) -> int:
        """How many points."""
        return len(self.similarity if self.similarity is not None else self.features)  # type: ignore[arg-type]

    def greedy(self, size: int, utility: Tensor | None = None, allowed: Tensor | None = None) -> Cover:
        """The exact greedy choice of `size` points; of equal gains the first point.

        Args:
            size: how many.
            utility: `(n,)`, what each point is worth by itself, such as a solution's `scores`, added to
                `weight * sum_i max_j s_ij`.
            allowed: `(n,)` booleans, which points may be chosen.

        Raises:
            ValueError: fewer points are allowed than are asked for.
        """
        allowed = torch.ones(self.n, dtype=torch.bool) if allowed is None else allowed
        if not 0 < size <= int(allowed.sum()):
            raise ValueError(f"Expected a size from 1 to the {int(allowed.sum())} points allowed; got {size}.")
        worth = torch.zeros(self.n, dtype=torch.double) if utility is None else utility.double().cpu()
        bound = torch.where(allowed, self.weight * self._sums + worth, -torch.inf)
        covered = torch.zeros(self.n, dtype=self._dtype)
        ranking, gains = [], []
        for _ in range(size):
            best, gain, column = self._best(bound, covered, worth)
            ranking.append(best)
            gains.append(gain)
            covered = torch.maximum(covered, column)
            bound[best] = -torch.inf
        return Cover(torch.tensor(ranking), torch.tensor(gains, dtype=torch.double))

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _best(self, bound: Tensor, covered: Tensor, worth: Tensor) -> tuple[int, float, Tensor]:
        """The candidate of largest gain, its gain and its similarities; `bound` is lowered to the gains seen."""
        best, gain, column = -1, -math.inf, covered
        seen = torch.zeros(len(bound), dtype=torch.bool)
        widest = max(1, BLOCK_BYTES // (len(bound) * covered.element_size()))
        block = 1  # most often the first in line is the best
        while True:
            open_bound = torch.where(seen, -torch.inf, bound)
            top = open_bound.topk(min(block, len(bound)))
            # Equal bounds are looked at too: of equal gains the first point wins.
            index = top.indices[(top.values >= gain) & (top.values > -torch.inf)]
            if not len(index):
                return best, gain, column
            columns = self._candidates(index)
            found = self.weight * (columns - covered).clamp_(min=0).sum(1, dtype=torch.double) + worth[index]
            bound[index] = found
            seen[index] = True
            highest = float(found.max())
            first = int(index[found == highest].min())
            if highest > gain or (highest == gain and first < best):
                best, gain = first, highest
                column = columns[int((index == first).nonzero()[0])].clone()
            block = min(max(BLOCK, 2 * block), widest)

    def _candidates(self, index: Tensor) -> Tensor:
        """The similarities of all points to some candidates, `(candidates, n)`."""
        if self.similarity is not None:
            return self._transposed[index]
        return (self._unit[index] @ self._unit.T).add_(1).mul_(0.5)

    @property
    def _dtype(self) -> torch.dtype:
        return self._transposed.dtype if self.similarity is not None else self._unit.dtype

    @property
    def _transposed(self) -> Tensor:
        if "_T" not in self.__dict__:
            assert self.similarity is not None
            self.__dict__["_T"] = self.similarity.cpu().T.contiguous()  # a candidate's similarities lie together
        return self.__dict__["_T"]

    @property
    def _unit(self) -> Tensor:
        if "_u" not in self.__dict__:
            assert self.features is not None
            self.__dict__["_u"] = F.normalize(self.features.cpu().flatten(1), dim=1)
        return self.__dict__["_u"]

    @property
    def _sums(self) -> Tensor:
        """The gain of each candidate while nothing is chosen."""
        if self.similarity is not None:
            return self._transposed.sum(1, dtype=torch.double)
        unit = self._unit.double()  # sum_i (1 + <u_i, u_j>) / 2, without a matrix of n x n
        bound = (unit @ unit.sum(0) + len(unit)) / 2
        return bound * (1 + 1e-5) + 1e-6  # a bound: the gains themselves are summed from single-precision products


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"Expected a weight of at least 0; got {weight}.")
