"""Writers of effects that are interrupted, killed, beside others or out of disk: nothing complete is lost or redone."""

import multiprocessing
import random
import time

import pytest
import torch

from estimators.regression import Regression
from estimators.tracin import GradDot
from recipe import Effects, Stored, calculus, retrain, shards
from recipe.stores import blocks
from recipe.stores import effects as module
from recipe.stores.blocks import Blocks
from tests.worlds import small_mlp

FORK = multiprocessing.get_context("fork")
W = torch.rand(3, 40, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    monkeypatch.setattr(calculus, "_rows", lambda p: 7)
    monkeypatch.setattr(calculus, "CACHE_BYTES", 1)


def test_an_interrupted_regression_trains_what_is_missing(tmp_path, monkeypatch):
    setting, estimator = small_mlp(), Regression(subsets=12)
    trained, train = [], retrain.train_shards

    def until(count):
        def parts(setting, shards, executor=None):
            for i, found in train(setting, shards, executor):
                if len(trained) == count:
                    raise KeyboardInterrupt
                trained.append(shards[i].seeds)
                yield i, found

        return parts

    monkeypatch.setattr("recipe.shards.RUNS", 3)
    monkeypatch.setattr(retrain, "train_shards", until(2))
    with pytest.raises(KeyboardInterrupt):
        Stored(estimator, tmp_path / "effects").fit(setting)
    monkeypatch.setattr(retrain, "train_shards", until(100))
    stored = Stored(estimator, tmp_path / "effects").fit(setting)
    assert len(trained) == 4
    assert len({seed for seeds in trained for seed in seeds}) == 12
    monkeypatch.undo()
    torch.testing.assert_close(stored(W), estimator.fit(setting)(W), rtol=1e-4, atol=1e-4)


def test_two_that_begin_at_once_share_the_store(tmp_path, monkeypatch):
    path, setting = tmp_path / "effects", small_mlp()
    expected, found = GradDot().fit(setting).effects, Blocks.found

    def late(address):  # the other creates it between our look and our own creation
        monkeypatch.setattr(Blocks, "found", found)
        assert found(address) is None
        Stored(GradDot(), path).fit(setting)

    collect = module._Sink.collect

    def collected(sink, *args):
        monkeypatch.setattr(module._Sink, "collect", collect)
        monkeypatch.setattr(Blocks, "found", late)
        return collect(sink, *args)

    monkeypatch.setattr(module._Sink, "collect", collected)
    stored = Stored(GradDot(), path).fit(setting)
    torch.testing.assert_close(stored.effects[:].double(), expected, rtol=1e-4, atol=1e-5)


def test_of_two_that_create_a_store_at_once_the_second_is_told(tmp_path, monkeypatch):
    path, found = tmp_path / "effects", Blocks.found

    def late(address):
        monkeypatch.setattr(Blocks, "found", found)
        Stored(GradDot(models=2), path).fit(small_mlp())
        return None

    monkeypatch.setattr(Blocks, "found", late)
    sink = module._Sink(Stored(GradDot(), path), str(path), module._described(GradDot(), small_mlp(), None))
    with pytest.raises(ValueError, match=r"belong to another fit\. Estimator: the store has GradDot\(models=2"):
        sink.collect(lambda part: torch.zeros(6, len(part)), list(torch.arange(40).split(10)), [10] * 4)


def job(path, log, pause):
    """Write effects, noting each block as it is computed."""
    write = module.Blocks.write

    def noted(store, block, values):
        time.sleep(pause)
        write(store, block, values)
        with open(log, "a") as lines:
            lines.write(f"{block}\n")

    module.Blocks.write = noted
    Stored(GradDot(), path).fit(small_mlp())


def test_killed_at_random_moments_nothing_complete_is_computed_again(tmp_path):
    path, log, draw = tmp_path / "effects", tmp_path / "log", random.Random(0)
    undisturbed = GradDot().fit(small_mlp()).effects.float()

    def complete():
        return {chunk.name for chunk in path.glob("c/0/*") if chunk.name.isdigit()}

    def noted():
        return log.read_text().split() if log.exists() else []

    def run(count, seconds=None):
        there, before = complete(), len(noted())
        processes = [FORK.Process(target=job, args=(path, log, 0.05)) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            if seconds is not None:
                process.kill()
                process.join()
        assert not there & set(noted()[before:])
        return processes

    for _ in range(6):
        run(1, draw.uniform(0.1, 0.6))
    assert all(process.exitcode == 0 for process in run(2))  # which share what is left
    assert torch.equal(Effects(path)[:], undisturbed)


def sampling(path, log, pause):
    """Fit a regression, noting each run as it is trained and each group of targets as it is computed."""
    train, compute = shards.train_shard, module._computed

    def slowly(setting, shard):
        time.sleep(pause)
        found = train(setting, shard)
        with open(log, "a") as lines:
            lines.writelines(f"run {seed}\n" for seed in shard.seeds)
        return found

    def computed(function, some):
        time.sleep(pause)
        found = compute(function, some)
        with open(log, "a") as lines:
            lines.write(f"rows {some.start}\n")
        return found

    shards.train_shard, module._computed, shards.RUNS = slowly, computed, 2
    module.HELD_BYTES = 2 * 8 * 40  # two targets
    Stored(Regression(subsets=16), path).fit(small_mlp())


def test_a_killed_regression_goes_on_with_its_runs_and_with_its_rows(tmp_path):
    path, log, draw = tmp_path / "effects", tmp_path / "log", random.Random(1)
    for _ in range(8):
        process = FORK.Process(target=sampling, args=(path, log, 0.1))
        process.start()
        process.join(draw.uniform(0.4, 1.2))
        process.kill()
        process.join()
    process = FORK.Process(target=sampling, args=(path, log, 0.0))
    process.start()
    process.join()
    assert process.exitcode == 0
    lines = log.read_text().split("\n")[:-1]
    assert len(lines) - len(set(lines)) <= 8 * 2  # in flight at a kill: a part of two runs, or a group of targets
    assert {f"run {i}" for i in range(16)} <= set(lines)
    assert not (path / "rows").exists()
    torch.testing.assert_close(
        Effects(path)[:], Regression(subsets=16).fit(small_mlp()).effects.float(), rtol=1e-4, atol=1e-4
    )


def test_a_full_disk_leaves_the_blocks_that_were_complete(tmp_path, monkeypatch):
    path, setting, put = tmp_path / "effects", small_mlp(), blocks.put
    written = []

    def full(fs, target, data, new=False):
        if "/c/0/" in target:
            if len(written) == 3:
                raise OSError(28, "No space left on device")
            written.append(target)
        put(fs, target, data, new)

    monkeypatch.setattr(blocks, "put", full)
    with pytest.raises(OSError, match="No space left on device while writing to .* still there"):
        Stored(GradDot(), path).fit(setting)
    monkeypatch.setattr(blocks, "put", put)
    before = {chunk: chunk.stat().st_mtime_ns for chunk in path.glob("c/0/*")}
    assert len(before) == 3
    stored = Stored(GradDot(), path).fit(setting)
    assert all(chunk.stat().st_mtime_ns == when for chunk, when in before.items())
    torch.testing.assert_close(stored.effects[:].double(), GradDot().fit(setting).effects, rtol=1e-4, atol=1e-5)
