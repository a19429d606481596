"""The KKT attack: poisons that are exactly allowed, do harm, and make a decoy optimal where that is possible."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from applications.poisoning import (
    KKT,
    Decoy,
    LabelFlipKKT,
    Near,
    Poisoning,
    Range,
    Sanitation,
    Targeted,
    ThreatModel,
    label_flip_decoys,
    random_label_flips,
)
from applications.poisoning.dealing import dealt
from applications.poisoning.linear_view import LinearView, loss_slopes
from estimators.influence import Influence
from recipe import LBFGS, Ball, Box, CrossEntropy, Hinge, Loss, Newton, Problem, Retrain, Setting, calculus, solve
from recipe.example_sets import Balls, Integers, Intersection, Slabs, examples_of
from recipe.problem import Maximize
from tests.applications.test_poisoning import SETTING

DOUBLE, ONES = torch.float64, torch.ones(60)


class OneLogit(nn.Module):
    """Logits `-z/2` and `z/2`."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1, bias=bias).double()

    def forward(self, x):
        z = self.linear(x) / 2
        return torch.cat([-z, z], 1)


def on(model=SETTING.model, loss=CrossEntropy(), algorithm=SETTING.algorithm):
    return Setting(model, SETTING.pool, SETTING.probe, algorithm, loss=loss, output=Loss())


SETTINGS = {
    "two logits": SETTING,
    "one logit": on(OneLogit),
    "no bias": on(lambda: OneLogit(bias=False)),
    "smooth hinge": on(loss=Hinge(smooth=0.1)),
    "hinge": on(OneLogit, Hinge()),
}
THREATS = {
    "box": ThreatModel(0.1),
    "sphere and slab": ThreatModel(0.1, passes=Sanitation()),
    "counts": ThreatModel(0.1, Range(whole=True), passes=Sanitation(percentile=95)),
    "loss cap": ThreatModel(0.1, passes=Sanitation(loss_cap=True)),
    "near": ThreatModel(0.1, Near(linf=0.5)),
}
settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


@pytest.mark.parametrize("cap", [None, 90.0])
@pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)
@settings
def test_poisons_are_exactly_feasible_and_never_worse_than_their_start(setting, threat, cap):
    if isinstance(threat.inputs, Near) and cap is not None:
        pytest.skip("near flipped points there may be nothing with a small loss")
    task, f = threat.task(setting), Retrain(setting)
    found = solve(task, f, KKT(setting, label_flip_decoys(setting, (0.2, 0.5), (1,)), cap))
    rounding = 1e-12 if isinstance(task.feasible, Box) else 0.0
    assert bool((task.feasible.excess(found.decision) <= rounding).all())
    assert found.decision.shape == task.start[0].shape
    assert found.predicted >= task.problem(f).value(task.start[0])
    assert found.predicted == pytest.approx(float(f(ONES, task.batch(found.decision)).mean()))
    if cap is None and not isinstance(threat.inputs, Near):
        assert found.predicted > float(f(ONES).mean())


@settings
def test_it_does_at_least_the_harm_of_random_flips_of_the_same_number(setting):
    f, decoys = Retrain(setting), label_flip_decoys(setting, (0.3, 0.6), (1, 2))
    found = [solve(task, f, KKT(setting, decoys)) for task in ThreatModel(6).splits(setting, 3)]
    flips = [float(f(ONES, random_label_flips(setting, 6, seed)).mean()) for seed in range(5)]
    assert max(s.predicted for s in found) > max(flips) > float(f(ONES).mean())


@pytest.mark.parametrize("name", ["two logits", "one logit", "no bias", "smooth hinge"])
def test_a_decoy_that_poisons_can_reach_is_reached(name):
    """Parameters trained on two known poisons are a decoy with a residual of zero; other poisons may do the same."""
    setting = SETTINGS[name]
    task = Poisoning(
        (torch.tensor([[2.0, 3.0, 3.0], [3.5, 3.0, 3.0]], dtype=DOUBLE), torch.tensor([1, 0])), copies=(3, 4)
    )
    f = Retrain(setting)
    theta = {k: t[0] for k, t in f.parameters(ONES, task.batch(task.start[0])).items()}
    away = replace(task, start=(task.start[0].flip(0), task.start[1]))
    found = solve(away, f, KKT(setting, [Decoy("known", theta, 0.0, 0.0)]))
    assert found.provenance["notes"]["residual"] < 1e-4
    again = f.parameters(ONES, task.batch(found.decision))
    torch.testing.assert_close(
        setting.flat({k: t[0] for k, t in again.items()}), setting.flat(theta), atol=2e-3, rtol=0
    )


