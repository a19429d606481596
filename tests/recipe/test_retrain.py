"""The true outputs: what is trained, what is remembered."""

from dataclasses import dataclass, field

import pytest
import torch

from recipe import Logits, Margin, Newton, Retrain, TopMargin, random_subsets, retrain
from recipe import batch as batches
from tests.worlds import DOUBLE, logistic, small_mlp


@dataclass(frozen=True)
class Counting(Newton):
    """Newton that counts its runs."""

    runs: list = field(default_factory=list)

    def train_many(self, setting, weights, seeds, added=None):
        self.runs.extend(seeds)
        return super().train_many(setting, weights, seeds, added)


def counting():
    rule = Counting(l2=0.05)
    return Retrain(logistic().__class__(**{**vars_of(logistic()), "algorithm": rule}), seeds=(0, 1)), rule.runs


def vars_of(setting):
    return {name: getattr(setting, name) for name in ("model", "universe", "targets", "output")}


def test_outputs_are_those_of_the_trained_model():
    setting = small_mlp()
    f, w = Retrain(setting, seeds=(3, 4)), random_subsets(40, r=2, alpha=0.5, seed=0)
    each = f.per_seed(w)
    assert each.shape == (2, 2, 6)
    theta = setting.algorithm.train(setting, w[1], 4)
    torch.testing.assert_close(each[1, 1], setting.outputs(theta))
    torch.testing.assert_close(f(w), each.mean(0))
    torch.testing.assert_close(torch.stack([run(w) for run in f.runs()]), each)
    torch.testing.assert_close(f.paired(w, [3, 4]), torch.stack([each[0, 0], each[1, 1]]))


def test_remembers_runs_for_other_targets_and_seeds():
    f, runs = counting()
    w = torch.ones(40)
    f(w)
    assert runs == [0, 1]
    f.on(output=Logits())(w), f.on(batches.take(f.setting.pool, slice(0, 3)))(w), f.runs()[1](w.double()), f(w)
    assert runs == [0, 1]
    f(random_subsets(40, r=2, alpha=0.5, seed=0))
    assert len(runs) == 6
    added = (torch.ones(1, 2, dtype=DOUBLE), torch.tensor([0]))
    f(w, added), f(w, added)
    assert len(runs) == 8
    f(w, (added[0] + 1e-9, added[1]))
    assert len(runs) == 10


def test_forgets_the_oldest_runs_beyond_its_memory(monkeypatch):
    monkeypatch.setattr(retrain, "MEMORY_BYTES", 9 * 8 * 3)  # three runs of nine float64
    f, runs = counting()
    w = random_subsets(40, r=4, alpha=0.5, seed=0)
    expected = Retrain(f.setting, seeds=(0, 1))(w)
    before = len(runs)
    torch.testing.assert_close(f(w), expected)  # more runs than fit at once
    assert len(runs) == before + 8
    f(w), f.runs()[1](w)  # outputs are small and remembered
    assert len(runs) == before + 8
    f.with_seeds([1]).on(output=Logits())(w[3:])  # the newest parameters are there
    assert len(runs) == before + 8
    f.on(output=Logits())(w[:1])  # the oldest are not
    assert len(runs) > before + 8


def test_on_measures_the_same_runs():
    f = Retrain(small_mlp(), seeds=(0, 1))
    w = torch.ones(40)
    logits = f.on(output=Logits()).per_seed(w).view(2, 6, 3)
    batch = f.setting.probe
    torch.testing.assert_close(f.on(output=TopMargin()).per_seed(w)[1], TopMargin()(logits[1], batch))
    assert f.setting.output == Margin()


def test_seeds_are_distinct():
    for seeds in ((), (1, 1)):
        with pytest.raises(ValueError, match="distinct seeds"):
            Retrain(logistic(), seeds)


def test_outputs_are_remembered_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(retrain, "OUTPUT_BYTES", 5 * 6 * 8)
    f = Retrain(small_mlp())
    w = random_subsets(40, r=12, alpha=0.5, seed=0)
    expected = Retrain(small_mlp())(w)
    assert torch.equal(f(w), expected)
    assert len(f._measured._kept) == 5
    assert torch.equal(f(w), expected)
