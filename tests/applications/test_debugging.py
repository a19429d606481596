"""Debugging: every answer against what is known, by planted structure, closed forms or retraining."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import t as student
from torch import nn

from applications.debugging import (
    Edit,
    Relabel,
    Remove,
    Transform,
    as_predicted,
    blame,
    blame_each,
    brittleness,
    compare,
    confident_learning,
    group_effects,
    label_errors,
    leakage,
    overview,
    removal_orders,
    smallest_flip,
    subpopulations,
    try_out,
)
from applications.debugging.overview import Checked
from applications.debugging.subpopulations import precision
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.random import Random
from recipe import LinearDatamodel, Loss, Margin, Newton, Retrain, Setting, TopMargin
from recipe import batch as batches
from recipe.findings import Rows, Texts, Unseen
from tests.worlds import logistic, small_mlp

MARGINS = logistic(TopMargin())
ONES = torch.ones(40)


@pytest.fixture(scope="module")
def f():
    whole = Retrain(MARGINS)
    return whole.on(as_predicted(whole), TopMargin())


@pytest.fixture(scope="module")
def f_hat(f):
    return NewtonStep().fit(f.setting)


def planted(rows):
    effects = torch.tensor(rows, dtype=torch.float64)
    return LinearDatamodel(torch.zeros(len(effects), dtype=torch.float64), effects)


# ---- blame ---------------------------------------------------------------------------------------------------------
def test_blame_of_a_group_is_the_mean_of_its_members(f_hat):
    each = torch.stack([found.effects for found in blame_each(f_hat, [0, 3])])
    group = blame(f_hat, [0, 3], k=4)
    assert torch.allclose(group.effects, each.mean(0).float())
    assert torch.equal(group.helpful, group.effects.topk(4).indices)
    assert group.to_pandas()["effect"].tolist()[:4] == pytest.approx(group.effects.topk(4).values.tolist())
    assert blame(f_hat, [3]).effects.tolist() == blame(f_hat, 3).effects.tolist()


def test_blame_of_targets_that_are_not_there(f_hat):
    with pytest.raises(IndexError, match="There are 6 targets; got target 6"):
        blame(f_hat, [0, 6])
    with pytest.raises(IndexError, match="got target 17"):
        blame_each(f_hat, [17])
    with pytest.raises(ValueError, match="The group has no targets"):
        blame(f_hat, [])


# ---- brittleness ---------------------------------------------------------------------------------------------------
def test_brittleness_agrees_with_trying_every_size(f, f_hat):
    targets, most = range(3), 8
    orders = removal_orders(f_hat, targets, most)
    found = brittleness(orders, f, targets, sizes=[1, 4, 8])
    for order, flip, j in zip(orders, found.flips, targets, strict=True):
        slow = smallest_flip(order, f, j, range(1, 9))
        assert (flip.size, flip.before) == (slow.size, slow.before)
        assert slow.size is None or flip.after == pytest.approx(slow.after)
    assert found.to_pandas()["removed"].tolist() == found.sizes.tolist()
    ks, shares = found.curve
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(float((found.sizes <= ks[-1]).double().mean()))


def test_the_datamodel_needs_fewer_removals_than_chance(f, f_hat):
    targets = range(4)
    ours = brittleness(removal_orders(f_hat, targets, 16), f, targets, [4, 16], refine=False)
    chance = removal_orders(Random().fit(f.setting), targets, 16)
    random = brittleness(chance, f, targets, [4, 16], refine=False)
    assert ours.median < random.median
    page = ours.finding(None, Unseen(6), {"at random": random})
    assert "at random" in str(page)


def test_a_prediction_that_is_lost_already_needs_no_removal():
    f = planted([[-1.0, 0.5, 0.0]])
    found = brittleness(torch.tensor([[1, 0]]), f, [0], [1])
    assert found.sizes.tolist() == [0.0]
    assert "not by retraining" in found.finding(None, Unseen(1)).answer


def test_what_flips_is_looked_at_with_fresh_seeds(seeded):
    f, f_hat = seeded
    orders = removal_orders(f_hat, [0, 1, 2, 3], 12)
    found = brittleness(orders, f, [0, 1, 2, 3], [2, 12], refine=False)
    assert found.fresh == len(f.seeds)
    others = f.with_seeds(range(max(f.seeds) + 1, max(f.seeds) + 1 + len(f.seeds)))
    for j, flip in enumerate(found.flips):
        assert (flip.size is None) == (flip.fresh is None)
        if flip.size is not None:
            expected = others(ONES.index_fill(0, orders[j][: flip.size], 0.0))[j]
            assert flip.fresh == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    assert brittleness(orders, f, [0, 1, 2, 3], [2], fresh=()).fresh == 0


def test_bad_orders(f, f_hat):
    orders = removal_orders(f_hat, [0, 1], 5)
    with pytest.raises(ValueError, match="must ascend from at least 1 to at most 5"):
        brittleness(orders, f, [0, 1], [1, 6])
    with pytest.raises(ValueError, match="an order for each of 3 targets; got 2"):
        brittleness(orders, f, [0, 1, 2], [1])


# ---- label errors --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def mislabelled():
    """Two clear classes, three labels of forty wrong."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    x = (2.0 * y - 1)[:, None] * torch.tensor([1.5, 0.5]) + torch.randn(60, 2, generator=generator)
    wrong = torch.zeros(40, dtype=torch.bool)
    wrong[[4, 17, 30]] = True
    labels = torch.where(wrong, 1 - y[:40], y[:40])
    setting = Setting(lambda: nn.Linear(2, 2), (x[:40], labels), (x[40:], y[40:]), Newton(l2=0.05))
    return setting, wrong