def test_the_residual_is_the_gradient_of_the_training_objective():
    for setting in (SETTING, on(algorithm=Newton(l2=0.05)), SETTINGS["no bias"]):
        decoy = label_flip_decoys(setting, (0.5,), (3,))[-1]
        task = ThreatModel(0.1, passes=Sanitation()).task(setting)
        harmless = replace(task, start=(task.feasible.inside, task.start[1]))
        found = solve(harmless, Retrain(setting), KKT(setting, [decoy]))
        data, w = calculus.training_set(setting, ONES.double(), task.batch(found.decision))
        theta = setting.flat(decoy.parameters).requires_grad_()
        (gradient,) = torch.autograd.grad(calculus.objective(setting, theta, decoy.parameters, w, data), theta)
        assert found.provenance["notes"]["residual"] == pytest.approx(float(gradient.norm()), rel=1e-3)


def test_poisons_pass_the_cap_on_the_decoys_loss():
    setting, cap = SETTINGS["one logit"], 80.0
    decoys = label_flip_decoys(setting, (0.3,), (1,))
    task = ThreatModel(0.1, Range(whole=True), passes=Sanitation(percentile=100)).task(setting)
    free = solve(task, Retrain(setting), KKT(setting, decoys))
    notes = solve(task, Retrain(setting), KKT(setting, decoys, cap)).provenance["notes"]
    decoy = next(d for d in decoys if d.name == notes["decoy"])
    line = LinearView.of(setting).line(setting, decoy.parameters).stretched(notes["stretch"])
    x, y = SETTING.pool
    margins = (2 * y - 1) * line(x)
    for label, margin in enumerate(notes["margins"]):
        assert margin >= float(torch.quantile(margins[y == label], 1 - cap / 100)) - 1e-4
    assert min(free.provenance["notes"]["margins"]) < min(notes["margins"])


def test_what_the_attacker_does_not_accept_is_not_the_answer():
    decoys, task = label_flip_decoys(SETTING, (0.2, 0.5), (1, 2)), ThreatModel(0.1).task(SETTING)
    asked = []

    def accept(added):
        asked.append(added[0])
        return len(asked) == 2

    f = Retrain(SETTING)
    best, second, none = (
        solve(task, f, KKT(SETTING, decoys, accept=rule)) for rule in (None, accept, lambda added: False)
    )
    assert best.predicted >= second.predicted >= none.predicted
    assert torch.equal(task.batch(second.decision)[0], asked[1])
    assert torch.equal(none.decision, task.start[0])
    assert none.provenance["notes"]["decoy"] == "none: the start is kept"


def test_targets_that_carry_wanted_labels():
    aimed = Targeted(3, 1 - int(SETTING.probe[1][3])).aim(SETTING)
    task = ThreatModel(4, goal=Targeted(3, 1)).task(SETTING)
    found = solve(task, Retrain(aimed), KKT(aimed, label_flip_decoys(aimed, repeats=(1, 5, 10), towards=True)))
    assert found.predicted < float(Retrain(aimed)(ONES).mean())


def test_by_numbers_alone_it_is_the_same_attack_valued_around_each_candidate():
    task, f = ThreatModel(0.1, passes=Sanitation()).task(SETTING), Retrain(SETTING)
    decoys = label_flip_decoys(SETTING, (0.2, 0.5), (1,))
    wanted = solve(task, f, KKT(SETTING, decoys))
    found = solve(task, Influence().fit(SETTING), LabelFlipKKT((0.2, 0.5), (1,)))
    torch.testing.assert_close(found.decision, wanted.decision)
    assert found.predicted == pytest.approx(wanted.predicted, rel=1e-4)
    assert found.provenance["notes"]["decoy"] == wanted.provenance["notes"]["decoy"]


def test_by_numbers_alone_it_knows_which_way_the_goal_lies():
    goal = Targeted(3, 1 - int(SETTING.probe[1][3]))
    aimed, task = goal.aim(SETTING), ThreatModel(4, goal=goal).task(SETTING)
    found = solve(task, Influence().fit(aimed), LabelFlipKKT(repeats=(1, 5, 10)))
    assert found.predicted < float(Retrain(aimed)(ONES).mean())
    assert "all targets" in found.provenance["notes"]["decoy"]


# ---- decoys --------------------------------------------------------------------------------------------------------
def test_decoys_are_worse_on_targets_the_more_they_cost_on_clean_data():
    decoys = label_flip_decoys(SETTING)
    assert [d.clean for d in decoys] == sorted(d.clean for d in decoys)
    assert [d.targets for d in decoys] == sorted(d.targets for d in decoys)
    assert decoys[-1].targets > float(Retrain(SETTING)(ONES).mean())
    assert any("label" in d.name for d in label_flip_decoys(SETTING, (0.1, 0.3), (1, 2)))
    assert all("of all" in d.name for d in label_flip_decoys(SETTING, one_sided=False))
    assert float(SETTING.losses(decoys[0].parameters, SETTING.pool).mean()) == pytest.approx(decoys[0].clean)


