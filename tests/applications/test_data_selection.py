"""Data selection on one's own data: limits, target sets, exports, and what bad input gets."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset as TorchSubset
from torch.utils.data import TensorDataset

from applications.data_selection import DataSelection, TargetSets, balanced, overlap, select
from estimators.influence import Influence
from recipe import (
    Alike,
    Convex,
    Greedy,
    GumbelTopK,
    LinearDatamodel,
    Logits,
    Loss,
    Solution,
    TopK,
    selection_path,
    solve,
)
from recipe.exports import part_of
from tests.worlds import logistic

SETTING = logistic(Loss())
N = 12
GENERATOR = torch.Generator().manual_seed(0)
F_HAT = LinearDatamodel(torch.zeros(4), torch.randn(4, N, generator=GENERATOR))
GROUPS = torch.arange(N) % 3


def test_select_is_one_call_and_its_answer_goes_everywhere(tmp_path):
    names = np.array(["web", "books", "code"])[SETTING.pool[1].numpy()]
    quotas = {"web": 2, "code": (1, 5)}
    solution = select(SETTING, 0.25, Influence(), groups=names, quotas=quotas, exclude=torch.tensor([0, 3]))
    index = solution.indices
    assert len(index) == 10
    assert not {0, 3} & set(index.tolist())
    assert (names[index] == "web").sum() == 2
    assert torch.equal(solution.mask.nonzero().squeeze(1), index)
    frame = solution.frame()
    assert frame["index"][frame["rank"] < 10].tolist() == index.tolist()
    chosen = frame[frame["chosen"] == 1].sort_values("rank")
    assert chosen["score"].is_monotonic_decreasing
    x, y = SETTING.pool
    assert torch.equal(solution.of((x, y))[1], y[index])
    part = solution.of(TensorDataset(x, y))
    assert isinstance(part, TorchSubset)
    assert part.indices == index.tolist()
    assert torch.equal(solution.of({"x": x, "labels": y})["labels"], y[index])
    assert np.array_equal(solution.of((x.numpy(), y.numpy()))[1], y[index].numpy())
    examples = list(zip(x, y, strict=True))
    assert [int(label) for _, label in solution.of(examples)] == y[index].tolist()
    assert solution.of(frame)["index"].tolist() == index.tolist()
    for name in ("one.csv", "one.npy", "one.txt"):
        solution.write(tmp_path / name)
    assert np.load(tmp_path / "one.npy").tolist() == index.tolist()
    assert [int(line) for line in (tmp_path / "one.txt").read_text().split()] == index.tolist()
    assert len((tmp_path / "one.csv").read_text().splitlines()) == SETTING.n + 1
    with pytest.raises(ValueError, match="ends in"):
        solution.write(tmp_path / "one.xlsx")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        solution.write(tmp_path / "nowhere" / "one.csv")
    solution.save(tmp_path / "saved")
    loaded = Solution.load(tmp_path / "saved")
    assert torch.equal(loaded.scores, solution.scores)
    assert torch.equal(loaded.indices, index)


def test_the_table_as_parquet_and_a_datasets_dataset(tmp_path):
    pd, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    pytest.importorskip("pyarrow")
    solution = solve(DataSelection(size=5), F_HAT, TopK())
    solution.write(tmp_path / "one.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "one.parquet"), solution.frame())
    text = datasets.Dataset.from_dict({"text": [f"number {i}" for i in range(N)]})
    assert solution.of(text)["text"][:] == [f"number {i}" for i in solution.indices.tolist()]
    with pytest.raises(ValueError, match="12 points; this data set has 11"):
        part_of(text.select(range(11)), solution.decision)


def test_counts_repeat_their_points():
    solution = solve(DataSelection(size=4, repeats=3), F_HAT, TopK())
    scores = -F_HAT.effects.mean(0)
    first, second = scores.topk(2).indices.tolist()
    assert sorted(solution.indices.tolist()) == sorted([first] * 3 + [second])
    assert "2 of 12 training points, 4 with repeats" in str(solution)


def test_all_limits_at_once_are_those_of_brute_force():
    costs = torch.rand(N, generator=GENERATOR)
    task = DataSelection(
        size=(4, 6), groups=GROUPS, quotas={0: (1, 2), 1: 2}, costs=costs, budget=2.5,
        include=torch.tensor([5]), exclude=torch.tensor([1]),
    )  # fmt: skip
    problem = task.problem(F_HAT)
    best = np.inf
    for x in itertools.product([0.0, 1.0], repeat=N):
        w = torch.tensor(x)
        counts = [int(w[g == GROUPS].sum()) for g in range(3)]
        kept = 4 <= w.sum() <= 6 and 1 <= counts[0] <= 2 and counts[1] == 2 and float(costs @ w) <= 2.5
        if kept and w[5] == 1 and w[1] == 0:
            best = min(best, problem.value(w))
    for solver in (TopK(), Convex(), Convex(integer=True), Greedy(refresh=3)):
        assert solve(task, F_HAT, solver).predicted == pytest.approx(best, abs=1e-6)


def test_target_sets_are_weighted_or_the_worst_counts():
    groups = torch.tensor([0, 0, 0, 1])
    effects = torch.stack([torch.linspace(-1, 1, N)] * 3 + [torch.linspace(1, -1, N) * 0.5])
    f_hat = LinearDatamodel(torch.zeros(4), effects)
    heavy = solve(DataSelection(size=6, sets=TargetSets(groups, {0: 1.0, 1: 9.0})), f_hat, TopK())
    assert heavy.indices.tolist() == [6, 7, 8, 9, 10, 11]
    light = solve(DataSelection(size=6, sets=TargetSets(groups, {0: 9.0, 1: 1.0})), f_hat, TopK())
    assert light.indices.tolist() == [0, 1, 2, 3, 4, 5]
    task = DataSelection(size=6, sets=TargetSets(groups, worst=True))
    exact = solve(task, f_hat, Convex(integer=True))
    values = [
        task.problem(f_hat).value(torch.zeros(N).index_fill(0, torch.tensor(c), 1.0))
        for c in itertools.combinations(range(N), 6)
    ]
    assert exact.predicted == pytest.approx(min(values), abs=1e-6)
    for solution in (heavy, light):
        assert exact.predicted < task.problem(f_hat).value(solution.decision)


def test_alike_points_are_avoided_by_the_datamodels_own_kernel():
    effects = torch.tensor([[-1.0, -0.99, -0.9, 0.0], [0.0, 0.0, 0.0, -0.8]])  # 0 and 1 do the same, 2 nearly
    f_hat = LinearDatamodel(torch.zeros(2), effects)
    assert solve(DataSelection(size=2), f_hat, TopK()).indices.tolist() == [0, 1]
    task = DataSelection(size=2, redundancy=Alike.by_effects(f_hat, weight=1.0))
    for solver in (Convex(), Greedy(), Greedy(adding=True)):
        assert solve(task, f_hat, solver).indices.tolist() == [0, 3]


def test_a_path_is_nested_and_ends_as_top_k():
    task = DataSelection(size=1, include=torch.tensor([2]))
    path = selection_path(task, F_HAT, TopK(), sizes=[2, 5, 9])
    assert path.sizes == (9, 5, 2)
    for larger, smaller in itertools.pairwise(path.decisions):
        assert bool((smaller <= larger).all())
    for size in path.sizes:
        alone = solve(replace(task, size=size), F_HAT, TopK())
        assert torch.equal(path.of(size), alone.decision)  # linear: nested anyway
    assert path.stays[2] == 2
    with pytest.raises(ValueError, match=r"sizes \(9, 5, 2\); got 3"):
        path.of(3)
    with pytest.raises(ValueError, match="estimator that the datamodel comes from"):
        selection_path(task, F_HAT, TopK(), sizes=[2], refit=True)
    f_hat = Influence().fit(SETTING)
    walked = selection_path(DataSelection(size=1), f_hat, TopK(), sizes=[30, 20, 10], refit=True)
    assert walked.decisions.sum(1).tolist() == [30, 20, 10]
    assert bool((walked.decisions.diff(dim=0) <= 0).all())


def test_a_path_pays_for_alike_points_as_each_size_alone_does():
    task = DataSelection(size=1, redundancy=Alike.by_effects(F_HAT, weight=0.5))
    path = selection_path(task, F_HAT, Greedy(refresh=2), sizes=[3, 6])
    for size, predicted in zip(path.sizes, path.predicted.tolist(), strict=True):
        alone = replace(task, size=size).problem(F_HAT).value(path.of(size))
        assert predicted == pytest.approx(alone, abs=1e-6)


def test_gumbel_draws_in_proportion():
    """With one point to choose, the shares are softmax(score / (temperature std))."""
    f_hat = LinearDatamodel(torch.zeros(1), -torch.tensor([[0.0, 1.0, 2.0]]))
    problem = DataSelection(size=1).problem(f_hat)
    drawn = torch.stack([GumbelTopK(2.0, s).solve(problem) for s in range(600)])
    expected = (torch.tensor([0.0, 1.0, 2.0]) / 2).softmax(0)  # their standard deviation is 1
    assert ((drawn.mean(0) - expected).abs() < 4 * (expected * (1 - expected) / 600).sqrt()).all()
    uniform = torch.stack([GumbelTopK(np.inf, s).solve(problem) for s in range(300)])
    assert ((uniform.mean(0) - 1 / 3).abs() < 4 * (2 / 9 / 300) ** 0.5).all()


def test_several_groupings_by_name():
    """So many of each class, and so many from each source, on one problem."""
    labels, sources = SETTING.pool[1].numpy(), np.array(["web", "books"])[np.arange(SETTING.n) % 2]
    groups = {"class": labels, "source": sources}
    chosen = select(SETTING, 9, Influence(), TopK(), groups=groups, quotas={"source": {"books": (0, 3)}}).indices
    counts = np.bincount(labels[chosen])
    assert counts.max() - counts.min() <= 1  # balanced where no quotas are asked for
    assert (sources[chosen] == "books").sum() <= 3
    with pytest.raises(ValueError, match="grouping 'domain'; groupings: "):
        select(SETTING, 9, Influence(), groups=groups, quotas={"domain": {"a": 1}})


@pytest.mark.parametrize("size", [3, 5, 8, 11])
def test_balanced_quotas_differ_by_one_at_most_where_they_can(size):
    groups = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    chosen = DataSelection(size, groups, balanced(groups, size)).subset(11).best(torch.randn(11))
    counts = groups[chosen.bool()].bincount(minlength=3)
    assert counts.sum() == size
    assert counts[0] == 1
    assert (counts[1] - counts[2]).abs() <= 1


def test_balanced_quotas_do_not_count_what_is_excluded():
    exclude = torch.tensor([0, 3, 6])  # leaves one of group 0
    task = DataSelection(6, GROUPS, balanced(GROUPS, 6, exclude), exclude=exclude)
    assert GROUPS[task.subset(N).best(torch.randn(N)).bool()].bincount(minlength=3)[0] == 1


REFUSED = {
    "share": (dict(size=1.5), "share of all between 0 and 1; got 1.5"),
    "quotas above the size": (dict(size=3, groups=GROUPS, quotas={0: 2, 1: 2}), "4 to 8 points, the size 3 to 3"),
    "quota below include": (
        dict(size=5, groups=GROUPS, quotas={0: 1}, include=torch.tensor([0, 3])), "Group 0 has 2 points in include"
    ),
    "quota above what exclude leaves": (
        dict(size=5, groups=GROUPS, quotas={0: 4}, exclude=torch.tensor([0])), "3 points that exclude and repeats leave"
    ),
    "in and out": (
        dict(size=5, include=torch.tensor([1, 4]), exclude=torch.tensor([4, 7])), r"\[4\] are in include and in exclude"
    ),
    "include above the size": (dict(size=1, include=torch.tensor([1, 2])), "include holds 2 points, the size at most"),
    "size above what exclude leaves": (dict(size=11, exclude=torch.tensor([1, 2])), "exclude and repeats leave 10"),
    "twice without repeats": (dict(size=5, include=torch.tensor([1, 1])), "more often than repeats allows"),
    "points outside": (dict(size=5, include=torch.tensor([3, 12, -1])), r"indices from 0 to 11; got \[12, -1\]"),
    "a list": (dict(size=5, exclude=[3]), "a tensor of indices; got list"),
    "no points": (dict(size=0.01), "the size 0.01 of 12 is none"),
    "three sizes": (dict(size=(1, 2, 3)), r"k or \(fewest, most\); got \(1, 2, 3\)"),
    "redundancy of other points": (dict(size=5, redundancy=Alike.cosine(torch.ones(7, 2), 1.0)), "of 7 points; there"),
    "a mask": (dict(size=5, exclude=torch.zeros(12, dtype=torch.bool)), r"nonzero\(\)"),
    "groups of another length": (dict(size=5, groups=GROUPS[:4], quotas={0: 1}), r"groups \(12,\)"),
    "NaN costs": (dict(size=5, costs=torch.full((12,), torch.nan), budget=1.0), "finite and not negative"),
    "negative costs": (dict(size=5, costs=-torch.ones(12), budget=1.0), "not negative"),
    "include above the budget": (
        dict(size=(1, 5), costs=torch.arange(12.0), budget=3.0, include=torch.tensor([9])), "costs 9; got the budget 3"
    ),
    "target sets of another length": (dict(size=5, sets=TargetSets(torch.zeros(3).long())), "for 3"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_infeasible_limits_say_which_conflict(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(DataSelection(**arguments), F_HAT, TopK())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(groups=torch.zeros(4)), "integers"),
        (dict(groups=GROUPS, weights={0: 1.0}), r"target sets \[0, 1, 2\]"),
        (dict(groups=GROUPS, weights={0: 1.0, 1: -1.0, 2: 0.0}), "at least 0"),
        (dict(groups=GROUPS, weights={0: 0.0, 1: 0.0, 2: 0.0}), "nothing to optimise"),
        (dict(groups=GROUPS, weights={0: 1.0, 1: 1.0, 2: 1.0}, worst=True), "not both"),
    ],
)
def test_bad_target_sets_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TargetSets(**arguments)


def test_targets_in_the_universe_are_counted_in_a_warning():
    x, y = SETTING.pool
    setting = replace(SETTING, targets=(torch.cat([x[:2], SETTING.probe[0]]), torch.cat([y[:2], SETTING.probe[1]])))
    assert overlap(setting) == 2
    with pytest.warns(UserWarning, match="2 of 8 targets are in the universe too"):
        solve(DataSelection(size=5), Influence().fit(setting), TopK())
    assert overlap(SETTING) == 0


def test_an_inaccurate_answer_of_cvxpy_names_another_solver(monkeypatch):
    import cvxpy as cp

    solved = cp.Problem.solve

    def inaccurate(self, **options):
        value = solved(self, **options)
        self._status = cp.OPTIMAL_INACCURATE
        return value

    monkeypatch.setattr(cp.Problem, "solve", inaccurate)
    with pytest.warns(UserWarning, match=r"optimal_inaccurate.*Greedy\(refresh=10\)"):
        solve(DataSelection(size=5), F_HAT, Convex())


class Never:
    def fit(self, setting, at=None):
        raise AssertionError


NAMES = ["web", "books", "code", "web"] * 10
TOO_LATE = {
    "quota": (dict(groups=NAMES, quotas={"web": 40}), "Group 'web' has 20 points; got the quota 40"),
    "include": (dict(groups=NAMES, quotas={"code": 1}, include=[2, 6]), "Group 'code' has 2 points in include"),
    "several": (
        dict(groups={"one": NAMES, "two": NAMES}, quotas={"one": {"web": 3}, "two": {"web": 2, "code": 0}}),
        r"group 'web' of grouping [01] by 1",
    ),
    "groups of another length": (dict(groups=NAMES[:7]), r"a group for each of 40 points; got the shape \(7,\)"),
    "two groupings without names": (dict(groups=(NAMES, NAMES)), "Several groupings go by name"),
    "missing names": (dict(groups=[None, *NAMES[1:]]), "got NoneType, str. Give missing ones a name"),
    "quotas of no group": (dict(groups={"one": NAMES}, quotas={"one": 3}), r"Expected quotas as \{group: k\}"),
    "excluded points outside": (dict(groups=NAMES, exclude=[40]), r"indices from 0 to 39; got \[40\]"),
    "costs of no numbers": (dict(costs=["dear"] * 40, budget=3.0), "could not convert string"),
    "target sets": (dict(sets=TargetSets(torch.zeros(3).long())), "There are 6 outputs; the target sets are for 3"),
}


@pytest.mark.parametrize(("arguments", "message"), TOO_LATE.values(), ids=TOO_LATE)
def test_nothing_is_trained_for_impossible_limits(arguments, message):
    with pytest.raises(ValueError, match=message):
        select(SETTING, 5, Never(), **arguments)


def test_nothing_is_trained_for_outputs_that_are_no_losses():
    with pytest.raises(ValueError, match="about losses"):
        select(replace(SETTING, output=Logits()), 5, Never())


def test_lists_will_do_and_repeats_count_in_balanced_groups():
    groups = ["few"] * 2 + ["many"] * (SETTING.n - 2)
    solution = select(SETTING, 8, Influence(), TopK(), groups=groups, include=[5], exclude=[], repeats=2)
    counts = solution.decision
    assert counts[:2].sum() == 4
    assert counts[2:].sum() == 4
    assert counts[5] >= 1


def test_top_k_is_not_what_the_worst_set_needs():
    sets = TargetSets(torch.arange(6) % 2, worst=True)
    with pytest.warns(UserWarning, match=r"Convex\(\) minimises the worst"):
        select(SETTING, 5, Influence(), TopK(), sets=sets)