def test_wrong_labels_come_first(mislabelled):
    setting, wrong = mislabelled
    itself = NewtonStep().fit(setting.on(setting.pool, Margin()))
    clean = Influence().fit(setting)
    found = label_errors(Retrain(setting), itself, clean)
    assert set(found.scores) == {
        "held-out margin", "self-influence", "harm", "training loss", "confident learning",
    }  # fmt: skip
    assert min(found.auroc(wrong).values()) > 0.85
    assert found.to_pandas().index[:3].isin([4, 17, 30]).sum() >= 2
    finding = found.finding(Unseen(40), wrong=wrong, k=5)
    assert "most suspicious labels by held-out margin are wrong" in finding.answer


def test_the_held_out_margin_is_that_of_leaving_the_point_out(mislabelled):
    setting, _ = mislabelled
    f = Retrain(setting).on(setting.pool, Margin())
    scores = label_errors(f, Influence().fit(f.setting), folds=0).scores["held-out margin"]
    some = range(0, 40, 5)
    truth = -torch.stack([f(torch.ones(40).index_fill(0, torch.tensor([i]), 0.0))[i] for i in some])
    assert torch.corrcoef(torch.stack([scores[some], truth]))[0, 1] > 0.99


def test_confident_learning_by_hand(mislabelled):
    """Two folds: each half is scored by the model of the other half."""
    setting, _ = mislabelled
    f, y = Retrain(setting), setting.pool[1]
    scores = confident_learning(f, folds=2, seed=3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    p = torch.empty(40, 2)
    for k in range(2):
        held = order[torch.arange(40) % 2 == k]
        theta = setting.algorithm.train(setting, torch.ones(40).index_fill(0, held, 0.0), 0)
        p[held] = setting.predict(theta, setting.pool).softmax(1)[held].detach()
    usual = torch.stack([p[y == c, c].mean() for c in range(2)])
    own, other = (p - usual)[torch.arange(40), y], (p - usual)[torch.arange(40), 1 - y]
    assert torch.allclose(scores, other - own, atol=1e-3)


def test_bad_datamodels_for_label_errors(mislabelled):
    f = Retrain(mislabelled[0])
    with pytest.raises(ValueError, match="must have the 40 training points as targets"):
        label_errors(f, on_itself=Influence().fit(f.setting))
    with pytest.raises(ValueError, match="knows 3 training points, not the 40 of the setting"):
        label_errors(f, on_clean=planted([[1.0, 2.0, 3.0]]))
    with pytest.raises(ValueError, match="between 2 and 40 folds; got 1"):
        confident_learning(f, folds=1)
    with pytest.raises(ValueError, match="0 of 40 are wrong"):
        label_errors(f, folds=0).auroc(torch.zeros(40, dtype=torch.bool))


# ---- leakage -------------------------------------------------------------------------------------------------------
def test_copies_are_found_with_what_they_do():
    train, targets = torch.randn(30, 5), torch.randn(6, 5)
    train[7], train[20], train[21] = targets[2], train[3], train[3]
    effects = torch.zeros(6, 30)
    effects[2, 7], effects[2, 8] = 2.0, 3.0
    found = leakage(train, targets, LinearDatamodel(torch.zeros(6), effects), tolerance=0.01)
    (copy,) = found.copies
    assert (copy.target, copy.point, copy.distance, copy.effect, copy.rank) == (2, 7, 0.0, 2.0, 2)
    assert found.duplicates == [[3, 20, 21]]
    assert found.to_pandas()["point"].tolist() == [7]
    assert "1 of 6 targets" in found.finding(Unseen(30), Unseen(6)).answer


def test_features_that_do_not_fit():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        leakage(torch.randn(3, 2), torch.randn(3, 4))
    with pytest.raises(ValueError, match="knows 3 training points and 1 targets; there are features of 4 and 1"):
        leakage(torch.randn(4, 2), torch.randn(1, 2), planted([[1.0, 2.0, 3.0]]))


# ---- subpopulations and comparison ----------------------------------------------------------------------------------
def planted_groups():
    """Targets 0-9 hold on to points 0-19; among them 0-4 to points 40-49 as well. The rest holds on to 20-39."""
    generator = torch.Generator().manual_seed(0)
    effects = 0.05 * torch.randn(20, 50, generator=generator)
    effects[:10, :20] += 1
    effects[10:, 20:40] += 1
    special = effects.clone()
    special[:5, 40:] += 2
    return effects, special


def test_planted_groups_are_the_leading_components():
    _, special = planted_groups()
    found = subpopulations(special, components=2, clusters=3)
    halves, group = torch.arange(20) < 10, torch.arange(20) < 5
    upper, lower = found.ends(0, 10)
    assert max(precision(upper, halves, 10), precision(lower, halves, 10)) == 1.0
    assert any(precision(end, group, 5) == 1.0 for c in range(2) for end in found.ends(c, 5))
    assert found.clusters[:5].unique().numel() == 1
    assert sorted(found.clusters.bincount().tolist()) == [5, 5, 10]
    assert found.to_pandas().shape == (20, 3)
    assert "component 1" in found.finding(Unseen(50), Unseen(20)).parts[0].items[1].card.name


def test_components_are_those_of_an_exact_decomposition():
    """Columns of length one, the means of rows and columns taken off."""
    _, special = planted_groups()
    unit = special / special.norm(dim=0)
    rows = unit - unit.mean(0) - unit.mean(1, keepdim=True) + unit.mean()
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    found = subpopulations(special, components=3, clusters=2)
    assert torch.allclose(found.explained, (s[:3].square() / s.square().sum()).double(), atol=1e-6)
    assert torch.allclose((found.loadings[0] @ v[0].double()).abs(), torch.ones((), dtype=torch.float64), atol=1e-6)


def test_what_varies_within_some_targets_and_points():
    """Through two outputs, of opposite signs: the group within the first half is the first component."""
    _, special = planted_groups()
    effects = torch.stack([special, -special], 1).view(40, 50)
    f_hat = LinearDatamodel(torch.zeros(40), effects, output_shape=(20, 2))
    found = subpopulations(f_hat, components=1, clusters=2, targets=range(10), points=torch.arange(10, 50))
    upper, _ = found.ends(0, 5)
    assert set(upper.tolist()) in ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9})
    held = found.points(0, 10)[int(5 in upper)]
    assert set(held.tolist()) == set(range(40, 50))
    assert found.to_pandas().index.tolist() == list(range(10))
    assert "target 4" in str(found.finding(Unseen(50), Unseen(20)))
    with pytest.raises(IndexError, match="Expected targets from 0 to 19, at least one; got"):
        subpopulations(f_hat, targets=[20])
    with pytest.raises(IndexError, match="Expected training points from 0 to 49, at least one"):
        subpopulations(f_hat, points=[])


