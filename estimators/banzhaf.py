"""Banzhaf values: what a point adds to a training set that is drawn by tossing a coin for every point.

For the game `v_j(S)`, the output j after training on the points S,

    effects[j, i] = mean over all S without i of  v_j(S + i) - v_j(S).

By maximum sample reuse every run speaks for every point: with random sets `S_1 .. S_r` that have each point with
probability 1/2,

    effects[j, i] = mean_{k: i in S_k} v_j(S_k)  -  mean_{k: i not in S_k} v_j(S_k).

The bias makes predictions right on average over the sets, so in expectation bias and effects are those of the linear
function that is nearest to the game over all its sets. They do not sum to `v(all) - v(none)`, as Shapley values do:
they speak of sets of about half the points, where Wang and Jia show them to be the values that noise in the game
disturbs least. `EmpiricalInfluence(alpha=0.5)` is the same comparison on sets of exactly half the points, and knows no
level; here sizes vary a little, and what size itself does is in the values, but also in their noise.

A set without any point leaves the model untrained: `v(none)` are the outputs of the run's initialisation.

Reference: Wang & Jia, "Data Banzhaf: A Robust Data Valuation Framework for Machine Learning", 2023, arXiv:2205.15466;
the nearest linear function: Hammer & Holzman, "Approximations of Pseudo-Boolean Functions; Applications to Game
Theory", 1992. Deviations: outputs in place of a utility; every run has a seed of its own. Cost: the retrainings.
"""

from dataclasses import dataclass

import torch

from estimators._differences import differences_cost, fit_differences
from estimators._sampled import SampledDatamodel
from estimators._subset_training import STREAM, SubsetTraining
from recipe.cost import Cost
from recipe.datamodel import records_origin
from recipe.problem import Arguments
from recipe.setting import Setting


@dataclass(frozen=True)
class Banzhaf:
    """Banzhaf values of the training points, by maximum sample reuse.

    Args:
        subsets: how many models to train; run i trains with the seed `seed + i`.
        seed: of the sets and of the first run.

    Raises:
        ValueError: fewer than two subsets.

    Example:
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = Banzhaf(subsets=500).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.5, seed=0)).mean > 0.8
        True
    """

    subsets: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise ValueError(f"Banzhaf needs at least two subsets, better thousands; got {self.subsets}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return differences_cost(setting, self.subsets, 0.5)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> SampledDatamodel:
        """Train on random sets and compare.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: the players are the points with positive weight, whatever it is (others get the
                effect 0), and the added examples are in every training set. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)` with a `standard_error (m, n)`. Its `on` measures the same models again, as far
            as `Retrain` remembers them. It has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting, or so few subsets that a point is in all or in none.
        """
        training = SubsetTraining.of(setting, at)
        generator = torch.Generator().manual_seed(self.seed + STREAM)
        subsets = (torch.rand(self.subsets, training.k, generator=generator) < 0.5).float()
        return fit_differences(training, subsets, self.seed)
