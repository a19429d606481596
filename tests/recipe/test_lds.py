"""The linear datamodeling score against its definition."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from estimators.random import Random
from recipe import LinearDatamodel, Loss, Retrain, lds, random_subsets
from recipe.lds import score
from tests.worlds import DOUBLE, logistic


def test_is_the_mean_rank_correlation_over_outputs():
    predicted, actual = torch.randn(20, 7, dtype=DOUBLE), torch.randn(3, 20, 7, dtype=DOUBLE)
    result = score(predicted, actual)
    expected = [spearmanr(predicted[:, j], actual.mean(0)[:, j])[0] for j in range(7)]
    np.testing.assert_allclose(result.per_output, expected)
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.ci[0] < result.mean < result.ci[1]


def test_slope_is_actual_change_per_predicted_change():
    truth = torch.randn(1, 30, 4, dtype=DOUBLE)
    assert score(truth[0] / 2 + 5, truth).slope == pytest.approx(2)
    assert score(-truth[0], truth).slope == pytest.approx(-1)
    assert score(-truth[0], truth).mean == pytest.approx(-1)


def test_ceiling_is_what_a_perfect_datamodel_reaches():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(300, 20, generator=generator, dtype=DOUBLE)
    actual = truth + 1.5 * torch.randn(6, 300, 20, generator=generator, dtype=DOUBLE)
    result = score(truth, actual)
    assert result.ceiling == pytest.approx(result.mean, abs=0.03)
    assert np.isnan(score(truth, actual[:1]).ceiling)


def test_constant_outputs_do_not_count():
    truth = torch.randn(1, 10, 2, dtype=DOUBLE)
    truth[..., 1] = 3
    result = score(truth[0], truth)
    assert result.mean == pytest.approx(1)
    assert result.per_output.isnan().tolist() == [False, True]


def test_random_effects_score_about_zero():
    setting = logistic()
    result = lds(Random().fit(setting), Retrain(setting), random_subsets(40, r=50, alpha=0.5, seed=0))
    assert abs(result.mean) < 0.3
    assert "50 subsets x 1 seeds, 6 outputs" in str(result)


def test_refuses_other_sizes():
    f = Retrain(logistic())
    with pytest.raises(ValueError, match=r"at least three subsets as \(r, n\)"):
        lds(f, f, torch.ones(40))
    with pytest.raises(ValueError, match=r"predicts Loss.*measures Margin"):
        lds(Random().fit(logistic(Loss())), f, torch.ones(3, 40))
    with pytest.raises(ValueError, match=r"n=40 training points and m=2 outputs.*n=40 and m=6"):
        lds(LinearDatamodel(torch.zeros(2), torch.zeros(2, 40)), f, torch.ones(3, 40))
