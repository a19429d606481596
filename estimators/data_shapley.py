"""Data Shapley: what a point adds to those before it, averaged over random orders in which the points arrive.

For the game `v_j(S)`, the output j after training on the points S, and random permutations `pi_1 .. pi_P`,

    effects[j, i] = 1/P sum_p  v_j(those before i in pi_p, and i) - v_j(those before i in pi_p):

an unbiased estimate of the Shapley values, which `ExactShapley` defines. Along one permutation the gains telescope, so
they always sum to `v(all) - v(none)`; the bias is `v(none)`, and predictions are right for all points and for none.
Outputs are not linear in between, so for sets of half the points their level is off; compare sets of one size.

A permutation is cut short where what is left to gain is small: `|v(all) - v(prefix)| < truncation |v(all) - v(none)|`
in Euclidean norm over the outputs, looked at after every 64 points. The points that never arrived share equally what
was left, so that nothing is lost. Sampling stops where the standard errors of the effects, over permutations, are a
`tolerance` of the effects in root mean square.

A set without any point leaves the model untrained: `v(none)` are the outputs of the initialisation. Every permutation
has a seed of its own, for the initialisation too, so that values are of the outputs' mean over seeds.

Reference: Ghorbani & Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning", 2019, arXiv:1904.02868
(TMC-Shapley). Deviations: outputs in place of one performance score; the paper gives points after the cut nothing; it
stops where values change by less than 5 % in 100 permutations. Cost: at most `permutations n` retrainings, on half the
points on average, and as many fewer as truncation and tolerance save; the prefixes of 8 permutations train together.
The gain of one point among hundreds is mostly noise of training, so expect to need very many: with as many retrainings
regression says more about sets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from estimators._sampled import Estimate, SampledDatamodel
from estimators._subset_training import STREAM, SubsetTraining
from estimators.exact_shapley import Game
from recipe.cost import Cost
from recipe.datamodel import records_origin
from recipe.problem import Arguments
from recipe.scratch import room
from recipe.setting import Measure, Setting
from recipe.training import progress_bar
from recipe.work import Work

ROUND = 8  # permutations that train together
STRIDE = 64  # points of each of them that train together


@dataclass(frozen=True)
class DataShapley:
    """Shapley values of the training points, by truncated sampling of permutations.

    Args:
        permutations: how many to draw at most; permutation p trains with the seed `seed + p`.
        tolerance: stop earlier, at a standard error of this share of the effects; 0 draws all permutations.
        truncation: cut a permutation short where it has all but this share of what all points achieve; 0 never does.
        seed: of the permutations and of the first one's runs.

    Raises:
        ValueError: fewer than two permutations, or a tolerance or truncation that is not at least 0 and below 1.

    Example:
        >>> from recipe import Newton, Retrain, Setting
        >>> from estimators.exact_shapley import ExactShapley
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(6, 2), torch.arange(6) % 2)
        >>> setting = Setting(torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> sampled, exact = (estimator.fit(setting) for estimator in (DataShapley(100, tolerance=0), ExactShapley()))
        >>> bool((sampled.effects - exact.effects).abs().le(4 * sampled.standard_error).all())
        True
    """

    permutations: int
    tolerance: float = 0.1
    truncation: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 2:
            raise ValueError(f"DataShapley needs at least two permutations, better dozens; got {self.permutations}.")
        for name in ("tolerance", "truncation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"The {name} of DataShapley must be at least 0 and below 1; got {getattr(self, name)}."
                )

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        # At most: truncation and tolerance save what is not known before. Prefixes hold half of the points on average.
        work = Work(setting)
        together = min(ROUND, self.permutations) * min(STRIDE, setting.n)
        return (self.permutations * setting.n / together) * work.retraining(together, setting.n // 2)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> SampledDatamodel:
        """Train on prefixes of random permutations.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: the players are the points with positive weight, whatever it is (others get the
                effect 0), and the added examples are in every training set. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)` with a `standard_error (m, n)`. Its `on` walks the same permutations with other
            outputs, and trains what `Retrain` does not remember. It has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting.
        """
        return self._valued(SubsetTraining.of(setting, at))

    def _valued(self, training: SubsetTraining) -> SampledDatamodel:
        def on(targets: Any, output: Measure | None) -> SampledDatamodel:
            return self._valued(training.on(targets, output))

        sample = self._sampled(training, training.k)
        nobody = sample.none.new_zeros(training.k)
        return SampledDatamodel(training, sample.none, nobody, sample.estimate, on)

    def estimate(self, game: Game, k: int) -> Estimate:
        """The values of any game of k players, `(coalitions (r, k), seeds) -> (r, m)`.

        Example:
            >>> def airport(coalitions, seeds):  # a runway as long as the longest plane needs
            ...     return (coalitions * torch.tensor([6.0, 12.0, 18.0])).amax(1, keepdim=True)
            >>> DataShapley(permutations=2000, tolerance=0.01).estimate(airport, k=3).effects.round()
            tensor([[ 2.,  5., 11.]])
        """
        sample = self._sampled(game, k)
        return sample.estimate(slice(0, len(sample.none)))

    def _sampled(self, game: Game, k: int) -> "_Sample":
        generator = torch.Generator().manual_seed(self.seed + STREAM)
        sample: _Sample | None = None
        with progress_bar(self.permutations * k, "Data Shapley, at most", unit="retraining") as bar:
            while sample is None or sample.count < self.permutations:
                done = 0 if sample is None else sample.count
                size = min(ROUND, self.permutations - done)
                orders = torch.stack([torch.randperm(k, generator=generator) for _ in range(size)])
                none, walk = gains(game, orders, range(self.seed + done, self.seed + done + size), self.truncation)
                sample = sample or _Sample.blank(none, k)
                sample = sample.extended(none, walk)
                bar.update(size * k)
                if sample.settled(self.tolerance):
                    break
        return sample


@dataclass(frozen=True, eq=False)
class _Sample:
    """Sums over so many permutations: of what no player achieves `(m,)`, of gains `(k, m)` and of their squares."""

    count: int
    achieved: Tensor
    gained: Tensor
    squares: Tensor
    dtype: torch.dtype

    @classmethod
    def blank(cls, none: Tensor, k: int) -> "_Sample":
        m = none.shape[1]
        gained, squares = (room((k, m), torch.float64).to(none.device) for _ in range(2))
        return cls(0, none.new_zeros(m, dtype=torch.float64), gained, squares, none.dtype)

    def extended(self, none: Tensor, walk: Iterable[tuple[Tensor, Tensor, Tensor]]) -> "_Sample":
        """With the permutations of one more round."""
        for _, players, gained in walk:
            found = gained.double()
            self.gained.index_add_(0, players.to(found.device), found)
            self.squares.index_add_(0, players.to(found.device), found.square())
        return replace(self, count=self.count + len(none), achieved=self.achieved + none.double().sum(0))

    @property
    def none(self) -> Tensor:
        """What no player achieves, `(m,)`."""
        return (self.achieved / self.count).to(self.dtype)

    def estimate(self, some: slice) -> Estimate:
        """Of some of the outputs."""
        effects, error = self._moments(self.gained[:, some], self.squares[:, some])
        return Estimate(self.none[some], effects.T.to(self.dtype), error.T.to(self.dtype))

    def settled(self, tolerance: float) -> bool:
        """Whether the standard errors are small beside the effects; in parts, since the sums may be on disk."""
        sums = zip(self.gained.split(STRIDE), self.squares.split(STRIDE), strict=True)
        found = [self._moments(*part) for part in sums]
        effects, error = (sum(t.square().sum() for t in parts) for parts in zip(*found, strict=True))
        return bool(error <= tolerance**2 * effects)

    def _moments(self, gained: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        effects = gained / self.count
        return effects, ((squares / self.count - effects.square()).clamp_min(0) / (self.count - 1)).sqrt()


def gains(
    game: Game, orders: Tensor, seeds: Sequence[int], truncation: float = 0.0
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor, Tensor]]]:
    """What every player adds to those before it.

    Args:
        game: `(coalitions (r, k), seeds) -> (r, m)`.
        orders: `(P, k)`, permutations of the players.
        seeds: P of them, one for the game's chance along a permutation.
        truncation: cut a permutation short where what is left to gain is less than this share of everything.

    Returns:
        `(P, m)`, what no player achieves, and, as they are played, permutations `(b,)`, players `(b,)` and their gains
        `(b, m)`: every player once in every permutation, whose gains sum to what all achieve beyond that.

    Example:
        >>> orders = torch.tensor([[0, 1, 2], [2, 1, 0]])
        >>> _, walk = gains(lambda coalitions, seeds: coalitions.amax(1, keepdim=True), orders, seeds=[0, 0])
        >>> [(players.tolist(), gained.flatten().tolist()) for _, players, gained in walk]
        [([0, 1, 2, 2, 1, 0], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0])]
    """
    count, k = orders.shape
    rank = orders.argsort(1)  # when each player arrives, (P, k)

    def prefixes(runs: Tensor, steps: Tensor) -> Tensor:  # (runs, steps, k)
        return (rank[runs][:, None] < steps[:, None]).to(torch.get_default_dtype())

    ends = prefixes(torch.arange(count), torch.tensor([0, k])).transpose(0, 1)
    none, full = game(ends.reshape(-1, k), [*seeds, *seeds]).split(count)

    def walk() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        last, walking = none.clone(), torch.arange(count)
        for start in range(0, k, STRIDE):
            steps = torch.arange(start, min(start + STRIDE, k)) + 1
            stop = int(steps[-1])
            sets = prefixes(walking, steps)
            values = game(sets.flatten(0, 1), [seeds[p] for p in walking.tolist() for _ in steps])
            values = torch.cat([last[walking][:, None], values.view(*sets.shape[:2], -1)], 1)
            runs = walking.repeat_interleave(len(steps))
            yield runs, orders[walking, start:stop].flatten(), values.diff(dim=1).flatten(0, 1)
            last[walking] = values[:, -1]
            left = full - last
            done = (left.norm(dim=1) < truncation * (full - none).norm(dim=1)).to(walking.device)[walking]
            for p in walking[done].tolist():
                for players in orders[p, stop:].split(STRIDE):
                    yield torch.full_like(players, p), players, (left[p] / (k - stop)).expand(len(players), -1)
            walking = walking[~done]
            if not len(walking):
                return

    return none, walk()
