"""Empirical influence and Banzhaf values: comparisons of the runs with and without a point, against all subsets."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from estimators._differences import differences
from estimators.banzhaf import Banzhaf
from estimators.empirical_influence import EmpiricalInfluence
from estimators.exact_shapley import coalitions
from estimators.regression import Regression
from recipe import random_subsets
from tests.estimators.games import BANZHAF, DOUBLE, Unanimity, additive

EXACT = {"rtol": 0.0, "atol": 1e-12}
BOTH = [EmpiricalInfluence(subsets=40), Banzhaf(subsets=40)]


def test_differences_and_their_standard_errors_are_welchs():
    subsets, outputs = random_subsets(5, 30, 0.4, seed=0), torch.randn(30, 3, dtype=DOUBLE)
    bias, effects, error = differences(subsets, outputs)
    for i in range(5):
        inside, outside = outputs[subsets[:, i] == 1], outputs[subsets[:, i] == 0]
        torch.testing.assert_close(effects[:, i], inside.mean(0) - outside.mean(0), **EXACT)
        t = stats.ttest_ind(inside.numpy(), outside.numpy(), equal_var=False).statistic
        np.testing.assert_allclose(effects[:, i] / error[:, i], t)
    torch.testing.assert_close(bias + effects @ subsets.double().mean(0), outputs.mean(0))  # right on average


def test_a_single_run_with_a_point_has_no_standard_error():
    subsets = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    _, effects, error = differences(subsets, torch.tensor([[5.0], [1.0], [2.0], [3.0]]))
    assert float(effects[0, 0]) == 3.0
    assert error[0, 0] == torch.inf
    assert error[0, 1].isfinite()


@pytest.mark.parametrize("size", [2, 5, 8])
def test_over_all_sets_of_a_size_empirical_influence_is_what_a_point_does_beyond_the_others(size):
    n, truth = 9, torch.randn(3, 9, dtype=DOUBLE)
    subsets = torch.zeros(0, n)
    for chosen in combinations(range(n), size):
        subsets = torch.cat([subsets, torch.zeros(1, n).index_fill(1, torch.tensor(chosen), 1.0)])
    _, effects, _ = differences(subsets, subsets.double() @ truth.T)
    others = (truth.sum(1, keepdim=True) - truth) / (n - 1)
    torch.testing.assert_close(effects, truth - others, **EXACT)


@pytest.mark.parametrize(("game", "values"), BANZHAF.values(), ids=BANZHAF)
def test_banzhaf_values_of_known_games(game, values):
    sets = coalitions(len(values))
    torch.testing.assert_close(differences(sets, game(sets)).effects, torch.tensor([values], dtype=DOUBLE), **EXACT)


def test_over_all_sets_banzhaf_values_are_the_dividends_and_the_nearest_linear_function():
    game, sets = Unanimity(8, m=3), coalitions(8)
    bias, effects, _ = differences(sets, game(sets))
    torch.testing.assert_close(effects, game.banzhaf, **EXACT)
    design = torch.cat([torch.ones(256, 1), sets], 1).double()
    nearest = torch.linalg.lstsq(design, game(sets)).solution
    torch.testing.assert_close(torch.cat([bias[None], effects.T]), nearest, **EXACT)


def test_sampled_banzhaf_values_are_within_their_standard_errors():
    game, sets = Unanimity(10, m=20), (torch.rand(3000, 10) < 0.5).float()
    _, effects, error = differences(sets, game(sets))
    z = (effects - game.banzhaf) / error
    assert z.square().mean().sqrt() == pytest.approx(1, abs=0.2)


def test_empirical_influence_trains_the_runs_of_regression():
    runs: list[tuple[int, int]] = []
    setting = additive(runs=runs)
    EmpiricalInfluence(subsets=30, alpha=0.3, seed=7).fit(setting)
    mine = list(runs)
    runs.clear()
    Regression(subsets=30, alpha=0.3, seed=7).fit(setting)
    assert mine == runs == [(3, seed) for seed in range(7, 37)]


def test_banzhaf_trains_on_sets_of_all_sizes():
    runs: list[tuple[int, int]] = []
    setting = additive(runs=runs)
    Banzhaf(subsets=60, seed=7).fit(setting)
    sizes = torch.tensor([size for size, _ in runs]).double()
    assert sorted(seed for _, seed in runs) == list(range(7, 67))
    assert abs(sizes.mean() - 5) < 0.7
    assert abs(sizes.std() - 2.5**0.5) < 0.5


@pytest.mark.parametrize("estimator", BOTH, ids=repr)
def test_an_additive_setting_is_estimated_within_standard_errors(estimator):
    setting = additive()
    f_hat, truth = estimator.fit(setting), setting.probe[0] @ setting.pool[0].T
    beyond = truth if isinstance(estimator, Banzhaf) else (truth - truth.mean(1, keepdim=True)) * 10 / 9
    assert ((f_hat.effects - beyond).abs() < 4.5 * f_hat.standard_error).all()
    other = f_hat.on(setting.pool)
    assert other.standard_error.shape == (10, 10)
    torch.testing.assert_close(other.effects, estimator.fit(setting.on(setting.pool)).effects)


@pytest.mark.parametrize("estimator", BOTH, ids=repr)
def test_at_keeps_to_the_chosen_points_and_adds_the_others_to_the_bias(estimator):
    setting = additive()
    added = (torch.tensor([[10.0, 20.0, 30.0]]).double(), torch.tensor([0]))
    weights = torch.tensor([1.0, 0, 1, 0.5, 1, 1, 0, 1, 1, 1])
    f_hat, without = estimator.fit(setting, at=(weights, added)), estimator.fit(setting, at=(weights, None))
    assert not f_hat.effects[:, [1, 6]].any()
    assert not f_hat.standard_error[:, [1, 6]].any()
    torch.testing.assert_close(f_hat.effects, without.effects)
    torch.testing.assert_close(f_hat.bias - without.bias, setting.probe[0] @ added[0][0])


def test_points_without_a_comparison_are_refused_before_training():
    runs: list[tuple[int, int]] = []
    setting = additive(runs=runs)
    with pytest.raises(ValueError, match=r"of 2 subsets have the point \d, .*Draw more subsets"):
        EmpiricalInfluence(subsets=2).fit(setting)
    with pytest.raises(ValueError, match="all empty or all full"):
        EmpiricalInfluence(subsets=5).fit(setting, at=(torch.zeros(10).index_fill(0, torch.tensor([2]), 1.0), None))
    assert not runs


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (EmpiricalInfluence, {"subsets": 1}, "two subsets"),
        (EmpiricalInfluence, {"subsets": 9, "alpha": 1.0}, "alpha"),
        (Banzhaf, {"subsets": 1}, "two subsets"),
    ],
)
def test_impossible_comparisons_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
