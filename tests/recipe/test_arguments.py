"""What the command line reads: sizes, points, ranges, entries."""

import numpy as np
import pytest
import torch

from recipe.arguments import read_entry, read_points, read_range, read_size


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("0.25", 10), ("5:0.5", (5, 20)), ("0", 0)])
def test_sizes(text, size):
    assert read_size(text, n=40) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5", "0.0", "1:2:3", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match=r"Expected a size as 300, 0\.3"):
        read_size(text, n=40)


def test_points_from_a_file_of_booleans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "mask.npy", np.arange(4) > 2)
    assert read_points("mask.npy").tolist() == [False, False, False, True]


@pytest.mark.parametrize("array", [np.zeros((2, 2), int), np.zeros(3)])
def test_points_from_a_file_of_something_else(tmp_path, monkeypatch, array):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "points.npy", array)
    with pytest.raises(ValueError, match="must hold a vector of indices"):
        read_points("points.npy")


@pytest.mark.parametrize("text", ["", "3-1", "1-2-3", "1;2", "-3"])
def test_points_that_are_none(text):
    with pytest.raises(ValueError, match="Expected points as 0-9,17"):
        read_points(text)


def test_ranges_and_entries():
    assert read_range("-1:0.5") == (-1.0, 0.5)
    named = {"pixels": torch.zeros(2, 3), "mask": torch.ones(2, 3).long(), "labels": torch.zeros(2)}
    assert read_entry("pixels", named) == "pixels"
    with pytest.raises(ValueError, match=r"can be changed \(pixels\); got '0'"):
        read_entry("0", named)