def test_budgets_are_divided_between_two_classes():
    tasks = ThreatModel(6, passes=Sanitation()).splits(SETTING, 5)
    assert [int(t.start[1].sum()) for t in tasks] == [5, 4, 3, 2, 1]
    for task in tasks:
        assert bool((task.feasible.excess(task.start[0]) <= 0).all())
    one = ThreatModel(1).splits(SETTING, 2)
    assert [t.start[1].tolist() for t in one] == [[1], [0]]
    with pytest.raises(ValueError, match="between two classes in one way at least"):
        ThreatModel(6, label=1).splits(SETTING)


# ---- whole numbers -------------------------------------------------------------------------------------------------
def test_what_is_dealt_out_keeps_the_mean_and_is_alike():
    generator = torch.Generator().manual_seed(0)
    point = 3 * torch.rand(200, generator=generator).double()
    along = torch.randn(2, 200, generator=generator).double()
    rows = dealt(point, 16, along, generator)
    assert bool((rows == rows.round()).all())
    assert bool(((rows.mean(0) - point).abs() <= 1 / 16 + 1e-12).all())
    assert bool(((rows == point.floor()) | (rows == point.floor() + 1)).all())
    random = point.floor() + (torch.rand(16, 200, generator=generator) < point - point.floor())
    assert bool(((rows @ along.T).std(0) < 0.2 * (random @ along.T).std(0)).all())


def test_sets_of_some_examples():
    x = 2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    zero, index = torch.zeros(4, 3), torch.tensor([2, 0])
    sets = (
        Box(zero, torch.rand(4, 3)),
        Balls(zero, torch.arange(1.0, 5)),
        Slabs(torch.eye(4)[:, :3] + 1, -torch.ones(4), torch.arange(4.0)),
    )
    both = Intersection(sets, zero)
    for s in (*sets, both, Integers(both)):
        torch.testing.assert_close(examples_of(s, index).excess(x[index]), s.excess(x)[index])
    assert torch.equal(examples_of(Box(zero, 1.0), index).project(x[index]), x[index].clamp(-1, 1))
    with pytest.raises(TypeError, match="for every example by itself; got Ball"):
        examples_of(Ball(zero, 1.0), index)


# ---- what it cannot do ---------------------------------------------------------------------------------------------
def deep(activation):
    return lambda: nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)).double()


def three_classes():
    data = (SETTING.pool[0], torch.arange(60) % 3)
    return Setting(lambda: nn.Linear(3, 3).double(), data, data, LBFGS(l2=0.05), output=Loss())


DECOYS = label_flip_decoys(SETTING, (0.5,), (1,))


def attack(setting, decoys=DECOYS, threat=ThreatModel(2), **kwargs):
    return lambda: solve(threat.task(setting), Retrain(setting), KKT(setting, decoys, **kwargs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (attack(on(deep(nn.GELU()))), "not linear|is not"),
        (attack(on(deep(nn.Identity()))), "linear in its inputs and in its parameters"),
        (attack(three_classes()), "for two classes; this model predicts 3"),
        (lambda: label_flip_decoys(three_classes()), "got 3 classes"),
        (lambda: label_flip_decoys(SETTING, shares=(0.0,)), "above 0 and at most 1"),
        (attack(SETTING, ()), "a decoy at least"),
        (lambda: LabelFlipKKT().solve(ThreatModel(2).task(SETTING).problem(Retrain(SETTING))), "pass setting="),
        (
            lambda: solve(ThreatModel(2).task(SETTING), Retrain(SETTING), KKT(SETTING, DECOYS, measured=True)),
            "refitted",
        ),
        (attack(SETTING, loss_cap=0.0), "loss_cap=0.0"),
        (attack(SETTINGS["hinge"], DECOYS, loss_cap=1.0), "another percentile than loss_cap=1.0"),
        (
            lambda: loss_slopes(lambda z, batch: z[:, 1].square(), torch.ones(1), torch.ones(1)),
            "difference of two logits",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_refused_where_numbers_are_asked_for():
    start = torch.zeros(2, 3, dtype=torch.long)
    problem = Problem(Maximize(lambda x: x.sum()), start, Box(start.double(), 1.0), lambda x: (ONES, None))
    with pytest.raises(ValueError, match=r"floating numbers, a row for each poison; got torch.int64"):
        KKT(SETTING, DECOYS).solve(problem)
    images = replace(problem, start=torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 3\). Flatten them"):
        KKT(SETTING, DECOYS).solve(images)


def test_many_entries():
    """Tangents are left out; what is found still has a smaller gradient than the class centroids, and does harm."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 2
    x = torch.randn(80, 250, generator=generator, dtype=DOUBLE) + 0.3 * y[:, None]
    model = lambda: nn.Linear(250, 2).double()  # noqa: E731
    setting = Setting(model, (x[:60], y[:60]), (x[60:], y[60:]), LBFGS(l2=0.05), output=Loss())
    task, f = ThreatModel(4, passes=Sanitation()).task(setting), Retrain(setting)
    found = solve(task, f, KKT(setting, label_flip_decoys(setting, (0.3,), (1,), one_sided=False)))
    assert bool((task.feasible.excess(found.decision) <= 0).all())
    assert found.predicted > float(f(ONES).mean())