def test_what_only_one_algorithm_uses_is_the_first_direction():
    plain, special = planted_groups()
    a, b = (LinearDatamodel(torch.zeros(20), effects) for effects in (special, plain))
    found = compare(a, b, components=2, names=("with", "without"))
    assert set(found.points(0, 10).tolist()) == set(range(40, 50))
    assert set(found.targets(0, 5).tolist()) == set(range(5))
    assert found.explained[0, 0] > 5 * found.explained[0, 1]  # the noise of B in the columns that A uses counts
    assert found.alike[5:].min() > 0.8 > found.alike[:5].max()
    assert "What with learns and without does not" in str(found.finding(Unseen(50), Unseen(20)))
    assert found.to_pandas().shape == (20, 3)


def test_directions_over_several_outputs_have_a_length_a_point():
    plain, special = planted_groups()
    several = lambda e: LinearDatamodel(  # noqa: E731
        torch.zeros(40), torch.stack([e, -e], 1).view(40, 50), output_shape=(20, 2)
    )
    found = compare(several(special), several(plain), components=1)
    assert set(found.points(0, 10).tolist()) == set(range(40, 50))
    assert set(found.targets(0, 5).tolist()) == set(range(5))
    assert float(found.directions[0].norm()) == pytest.approx(1.0)


