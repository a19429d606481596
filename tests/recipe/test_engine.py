"""Heavy work by other processes: the same numbers for sums, features and effects, models and runs in one bank."""

import importlib
import os
import socket
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from estimators import _kronecker, _projections
from estimators.ekfac import EKFAC
from estimators.influence import Influence
from estimators.logra import LoGra
from estimators.tracin import GradDot
from estimators.trak import TRAK
from recipe import (
    CG,
    SGD,
    Bank,
    Processes,
    Retrain,
    Setting,
    Stored,
    calculus,
    engine,
    executors,
    random_subsets,
)
from recipe import batch as batches
from recipe.engine import Spread
from recipe.executors import dumps, loads
from recipe.stores import effects
from tests.worlds import Folder, small_mlp

W = random_subsets(40, r=3, alpha=0.5, seed=0)


@pytest.fixture(scope="module")
def processes():
    with Processes(2) as executor:
        yield executor


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(calculus, "BLOCK_BYTES", 2**12)
    monkeypatch.setattr(calculus, "CACHE_BYTES", 2**10)
    monkeypatch.setattr(_projections, "CACHE_BYTES", 2**10)
    monkeypatch.setattr(_kronecker, "SHARD", 15)


class Counted(Executor):
    """Another executor, and what it was asked to do."""

    def __init__(self, executor):
        self.executor, self.asked = executor, []

    def submit(self, fn, /, *args, **kwargs):
        self.asked.append(args)
        return self.executor.submit(fn, *args, **kwargs)


