"""Work in other processes: the same results whatever runs them, also when workers are killed."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from estimators import _kronecker
from estimators.ekfac import EKFAC
from recipe import (
    SGD,
    Bank,
    DivergedError,
    Processes,
    Retrain,
    WorkerDiedError,
    engine,
    executors,
    random_subsets,
    shards,
)
from recipe import batch as batches
from recipe.executors import dumps
from tests.worlds import Folder, small_mlp

W = random_subsets(40, r=12, alpha=0.5, seed=0)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(shards, "RUNS", 3)


@pytest.fixture(scope="module")
def processes():
    with Processes(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@dataclass(frozen=True)
class Deadly(SGD):
    """SGD in whose first run, or in each, the worker process kills itself."""

    mark: str = ""  # a file that remembers that it happened

    def train_many(self, setting, weights, seeds, added=None):
        first = not Path(self.mark).exists() if self.mark else True
        if first and os.getpid() != self.home:
            Path(self.mark or os.devnull).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_many(setting, weights, seeds, added)

    home: int = 0  # the process that it spares


def deadly(mark=""):
    rule = Deadly(epochs=2, batch_size=8, lr=0.1, mark=str(mark), home=os.getpid())
    return replace(small_mlp(), algorithm=rule)


def test_processes_give_the_same_bits(processes):
    setting = small_mlp()
    added = batches.take(setting.probe, slice(0, 2))
    here, there = Retrain(setting, seeds=(0, 1)), Retrain(setting, seeds=(0, 1), executor=processes)
    assert torch.equal(here.per_seed(W), there.per_seed(W))
    assert torch.equal(here(0.5 * W[:2], added), there(0.5 * W[:2], added))
    theta = there.parameters(W[0])  # came back with the outputs
    assert all(torch.equal(theta[name], t) for name, t in here.parameters(W[0]).items())


def test_a_killed_worker_is_replaced(processes, tmp_path):
    setting = deadly(tmp_path / "mark")
    bank = Bank(tmp_path / "bank")
    outputs = Retrain(setting, bank=bank, executor=processes)(W)
    assert (tmp_path / "mark").exists()
    assert torch.equal(outputs, Retrain(setting)(W))


def test_a_task_that_kills_its_workers_is_named(processes, monkeypatch):
    monkeypatch.setattr(executors, "DEATHS", 1)
    with pytest.raises(WorkerDiedError, match=r"died 2 times while training seed 0 on 20 points, .*more memory"):
        Retrain(deadly(), executor=processes)(W[:2])


def test_an_executor_that_does_not_replace_workers_says_so():
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(WorkerDiedError, match=r"does not replace workers.*`recipe\.Processes\(workers\)`"),
    ):
        Retrain(deadly(), executor=executor)(W[:2])


def test_an_executor_that_is_broken_already_says_so_too():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        executor.submit(os._exit, 1).exception()
        with pytest.raises(WorkerDiedError, match=r"A worker of ProcessPoolExecutor died while training seed 0"):
            Retrain(small_mlp(), executor=executor)(W[:2])


def test_an_error_of_a_run_keeps_its_type_and_says_which_run(processes):
    setting = replace(small_mlp(), algorithm=SGD(epochs=2, batch_size=8, lr=1e150, weight_decay=1e150))
    with pytest.raises(DivergedError, match="seed 5") as caught:
        Retrain(setting, seeds=(5,), executor=processes)(W)
    assert any("while training seed 5 on 20 points" in note for note in caught.value.__notes__)


def test_threads_train_one_part_at_a_time():
    setting = small_mlp()
    with ThreadPoolExecutor(3) as executor:
        assert torch.equal(Retrain(setting, executor=executor)(W), Retrain(setting)(W))


def test_what_cannot_travel_says_so():
    with pytest.raises(ValueError, match="The setting cannot travel to another process.*Keep open files and locks"):
        dumps({"universe": threading.Lock()}, "The setting")


def test_data_that_changed_under_a_job_are_noticed(processes, tmp_path):
    universe = small_mlp().pool
    torch.save(universe, tmp_path / "data.pt")
    f = Retrain(replace(small_mlp(), universe=Folder(tmp_path / "data.pt")), executor=processes)
    torch.testing.assert_close(f(W[:2]), Retrain(small_mlp())(W[:2]))
    torch.save(batches.take(universe, slice(1, None)), tmp_path / "data.pt")
    other = Retrain(f.setting.on(batches.take(small_mlp().probe, slice(0, 2))), executor=processes)
    with pytest.raises(ValueError, match="The universe changed under the running job: here 39 examples"):
        other(W[2:4])


def test_a_dask_cluster_gives_the_same_bits_also_when_a_worker_is_killed(client):
    setting = replace(small_mlp(), algorithm=SGD(epochs=60, batch_size=4, lr=0.01))
    pids = list(client.run(os.getpid).values())
    killer = threading.Thread(target=lambda: (time.sleep(0.3), os.kill(pids[0], signal.SIGKILL)))
    killer.start()
    outputs = Retrain(setting, executor=client.get_executor())(W)
    killer.join()
    assert torch.equal(outputs, Retrain(setting)(W))


def test_sums_over_data_on_a_dask_cluster(client, monkeypatch):
    monkeypatch.setattr(_kronecker, "SHARD", 15)
    expected = EKFAC().fit(small_mlp()).effects
    with engine(client.get_executor()):
        torch.testing.assert_close(EKFAC().fit(small_mlp()).effects, expected, rtol=1e-9, atol=1e-12)


def lonely(log):
    """Begin work in other processes, say which, and wait to be killed."""
    with Processes(1) as executor:
        Path(log).write_text(str(executor.submit(os.getpid).result()))
        time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
def test_workers_end_with_who_started_them(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=lonely, args=(tmp_path / "log",))
    process.start()
    for _ in range(600):
        if (tmp_path / "log").exists() and (tmp_path / "log").read_text():
            break
        time.sleep(0.1)
    worker = int((tmp_path / "log").read_text())
    process.kill()
    process.join()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_a_task_that_kills_its_workers_is_named_on_a_dask_cluster_too(client):
    killed = pytest.importorskip("distributed").KilledWorker
    with pytest.raises(killed) as caught:
        Retrain(deadly(), executor=client.get_executor())(W[:2])
    assert any("while training seed 0 on 20 points" in note for note in caught.value.__notes__)