def test_datamodels_of_different_universes_are_not_compared(f_hat):
    with pytest.raises(ValueError, match=r"of the same universe and targets; they have 40 points.*and 3 points"):
        compare(f_hat, planted([[1.0, 2.0, 3.0]]))
    x, y = MARGINS.pool
    other = Influence().fit(replace(f_hat.setting, universe=(x + 1, y)))
    with pytest.raises(ValueError, match="of different universes, targets or outputs"):
        compare(f_hat, other, components=1)


def test_bad_numbers_of_components():
    with pytest.raises(ValueError, match="have 1 to 2 components and 1 to 2 clusters; got 3 and 1"):
        subpopulations(torch.randn(2, 4), components=3, clusters=1)
    with pytest.raises(ValueError, match="There are 1 to 1 directions"):
        compare(planted([[1.0, 2.0]]), planted([[1.0, 2.0]]), components=2)


# ---- groups --------------------------------------------------------------------------------------------------------
def test_group_effects_are_sums_and_match_retraining(f, f_hat):
    groups = ["one"] + ["a", "b", "c"] * 13
    found = group_effects(f_hat, groups, f=f)
    assert [g.effect for g in found.groups] == sorted((g.effect for g in found.groups), reverse=True)
    for g in found.groups:
        keep = torch.tensor([float(name != g.group) for name in groups])
        assert g.actual.mean == pytest.approx(float((f(ONES) - f(keep)).mean()))
        assert g.effect == pytest.approx(g.actual.mean, rel=0.6, abs=0.05)
        assert g.low <= g.effect <= g.high
    (one,) = [g for g in found.groups if g.size == 1]
    assert one.group == "one"
    assert "one: one point only" in found.finding().notes[0]
    assert found.to_pandas()["size"].sum() == 40


def test_one_target_has_no_interval(f_hat):
    found = group_effects(f_hat, ["a", "b"] * 20, targets=[0])
    assert all(g.low != g.low for g in found.groups)
    assert "no confidence interval" in found.finding().notes[-1]


