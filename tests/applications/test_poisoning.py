"""What every threat model, attack and defence promises."""

import pytest
import torch

from applications.defences import (
    ActivationClustering,
    CentroidDistance,
    Copies,
    Inputs,
    Neighbours,
    Selection,
    SelfInfluence,
    Slab,
    SpectralResidual,
    SpectralSignatures,
    TrainingLoss,
    caught,
    inspect,
    most_suspicious,
    poisoned,
)
from applications.poisoning import (
    Backdoor,
    Indiscriminate,
    Near,
    Poisoning,
    Range,
    Sanitation,
    Subpopulation,
    Surrogates,
    Targeted,
    ThreatModel,
    Trigger,
    chosen_label_flips,
    random_label_flips,
)
from estimators.adjoint_influence import AdjointInfluence
from estimators.ekfac import EKFAC
from estimators.gradient_matching import GradientMatching
from estimators.influence import Influence
from estimators.random import Random
from estimators.unrolled import Unrolled
from recipe import LBFGS, SGD, GradientAscent, Loss, Retrain, Rounded, Setting, TopK, solve
from recipe import batch as batches

DOUBLE = torch.float64


def two_blobs(n: int = 60, targets: int = 20) -> Setting:
    """Two overlapping classes of counts in the plane and a half, trained exactly."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n + targets) % 2
    x = torch.tensor([[2.0, 3.0, 4.0], [4.0, 3.0, 2.0]], dtype=DOUBLE)[y]
    x = (x + 1.2 * torch.randn(n + targets, 3, generator=generator, dtype=DOUBLE)).round().clamp_min(0)
    model = lambda: torch.nn.Linear(3, 2).double()  # noqa: E731
    # A quarter beside the counts: no target is a training point too.
    return Setting(model, (x[:n], y[:n]), (x[n:] + 0.25, y[n:]), LBFGS(l2=0.05, tolerance=1e-10), output=Loss())


SETTING = two_blobs()
ONES = torch.ones(60)
CORNER = Trigger(torch.tensor([True, False, False]), torch.full((3,), 6.0, dtype=DOUBLE))
THREATS = {
    "range": ThreatModel(0.05),
    "count": ThreatModel(4, Range(0.0, 5.0)),
    "each feature's range": ThreatModel(3, Range(each=True)),
    "near, l-inf": ThreatModel(0.05, Near(linf=0.5)),
    "near, l2": ThreatModel(0.05, Near(l2=0.7)),
    "near, both, clean labels": ThreatModel(0.05, Near(linf=0.5, l2=0.7), flipped=False),
    "one label": ThreatModel(0.05, label=1),
    "modified": ThreatModel(2, Near(linf=2.0), modify=True),
    "sphere and slab": ThreatModel(0.05, passes=Sanitation()),
    "loss cap too": ThreatModel(0.05, passes=Sanitation(loss_cap=True)),
    "counts": ThreatModel(0.05, Range(whole=True), passes=Sanitation(percentile=95)),
    "counts, no defence": ThreatModel(3, Range(whole=True)),
    "near counts": ThreatModel(3, Near(linf=2.0, l2=2.5, range=Range(whole=True)), modify=True),
    "near and past defences": ThreatModel(3, Near(l2=0.3), flipped=False, passes=Sanitation()),
    "near, with a trigger": ThreatModel(3, Near(linf=0.4, l2=0.5), label=1, trigger=CORNER, goal=Backdoor(CORNER, 1)),
    "targeted": ThreatModel(2, goal=Targeted(3, 0), label=0),
    "subpopulation": ThreatModel(3, goal=Subpopulation(torch.arange(20) % 2 == 1)),
    "backdoor": ThreatModel(0.1, goal=Backdoor(CORNER, 1), label=1, trigger=CORNER),
}
ASCENT = GradientAscent(lr=0.2, steps=6, refit=2)
threats = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS)


def attacked(threat, seed=0):
    aimed = threat.goal.aim(SETTING)
    task = threat.task(SETTING, seed)
    solver = Rounded(ASCENT) if getattr(threat.inputs, "whole", False) else ASCENT
    return task, solve(task, AdjointInfluence().fit(aimed), solver, AdjointInfluence(), aimed), Retrain(aimed)


@threats
def test_poisons_are_exactly_feasible_and_never_worse_than_their_start(threat):
    task, solution, f = attacked(threat)
    x, start = solution.decision, task.start[0]
    assert len(x) == threat.count(60)
    rounding = 1e-12 if hasattr(task.feasible, "radius") else 0.0
    for inputs in (x, start):
        assert bool((task.feasible.excess(inputs) <= rounding).all())
        check_inputs(threat, inputs)
    problem = task.problem(f)
    assert problem.objective.sense * (problem.value(x) - problem.value(start)) >= -1e-9
    if threat.trigger is not None:
        assert torch.equal(threat.trigger.stamp(x), x)
    if not threat.flipped:  # clean labels are those of the points that the poisons start from
        index, _ = threat._start(SETTING, 0)
        assert torch.equal(task.start[1], SETTING.pool[1][index])
    if threat.label is not None:
        assert set(task.start[1].tolist()) == {threat.label}


def check_inputs(threat, x):
    """What the threat model says of inputs, asked without its feasible set."""
    if threat.inputs.whole:
        assert torch.equal(x, x.round())
    if isinstance(threat.inputs, Near):
        begin = SETTING.pool[0][threat._start(SETTING, 0)[0]]
        moved = x - (begin if threat.trigger is None else threat.trigger.stamp(begin))
        assert bool((moved.abs() <= (threat.inputs.linf or torch.inf) + 1e-12).all())
        assert bool((moved.norm(dim=1) <= (threat.inputs.l2 or torch.inf) + 1e-12).all())
    for c in (0, 1) if threat.passes else ():
        pool, rest = SETTING.pool[0][SETTING.pool[1] == c], SETTING.pool[0][SETTING.pool[1] != c]
        across = (pool.mean(0) - rest.mean(0)) / (pool.mean(0) - rest.mean(0)).norm()
        own = x[threat.task(SETTING).start[1] == c]
        for clean, poison in (
            ((pool - pool.mean(0)).norm(dim=1), (own - pool.mean(0)).norm(dim=1)),
            (((pool - pool.mean(0)) @ across).abs(), ((own - pool.mean(0)) @ across).abs()),
        ):
            assert bool((poison <= torch.quantile(clean, threat.passes.percentile / 100)).all())


@threats
def test_gradients_are_finite_differences_through_retraining(threat):
    task = threat.task(SETTING)
    aimed = threat.goal.aim(SETTING)
    x, h = task.start[0], 1e-2  # smaller steps drown in what training leaves of the gradient
    at = task.problem(Retrain(aimed)).arguments(x)
    gradient = task.problem(AdjointInfluence().fit(aimed, at)).gradient(x)
    true = task.problem(Retrain(aimed))
    for k in range(2):
        step = torch.zeros_like(x)
        step[0, k] = h
        actual = (true.value(x + step) - true.value(x - step)) / (2 * h)
        assert float(gradient[0, k]) == pytest.approx(actual, rel=1e-3, abs=1e-7)


ATTACKERS = [Influence(damping=0.1), EKFAC(), AdjointInfluence(damping=0.1), GradientMatching(), Unrolled()]


@pytest.mark.parametrize("estimator", ATTACKERS, ids=lambda estimator: type(estimator).__name__)
def test_every_estimator_finds_allowed_poisons_no_worse_than_its_start(estimator):
    algorithm = SGD(epochs=3, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.01)
    model = lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).double()  # noqa: E731
    setting = Setting(model, SETTING.pool, SETTING.probe, algorithm, output=Loss())
    task = ThreatModel(3, Near(linf=0.5)).task(setting)
    f_hat = estimator.fit(setting)
    found = solve(task, f_hat, GradientAscent(lr=0.2, steps=6))
    assert bool((task.feasible.excess(found.decision) <= 0).all())
    problem = task.problem(f_hat)
    assert problem.value(found.decision) >= problem.value(task.start[0])
    assert (found.decision - task.start[0]).abs().max() > 0.05


def test_metagradients_are_finite_differences_of_replays():
    algorithm = SGD(epochs=3, batch_size=16, lr=0.1, momentum=0.9, weight_decay=0.01, replay=True)
    model = lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).double()  # noqa: E731
    setting = Setting(model, SETTING.pool, SETTING.probe, algorithm, output=Loss())
    task = ThreatModel(2).task(setting)
    f_hat, f = Unrolled(models=2).fit(setting), Retrain(setting, seeds=(0, 1))
    x, h = task.start[0], 1e-5
    problem, true = task.problem(f_hat), task.problem(f)
    value, gradient = problem.value_and_gradient(x)
    assert value == pytest.approx(true.value(x), abs=1e-12)
    for k in range(3):
        step = torch.zeros_like(x)
        step[1, k] = h
        assert float(gradient[1, k]) == pytest.approx((true.value(x + step) - true.value(x - step)) / (2 * h), rel=1e-4)
    w = torch.ones(60, dtype=DOUBLE).requires_grad_()
    (by_weight,) = torch.autograd.grad(f_hat(w, task.batch(x)).mean(), w)
    step = 1e-5 * torch.eye(60, dtype=DOUBLE)[7]
    actual = (f(w + step, task.batch(x)) - f(w - step, task.batch(x))).mean() / 2e-5
    assert float(by_weight[7]) == pytest.approx(float(actual), rel=1e-4)
    assert f_hat.on(SETTING.pool).output_shape == (60,)
    others = Unrolled(models=2, fresh=True).fit(setting)
    for seeds in ((0, 1), (2, 3)):  # every call has runs of its own
        expected = Retrain(setting, seeds=seeds)(ONES, task.batch(x))
        torch.testing.assert_close(others(ONES, task.batch(x)), expected)
    with pytest.raises(NotImplementedError, match="SGD or AdamW"):
        Unrolled().fit(SETTING)


def test_gradient_matching_turns_the_poisons_gradient_against_the_loss():
    task = ThreatModel(3).task(SETTING)
    f_hat = GradientMatching().fit(SETTING)
    found = solve(task, f_hat, GradientAscent(lr=0.2, steps=20))
    f = Retrain(SETTING)
    assert f(ONES, task.batch(found.decision)).mean() > f(ONES, task.start).mean() > f(ONES).mean()
    with pytest.raises(NotImplementedError, match="the weights are those it was fitted at"):
        f_hat(0.5 * ONES)


def test_copies_are_as_many_poisons():
    f = Retrain(SETTING)
    x, y = SETTING.pool[0][:2], 1 - SETTING.pool[1][:2]
    task = Poisoning((x, y), copies=(3, 2))
    many = (x[[0, 0, 0, 1, 1]], y[[0, 0, 0, 1, 1]])
    assert task.problem(f).value(x) == pytest.approx(float(f(ONES, many).mean()))
    with pytest.raises(ValueError, match="how often each of 2 poisons"):
        Poisoning((x, y), copies=(1,)).problem(f)


def test_modified_points_are_gone():
    task, solution, f = attacked(THREATS["modified"])
    w, added = task.problem(f).arguments(solution.decision)
    assert (w == 0).nonzero().squeeze(1).tolist() == sorted(task.replaces)
    mixed, poison = poisoned(SETTING, added, task.replaces)
    assert (mixed.n, int(poison.sum())) == (60, 2)
    assert float(f(w, added).mean()) == pytest.approx(float(Retrain(mixed)(ONES)[:20].mean()) if f.m == 20 else -1)
    with pytest.raises(ValueError, match="indices below 60"):
        Poisoning(task.start, replaces=(60,)).problem(f)


def test_chosen_flips_do_more_harm_than_random_ones():
    f = Retrain(SETTING)
    chosen = [chosen_label_flips(SETTING, 4, Influence(), stages) for stages in (1, 4)]
    top, greedy, random = (float(f(ONES, b).mean()) for b in (*chosen, random_label_flips(SETTING, 4)))
    assert min(top, greedy) > random
    assert greedy >= top - 1e-3
    with pytest.raises(NotImplementedError, match="an `effect`: Influence, EKFAC"):
        chosen_label_flips(SETTING, 4, Random())
    with pytest.raises(ValueError, match="between 1 and 4 stages"):
        chosen_label_flips(SETTING, 4, Influence(), 5)


def test_surrogates_attack_a_victim_they_do_not_know():
    others = tuple(
        Setting(SETTING.model, SETTING.pool, SETTING.probe, LBFGS(l2=l2), output=Loss()) for l2 in (0.02, 0.2)
    )
    knowledge = Surrogates(Influence(), others)
    task = ThreatModel(0.05).task(SETTING)
    found = solve(task, knowledge.fit(), ASCENT, knowledge, SETTING)
    f = Retrain(SETTING)
    assert f(ONES, task.batch(found.decision)).mean() > f(ONES, task.start).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThreatModel(61).task(SETTING), "budget is a share below 1 or a count from 1 to the 60"),
        (lambda: ThreatModel(0.001).task(SETTING), "which is 0 poisons"),
        (lambda: ThreatModel(40, label=1).task(SETTING), "Only 30 training points suit"),
        (lambda: Subpopulation(torch.zeros(20, dtype=torch.bool)).aim(SETTING), "mask of 20 targets with one at least"),
        (lambda: Sanitation(percentile=0), "above 0 and at 100 at most"),
        (lambda: ThreatModel(float("nan")).task(SETTING), "share below 1 or a count from 1 to 60; got nan"),
        (lambda: ThreatModel(2, entry="pixels").task(SETTING), r"one of \[0, 1\]; got 'pixels'"),
        (lambda: Targeted(20, 0).aim(SETTING), "target from 0 to 19; got 20"),
        (
            lambda: Backdoor(CORNER, 1).aim(SETTING.on((SETTING.probe[0][1::2], SETTING.probe[1][1::2]))),
            "label 1 already",
        ),
        (lambda: Trigger(torch.ones(3), torch.ones(3)), "mask of booleans"),
        (lambda: ThreatModel(2, trigger=Trigger(torch.ones(2) > 0, torch.ones(2))).task(SETTING), r"shape \(3,\); got"),
        (
            lambda: ThreatModel(3, Near(l2=0.3), passes=Sanitation()).task(SETTING),
            "1 of 3 poisons cannot pass: .*label 0",
        ),
        (
            lambda: ThreatModel(3, Near(linf=0.1, range=Range(0, 1))).task(SETTING),
            "nothing in common in 7 of 9 entries",
        ),
        (
            lambda: ThreatModel(3, Near(l2=0.1, range=Range(0, 1))).task(SETTING),
            "outside of the range, farther than it",
        ),
        (lambda: ThreatModel(3, Range(0.2, 0.8, whole=True)).task(SETTING), "no whole number in 9 of 9 entries"),
    ],
)
def test_bad_threats(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tokens_are_refused():
    setting = Setting(
        lambda: torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(8, 2)),
        (torch.arange(12).reshape(6, 2) % 9, torch.arange(6) % 2),
        (torch.arange(4).reshape(2, 2), torch.arange(2)),
        SGD(epochs=1, batch_size=2, lr=0.1),
        output=Loss(),
    )
    with pytest.raises(ValueError, match="tokens can only have their labels flipped"):
        ThreatModel(2).task(setting)


def test_estimators_that_cannot_value_poisons_are_named_with_those_that_can():
    task = ThreatModel(2).task(SETTING)
    with pytest.raises(NotImplementedError, match="such as Influence"):
        solve(task, Random().fit(SETTING), ASCENT)


# ---- defences ------------------------------------------------------------------------------------------------------
DEFENCES = {
    "l2": CentroidDistance(),
    "slab": Slab(),
    "loss": TrainingLoss(),
    "k-NN": Neighbours(k=3),
    "signatures": SpectralSignatures(),
    "SVD": SpectralResidual(rank=1),
    "clustering": ActivationClustering(Inputs()),
    "self-influence": SelfInfluence(Influence()),
    "datamodel": Selection(Influence(), TopK()),
}
defences = pytest.mark.parametrize("defence", DEFENCES.values(), ids=DEFENCES)


def far_away():
    """Three points far out on the wrong side: every defence should see them."""
    x = torch.tensor([[14.0, 9.0, 0.0], [13.0, 9.0, 1.0], [14.0, 9.0, 0.0]], dtype=DOUBLE)
    return poisoned(SETTING, (x, torch.zeros(3, dtype=torch.long)))


@defences
def test_defences_score_every_point_and_find_what_sticks_out(defence):
    mixed, poison = far_away()
    scores = defence.scores(mixed)
    assert scores.shape == (63,)
    assert bool(scores.isfinite().all())
    assert inspect(defence, mixed, poison, share=0.1, per_class=False).poison > 0.6


@defences
def test_permuted_data_permute_the_scores(defence):
    mixed, _ = far_away()
    order = torch.randperm(63, generator=torch.Generator().manual_seed(1))
    shuffled = Setting(
        SETTING.model, batches.take(mixed.pool, order), SETTING.probe, LBFGS(l2=0.05, tolerance=1e-10), output=Loss()
    )
    torch.testing.assert_close(defence.scores(shuffled), defence.scores(mixed)[order], atol=1e-6, rtol=1e-5)


def test_neighbours_of_another_label():
    """A flipped point among others is seen; three poisons in one place vouch for each other, which this cannot see."""
    x = torch.arange(12.0, dtype=DOUBLE)[:, None] ** 1.5
    y = torch.tensor([0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    setting = Setting(lambda: torch.nn.Linear(1, 2).double(), (x, y), (x, y), LBFGS(l2=0.1))
    assert int(Neighbours(k=2, labels=True).scores(setting).argmax()) == 2
    mixed, poison = far_away()
    assert inspect(Neighbours(k=2, labels=True), mixed, poison, 0.1, per_class=False).poison == 0


def test_self_influence_is_minus_the_diagonal_of_the_effects():
    effects = Influence().fit(SETTING.on(SETTING.pool, Loss())).effects
    torch.testing.assert_close(SelfInfluence(Influence(), copies=None).scores(SETTING), -effects.diagonal())


def test_copies_are_identical_points_of_one_label_and_those_much_nearer_than_others():
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.2], [3.0, 0.0], [3.0, 0.0], [9.0, 9.0]], dtype=DOUBLE)
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    setting, named = (
        Setting(lambda: torch.nn.Linear(2, 2).double(), d, d, LBFGS()) for d in ((x, y), {"input": x, "labels": y})
    )
    for one in (setting, named):
        assert Copies(within=0).groups(one).tolist() == [0, 1, 2, 3, 1, 4, 5]
    assert Copies(features=Inputs()).groups(setting).tolist() == [0, 1, 2, 3, 1, 4, 5]
    with pytest.raises(ValueError, match="0 <= within < 1; got 1.0"):
        Copies(within=1.0)


def test_copies_count_as_one_point_with_the_sum_of_their_gradients():
    twice = (SETTING.pool[0][:1].repeat(3, 1) + 9, SETTING.pool[1][:1].repeat(3))
    mixed, poison = poisoned(SETTING, twice)
    effects = Influence().fit(mixed.on(mixed.pool, Loss())).effects
    scores = SelfInfluence(Influence()).scores(mixed)
    torch.testing.assert_close(scores[poison], (-effects[poison][:, poison].sum()).expand(3))
    torch.testing.assert_close(scores[poison], -9 * effects[-1, -1].expand(3))


def test_copies_that_vouch_for_each_other_are_found_together():
    """Eight times the same wrong point: the model is so bent by them that each alone seems to do nothing."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(160) % 2
    x = torch.randn(160, 5, generator=generator, dtype=DOUBLE)
    x[:, 0] += 3 * y
    model = lambda: torch.nn.Linear(5, 2).double()  # noqa: E731
    setting = Setting(model, (x[:100], y[:100]), (x[100:], y[100:]), LBFGS(l2=0.01), output=Loss())
    inputs = torch.tensor([[-1.0, 4.0, 4.0, 4.0, 4.0]], dtype=DOUBLE).repeat(8, 1)
    mixed, poison = poisoned(setting, (inputs, torch.ones(8, dtype=torch.long)))
    for make in (lambda c: SelfInfluence(Influence(), c), lambda c: Selection(Influence(), TopK(), copies=c)):
        alone, together = (inspect(make(c), mixed, poison, 0.1, per_class=False).poison for c in (None, Copies()))
        assert (alone, together) == (0.0, 1.0)


