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
    assert selection.kth_largest(score, k) == score.sort(descending=True).values[k - 1]


def test_as_many_as_are_positive_between_the_limits():
    score = torch.tensor([1.0, -1.0, 2.0, 0.0])
    assert selection.largest(score, 0, 4).tolist() == [True, False, True, False]
    assert selection.largest(score, 3, 4).tolist() == [True, False, True, True]
    assert selection.largest(score, 0, 1).tolist() == [False, False, True, False]
    assert not selection.largest(-score.abs() - 1, 0, 4).any()
