"""The command line: its numbers are the library's, its folders load, and its errors come before any training."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from applications.data_selection import DataSelection
from applications.debugging import Debugging, as_predicted, blame
from applications.poisoning import LabelFlipKKT, Poisoning, Sanitation, already_wrong, random_label_flips
from applications.unlearning import Unlearning
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from recipe import (
    Loss,
    Retrain,
    Setting,
    Solution,
    TopMargin,
    Verification,
    lds,
    plugins,
    random_subsets,
    solve,
    verify,
)
from recipe.arguments import load_setting
from recipe.calculus import GaussNewton, Hessian
from recipe.cli import app
from recipe.feasible import Box
from recipe.job import expected as EXPECTED
from recipe.lds import LDS
from recipe.record import Folder
from recipe.solvers.convex import Convex
from recipe.solvers.gradient_ascent import GradientAscent
from recipe.solvers.greedy import Greedy
from recipe.solvers.top_k import TopK

SPEC = '''
import torch
from recipe import Newton, Setting

torch.manual_seed(0)
x = torch.rand(48, 2)
y = (x[:, 0] > x[:, 1]).long()
trained = []


class Counting(Newton):
    """Newton's method that counts the models it trains."""

    def train_many(self, setting, weights, seeds, added=None):
        trained.extend(seeds)
        return super().train_many(setting, weights, seeds, added)


setting = Setting(lambda: torch.nn.Linear(2, 2), (x[:40], y[:40]), (x[40:], y[40:]), Counting(l2=0.01))
print("a line that the user prints")


def make():
    return setting


def fails():
    raise RuntimeError("the disk is full")


def needs(argument):
    return setting


