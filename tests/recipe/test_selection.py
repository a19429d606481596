"""Selection among many scores against sorting."""

import pytest
import torch

from recipe import selection


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted"])
@pytest.mark.parametrize("k", [1, 17, 5_000, 9_999, 10_000])
def test_blocks_select_as_sorting_does(kind, k, monkeypatch):
    monkeypatch.setattr(selection, "BLOCK", 100)
    monkeypatch.setattr(selection, "SAMPLE", 400)
    score = torch.randn(10_000, generator=torch.Generator().manual_seed(k))
    score = {"normal": score, "ties": score.round(decimals=1), "sorted": score.sort().values}[kind]
    expected = torch.zeros(10_000, dtype=torch.bool)
    expected[score.argsort(descending=True, stable=True)[:k]] = True
    assert torch.equal(selection.largest(score, k, k), expected)


def test_a_bracket_that_misses_changes_nothing(monkeypatch):
    score = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    expected = selection.largest(score, 100, 100)
    for bracket in ((5.0, 6.0), (-2.0, -1.0)):
        monkeypatch.setattr(selection, "_bracket", lambda score, k, b=bracket: tuple(map(torch.tensor, b)))
        assert torch.equal(selection.largest(score, 100, 100), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(dtype):
    score = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.zeros(100, dtype=torch.bool)
    expected[score.double().argsort(descending=True, stable=True)[:9]] = True
    assert torch.equal(selection.largest(score, 9, 9), expected)


def test_as_many_as_are_positive_between_the_limits():
    score = torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert selection.largest(score, 0, 4).tolist() == [True, False, True, False]
    assert selection.largest(score, 3, 4).tolist() == [True, False, True, True]
    assert selection.largest(score, 0, 1).tolist() == [False, False, True, False]
    assert not selection.largest(-score.abs() - 1, 0, 4).any()
