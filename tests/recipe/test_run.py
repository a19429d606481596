"""Solving, verifying, and what is kept of both."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
import pytest
import torch

from applications.data_selection import DataSelection
from applications.poisoning import Poisoning
from estimators.influence import Influence
from estimators.random import Random
from recipe import (
    Box,
    Greedy,
    LinearDatamodel,
    Loss,
    Retrain,
    SizeCorrected,
    Solution,
    TopK,
    Verification,
    solve,
    verify,
)
from recipe.record import write_folder
from recipe.run import Measured
from tests.worlds import DOUBLE, logistic, small_mlp

SETTING = logistic(Loss())


@pytest.fixture(scope="module")
def solution():
    return solve(DataSelection(size=15), Influence().fit(SETTING), TopK())


@pytest.fixture(scope="module")
def verification(solution):
    return verify(solution, Retrain(SETTING))


def test_a_solution_predicts_and_a_verification_measures(solution, verification):
    f_hat, f = Influence().fit(SETTING), Retrain(SETTING)
    assert solution.predicted == pytest.approx(float(f_hat(solution.decision).mean()))
    torch.testing.assert_close(solution.outputs, f_hat(solution.decision))
    assert verification.predicted == solution.predicted
    assert verification.actual.mean == pytest.approx(float(f(solution.decision).mean()))
    assert verification.before.mean == pytest.approx(float(f(torch.ones(40)).mean()))
    torch.testing.assert_close(verification.outputs_actual, f(solution.decision))
    assert verification.actual.mean < verification.baselines["random"].mean


def test_lowest_loss_baseline_keeps_what_the_full_model_fits_best(verification):
    f = Retrain(SETTING)
    losses = f.on(SETTING.pool)(torch.ones(40))
    kept = torch.zeros(40).index_fill(0, losses.argsort()[:15], 1.0)
    assert verification.baselines["lowest loss"].mean == pytest.approx(float(f(kept).mean()))


def test_actual_is_the_mean_over_seeds_of_the_objective():
    """E[(f - t)^2] is not (E f - t)^2: the objective is evaluated on each seed's outputs."""

    @dataclass(frozen=True)
    class Squares(DataSelection):
        def problem(self, f):
            from recipe import Minimize

            return replace(super().problem(f), objective=Minimize(lambda w: (f(w) ** 2).mean()))

    setting = small_mlp(output=Loss())
    f = Retrain(setting, seeds=range(4))
    solution = solve(Squares(size=20, draws=2), Influence().fit(setting), TopK())
    result = verify(solution, f)
    each = f.per_seed(solution.decision)
    values = (each**2).mean(1)
    assert result.actual.mean == pytest.approx(float(values.mean()))
    assert result.actual.error == pytest.approx(float(values.std() / 2))
    assert result.actual.runs == 4
    draws = [float((f.per_seed(w) ** 2).mean()) for w in Squares(size=20, draws=2).problem(f).baselines["random"]]
    assert result.baselines["random"] == Measured.of(draws)  # retrainings of one draw are not independent
    torch.testing.assert_close(result.outputs_error, each.std(0) / 2)


def test_tables_say_what_happened(solution, verification):
    text = str(solution)
    for part in ("DataSelection(size=15", "Influence(", "TopK()", "15 of 40 training points"):
        assert part in text
    assert f"{solution.predicted:.4g}" in text
    table = str(verification).splitlines()
    assert "retrained with 1 seed" in table[0]
    assert [line.split()[0] for line in table[1:]] == ["before", "predicted", "actual", "random", "lowest"]
    assert f"{verification.actual.mean:.4g}" in table[3]


def test_measured_prints_its_error_only_where_it_has_one():
    assert str(Measured.of([1.0, 2.0, 3.0])) == "2 ± 0.58"
    assert str(Measured.of([2.0])) == "2"


