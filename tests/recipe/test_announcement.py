"""Long work says what it will cost before it begins, once, and to who reads."""

import pytest
import torch

from estimators.data_shapley import DataShapley
from estimators.ekfac import EKFAC
from estimators.regression import Regression
from estimators.tracin import GradDot
from recipe import Calibrated, Ensembling, Retrain, Stored, announcement, lds, random_subsets
from recipe.announcement import announce, expected, least_training, unannounced
from recipe.cost import Cost
from tests.worlds import small_mlp

W = random_subsets(40, r=6, alpha=0.5, seed=0)


@pytest.fixture(autouse=True)
def _somebody_reads(monkeypatch):
    monkeypatch.setattr(announcement, "_read", lambda: True)
    monkeypatch.setattr(announcement, "_said", set())
    monkeypatch.setattr(announcement, "LONG", 1e5)


def test_a_fit_says_what_it_will_cost(capsys):
    EKFAC(models=2).fit(small_mlp())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Fitting EKFAC to n = 40 points and m = 6 outputs, expected: ")
    assert "FLOP" in line


def test_retraining_says_it_too(capsys):
    Retrain(small_mlp())(W)
    assert "Training 6 models on subsets of n = 40 points, expected: " in capsys.readouterr().err


def test_what_is_part_of_other_work_or_was_said_is_not_said(capsys):
    setting = small_mlp()
    f_hat = Regression(subsets=30).fit(setting)
    assert capsys.readouterr().err.count("expected") == 1  # not its retrainings
    Regression(subsets=30).fit(setting)
    assert "expected" not in capsys.readouterr().err
    with unannounced():
        lds(f_hat, Retrain(setting), W)
    assert "expected" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("estimator", "models"),
    [
        (Ensembling([Regression(subsets=30), GradDot()]), 31),
        (Regression(subsets=2, prior=EKFAC(models=20)), 22),
        (Calibrated(EKFAC(models=20), 2), 22),
        (Stored(Regression(subsets=30), "runs/x"), 30),
        (DataShapley(2), 80),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_of_what_an_estimator_is_made_of_count(estimator, models):
    assert announcement.models_of(estimator, small_mlp()) == models


def test_what_is_short_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(announcement, "LONG", 1e12)
    EKFAC().fit(small_mlp())
    Retrain(small_mlp())(W)
    assert "expected" not in capsys.readouterr().err


def test_where_nobody_reads_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(announcement, "_read", lambda: False)
    announce("Work", 1e15, lambda: pytest.fail("measured"))
    assert not capsys.readouterr().err


def test_a_cost_that_is_not_known_stops_nobody(capsys):
    def fails():
        raise RuntimeError("no.\nwhy")

    assert expected(fails) == "not known (no)"
    announce("Work", 1e15, fails)
    assert capsys.readouterr().err == "Work, expected: not known (no).\n"
    assert expected(lambda: Cost(1e9, 2.0, 0)).startswith("2.0 s, 1.0 GFLOP")


def test_the_least_is_what_training_takes_at_least():
    setting = small_mlp()
    work = Retrain(setting).cost(1)
    assert least_training(setting, 1) <= work.flops
    assert torch.isfinite(torch.tensor(least_training(setting, 3)))