@pytest.mark.parametrize(
    ("estimator", "maps"),
    [
        (EKFAC(), {"the curvature's factors", "effects"}),
        # To the last digit: where a looser tolerance stops is a matter of rounding.
        (Influence(inverse=CG(tolerance=1e-13)), {"products with the curvature", "effects"}),
        (TRAK(dimension=6), {"features of gradients"}),
        (LoGra(rank=2), {"effects"}),
        (GradDot(), {"effects"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_workers_give_the_same_effects(estimator, maps, processes, monkeypatch):
    setting = small_mlp()
    expected = estimator.fit(setting).effects
    there, names = Counted(processes), set()
    module = importlib.import_module("recipe.engine")
    completed = module.completed

    def noted(executor, function, task, called, *rest):
        names.update(name.removeprefix("computing ").split(", part")[0] for name in called)
        return completed(executor, function, task, called, *rest)

    monkeypatch.setattr(module, "completed", noted)
    with engine(there):
        found = estimator.fit(setting).effects
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert maps <= names
    assert there.asked


def test_effects_on_disk_are_computed_by_workers_and_written_here(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(effects, "BLOCK_BYTES", 1)
    setting, there = small_mlp(), Counted(processes)
    with engine(there):
        stored = Stored(GradDot(), tmp_path / "effects", dtype=torch.float32).fit(setting)
    assert len(there.asked) >= 3
    torch.testing.assert_close(stored.effects[:], GradDot().fit(setting).effects.float())


def test_models_and_runs_share_the_bank(processes, tmp_path):
    setting, bank = small_mlp(), Bank(tmp_path / "bank", parameters=True)
    expected = EKFAC(models=2).fit(setting)(W)
    with engine(processes, bank):
        torch.testing.assert_close(EKFAC(models=2).fit(setting)(W), expected, rtol=1e-9, atol=1e-12)
        outputs = Retrain(setting)(W)
    there = Counted(processes)
    with engine(there, bank):
        assert torch.equal(Retrain(setting)(W), outputs)
        Retrain(setting, seeds=(0, 1)).parameters(torch.ones(40, dtype=W.dtype))  # those of the ensemble
    assert not there.asked
    assert Retrain(setting).bank is None


def test_an_error_says_in_which_part(processes):
    with engine(processes), pytest.raises(ZeroDivisionError) as caught:
        list(Spread(lambda i: 1 // i, "quotients")([(1,), (0,)]))
    assert caught.value.__notes__ == ["while computing quotients, part 2 of 2"]


def test_a_view_travels_alone(processes):
    there, data = Counted(processes), torch.zeros(2**20)
    with engine(there):
        total = sum(Spread(lambda x: x.sum(), "sums")([(data[:10],), (data[10:20],)]))
    assert total == 0
    assert max(len(argument) for call in there.asked for argument in call if isinstance(argument, bytes)) < 2**12


def test_what_travels_keeps_its_kind():
    x = torch.arange(6.0).requires_grad_()
    there = loads(dumps({"view": x[1:3], "leaf": x, "wide": torch.ones(()).expand(4)}, "values"))
    assert torch.equal(there["view"], x[1:3])
    assert there["leaf"].requires_grad
    assert there["view"].requires_grad
    assert there["wide"].tolist() == [1.0] * 4


def test_the_file_of_a_function_goes_with_it(processes):
    spread = Spread(lambda i: torch.tensor(i), "numbers")
    with engine(processes):
        assert list(spread([(1,), (2,)])) == [1, 2]
    path = Path(spread._path)
    assert path.exists()
    del spread
    assert not path.exists()


class OtherMachine(Counted):
    """An executor whose workers do not see this machine's files."""

    def submit(self, fn, /, function, key, path, *rest):
        return super().submit(fn, function, key, "/not/here" + path, *rest)


def test_a_worker_that_cannot_read_the_file_is_sent_the_function(processes):
    there = OtherMachine(processes)
    with engine(there):
        assert list(Spread(lambda i: torch.tensor(i), "numbers")([(1,), (2,)])) == [1, 2]
    assert any(call[-1] is not None for call in there.asked)


def test_workers_elsewhere_are_sent_the_function_once_each(processes):
    there = OtherMachine(processes)
    with engine(there):
        squares = list(Spread(lambda i: torch.tensor(i) ** 2, "squares")([(i,) for i in range(100)]))
    assert squares == [i**2 for i in range(100)]
    assert sum(call[-1] is not None for call in there.asked) <= executors.OUT


def test_parts_are_made_when_their_turn_comes():
    made, names = [], [f"part {i}" for i in range(50)]

    def task(i):
        made.append(i)
        return (i,)

    with ThreadPoolExecutor(2) as executor:
        answers = executors.completed(executor, lambda i: -i, task, names)
        first = next(answers)
        assert len(made) == 4  # twice as many as there are workers
        assert sorted([first, *answers]) == [(i, -i) for i in range(50)]


def test_answers_wait_for_their_turn_but_not_without_end():
    release, started = threading.Event(), []

    def work(i):
        started.append(i)
        if i == 0:
            release.wait(10)
        return i

    with ThreadPoolExecutor(2) as executor:
        answers = executors.completed(executor, work, lambda i: (i,), ["part"] * 40, ahead=5)
        first = [next(answers)[0] for _ in range(4)]
        release.set()
        rest = [i for i, _ in answers]
    assert sorted(first) == [1, 2, 3, 4]
    assert sorted(first + rest) == list(range(40))


def test_data_that_changed_under_any_job_are_noticed(processes, tmp_path):
    data = small_mlp().pool
    torch.save(data, tmp_path / "data.pt")
    setting = replace(small_mlp(), universe=Folder(tmp_path / "data.pt"))
    spread = Spread(lambda i, setting: setting.pool[1][i], "labels")
    with engine(processes):
        assert torch.stack(list(spread([(0,), (1,)], setting))).tolist() == data[1][:2].tolist()
        torch.save(batches.take(data, slice(1, None)), tmp_path / "data.pt")
        with pytest.raises(ValueError, match="The universe changed under the running job: here 39 examples"):
            list(spread([(0,), (1,)], setting))


def test_files_of_processes_that_were_killed_are_swept(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    host, dead = socket.gethostname(), 2**22 + 1  # above the highest number that Linux gives
    left, alive = tmp_path / f"recipe-{host}-{dead}-abc", tmp_path / f"recipe-{host}-{os.getppid()}-abc"
    for path in (left, alive, tmp_path / "recipe-elsewhere-1-abc", tmp_path / "mine"):
        path.touch()
    path = Path(Spread(lambda i: i, "numbers")._path)
    assert {p.name for p in tmp_path.iterdir()} == {alive.name, "recipe-elsewhere-1-abc", "mine"} | (
        {path.name} if path.exists() else set()
    )


def test_the_universe_travels_once_or_as_its_address(tmp_path):
    data = (torch.randn(2000, 20), torch.arange(2000) % 3)
    rule = SGD(epochs=1, batch_size=100, lr=0.1)
    torch.save(data, tmp_path / "data.pt")
    targets = batches.take(data, slice(0, 2))
    for universe, most in ((data, 1.5), (Folder(tmp_path / "data.pt"), 0.5)):
        setting = Setting(lambda: torch.nn.Linear(20, 3), universe, targets, rule)
        point = calculus.Point(setting, setting.initial(0), torch.ones(2000), setting.pool)
        sent = dumps(point, "A point")
        assert len(sent) < most * data[0].nbytes
        assert torch.equal(loads(sent).data[0], data[0])