def test_provenance_is_complete(solution, verification):
    record = verification.provenance
    assert record["estimator"]["type"] == "Influence"
    assert record["solver"] == {"type": "TopK"}
    assert record["task"]["size"] == 15
    assert record["setting"]["algorithm"]["l2"] == 0.05
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["verification"]["seeds"] == [0]
    assert record["setting"]["model"] == "Linear"
    assert set(record["seconds"]) == {"fit", "solve"}
    other = solve(DataSelection(size=15), Influence().fit(logistic(Loss())), TopK()).provenance
    assert other["setting"]["universe"] == record["setting"]["universe"]
    json.dumps(record)


def test_saves_and_loads_without_pickle(solution, verification, tmp_path):
    solution.save(tmp_path / "s")
    verification.save(tmp_path / "v")
    again, back = Solution.load(tmp_path / "s"), Verification.load(tmp_path / "v")
    assert torch.equal(again.decision, solution.decision)
    assert torch.equal(again.outputs, solution.outputs)
    assert (again.predicted, again.provenance) == (solution.predicted, solution.provenance)
    assert verify(again, Retrain(SETTING)).actual.mean == verification.actual.mean
    assert math.isnan(back.actual.error)
    json.loads((tmp_path / "v" / "verification.json").read_text(), parse_constant=pytest.fail)  # no bare NaN
    assert (str(again), str(back)) == (str(solution), str(verification))
    assert {p.suffix for p in (tmp_path / "s").iterdir() if p.name != ".recipe"} == {".json", ".npy"}
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o755


def test_tasks_with_tensors_load(tmp_path):
    x, y = SETTING.pool[0][:2], SETTING.pool[1][:2]
    task = Poisoning((x, y), Box(x, torch.full_like(x, 0.5)))
    f_hat = LinearDatamodel(torch.zeros(1), torch.zeros(1, 40), effect=lambda batch: batch[0].sum(1)[None])
    from recipe import GradientAscent

    saved = solve(task, f_hat, GradientAscent(lr=0.1, steps=20))
    saved.save(tmp_path / "s")
    loaded = Solution.load(tmp_path / "s")
    torch.testing.assert_close(loaded.task.problem(f_hat).value(loaded.decision), saved.predicted)
    torch.testing.assert_close(loaded.decision, x + 0.5, atol=1e-6, rtol=0)


@dataclass(frozen=True)
class Homemade(DataSelection):
    """A task that no entry point knows."""


def test_does_not_import_classes_from_files(solution, tmp_path):
    task = Homemade(size=3)
    solve(task, LinearDatamodel(torch.zeros(1), torch.zeros(1, 5)), TopK()).save(tmp_path / "s")
    with pytest.raises(ValueError, match="neither part of the recipe nor of an installed plug-in.*`task=`"):
        Solution.load(tmp_path / "s")
    assert Solution.load(tmp_path / "s", task=task).task is task
    document = json.loads((tmp_path / "s" / "solution.json").read_text())
    document["task"]["type"] = "os:system"
    (tmp_path / "s" / "solution.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="os:system"):
        Solution.load(tmp_path / "s")


def test_refuses_to_overwrite_newer_formats_and_missing_files(solution, tmp_path):
    solution.save(tmp_path / "s")
    with pytest.raises(FileExistsError, match="holds another run.*--overwrite"):
        solution.save(tmp_path / "s")
    solution.save(tmp_path / "s", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]
    document = json.loads((tmp_path / "s" / "solution.json").read_text())
    (tmp_path / "s" / "solution.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(ValueError, match="newer version"):
        Solution.load(tmp_path / "s")
    with pytest.raises(FileNotFoundError, match=r"holds no solution\.json"):
        Solution.load(tmp_path / "nowhere")


def test_a_failing_write_leaves_the_old_run(solution, tmp_path):
    solution.save(tmp_path / "s")

    def fails(folder):
        np.save(folder.path / "half.npy", np.zeros(3))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "s", fails, overwrite=True)
    assert Solution.load(tmp_path / "s").predicted == solution.predicted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


SAVES_FOREVER = """
import sys, torch
from pathlib import Path
from recipe.record import write_folder
def fill(folder):
    for i in range(20):
        folder.encode(torch.full((2000,), float(i)))
    folder.write("solution.json", {"complete": True})
while True:
    write_folder(sys.argv[1], fill, overwrite=True)
    Path(sys.argv[1] + ".started").touch()
"""


def test_a_killed_process_leaves_a_whole_folder_or_none(tmp_path):
    target = tmp_path / "s"
    for wait in (0.003, 0.017, 0.029):
        process = subprocess.Popen([sys.executable, "-c", SAVES_FOREVER, str(target)], env=dict(os.environ))
        started = tmp_path / "s.started"
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        started.unlink()
        if target.exists():
            assert json.loads((target / "solution.json").read_text()) == {"complete": True}
            assert len(list(target.glob("*.npy"))) == 20


def test_refit_fits_around_the_decision():
    """A refitted greedy path equals the same path made by hand, and the given estimator and setting are used."""
    setting = logistic(Loss())
    estimator = Influence()
    solution = solve(DataSelection(size=10), estimator.fit(setting), Greedy(refit=3))
    kept = torch.ones(40, dtype=DOUBLE)
    for left in (30, 20, 10):
        f_hat = estimator.fit(setting, (kept, None))
        w = kept.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f_hat(w).mean(), w)
        gradient[kept == 0] = torch.inf
        kept = torch.zeros(40, dtype=DOUBLE).index_fill(0, gradient.argsort()[:left], 1.0)
    assert torch.equal(solution.decision.double(), kept)
    bare = LinearDatamodel(torch.zeros(6), torch.randn(6, 40))
    with pytest.raises(ValueError, match="refit"):
        solve(DataSelection(size=10), bare, Greedy(refit=3))
    given = solve(DataSelection(size=10), bare, Greedy(refit=3), estimator=estimator, setting=setting)
    assert given.provenance["refitted by"]["type"] == "Influence"


