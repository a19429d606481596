"""An attack's evaluation is what retraining says, and what is saved of it can be looked at."""

import json

import numpy as np
import pytest
import torch

from applications.defences import CentroidDistance, inspect, poisoned
from applications.poisoning import Poisoning, Poisons, Targeted, already_wrong, evaluate, random_label_flips
from applications.poisoning.label_flips import flipped_points
from recipe import LBFGS, Correct, Loss, Retrain, Setting
from recipe.record import Folder
from tests.applications.test_poisoning import ONES, SETTING

TEST = (SETTING.probe[0][:9], SETTING.probe[1][:9])
FAR = (torch.tensor([[30.0, 0.0, 0.0], [0.0, 0.0, 30.0]], dtype=torch.float64), torch.tensor([0, 1]))


def accuracy(setting, weights, added=None):
    """Of a victim retrained by hand."""
    return float(Retrain(setting.on(TEST, Correct()))(weights, added).mean())


def evaluated(task, **changes):
    return evaluate(SETTING, task, FAR[0], TEST, seeds=[0], **changes)


def test_victims_are_retrained_with_and_without_the_poison():
    other = Setting(SETTING.model, SETTING.pool, SETTING.probe, LBFGS(l2=1.0))
    task = Poisoning(FAR)
    found = evaluated(task, others={"stiff": other}).victims
    assert {name: d.accuracy.mean for name, d in found.items()} == pytest.approx(
        {
            "clean": accuracy(SETTING, ONES),
            "random flips": accuracy(SETTING, ONES, random_label_flips(SETTING, 2)),
            "poison": accuracy(SETTING, ONES, FAR),
            "clean, stiff": accuracy(other, ONES),
            "poison, stiff": accuracy(other, ONES, FAR),
        }
    )
    assert found["poison"].loss.mean > found["clean"].loss.mean
    assert found["poison"].loss.runs == 1


def test_replaced_points_do_not_train_a_victim():
    task = Poisoning(FAR, replaces=(0, 7))
    weights = ONES.index_fill(0, torch.tensor([0, 7]), 0)
    found = evaluated(task).victims
    assert found["poison"].accuracy.mean == pytest.approx(accuracy(SETTING, weights, FAR))
    flips = random_label_flips(SETTING, 2)  # take the place of their originals too
    by_hand = Retrain(SETTING.on(TEST, Loss()))(ONES.index_fill(0, flipped_points(SETTING, 2), 0), flips).mean()
    assert found["random flips"].loss.mean == pytest.approx(float(by_hand))
    assert torch.equal(SETTING.pool[0][flipped_points(SETTING, 2)], flips[0])


def test_what_an_attacker_wants_of_its_targets_is_measured_before_and_after_defences():
    target = int((SETTING.probe[1] == 0).nonzero()[0])
    aimed = Targeted(target, 1).aim(SETTING)
    many = (SETTING.probe[0][target].repeat(20, 1), torch.ones(20, dtype=torch.long))
    defences = {"blind": FirstPoints(), "l2": CentroidDistance(), "last": LastPoints()}
    found = evaluate(aimed, Poisoning(many, towards=True), many[0], TEST, [0], defences, removed=0.3)
    assert [found.victims[name].reached.mean for name in ("clean", "random flips", "poison")] == [0, 0, 1]
    assert found.defences["blind"].damage.reached.mean == 1
    assert found.defences["last"].damage.reached.mean == 0
    assert found.best_defence == "last"
    assert "targets reached" in str(found)
    assert "targets reached" not in str(evaluated(Poisoning(FAR)))
    harm = evaluated(Poisoning(FAR)).victims["poison"].reached.mean
    assert harm == pytest.approx(1 - float(Retrain(SETTING.on(output=Correct()))(ONES, FAR).mean()))


def test_defences_train_a_victim_on_what_they_leave():
    defences = {"l2": CentroidDistance(), "blind": FirstPoints()}
    found = evaluated(Poisoning(FAR), defences=defences, removed=0.1)
    mixed, poison = poisoned(SETTING, FAR)
    by_hand = inspect(CentroidDistance(), mixed, poison, 0.1)
    l2 = found.defences["l2"]
    assert (l2.poison, l2.clean) == (by_hand.poison, by_hand.clean) == (1.0, pytest.approx(by_hand.clean))
    assert l2.damage.accuracy.mean == pytest.approx(accuracy(mixed, (~by_hand.inspected).double()))
    assert found.defences["blind"].poison == 0
    assert found.best_defence == "l2"
    assert "the defender's best: l2" in str(found)
    assert evaluated(Poisoning(FAR)).best_defence is None


def test_targets_on_the_attackers_side_are_counted():
    right = Retrain(SETTING.on(output=Correct()))(ONES) > 0.5
    assert already_wrong(SETTING) == int((~right).sum()) == evaluated(Poisoning(FAR)).already_wrong
    target = int(right.nonzero()[0])
    own = int(SETTING.probe[1][target])
    assert already_wrong(Targeted(target, own).aim(SETTING), towards=True) == 1
    assert already_wrong(Targeted(target, 1 - own).aim(SETTING), towards=True) == 0


class LastPoints:
    """Suspects the last 20 points."""

    def scores(self, setting):
        return (torch.arange(setting.n) >= setting.n - 20).double()


class FirstPoints:
    """Suspects the first points, which are never poison."""

    def scores(self, setting):
        return -torch.arange(setting.n, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(5, 64), (5, 1, 8, 8), (5, 3, 8, 8)])
def test_poisons_are_saved_with_a_grid_of_pictures(shape, tmp_path):
    from matplotlib.image import imread

    start, y = torch.zeros(shape), torch.arange(5)
    added = start.clone()
    added[2] = 1
    Poisons((added, y), (start, y), 0, {"budget": 5}).fill(Folder(tmp_path))
    with np.load(tmp_path / "poisons.npz") as saved:
        assert np.array_equal(saved["inputs"], added.numpy())
        assert saved["labels"].tolist() == [0, 1, 2, 3, 4]
        assert not saved["start"].any()
    assert json.loads((tmp_path / "threat_model.json").read_text())["budget"] == 5
    picture = imread(tmp_path / "poisons.png")[..., :3]
    black = (picture < 0.05).all(-1).any(0)  # columns that a dark poison, or a label, touches
    edges = np.flatnonzero(np.diff(np.concatenate([[0], black.astype(int), [0]])))
    wide = [b - a for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > picture.shape[1] / 10]
    assert len(wide) == 4, "five poisons in a row, four of them black"


def test_inputs_that_are_no_pictures_get_no_grid(tmp_path):
    Poisons(FAR, FAR, 0, {}).fill(Folder(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poisons.npz", "threat_model.json"]