number = 3
'''
TASKS = {
    "select": ["--size", "10"],
    "unlearn": ["--forget", "0-3"],
    "poison": ["--count", "2"],
    "debug": ["--target", "3", "--remove", "4"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A folder with a setting, and an import path that the test may change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("recipe.job.expected", lambda cost: "1 s")  # measuring trains a few models as well
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("tiny_setting", "_setting_tiny_setting"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "tiny_setting.py").write_text(SPEC)


@pytest.fixture
def setting() -> Setting:
    return load_setting("tiny_setting.py:setting")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def trained() -> int:
    """How many models the last command trained."""
    module = sys.modules.get("_setting_tiny_setting")
    return len(module.trained) if module else 0


def document(*words):
    return json.loads(call(*words, "--json").stdout)


def refused(*words) -> str:
    """The message of a command that ends with code 2, before anything is trained or printed."""
    result = call(*words, code=2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert trained() == 0
    return result.stderr


def same(record, solution, verification):
    """The JSON document's numbers are those of the library."""
    assert record["solution"]["decision"] == solution.decision.tolist()
    assert record["solution"]["predicted"] == solution.predicted
    assert record["solution"]["outputs"] == solution.outputs.tolist()
    close = partial(pytest.approx, rel=1e-3, abs=1e-5)  # runs that train together, or alone, differ by rounding
    assert record["verification"]["actual"]["mean"] == close(verification.actual.mean)
    assert record["verification"]["outputs_actual"] == close(verification.outputs_actual.tolist())
    means = {name: one["mean"] for name, one in record["verification"]["baselines"].items()}
    assert means == close({name: one.mean for name, one in verification.baselines.items()})


def directly(task, estimator, solver, f):
    solution = solve(task, estimator.fit(f.setting), solver)
    return solution, verify(solution, f)


# ---- the numbers are the library's -----------------------------------------------------------------------------------
def test_select(setting):
    record = document("select", "tiny_setting.py:setting", "--size", 10, "--seeds", 2)
    f = Retrain(setting, range(2)).on(output=Loss())
    solution, verification = directly(DataSelection(10), Influence(), TopK(), f)
    same(record, solution, verification)
    assert record["chosen"] == solution.decision.nonzero().squeeze(1).tolist()
    assert len(record["chosen"]) == 10


def test_select_with_all_limits_writes_what_the_library_writes(setting, tmp_path):
    np.save(tmp_path / "costs.npy", np.arange(40) / 40)
    words = ["--size", 10, "--groups", "labels", "--quota", "0=2", "--quota", "1=3:9", "--costs", "costs.npy",
             "--budget", 6, "--include", "5", "--exclude", "0-2", "--write", "chosen.csv", "--seeds", 0]  # fmt: skip
    record = document("select", "tiny_setting.py:setting", *words)
    f, labels = Retrain(setting).on(output=Loss()), setting.pool[1]
    costs = torch.arange(40, dtype=torch.double) / 40
    task = DataSelection(
        10, labels, {0: 2, 1: (3, 9)}, costs, 6.0, include=torch.tensor([5]), exclude=torch.tensor([0, 1, 2])
    )
    solution = solve(task, Influence().fit(f.setting), TopK())
    assert record["chosen"] == solution.indices.tolist()
    solution.write(tmp_path / "library.csv")
    assert (tmp_path / "chosen.csv").read_text() == (tmp_path / "library.csv").read_text()
    balanced = document("select", "tiny_setting.py:setting", "--size", 9, "--groups", "labels", "--seeds", 0)["chosen"]
    counts = labels[balanced].bincount().tolist()
    assert max(counts) - min(counts) <= 1


def test_select_with_several_groupings(setting, tmp_path):
    halves = np.arange(40) % 2 + 4
    np.save(tmp_path / "half.npy", halves)
    words = ["--size", 10, "--seeds", 0, "--groups", "labels", "--groups", "half.npy"]
    record = document("select", "tiny_setting.py:setting", *words, "--quota", "half:4=3", "--quota", "labels:0=2:4")
    f, labels = Retrain(setting).on(output=Loss()), setting.pool[1]
    task = DataSelection(10, (labels, torch.from_numpy(halves)), ({0: (2, 4)}, {4: 3}))
    assert record["chosen"] == solve(task, Influence().fit(f.setting), TopK()).indices.tolist()
    chosen = document("select", "tiny_setting.py:setting", *words, "--quota", "half:4=3")["chosen"]
    counts = labels[chosen].bincount().tolist()
    assert max(counts) - min(counts) <= 1  # no quotas of labels: balanced
    assert int((halves[chosen] == 4).sum()) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quota", "0=2"], "Pass both or neither"),
        (["--groups", "labels", "--quota", "source:0=2"], "the grouping 'source'; groupings: labels"),
        (["--groups", "labels", "--groups", "labels"], "different names; got labels, labels"),
        (["--groups", "labels", "--quota", "two=1"], "Expected a quota as group=k"),
        (["--groups", "labels", "--quota", "0=30"], "Group 0 has"),
        (["--costs", "none.npy", "--budget", "1"], "There is no file none.npy"),
        (["--include", "1", "--exclude", "0-4"], r"\[1\] are in include and in exclude"),
        (["--write", "chosen.xlsx"], "ends in"),
        (["--write", "nowhere/chosen.csv"], "there is no nowhere. Make it first"),
    ],
)
def test_select_refuses_limits_that_conflict_before_training(words, message):
    result = call("select", "tiny_setting.py:setting", "--size", 10, *words, code=2)
    assert re.search(message, result.stderr)
    assert trained() == 0


def test_select_with_other_plug_ins_and_parameters(setting):
    record = document(
        "select", "tiny_setting:make", "--size", "0.2:0.5", "--seeds", 1, "--estimator", "newton-step",
        "--set", "curvature=Hessian()", "--set", "damping=0.01", "--solver", "greedy", "--solver-set", "refresh=4",
    )  # fmt: skip
    f = Retrain(setting).on(output=Loss())
    estimator, solver = NewtonStep(Hessian(), damping=0.01), Greedy(refresh=4)
    same(record, *directly(DataSelection((8, 20)), estimator, solver, f))


def test_unlearn(setting, tmp_path):
    np.save(tmp_path / "forget.npy", np.array([0, 1, 2, 7]))
    record = document("unlearn", "tiny_setting.py:setting", "--forget", "0-2,7", "--seeds", 2)
    deployed = setting.outputs(setting.algorithm.train(setting, torch.ones(40), 0)).detach()
    task = Unlearning(torch.tensor([0, 1, 2, 7]), deployed)
    same(record, *directly(task, NewtonStep(GaussNewton()), Convex(), Retrain(setting, range(2))))
    stored = document("unlearn", "tiny_setting.py:setting", "--forget", "forget.npy", "--seeds", 2)
    assert stored["solution"]["decision"] == record["solution"]["decision"]
    assert record["verification"]["actual"]["mean"] < record["verification"]["baselines"]["do nothing"]["mean"] / 10


def test_poison(setting):
    words = ["--count", 3, "--seed", 5, "--range", "-0.5:1", "--seeds", 1, "--solver-set", "steps=7"]
    record = document("poison", "tiny_setting.py:setting", *words)
    start = random_label_flips(setting, 3, 5)
    low, high = torch.full((3, 2), -0.5), torch.ones(3, 2)
    task = Poisoning(start, Box.between(low, high))
    f = Retrain(setting).on(output=Loss())
    same(record, *directly(task, Influence(), GradientAscent(lr=0.05, steps=7), f))


def test_targets_that_were_wrong_before_the_attack_are_counted(setting):
    said = call("poison", "tiny_setting.py:setting", "--count", 2, "--seeds", 2).stderr
    assert f"{already_wrong(setting, seeds=range(2))} of 8 targets were wrong before the attack." in said
    assert "wrong before" not in call("poison", "tiny_setting.py:setting", "--count", 2, "--seeds", 0).stderr


def test_poison_by_the_kkt_attack(setting):
    knobs = ["--solver", "kkt", "--solver-set", "shares=(0.5, 1.0)", "--solver-set", "repeats=(1,)"]
    record = document("poison", "tiny_setting.py:setting", "--count", 4, "--passes", 95, "--seeds", 1, *knobs)
    start = random_label_flips(setting, 4, 0)
    low, high = setting.pool[0].aminmax()
    box = Box.between(torch.full((4, 2), float(low)), torch.full((4, 2), float(high)))
    f = Retrain(setting).on(output=Loss())
    task = Poisoning(start, Sanitation(percentile=95).allowed(f.setting, start[1], box))
    same(record, *directly(task, Influence(), LabelFlipKKT((0.5, 1.0), (1,)), f))
    assert record["verification"]["actual"]["mean"] > record["verification"]["baselines"]["do nothing"]["mean"]


def test_poisons_stay_in_the_range_of_the_universe(setting):
    record = document("poison", "tiny_setting.py:setting", "--count", 3, "--seeds", 0)
    inputs = torch.tensor(record["solution"]["decision"])
    assert inputs.min() >= setting.pool[0].min() - 1e-6
    assert inputs.max() <= setting.pool[0].max() + 1e-6


def test_poisons_are_saved_with_what_they_were_allowed(setting, tmp_path):
    words = ["--count", 3, "--near", 0.25, "--seeds", 0, "--solver-set", "steps=4", "--out", tmp_path / "run"]
    record = document("poison", "tiny_setting.py:setting", *words)
    with np.load(tmp_path / "run" / "poisons.npz") as saved:
        moved = np.abs(saved["inputs"] - saved["start"]).max()
        assert 0 < moved <= 0.25 + 1e-6
        np.testing.assert_allclose(saved["inputs"], record["solution"]["decision"], atol=1e-6)
        assert saved["labels"].shape == (3,)
    assert json.loads((tmp_path / "run" / "threat_model.json").read_text())["near"] == 0.25


@pytest.mark.parametrize("remove", [1, 12])
def test_debug(setting, remove):
    words = ["--target", 3, "--remove", remove, "--show", 4, "--seeds", 2]
    record = document("debug", "tiny_setting.py:setting", *words)
    f = Retrain(setting, range(2))
    f = f.on(as_predicted(f), TopMargin())
    solution, verification = directly(Debugging(3, remove), Influence(), TopK(), f)
    same(record, solution, verification)
    blamed, finding = blame(Influence().fit(f.setting), 3, 4), record["finding"]
    assert list(finding["helpful"]) == [str(i) for i in blamed.helpful.tolist()]
    assert list(finding["harmful"].values()) == blamed.effects[blamed.harmful].tolist()
    assert finding["removed"] == (solution.decision == 0).nonzero().squeeze(1).tolist()
    assert finding["predicted"] == f.setting.probe[1][3]
    assert finding["flipped"] == (verification.outputs_actual[3] < 0)


def test_lds(setting):
    words = ["--subsets", 6, "--alpha", 0.6, "--seed", 3, "--seeds", 2, "--set", "damping=0.1"]
    record = document("lds", "tiny_setting.py:setting", *words)["lds"]
    wanted = lds(Influence(damping=0.1).fit(setting), Retrain(setting, range(2)), random_subsets(40, 6, 0.6, 3))
    assert (record["mean"], record["slope"], record["seeds"]) == (wanted.mean, wanted.slope, 2)
    assert record["per_output"] == wanted.per_output.tolist()


def test_a_bank_and_workers_change_no_number_and_the_bank_can_be_looked_into(setting):
    words = ["lds", "tiny_setting.py:setting", "--subsets", 6, "--seeds", 2]
    expected = pytest.approx(document(*words)["lds"]["slope"], rel=1e-6)
    assert document(*words, "--bank", "runs/bank", "--workers", 1)["lds"]["slope"] == expected
    before = trained()
    assert document(*words, "--bank", "runs/bank")["lds"]["slope"] == expected
    assert trained() == before + 1  # the datamodel's own: parameters are not kept
    held = document("bank", "show", "runs/bank")
    assert (held["runs"], held["seeds"]) == (13, 2)
    assert "13 with 2 seeds" in call("bank", "show", "runs/bank").stdout
    call("bank", "export", "runs/bank", "runs.npz")
    assert len(np.load("runs.npz")["seed"]) == 13
    assert not document("bank", "check", "runs/bank")["damaged"]
    next(Path("runs/bank/segments").glob("*/seed/c/0")).write_bytes(b"x")
    assert "damaged" in call("bank", "check", "runs/bank", code=1).stdout
    assert document("bank", "check", "runs/bank", "--repair")["repaired"]
    assert not document("bank", "check", "runs/bank")["damaged"]
    assert "There is no bank" in call("bank", "show", "runs/none", code=2).stderr


# ---- what is printed and saved ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TASKS)
def test_tables_go_to_stdout_and_the_rest_to_stderr(name, tmp_path):
    result = call(name, "tiny_setting.py:setting", *TASKS[name], "--seeds", 2, "--out", "runs/one")
    solution, verification = Solution.load("runs/one"), Verification.load("runs/one")
    assert str(verification) in result.stdout
    assert str(solution).splitlines()[-2] in result.stdout
    assert "a line that the user prints" not in result.stdout
    assert "a line that the user prints" in result.stderr
    assert "n = 40 training points, m = 8 outputs, p = 6 parameters" in result.stderr


def test_the_expected_cost_is_said_before(monkeypatch):
    monkeypatch.setattr("recipe.job.expected", EXPECTED)
    result = call("lds", "tiny_setting.py:setting", "--subsets", 4, "--seeds", 1)
    assert re.search(r"Expected to fit Influence: [\d.]+ m?s, .*FLOP, .*B of memory\.", result.stderr)
    assert re.search(r"Expected to compare with: [\d.]+ m?s, .*FLOP, .*B of memory\.", result.stderr)


@pytest.mark.parametrize("name", TASKS)
def test_the_announced_number_of_models_is_trained(name):
    result = call(name, "tiny_setting.py:setting", *TASKS[name], "--seeds", 2)
    announced = result.stderr.partition("Models to train:")[2].splitlines()[0]
    assert sum(map(int, re.findall(r"\d+ ", announced))) == trained()


def test_the_announced_number_of_models_of_regression_is_trained():
    words = ["--subsets", 5, "--seeds", 2, "--estimator", "regression", "--set", "subsets=6"]
    result = call("lds", "tiny_setting.py:setting", *words)
    assert "Models to train: 6 to fit Regression, 10 to compare with." in result.stderr
    assert trained() == 16


@pytest.mark.parametrize("name", TASKS)
def test_a_saved_folder_holds_what_was_printed(name):
    record = document(name, "tiny_setting.py:setting", *TASKS[name], "--seeds", 2, "--out", "runs/one")
    same(record, Solution.load("runs/one"), Verification.load("runs/one"))


def test_lds_saves_its_score():
    record = document("lds", "tiny_setting.py:setting", "--subsets", 4, "--seeds", 1, "--out", "runs/one")["lds"]
    folder = Folder(Path("runs/one"))
    loaded = folder.decode(folder.read("lds.json")["value"])
    assert isinstance(loaded, LDS)
    assert (loaded.mean, loaded.per_output.tolist()) == (record["mean"], record["per_output"])
    assert record["ceiling"] is None  # not a number for a single seed


def test_without_seeds_nothing_is_verified():
    record = document("select", "tiny_setting.py:setting", "--size", 10, "--seeds", 0, "--out", "one")
    assert record["verification"] is None
    assert trained() == 1
    assert Solution.load("one").predicted == record["solution"]["predicted"]
    with pytest.raises(FileNotFoundError, match=r"holds no verification\.json"):
        Verification.load("one")


def test_numbers_that_json_cannot_hold_are_null():
    record = document("select", "tiny_setting.py:setting", "--size", 10, "--seeds", 1)
    assert record["verification"]["actual"]["error"] is None
    assert set(record["verification"]["outputs_error"]) == {None}


@pytest.mark.parametrize("name", ["select", "lds"])
def test_another_run_is_replaced_only_when_asked(name, tmp_path):
    own = {"select": ["--size", "10", "--seeds", "0"], "lds": ["--subsets", "4", "--seeds", "1"]}[name]
    call(name, "tiny_setting.py:setting", *own, "--out", "one")
    (tmp_path / "one" / "notes.txt").write_text("of that run")
    before = trained()
    message = call(name, "tiny_setting.py:setting", *own, "--out", "one", code=2).stderr
    assert re.search(r"one exists and holds another run.*--overwrite", message, re.DOTALL)
    assert trained() == before
    call(name, "tiny_setting.py:setting", *own, "--out", "one", "--overwrite")
    assert {"select": "solution.json", "lds": "lds.json"}[name] in {p.name for p in (tmp_path / "one").iterdir()}
    assert not (tmp_path / "one" / "notes.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    message = call(name, "tiny_setting.py:setting", *own, "--out", "mine", "--overwrite", code=2).stderr
    assert "something else than a run" in message
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


def test_a_run_that_fails_leaves_nothing(tmp_path):
    words = ["--size", 10, "--solver", "gradient-ascent", "--solver-set", "lr=1", "--solver-set", "steps=1"]
    result = call("select", "tiny_setting.py:setting", *words, "--out", "runs/one", code=2)
    assert "GradientAscent cannot solve DataSelection: " in result.stderr
    assert not (tmp_path / "runs").exists()


# ---- list and demo ---------------------------------------------------------------------------------------------------
def test_list_shows_every_entry_point_with_a_line():
    found = document("list")
    assert {title: set(entries) for title, entries in found.items()} == {
        f"{noun}s": set(plugins.available(group)) for group, noun in plugins.NOUNS.items()
    }
    text = call("list").stdout
    for entries in found.values():
        for name, entry in entries.items():
            assert re.search(rf"^  {name} +{re.escape(entry['about'])}$", text, re.MULTILINE)


def test_list_shows_a_broken_plug_in_beside_the_others(monkeypatch):
    find = plugins.find

    def broken(group, name):
        if name == "random":
            raise ValueError("cannot be imported")
        return find(group, name)

    monkeypatch.setattr(plugins, "find", broken)
    found = document("list")["estimators"]
    assert found["random"]["about"] == "cannot be imported"
    assert found["influence"]["about"] == plugins.about(Influence)


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    asked = []
    stand_in = SimpleNamespace(run=lambda out, overwrite, seeds: asked.append((str(out), overwrite, seeds)))
    monkeypatch.setitem(sys.modules, "recipe.demo", stand_in)
    call("demo")
    call("demo", "--out", "there", "--overwrite", "--seeds", 2)
    assert asked == [("runs/demo", False, 5), ("there", True, 2)]


def test_demo_reports_what_it_refuses(monkeypatch):
    def run(out, overwrite, seeds):
        raise FileExistsError("runs/demo exists")

    monkeypatch.setitem(sys.modules, "recipe.demo", SimpleNamespace(run=run))
    assert refused("demo") == "Error: runs/demo exists\n"


# ---- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny_setting.py", r"Expected SPEC as file\.py:name or module:name.*got 'tiny_setting\.py'"),
        ("nowhere.py:setting", r"There is no file nowhere\.py"),
        ("nowhere:setting", "There is no module 'nowhere'"),
        ("nowhere.at.all:setting", r"There is no module 'nowhere\.at\.all'"),
        ("tiny_setting.py:settings", r"has no 'settings'\. Did you mean setting\?"),
        ("tiny_setting.py:number", "must be a Setting, or a function without arguments.*got int"),
        ("tiny_setting.py:fails", r"fails\(\) in .*line \d+\): RuntimeError: the disk is full"),
        ("tiny_setting.py:needs", r"needs\(\) .*TypeError: .*missing 1 required positional argument"),
        ("broken.py:setting", r"broken\.py failed \(broken\.py, line 2\): ZeroDivisionError: division by zero"),
        ("broken:setting", r"broken failed \(broken\.py, line 2\): ZeroDivisionError: division by zero"),
    ],
)
def test_a_bad_spec(spec, message, tmp_path):
    (tmp_path / "broken.py").write_text("a = 0\nb = 1 / a\n")
    assert re.search(message, refused("select", spec, "--size", 10), re.DOTALL)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["select", "--size", "100"], "at most n = 40 points; got size 100"),
        (["select", "--size", "some"], "size as 300, 0.3"),
        (["select", "--size", "10", "--estimator", "influense"], "no estimator 'influense'. Nearest: influence"),
        (["select", "--size", "10", "--solver", "topk"], "no solver 'topk'. Nearest: top-k"),
        (["select", "--size", "10", "--set", "model=3"], "no parameter 'model'. Nearest: models"),
        (["select", "--size", "10", "--estimator", "regression"], "Regression needs a value for subsets"),
        (["select", "--size", "10", "--solver-set", "k=3"], "TopK has no parameter 'k'"),
        (["poison", "--count", "2", "--solver", "gradient-ascent", "--solver-set", "lr=-1"], "positive lr"),
        (["unlearn", "--forget", "0-99"], "indices 0..39; got 100 indices from 0 to 99"),
        (["unlearn", "--forget", "none.npy"], "no file none.npy"),
        (["unlearn", "--forget", "a,b"], "points as 0-9,17"),
        (["poison", "--count", "0"], "between 1 and 40 poisons"),
        (["poison", "--count", "2", "--range", "high"], "range as low:high"),
        (["poison", "--count", "2", "--range", "1:0"], "Is low above high?"),
        (["poison", "--count", "2", "--entry", "1"], "entry of floating inputs that can be changed (0); got '1'"),
        (["debug", "--target", "8", "--remove", "3"], "target from 0 to 7; got 8"),
        (["debug", "--target", "0", "--remove", "40"], "Between 1 and 39 points can be removed"),
        (["lds", "--seeds", "0"], "at least one seed"),
        (["lds", "--alpha", "2"], "share alpha"),
    ],
)
def test_bad_options_are_refused_before_training(words, message):
    name, *own = words
    assert message in refused(name, "tiny_setting.py:setting", *own)


def test_what_a_plug_in_cannot_do_ends_with_its_remedy():
    result = call("poison", "tiny_setting.py:setting", "--count", 2, "--estimator", "random", code=2)
    assert "Use an estimator that is differentiable in added data" in result.stderr


def test_a_setting_that_refuses_its_data_says_why(tmp_path):
    (tmp_path / "bad.py").write_text(SPEC.replace("y[40:])", "y[40:] + 5)"))
    assert "ValueError: " in (message := refused("select", "bad.py:setting", "--size", 10))
    assert "targets" in message


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("recipe.job.verify", bug)
    result = CliRunner().invoke(app, ["select", "tiny_setting.py:setting", "--size", "10"])
    assert isinstance(result.exception, KeyError)


# ---- words -----------------------------------------------------------------------------------------------------------
def test_a_file_may_be_called_like_a_module(tmp_path):
    (tmp_path / "json.py").write_text(SPEC)
    assert load_setting("json.py:setting").n == 40
    assert sys.modules["json"] is json


def test_a_file_imports_its_neighbours(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "its_neighbour.py").write_text(SPEC)
    (folder / "mine.py").write_text("from its_neighbour import setting\n")
    setting = load_setting("elsewhere/mine.py:setting")
    assert type(setting.algorithm).__module__ == "its_neighbour"
