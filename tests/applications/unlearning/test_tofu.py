"""TOFU's measures on known answers, and the example at small size where the data are."""

import math

import pytest
import torch
from scipy import stats

from applications.unlearning.tofu import forget_quality, model_utility, rouge_l, truth_ratio
from benchmarks.data import FOLDER
from benchmarks.unlearning import tofu


def test_truth_ratio_is_the_mean_of_wrong_over_right():
    right, wrong = torch.tensor([math.log(2.0)]), torch.tensor([[math.log(4.0), math.log(8.0)]])
    torch.testing.assert_close(truth_ratio(right, wrong), torch.tensor([(1 / 4 + 1 / 8) / 2 / (1 / 2)]))
    with pytest.raises(ValueError, match=r"losses \(b,\) and \(b, k\)"):
        truth_ratio(right, right)


def test_forget_quality_is_large_for_one_law_and_small_for_two():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, generator=draw) for _ in range(2))
    assert forget_quality(a, b) > 0.05 > 1e-6 > forget_quality(a, b + 1)
    assert forget_quality(a, b) == stats.ks_2samp(a.double().numpy(), b.double().numpy()).pvalue


def test_utility_is_the_harmonic_mean_and_rouge_the_longest_common_subsequence():
    assert model_utility(0.2, 0.4, 0.8) == pytest.approx(3 / (5 + 2.5 + 1.25))
    with pytest.raises(ValueError, match="at least one"):
        model_utility()
    assert rouge_l([1, 2, 3], [1, 9, 2, 3]) == 0.75
    assert rouge_l([], [1]) == 0.0


@pytest.mark.skipif(not (FOLDER / "tofu_full_4000.jsonl.gz").exists(), reason="../shared/data is missing")
def test_the_example_forgets_an_author():
    """At the smallest size: ascent raises the loss of what it forgets."""
    rows = tofu.main(tofu.Size(authors=3, forget=(1,), epochs=4, width=16, wrong=1, generated=1, length=32))
    found = {name: (float(quality), float(loss), float(utility)) for _, name, quality, loss, utility in rows}
    assert set(found) >= {"do nothing", "fine-tuning", "gradient ascent", "retrained, another seed"}
    assert found["gradient ascent"][1] > found["do nothing"][1]
    assert all(0 <= quality <= 1 for quality, _, _ in found.values())
