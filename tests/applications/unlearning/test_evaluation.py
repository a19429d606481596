"""KLoM and its companions on arrays with known answers."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from applications.unlearning import evaluate, klom, margin_error, u_lira, wasserstein
from tests.worlds import small_mlp


def naive_klom(p, q, bins=20, eps=1e-5):
    """The definition, one point at a time, with the pooled maximum in the last bin."""
    edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), bins + 1)
    a, b = (np.histogram(t, edges)[0] / len(t) for t in (p, q))
    return sum(x * math.log(x / max(y, eps)) for x, y in zip(a, b, strict=True) if x > 0)


def normal(n, points, seed, shift=0.0):
    return torch.randn(n, points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_klom_is_the_definition_in_both_directions(shift):
    oracles, unlearned = normal(100, 5, 0), normal(90, 5, 1, shift)
    there = [naive_klom(unlearned[:, j].numpy(), oracles[:, j].numpy()) for j in range(5)]
    back = [naive_klom(oracles[:, j].numpy(), unlearned[:, j].numpy()) for j in range(5)]
    torch.testing.assert_close(klom(oracles, unlearned), torch.tensor(there, dtype=torch.float64))
    torch.testing.assert_close(klom(oracles, unlearned, "oracle || unlearned"), torch.tensor(back, dtype=torch.float64))


def test_klom_of_equal_models_is_zero_and_the_largest_margin_counts():
    oracles = normal(80, 3, 0)
    torch.testing.assert_close(klom(oracles, oracles), torch.zeros(3, dtype=torch.float64))
    one = torch.zeros(80, 1)
    assert float(klom(one, one)) == 0.0
    assert float(klom(one, one + 1)) == pytest.approx(math.log(1e5))  # every unlearned model is at the maximum


def test_klom_clips():
    a, b = torch.zeros(80, 1), torch.full((80, 1), 1e6)
    assert float(klom(a + 100, b)) == 0.0


def test_the_floor_falls_with_the_number_of_models_and_few_models_warn():
    """Two groups of one law: the published values of mean and 95th percentile."""
    floors = {n: klom(normal(n, 400, 2 * n), normal(n, 400, 2 * n + 1)) for n in (100, 200)}
    assert float(floors[100].mean()) == pytest.approx(0.34, abs=0.05)
    assert float(floors[100].quantile(0.95)) == pytest.approx(0.68, abs=0.1)
    assert floors[200].mean() < floors[100].mean()
    with pytest.warns(UserWarning, match="of 20 unlearned and 20 retrained .* below 80"):
        assert klom(normal(20, 50, 0), normal(20, 50, 1)).mean() > 2


def test_wasserstein_is_scipys():
    a, b = normal(30, 4, 0), normal(45, 4, 1, 0.5)
    expected = [stats.wasserstein_distance(a[:, j].numpy(), b[:, j].numpy()) for j in range(4)]
    torch.testing.assert_close(wasserstein(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(wasserstein(a, a + 2), torch.full((4,), 2.0, dtype=torch.float64))


def test_margin_error_is_that_of_the_means():
    a = normal(40, 4, 0)
    torch.testing.assert_close(margin_error(a, a.flip(0) + 0.25), torch.full((4,), 0.25, dtype=torch.float64))


def test_membership_of_two_shifted_gaussians_is_their_overlap():
    """The likelihood-ratio test of N(0, 1) and N(d, 1) has the advantage 2 Phi(d / 2) - 1."""
    found = u_lira(normal(400, 100, 0), normal(400, 100, 1, 1.0))
    assert found.mean == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.03)
    assert found.low < found.mean < found.high
    same = u_lira(normal(400, 100, 0), normal(400, 100, 1))
    assert abs(same.mean) < 0.02


def test_evaluation_of_oracles_is_at_the_floor_and_of_doing_nothing_above():
    setting, forget = small_mlp(), torch.tensor([0, 1, 2, 3, 4, 5])
    keep = torch.ones(40).index_fill(0, forget, 0.0)

    def trained(w, seeds):
        stacked = setting.algorithm.train_many(setting, w.expand(len(seeds), -1), seeds)
        return [{name: t[i] for name, t in stacked.items()} for i in range(len(seeds))]

    oracles, others = trained(keep, range(80)), trained(keep, range(80, 160))
    nothing = evaluate(setting, forget, trained(torch.ones(40), range(160, 240)), oracles, others, time=0.0)
    exact = evaluate(setting, forget, others, oracles, trained(keep, range(160, 240)), direction="oracle || unlearned")
    assert nothing.splits["forget"].klom > 2 * nothing.splits["forget"].klom_floor
    assert exact.splits["forget"].ratio == pytest.approx(1, abs=0.5)
    assert nothing.splits["forget"].error > 3 * nothing.splits["forget"].error_floor
    assert nothing.membership[0].low > nothing.membership[1].high
    assert 0.4 < exact.splits["held out"].accuracy == pytest.approx(exact.splits["held out"].oracle_accuracy, abs=0.05)
    assert "KL(oracle || unlearned)" in str(exact)
    assert "time: 0.0% of retraining" in str(nothing)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: klom(normal(80, 3, 0), normal(80, 4, 1)), r"the same points; got \(80, 3\) .* \(80, 4\)"),
        (lambda: klom(normal(80, 3, 0), normal(80, 3, 1) / 0), "NaN or infinity. Has an unlearned model diverged"),
        (lambda: klom(normal(80, 3, 0), normal(80, 3, 1), "both"), "direction must be"),
        (lambda: u_lira(normal(3, 3, 0), normal(80, 3, 1)), "at least four models"),
    ],
)
def test_bad_margins(make, message):
    with pytest.raises(ValueError, match=message):
        make()