def test_provenance_tells_what_predicted_from_what_refitted():
    setting = logistic(Loss())
    solution = solve(DataSelection(size=10), Random().fit(setting), TopK(), Influence(), setting)
    assert solution.provenance["estimator"]["type"] == "Random"
    assert solution.provenance["refitted by"] is None


def test_a_refit_of_a_corrected_datamodel_is_corrected():
    setting = logistic(Loss())
    plain, corrected = Influence().fit(setting), SizeCorrected(Influence().fit(setting))
    a, b = (solve(DataSelection(size=10), f_hat, Greedy(refit=3)) for f_hat in (plain, corrected))
    assert a.predicted != b.predicted
    assert b.provenance["estimator"]["type"] == "SizeCorrecting"
    half = torch.arange(40) < 20
    f_hat = b.task.problem(corrected)  # around another point, the correction is anchored there
    assert f_hat.value(torch.ones(40)) == pytest.approx(float(plain(torch.ones(40)).mean()))
    at = Influence().fit(setting, (half.double(), None))
    torch.testing.assert_close(SizeCorrected(at)(half.double()), at(half.double()))


def test_refuses_to_verify_on_another_universe(solution):
    x, y = SETTING.pool
    other = replace(SETTING, universe=(x, (y + 1) % 3))
    with pytest.raises(ValueError, match=r"Verify with Retrain on the setting that was solved"):
        verify(solution, Retrain(other))


def test_scores_made_by_hand_know_what_they_measure_from_the_setting():
    setting = logistic()  # margins
    f_hat = Influence().fit(setting)
    bare = LinearDatamodel(f_hat.bias, f_hat.effects)
    expected = solve(DataSelection(size=10), f_hat, TopK()).decision
    assert torch.equal(solve(DataSelection(size=10), bare, TopK(), setting=setting).decision, expected)


def test_never_overwrites_what_is_not_a_run(solution, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="something else than a run, which is never overwritten"):
        solution.save(tmp_path / "work", overwrite=True)
    assert (tmp_path / "work" / "thesis.tex").read_text() == "precious"


def test_a_prediction_that_is_not_finite_survives(solution, tmp_path):
    replace(solution, predicted=float("nan")).save(tmp_path / "s")
    assert "nan" in str(Solution.load(tmp_path / "s"))
