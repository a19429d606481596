"""Facility location against a naive loop and brute force; the price of likeness against its definition."""

import itertools

import pytest
import torch

from recipe.diversity import Alike, FacilityLocation


def naive(similarity, size, utility, allowed):
    """The greedy algorithm as it is written: every gain of every candidate at every step."""
    chosen, covered, gains = [], torch.zeros(len(similarity)).to(similarity), []
    for _ in range(size):
        found = (torch.maximum(similarity, covered[:, None]) - covered[:, None]).sum(0) + utility
        found[~allowed] = -torch.inf
        found[chosen] = -torch.inf
        best = int(found.argmax())
        chosen.append(best)
        gains.append(float(found[best]))
        covered = torch.maximum(covered, similarity[:, best])
    return chosen, gains


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["plain", "utility", "allowed", "ties"])
def test_lazy_is_naive_greedy(seed, symmetric, kind):
    n, generator = 150, torch.Generator().manual_seed(seed)
    similarity = torch.rand(n, n, generator=generator, dtype=torch.double)
    similarity = (similarity + similarity.T) / 2 if symmetric else similarity
    similarity = (4 * similarity).round() if kind == "ties" else similarity
    utility = 20 * torch.randn(n, generator=generator) * (kind == "utility")
    allowed = torch.rand(n, generator=generator) < (0.5 if kind == "allowed" else 2)
    cover = FacilityLocation(similarity).greedy(40, utility, allowed)
    chosen, gains = naive(similarity, 40, utility.double(), allowed)
    assert cover.ranking.tolist() == chosen
    assert cover.gains.tolist() == pytest.approx(gains)


def test_features_are_their_cosines():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    unit = x / x.norm(dim=1, keepdim=True)
    by_features = FacilityLocation(features=x).greedy(30)
    by_matrix = FacilityLocation((1 + unit @ unit.T) / 2).greedy(30)
    assert torch.equal(by_features.ranking, by_matrix.ranking)


def test_greedy_is_within_its_bound_of_the_best():
    similarity = torch.rand(10, 10, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    best = max(float(similarity[:, list(c)].amax(1).sum()) for c in itertools.combinations(range(10), 3))
    assert float(FacilityLocation(similarity).greedy(3).gains.sum()) >= (1 - 1 / torch.e) * best


def test_the_price_is_the_mean_similarity_of_ordered_pairs():
    x = torch.randn(6, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=2)
    w = torch.tensor([1.0, 0, 1, 1, 0, 0], dtype=torch.double)
    chosen = w.bool()
    expected = 0.7 * cosines[chosen][:, chosen].mean()
    for alike in (Alike.cosine(x, 0.7), Alike.by_similarity(cosines, 0.7)):
        torch.testing.assert_close(alike(w, 3), expected, rtol=1e-5, atol=1e-6)
    cover = FacilityLocation(features=x, weight=2.0)(w, 3)
    torch.testing.assert_close(cover, -2 * ((1 + cosines[:, chosen]) / 2).amax(1).mean())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FacilityLocation(), "either"),
        (lambda: FacilityLocation(-torch.ones(3, 3)), "not negative"),
        (lambda: FacilityLocation(torch.full((3, 3), torch.nan)), "no NaN"),
        (lambda: FacilityLocation(torch.ones(3, 3)).greedy(4), "1 to the 3 points"),
        (lambda: Alike(torch.ones(3), 1.0), r"\(n, d\)"),
        (lambda: Alike(torch.ones(3, 2), -1.0), "at least 0"),
        (lambda: Alike.by_similarity(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 1.0), "positive semidefinite"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
