"""Shapley values, exact and sampled, against permutations, games of known value and retraining that is additive."""

from itertools import permutations

import pytest
import torch

from estimators import data_shapley
from estimators.data_shapley import DataShapley, gains
from estimators.exact_shapley import ExactShapley, coalitions, shapley_values
from recipe import Retrain
from tests.estimators.games import DOUBLE, SHAPLEY, Unanimity, additive, airport, gloves
from tests.worlds import logistic, small_mlp

EXACT = {"rtol": 0.0, "atol": 1e-12}


def orders(k):
    return torch.tensor(list(permutations(range(k))))


def walked(game, some, truncation=0.0):
    """What no player achieves `(P, m)`, and all gains `(P, m, k)`."""
    none, walk = gains(game, some, [0] * len(some), truncation)
    gained = none.new_full((*none.shape, some.shape[1]), torch.nan)
    for runs, players, found in walk:
        assert gained[runs, :, players].isnan().all()
        gained[runs, :, players] = found
    return none, gained


# ---- exact ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("game", "values"), SHAPLEY.values(), ids=SHAPLEY)
def test_games_of_known_value(game, values):
    bias, effects = shapley_values(game, len(values))
    torch.testing.assert_close(effects, torch.tensor([values], dtype=DOUBLE), **EXACT)
    assert not bias.any()


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_any_game_by_its_dividends(k):
    game = Unanimity(k, m=3)
    bias, effects = shapley_values(game, k)
    torch.testing.assert_close(effects, game.shapley, **EXACT)
    torch.testing.assert_close(bias, game.offset, **EXACT)


@pytest.mark.parametrize("k", range(1, 7))
def test_the_formula_is_the_mean_over_all_permutations(k):
    game = Unanimity(k, m=2, seed=1)
    none, gained = walked(game, orders(k))
    torch.testing.assert_close(shapley_values(game, k)[1], gained.mean(0), **EXACT)
    torch.testing.assert_close(none.mean(0), game.offset, **EXACT)