def test_groups_may_be_a_tensor_and_need_names(f, f_hat):
    groups = torch.arange(40) % 2
    found = group_effects(f_hat, groups)
    assert sorted(g.group for g in found.groups) == [0, 1]
    assert all(g.size == 20 for g in found.groups)
    with pytest.raises(ValueError, match="group of training point 3 is NaN"):
        group_effects(f_hat, [float("nan") if i == 3 else "a" for i in range(40)])
    inputs, labels = f.setting.probe
    with pytest.raises(ValueError, match="or their universe or targets differ"):
        group_effects(Influence().fit(f.setting), groups, f=f.on((inputs.flip(0), labels.flip(0))))


def test_bad_groups(f_hat):
    with pytest.raises(ValueError, match="each of 40 training points, at least two groups; got 3 names and 1 groups"):
        group_effects(f_hat, ["a"] * 3)
    with pytest.raises(ValueError, match="got 0 targets"):
        group_effects(f_hat, ["a", "b"] * 20, targets=[])
    with pytest.raises(IndexError, match="got target 9"):
        group_effects(f_hat, ["a", "b"] * 20, targets=[9])


# ---- hypotheses ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def seeded():
    setting = small_mlp()
    return Retrain(setting, seeds=range(4)), Influence(models=2).fit(setting)


def test_a_removal_is_tested_over_seeds(seeded):
    f, f_hat = seeded
    points = blame(f_hat, [0, 1], k=5).helpful
    trial = try_out(Remove(points), f, f_hat, targets=[0, 1])
    keep = ONES.index_fill(0, points, 0.0)
    changes = (f.per_seed(keep) - f.per_seed(ONES))[:, :2].mean(1)
    assert trial.change.mean == pytest.approx(float(changes.mean()))
    assert trial.predicted == pytest.approx(float(f_hat(keep)[:2].mean()))
    t = changes.mean() / (changes.std() / 2)
    assert trial.p == pytest.approx(_two_sided(t, 3))
    assert trial.control.runs == 3
    assert trial.change.mean < trial.control.mean
    assert trial.predicted_change == pytest.approx(float((f_hat(keep) - f_hat(ONES))[:2].mean()))
    section = trial.finding(what="margin")
    assert "mean margin" in str(section)
    dots = [x for x, _ in section.parts[0].points]
    assert dots == pytest.approx((f_hat(keep) - f_hat(ONES))[:2].tolist())  # of the datamodel itself, both of them
    assert trial.to_pandas().shape == (2, 4)
    assert "p-value" in str(section)
    grid = section.parts[-1]
    meanings = {row[0].name: grid.meaning(i, 1).meaning for i, row in enumerate(grid.rows)}
    assert len(set(meanings.values())) == 7
    assert "over draws" in meanings["change by random points"]
    assert "t-test" in meanings["p-value"]
    assert [term.name for term in section.defined] == ["±", "p"]


def _two_sided(t, freedom):
    return 2 * student.sf(abs(float(t)), freedom)


def test_relabelling_and_editing_add_changed_copies(f, f_hat):
    points = torch.tensor([2, 5])
    x, y = MARGINS.pool
    relabelled = try_out(Relabel(points, (y[points] + 1) % 3), f, f_hat)
    keep = ONES.index_fill(0, points, 0.0)
    assert relabelled.actual.mean == pytest.approx(float(f(keep, (x[points], (y[points] + 1) % 3)).mean()))
    assert relabelled.predicted == pytest.approx(relabelled.actual.mean, abs=0.05)
    edited = try_out(Edit(points, lambda batch: (batch[0] + 3, batch[1]), "move"), f, f_hat)
    assert edited.actual.mean == pytest.approx(float(f(keep, (x[points] + 3, y[points])).mean()))
    assert edited.name == "move 2 points"


