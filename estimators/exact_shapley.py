"""Exact Shapley values, by training on all subsets of a few points: the truth that sampling estimators approach.

For the game `v_j(S)`, the output j after training on the points S,

    effects[j, i] = sum_{S without i}  |S|! (n - |S| - 1)! / n!  (v_j(S + i) - v_j(S)):

what a point adds to those before it, averaged over all orders in which the points can arrive. They are the only values
that share out exactly what all points achieve, `sum_i effects[j, i] = v_j(all) - v_j(none)`, that are equal for points
that do the same, zero for points that do nothing, and linear in the game. So the bias is `v(none)`, and predictions are
exact for all points and for none; between, they lie on the line that is nearest to the game under weights that favour
very small and very large sets.

A set without any point leaves the model untrained: `v(none)` are the outputs of the initialisation, averaged over the
models as all outputs are.

Reference: Shapley, "A Value for n-Person Games", 1953. Deviations: none; the bias, which the values leave open, is
`v(none)`. Cost: `models 2^n` retrainings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from estimators._subset_training import SubsetTraining
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.stores import collected_by_outputs
from recipe.work import Work

PLAYERS = 12  # at most: 4 096 coalitions

Game = Callable[[Tensor, Sequence[int]], Tensor]  # coalitions (r, k) of 0 and 1, r seeds of their chance -> (r, m)


@dataclass(frozen=True)
class ExactShapley:
    """The Shapley values of at most 12 training points, from all their subsets.

    Args:
        models: seeds to average the outputs over.
        seed: the first of them.

    Raises:
        ValueError: fewer than one model.

    Example:
        >>> from recipe import Newton, Retrain, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(6, 2), torch.arange(6) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat, f = ExactShapley().fit(setting), Retrain(setting)
        >>> torch.allclose(f_hat(torch.ones(6)), f(torch.ones(6)), atol=1e-5)  # the values sum to what all points do
        True
    """

    models: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.models < 1:
            raise ValueError(f"ExactShapley needs at least one model; got models={self.models}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).retraining(self.models * 2**setting.n, setting.n // 2)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train on all subsets.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: the players are the points with positive weight, whatever it is (others get the
                effect 0), and the added examples are in every training set. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)`. Its `on` measures the same models again, as far as `Retrain` remembers them. It
            has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting, or more than 12 players.
        """
        training = SubsetTraining.of(setting, at)
        _check_players(training.k)
        return self._valued(training)

    def _valued(self, training: SubsetTraining) -> LinearDatamodel:
        def on(targets: Any, output: Measure | None) -> LinearDatamodel:
            return self._valued(training.on(targets, output))

        bias, effects = shapley_values(training, training.k, range(self.seed, self.seed + self.models))
        shape = training.f.output_shape
        spread = collected_by_outputs(lambda some: training.spread(effects[some]), shape, training.n)
        return LinearDatamodel(bias, spread, output_shape=shape, on=on)


def shapley_values(game: Game, k: int, seeds: Sequence[int] = (0,)) -> tuple[Tensor, Tensor]:
    """The Shapley values of any game of k players.

    Args:
        game: `(coalitions (r, k), seeds) -> (r, m)`, what coalitions achieve; a game without chance ignores the seeds.
        k: how many players; at most 12.
        seeds: of the game's chance, to average over.

    Returns:
        `bias (m,)`, what no player achieves, and `effects (m, k)`, in the game's type; computed in float64.

    Raises:
        ValueError: no player, or more than 12.

    Example:
        >>> def gloves(coalitions, seeds):  # two have a left glove, one has a right one; a pair is worth 1
        ...     return torch.minimum(coalitions[:, :2].sum(1), coalitions[:, 2])[:, None]
        >>> shapley_values(gloves, k=3)[1]
        tensor([[0.1667, 0.1667, 0.6667]])
    """
    _check_players(k)
    sets = coalitions(k)
    values = game(sets.repeat(len(seeds), 1), [seed for seed in seeds for _ in sets])  # (seeds * 2^k, m)
    worth = values.double().view(len(seeds), len(sets), -1).mean(0)
    size = sets.double().sum(1, keepdim=True)  # (2^k, 1)
    # |S|! (k - |S| - 1)! / k! = 1 / (k comb(k - 1, |S|)); a set with i enters as S + i, one without as S.
    share = torch.tensor([1 / (k * comb(k - 1, s)) for s in range(k)], dtype=torch.float64)
    joined = share[(size - 1).clamp_min(0).long()] * sets.double()
    left = share[size.clamp_max(k - 1).long()] * (1 - sets.double())
    effects = worth.T @ (joined - left).to(worth)
    return worth[0].to(values.dtype), effects.to(values.dtype)


def coalitions(k: int) -> Tensor:
    """All subsets of k players, `(2^k, k)`, the empty one first and all players last.

    >>> coalitions(2)
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.],
            [1., 1.]])
    """
    return ((torch.arange(2**k)[:, None] >> torch.arange(k)) & 1).to(torch.get_default_dtype())


def _check_players(k: int) -> None:
    if not 1 <= k <= PLAYERS:
        raise ValueError(
            f"Exact Shapley values of {k} points need all their subsets, 2^{k}; expected from 1 to {PLAYERS} points. "
            "Use DataShapley, which samples, or give fewer points a positive weight in `at`."
        )
