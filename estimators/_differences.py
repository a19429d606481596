"""The mean output of the runs that had a point minus the mean of those that had not, for every point.

What it estimates is a matter of how the runs' subsets were drawn: see `EmpiricalInfluence` and `Banzhaf`.
"""

from typing import Any

import torch
from torch import Tensor

from estimators._sampled import Estimate, SampledDatamodel
from estimators._subset_training import SubsetTraining
from recipe.cost import Cost
from recipe.setting import Measure, Setting
from recipe.work import Work


def fit_differences(training: SubsetTraining, subsets: Tensor, seed: int) -> SampledDatamodel:
    """Train on subsets `(r, k)`, run i with the seed `seed + i`, and compare."""
    _check(subsets)  # before the training

    def on(targets: Any, output: Measure | None) -> SampledDatamodel:
        return fit_differences(training.on(targets, output), subsets, seed)

    outputs = training(subsets, range(seed, seed + len(subsets)))
    mean, there = outputs.double().mean(0).to(outputs.dtype), subsets.double().mean(0)
    return SampledDatamodel(training, mean, there, lambda some: differences(subsets, outputs[:, some]), on)


def differences_cost(setting: Setting, subsets: int, share: float) -> Cost:
    """What training on so many subsets with a share of the points costs, and comparing them."""
    work = Work(setting)
    compared = 4 * work.machine.product(setting.m, subsets, setting.n)  # in float64: twice the bytes, half the speed
    return work.retraining(subsets, round(share * setting.n)) + compared.holding(
        8 * (subsets + 4 * setting.m) * setting.n
    )


def differences(subsets: Tensor, outputs: Tensor) -> Estimate:
    """Compare the runs that had a point with those that had not, from retrainings that you have already.

    Args:
        subsets: `(r, k)`, 1 for a point that was in and 0 for another.
        outputs: `(r, m)` what each run gave.

    Returns:
        The differences as effects, their standard errors (infinite where a single run had, or lacked, the point), and
        the bias with which predictions are right on average over the runs; in the outputs' type, computed in float64.

    Raises:
        ValueError: a point that every run had, or none.

    Example:
        >>> subsets = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
        >>> differences(subsets, 3 * subsets[:, :1] + 1).effects
        tensor([[3., 0.]])
    """
    _check(subsets)
    X, Y = subsets.to(outputs.device).double(), outputs.detach().double()
    present, absent = X.sum(0), (1 - X).sum(0)  # (k,)
    mean = Y.mean(0)
    Y = Y - mean
    total, squares = Y.T @ X, Y.square().T @ X  # (m, k), of the runs with the point; all runs' sum is 0
    effects = total / present + total / absent
    rest = Y.square().sum(0)[:, None] - squares
    error = (_variance(squares, total, present) + _variance(rest, total, absent)).sqrt()
    return Estimate(*(t.to(outputs.dtype) for t in (mean - effects @ X.mean(0), effects, error)))


def _variance(squares: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """The variance of a mean of `count` numbers, from their sum and the sum of their squares."""
    return torch.where(count > 1, (squares - total.square() / count).clamp_min(0) / (count - 1) / count, torch.inf)


def _check(subsets: Tensor) -> None:
    present = (subsets > 0).sum(0)
    constant = (present == 0) | (present == len(subsets))
    if constant.any():
        point = int(constant.nonzero()[0])
        raise ValueError(
            f"{int(present[point])} of {len(subsets)} subsets have the point {point}, so there is nothing to compare. "
            "Draw more subsets."
        )