def test_transformed_targets_are_measured_by_the_same_models(f, f_hat):
    def mirror(batch):
        batch[0].neg_()  # in place: the setting's own targets must not change
        return batch

    trial = try_out(Transform(mirror, "mirror"), f, Influence().fit(f.setting))
    moved = (-f.setting.probe[0], f.setting.probe[1])
    assert trial.actual.mean == pytest.approx(float(f.on(moved)(ONES).mean()))
    assert trial.predicted == pytest.approx(trial.actual.mean, rel=1e-3)
    assert trial.before.mean == pytest.approx(float(f(ONES).mean()))
    fixed = LinearDatamodel(torch.zeros(6), torch.zeros(6, 40))
    unknown = try_out(Transform(mirror), f, fixed)
    assert unknown.predicted is None
    assert "no prediction" in unknown.notes[0]


def test_too_few_seeds_are_said_not_guessed(seeded, f):
    few = try_out(Remove([0]), seeded[0].with_seeds([0, 1]))
    assert few.p is None
    assert "2 retrainings are too few for a p-value" in few.notes[0]
    assert "p          none" in str(few)
    same = try_out(Remove([0]), f.with_seeds([0, 1, 2]))
    assert same.p is None
    assert "training is deterministic" in same.notes[0]


def test_bad_hypotheses(f):
    with pytest.raises(IndexError, match="training points from 0 to 39, at least one; got \\[40\\]"):
        try_out(Remove([40]), f)
    with pytest.raises(IndexError, match="got target 6"):
        try_out(Remove([0]), f, targets=[6])
    with pytest.raises(ValueError, match="a label for each of 2 points; got 1"):
        try_out(Relabel([0, 1], torch.tensor([0])), f)
    with pytest.raises(ValueError, match="as many targets as it gets, in their order: 6; it returned 2"):
        try_out(Transform(lambda batch: batches.take(batch, slice(0, 2))), f)
    with pytest.raises(ValueError, match="has n=3 training points"):
        try_out(Remove([0]), f, planted([[1.0, 2.0, 3.0]]))
    elsewhere = replace(f.setting, universe=(f.setting.pool[0] + 1, f.setting.pool[1]))
    with pytest.raises(ValueError, match="their universe or targets differ"):
        try_out(Remove([0]), f, Influence().fit(elsewhere))
    with pytest.raises(ValueError, match="can be chosen once"):
        Remove([1, 1])
    assert Remove(torch.arange(40) < 3).points.tolist() == [0, 1, 2]
    assert str(Remove(torch.arange(40) < 3)) == "remove 3 points"


# ---- the overview --------------------------------------------------------------------------------------------------
def test_the_overview_shows_every_answer(f, f_hat):
    points, targets = Rows({"x": MARGINS.pool[0][:, 0]}, MARGINS.pool[1]), Texts(["<i>z</i>"] * 6)
    answers = {
        "subpopulations": subpopulations(f_hat, 2, 2),
        "groups": group_effects(f_hat, ["a", "b"] * 20),
        "removal": try_out(Remove([0]), f, f_hat),
        "labels": label_errors(f.on(output=Loss()), folds=2),
        "blame": blame(f_hat, 0),
    }
    weights = torch.ones(3, 40)
    weights[torch.arange(3), torch.arange(3)] = 0
    checked = Checked(f_hat(weights).detach(), f(weights))
    report = overview(f_hat, points, targets, answers, k=3, checked=checked)
    assert [len(frame) for frame in report.to_pandas().values()] == [18, 6, 2, 6, 40, 20, 36]
    assert "<i>z" not in report.html
    assert "&lt;i&gt;z" in report.html
    assert len(report.findings) == 7
    with pytest.raises(ValueError, match="There are 40 training points; got 6 examples"):
        overview(f_hat, targets, targets)
    said = f.on(as_predicted(f), TopMargin())
    seen = Rows({"x": said.setting.probe[0][:, 0]}, MARGINS.probe[1])
    page = overview(Influence().fit(said.setting), points, seen, k=3)
    predicted = batches.labels(said.setting.probe)
    shown = [item.card.content for item in page.findings[-1].parts[0].items]
    assert [c.wrong for c in shown] == (predicted != MARGINS.probe[1]).tolist()