def test_twelve_players_share_all_and_nothing_but_that():
    game = Unanimity(12, m=2)
    bias, effects = shapley_values(game, 12)
    torch.testing.assert_close(bias + effects.sum(1), game(torch.ones(1, 12))[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(effects, game.shapley, rtol=0, atol=1e-11)


def test_players_that_do_nothing_get_nothing_and_equals_get_the_same():
    def one_idle(sets, seeds):
        return gloves(sets[:, [0, 1, 3]])

    _, effects = shapley_values(one_idle, 4)
    assert effects[0, 2] == 0
    torch.testing.assert_close(effects[0, 0], effects[0, 1], **EXACT)


def test_chance_is_averaged_over_the_seeds():
    def noisy(sets, seeds):
        return sets[:, :1].double() * torch.tensor(seeds)[:, None]

    _, effects = shapley_values(noisy, 2, seeds=(3, 5))
    torch.testing.assert_close(effects, torch.tensor([[4.0, 0.0]], dtype=DOUBLE))


def test_coalitions_are_all_subsets_once():
    sets = coalitions(4)
    assert len(set(map(tuple, sets.tolist()))) == 16
    assert not sets[0].any()
    assert sets[-1].all()


def test_exact_values_of_a_setting_are_those_of_retraining_on_all_its_subsets():
    """By hand, through `Retrain` alone; the empty set is the untrained model."""
    setting = logistic()
    points = torch.tensor([0, 7, 20, 33])
    at = (torch.zeros(setting.n).index_fill(0, points, 1.0), None)
    f_hat = ExactShapley(models=2, seed=4).fit(setting, at)
    worth, f = {}, Retrain(setting, seeds=(4, 5))
    for chosen in coalitions(4).bool():
        weights = torch.zeros(setting.n).index_fill(0, points[chosen], 1.0)
        untrained = [setting.outputs(setting.initial(seed)) for seed in (4, 5)]
        worth[tuple(points[chosen].tolist())] = f(weights) if chosen.any() else torch.stack(untrained).mean(0)
    expected = torch.zeros(setting.m, setting.n, dtype=DOUBLE)
    for order in orders(4):
        before: list[int] = []
        for point in points[order].tolist():
            after = sorted([*before, point])
            expected[:, point] += (worth[tuple(after)] - worth[tuple(before)]) / 24
            before = after
    torch.testing.assert_close(f_hat.effects, expected, rtol=0, atol=1e-8)  # Newton stops near the optimum
    torch.testing.assert_close(f_hat.bias, worth[()], **EXACT)
    torch.testing.assert_close(f_hat(at[0]), f(at[0]))


@pytest.mark.parametrize("k", [0, 13])
def test_more_than_twelve_players_are_refused_with_the_remedy(k):
    with pytest.raises(ValueError, match=rf"of {k} points.*from 1 to 12.*DataShapley.*`at`"):
        shapley_values(airport, k)


def test_a_setting_of_forty_points_is_refused_before_training():
    with pytest.raises(ValueError, match=r"2\^40"):
        ExactShapley().fit(small_mlp())
    with pytest.raises(ValueError, match="at least one model"):
        ExactShapley(models=0)


# ---- sampled -------------------------------------------------------------------------------------------------------
def test_sampled_values_are_within_their_standard_errors_of_the_exact_ones():
    game, squared = Unanimity(6, m=4), []
    for seed in range(0, 40_000, 1000):
        bias, effects, error = DataShapley(permutations=50, tolerance=0, seed=seed).estimate(game, 6)
        squared.append(((effects - game.shapley) / error).square().mean())
        torch.testing.assert_close(bias, game.offset)
        torch.testing.assert_close(bias + effects.sum(1), game(torch.ones(1, 6))[0])  # whatever the sample
    assert torch.stack(squared).mean() == pytest.approx(1, abs=0.25)


def test_standard_errors_are_those_of_the_mean_over_permutations():
    game, drawn = Unanimity(5, m=2), []

    def spy(sets, seeds):
        drawn.append((sets, list(seeds)))
        return game(sets)

    _, effects, error = DataShapley(permutations=10, tolerance=0, seed=3).estimate(spy, 5)
    walks = torch.cat([sets.view(-1, 5, 5) for sets, _ in drawn[1::2]])  # every other call asks for none and all
    every = torch.stack([walked(game, walk.sum(0).argsort(descending=True)[None])[1][0] for walk in walks])
    torch.testing.assert_close(effects, every.mean(0))
    torch.testing.assert_close(error, every.std(0) / 10**0.5)
    seeds = [seed for _, seeds in drawn[1::2] for seed in seeds]
    assert seeds == [3 + p for p in range(10) for _ in range(5)]  # one seed along a permutation


def test_sampling_stops_at_the_tolerance():
    asked = []

    def counted(sets, seeds):
        asked.append(len(set(seeds)))
        return airport(sets)

    def permutations_drawn(tolerance):
        asked.clear()
        estimate = DataShapley(permutations=1000, tolerance=tolerance).estimate(counted, 5)
        return sum(asked[::2]), float(estimate.standard_error.norm() / estimate.effects.norm())

    coarse, fine = permutations_drawn(0.2), permutations_drawn(0.05)
    assert coarse[0] < fine[0] < 1000
    assert coarse[1] <= 0.2
    assert fine[1] <= 0.05
    assert permutations_drawn(0)[0] == 1000


def test_truncation_saves_retrainings_and_shares_what_is_left(monkeypatch):
    """A game that ten of forty players fill: what comes later adds nothing."""
    monkeypatch.setattr(data_shapley, "STRIDE", 4)
    asked = []

    def filled(sets, seeds):
        asked.append(len(sets))
        return sets.sum(1, keepdim=True).clamp_max(10.0).double()

    some = torch.stack([torch.randperm(40) for _ in range(5)])
    _, whole = walked(filled, some)
    assert sum(asked) == 10 + 5 * 40
    asked.clear()
    _, cut = walked(filled, some, truncation=0.05)
    assert sum(asked) == 10 + 5 * 12
    torch.testing.assert_close(cut, whole)
    asked.clear()
    _, early = walked(filled, some, truncation=0.3)  # at 8 of 10: the 32 others share 2
    assert sum(asked) == 10 + 5 * 8
    rank = some.argsort(1)[:, None]
    torch.testing.assert_close(early, torch.where(rank < 8, 1.0, 2 / 32).double())


def test_strides_change_nothing(monkeypatch):
    game, some = Unanimity(6, m=2), torch.stack([torch.randperm(6) for _ in range(4)])
    whole = walked(game, some)[1]
    monkeypatch.setattr(data_shapley, "STRIDE", 4)
    torch.testing.assert_close(walked(game, some)[1], whole)


def test_an_additive_setting_is_recovered_with_its_level_from_few_permutations():
    setting = additive()
    f_hat = DataShapley(permutations=100).fit(setting)
    truth = setting.probe[0] @ setting.pool[0].T
    torch.testing.assert_close(f_hat.effects, truth)
    assert not f_hat.bias.any()
    assert f_hat.standard_error.max() < 1e-6
    other = f_hat.on(setting.pool)
    torch.testing.assert_close(other.effects, setting.pool[0] @ setting.pool[0].T)


def test_at_keeps_to_the_chosen_points_and_starts_from_the_added_examples():
    setting = additive()
    x, t = setting.pool[0], setting.probe[0]
    added = (torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double(), torch.tensor([0, 1]))
    weights = torch.tensor([1.0, 0, 1, 0.5, 1, 1, 0, 1, 1, 1])
    f_hat = DataShapley(permutations=8).fit(setting, at=(weights, added))
    torch.testing.assert_close(f_hat.effects, t @ x.T * (weights > 0))
    torch.testing.assert_close(f_hat.bias, t @ added[0].sum(0))


def test_all_points_and_none_are_predicted_as_trained():
    setting = small_mlp()
    f_hat = DataShapley(permutations=3, tolerance=0, truncation=0, seed=5).fit(setting)
    ones = torch.ones(setting.n)
    torch.testing.assert_close(f_hat(ones), Retrain(setting, seeds=(5, 6, 7))(ones))
    untrained = torch.stack([setting.outputs(setting.initial(seed)) for seed in (5, 6, 7)]).mean(0)
    torch.testing.assert_close(f_hat(0 * ones), untrained)


def test_no_run_trains_twice():
    runs: list[tuple[int, int]] = []
    DataShapley(permutations=2, tolerance=0).fit(additive(n=6, runs=runs))
    assert sorted(runs) == [(size, seed) for size in range(1, 7) for seed in (0, 1)]  # all points: asked for twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"permutations": 1}, "two permutations"),
        ({"permutations": 5, "tolerance": -0.1}, "tolerance"),
        ({"permutations": 5, "truncation": 1.0}, "truncation"),
    ],
)
def test_impossible_samples_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DataShapley(**arguments)


def test_values_by_permutations_sum_up_in_a_file(monkeypatch):
    setting = small_mlp()
    expected = DataShapley(2).fit(setting)
    monkeypatch.setattr("recipe.scratch.HELD_BYTES", 0)
    found = DataShapley(2).fit(setting)
    assert torch.equal(found.effects, expected.effects)
    assert torch.equal(found.standard_error, expected.standard_error)