def test_poisons_that_pass_are_within_the_clean_percentiles():
    task, solution, _ = attacked(THREATS["sphere and slab"])
    x, y = task.batch(solution.decision)
    pool, own = SETTING.pool
    for c in y.unique():
        mean = pool[own == c].mean(0)
        radius = torch.quantile((pool[own == c] - mean).norm(dim=1), 0.9)
        assert bool(((x[y == c] - mean).norm(dim=1) <= radius).all())


def test_what_inspection_finds():
    scores, poison = torch.tensor([5.0, 1.0, 4.0, 0.0]), torch.tensor([True, False, False, True])
    found = caught(scores, poison, 0.5)
    assert found.inspected.tolist() == [True, False, True, False]
    assert (found.poison, found.clean) == (0.5, 0.5)
    each = most_suspicious(scores, 0.5, torch.tensor([0, 0, 1, 1]))
    assert each.tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="share from 0 to 1"):
        most_suspicious(scores, 1.5)
    for bad in (0, 60):
        with pytest.raises(ValueError, match="neighbours"):
            Neighbours(k=bad).scores(SETTING)
    with pytest.raises(ValueError, match="leaves 0 out"):
        Selection(Influence(), TopK(), share=0.001).scores(SETTING)


def test_the_goals_aim_at_their_targets():
    assert Indiscriminate().aim(SETTING).output_shape == (20,)
    wanted = Backdoor(CORNER, 1).aim(SETTING).probe
    assert bool((wanted[0][:, 0] == 6).all())
    assert set(wanted[1].tolist()) == {1}
    assert len(wanted[1]) == int((SETTING.probe[1] != 1).sum())
