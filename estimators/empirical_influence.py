"""Empirical influence: the mean output of the models that had a point minus the mean of those that had not.

    effects[j, i] = mean_{k: i in S_k} Y[k, j]  -  mean_{k: i not in S_k} Y[k, j],

over random subsets `S_1 .. S_r` of `round(alpha n)` points and `Y[k, j]`, the output j after training on `S_k`. The
bias makes predictions right on average over the subsets.

All subsets have one size, so a point that is in takes another's place: in expectation an effect is what the point does
*more than the average of the others*, and the level of the effects is not identified, as in `Regression`. Against
regression, which explains an output by all points together, each point is compared alone: what the other points do is
noise. So regression needs fewer retrainings, while the differences come with a plain standard error. Predictions, sums
over noisy effects, are too extreme until there are far more retrainings than points; `Calibrated` puts their scale
right.

Reference: Feldman & Zhang, "What Neural Networks Memorize and Why: Discovering the Long Tail via Influence Estimation",
2020, arXiv:2008.03703. Deviation: outputs need not be the probability of being right; the paper trains on 70 % of the
points, our default is the half that `Regression` trains on: with one seed, both train the same runs. Cost: the
retrainings.
"""

from dataclasses import dataclass

from estimators._differences import differences_cost, fit_differences
from estimators._sampled import SampledDatamodel
from estimators._subset_training import SubsetTraining
from recipe.cost import Cost
from recipe.datamodel import records_origin
from recipe.problem import Arguments
from recipe.setting import Setting


@dataclass(frozen=True)
class EmpiricalInfluence:
    """The datamodel that comparing runs with and without a point gives.

    Args:
        subsets: how many models to train; run i trains with the seed `seed + i`.
        alpha: the share of the points in a subset, between 0 and 1.
        seed: of the subsets and of the first run.

    Raises:
        ValueError: fewer than two subsets, or a share that is not between 0 and 1.

    Example:
        >>> import torch
        >>> from recipe import Newton, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(20, 2), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> f_hat = EmpiricalInfluence(subsets=200).fit(setting)
        >>> lds(f_hat, Retrain(setting), random_subsets(20, r=20, alpha=0.5, seed=0)).mean > 0.8
        True
    """

    subsets: int
    alpha: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2:
            raise ValueError(f"EmpiricalInfluence needs at least two subsets, better thousands; got {self.subsets}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"The share alpha of the points in a subset must be between 0 and 1; got {self.alpha}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return differences_cost(setting, self.subsets, self.alpha)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> SampledDatamodel:
        """Train on the subsets and compare.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: subsets are drawn from the points with positive weight, whatever it is (others get
                the effect 0), and the added examples are in every training set. Default: all points.

        Returns:
            A datamodel `(n,) -> (m,)` with a `standard_error (m, n)`. Its `on` measures the same models again, as far
            as `Retrain` remembers them. It has no `effect`.

        Raises:
            ValueError: weights that do not fit the setting, or so few points or subsets that a point is in all or in
                none of them.
        """
        training = SubsetTraining.of(setting, at)
        return fit_differences(training, training.draw(self.subsets, self.alpha, self.seed), self.seed)
