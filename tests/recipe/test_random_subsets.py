"""Random subsets have the promised size, repeat with their seed and choose every point equally often."""

import pytest
import torch

from recipe.random_subsets import random_subsets


@pytest.mark.parametrize(("n", "alpha", "size"), [(10, 0.5, 5), (7, 0.3, 2), (5, 1.0, 5), (1000, 0.001, 1)])
def test_every_subset_has_the_rounded_share_of_ones(n: int, alpha: float, size: int) -> None:
    subsets = random_subsets(n, r=20, alpha=alpha, seed=0)
    assert subsets.shape == (20, n)
    assert torch.is_floating_point(subsets)
    assert ((subsets == 0) | (subsets == 1)).all()
    assert (subsets.sum(1) == size).all()


def test_a_seed_repeats_and_two_differ() -> None:
    first, again, other = (random_subsets(30, r=10, alpha=0.5, seed=s) for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 10


def test_a_shorter_draw_is_the_start_of_a_longer_one() -> None:
    assert torch.equal(random_subsets(30, 10, 0.5, 0), random_subsets(30, 25, 0.5, 0)[:10])


def test_points_and_pairs_are_chosen_as_often_as_chance_says() -> None:
    n, r = 8, 4000
    subsets = random_subsets(n, r, alpha=0.5, seed=0)
    together = subsets.T @ subsets / r
    pairs = torch.full((n, n), 0.5 * (n / 2 - 1) / (n - 1)).fill_diagonal_(0.5)
    assert (together - pairs).abs().max() < 5 * 0.5 / r**0.5  # five standard errors


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    random_subsets(5, 5, 0.5, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 5, 1.5), "alpha"),
        ((10, 5, 0.0), "alpha"),
        ((10, 5, float("nan")), "alpha"),
        ((10, 5, 0.01), "alpha"),
        ((0, 5, 0.5), "at least one point"),
        ((10, 0, 0.5), "one subset"),
    ],
)
def test_impossible_subsets_are_refused(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_subsets(*arguments, seed=0)
