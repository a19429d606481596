"""Real processes that are killed, write at once or run out of disk: nothing whole is lost, redone or damaged."""

import multiprocessing
import random
import resource
import signal
import time

import numpy as np
import pytest
import torch

from recipe import SGD, Bank, Retrain, Setting, random_subsets, shards
from recipe.stores import inspection
from tests.worlds import blobs

FORK = multiprocessing.get_context("fork")  # a new process without new imports
RUNS, KILLS = 48, 6
W = random_subsets(40, r=RUNS, alpha=0.5, seed=0)


def setting() -> Setting:
    universe, targets = blobs()
    return Setting(lambda: torch.nn.Linear(2, 3).double(), universe, targets, SGD(epochs=2, batch_size=5, lr=0.1))


def job(path, log, pause=0.0):
    """Retrain in parts of four, noting each run as it is trained."""
    shards.RUNS = 4
    train = shards.train_shard

    def noted(of, shard):
        time.sleep(pause)
        trained = train(of, shard)
        with open(log, "a") as lines:
            lines.writelines(f"{row.nonzero().squeeze(1).tolist()}\n" for row in shard.weights)
        return trained

    shards.train_shard = noted
    Retrain(setting(), bank=Bank(path))(W)


def started(*arguments):
    process = FORK.Process(target=job, args=arguments)
    process.start()
    return process


def contents(path):
    """What a bank holds, without the seconds that it took and without what was written twice."""
    out = path.parent / f"{path.name}.npz"
    inspection.export(path, out)
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays if name != "seconds"}


@pytest.fixture
def undisturbed(tmp_path):
    process = started(tmp_path / "undisturbed", tmp_path / "undisturbed.log")
    process.join()
    assert process.exitcode == 0
    return contents(tmp_path / "undisturbed")


def test_killed_at_random_moments_nothing_complete_is_done_again(tmp_path, undisturbed):
    path, log, draw = tmp_path / "bank", tmp_path / "log", random.Random(0)
    for _ in range(KILLS):
        done = inspection.show(path).runs if (path / "zarr.json").exists() else 0
        before = len(log.read_text().splitlines()) if log.exists() else 0
        process = started(path, log, 0.02)
        process.join(draw.uniform(0.05, 0.5))
        process.kill()
        process.join()
        trained = log.read_text().splitlines() if log.exists() else []
        assert len(set(trained[before:])) == len(trained[before:])
        assert len(trained) - before <= RUNS - done  # only what was missing
    process = started(path, log)
    process.join()
    assert process.exitcode == 0
    again = len(log.read_text().splitlines()) - RUNS
    assert again <= 4 * KILLS  # at most the part in flight, for each kill
    found = contents(path)
    assert found.keys() == undisturbed.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, undisturbed[name], err_msg=name)


def test_two_processes_that_write_the_same_runs_both_go_on(tmp_path, undisturbed):
    path = tmp_path / "bank"
    processes = [started(path, tmp_path / f"log{i}", 0.01) for i in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    for name, values in contents(path).items():
        np.testing.assert_array_equal(values, undisturbed[name], err_msg=name)
    assert not inspection.check(path).damaged


def test_a_full_disk_leaves_what_was_complete(tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same way."""
    path = tmp_path / "bank"
    first = started(path, tmp_path / "log")
    first.join()
    held = contents(path)

    def overflow(queue):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
        try:
            Retrain(setting(), bank=Bank(path))(torch.ones(40))
        except OSError as error:
            queue.put(str(error))

    queue = FORK.SimpleQueue()
    process = FORK.Process(target=overflow, args=(queue,))
    process.start()
    process.join()
    message = queue.get()
    assert "while writing to" in message
    assert "still there and readable; make room" in message
    for name, values in contents(path).items():
        np.testing.assert_array_equal(values, held[name], err_msg=name)
    assert not inspection.check(path).unfinished


def test_repair_takes_out_what_is_damaged_and_asking_again_redoes_it(tmp_path, undisturbed):
    path = tmp_path / "bank"
    started(path, tmp_path / "log").join()
    chunks = sorted(path.glob("segments/*/outputs/**/c/**/*"))
    chunk = next(p for p in chunks if p.is_file())
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    (path / "segments" / ("0" * 32) / "seed").mkdir(parents=True)  # what a killed writer leaves
    health = inspection.check(path)
    assert list(health.damaged.values()) == [[str(chunk).split("/", str(path).count("/") + 3)[-1]]]
    assert health.unfinished == ["0" * 32]
    assert "damaged    segments/" in str(health)
    assert inspection.check(path, repair=True).repaired
    assert inspection.check(path).complete == health.complete
    started(path, tmp_path / "again").join()
    assert len((tmp_path / "again").read_text().splitlines()) == 4
    for name, values in contents(path).items():
        np.testing.assert_array_equal(values, undisturbed[name], err_msg=name)
