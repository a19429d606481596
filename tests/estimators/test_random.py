"""Random effects depend on the seed and the sizes alone, and predict no change where they were fitted."""

import pytest
import torch
from torch import Tensor, nn

from estimators.random import Random
from recipe import SGD, Logits, Setting


def _setting(n: int = 200, targets: int = 30, shift: float = 0.0) -> Setting:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) + shift
    data, some = (x, torch.arange(n) % 2), (x[:targets], torch.arange(targets) % 2)
    return Setting(lambda: nn.Linear(3, 2).double(), data, some, SGD(epochs=1, batch_size=5, lr=0.1))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_a_seed_repeats_and_two_are_unrelated() -> None:
    first, again, other = (Random(seed).fit(_setting()).effects for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert abs(_correlation(first, other)) < 5 / first.numel() ** 0.5


def test_the_data_do_not_matter() -> None:
    assert torch.equal(Random().fit(_setting()).effects, Random().fit(_setting(shift=3.0)).effects)


def test_effects_are_standard_normal_over_n() -> None:
    scaled = Random().fit(_setting()).effects * 200
    error = 5 / scaled.numel() ** 0.5
    assert abs(scaled.mean()) < error
    assert abs(scaled.var() - 1) < 2 * error
    assert abs((scaled < 1).double().mean() - 0.8413) < error


def test_no_change_is_predicted_where_it_was_fitted() -> None:
    setting, w = _setting(), torch.rand(200, dtype=torch.float64)
    assert Random().fit(setting)(torch.ones(200)).abs().max() < 1e-12
    assert Random().fit(setting, at=(w, None))(w).abs().max() < 1e-12
    assert Random().fit(setting)(w).abs().min() > 0


def test_on_draws_for_the_other_outputs() -> None:
    f_hat = Random(seed=3).fit(_setting()).on(output=Logits())
    assert f_hat.output_shape == (30, 2)
    assert torch.equal(f_hat.effects, Random(seed=3).fit(_setting().on(output=Logits())).effects)


def test_new_examples_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="effect"):
        Random().fit(_setting())(torch.ones(200), _setting().pool)
