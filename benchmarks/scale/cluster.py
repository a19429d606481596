"""A Dask cluster of two worker processes on this machine against one process with one thread; and a killed worker."""

import os
import signal
import sys
import threading

import dask
import torch
from distributed import Client, LocalCluster

from benchmarks.tables import Clock, table
from recipe import Processes, Retrain, Setting, random_subsets
from recipe.digits import MLP_SGD, load_digits, mlp


def main(runs: int = 1024) -> None:
    """The same retrainings everywhere; in one process before and after, since the machine may change its speed."""
    torch.set_num_threads(1)
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD)
    masks = random_subsets(setting.n, r=runs, alpha=0.5, seed=0)

    def timed(executor=None) -> tuple[float, torch.Tensor]:
        clock = Clock()
        outputs = Retrain(setting, executor=executor)(masks)
        return clock(), outputs

    def on_dask(profiler: bool, killing: bool = False) -> float:
        with (
            dask.config.set({"distributed.worker.profile.enabled": profiler}),
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            executor = client.get_executor()
            Retrain(setting, seeds=(1, 2), executor=executor)(masks[:64])  # start-up and imports do not count
            if killing:
                victim = next(iter(client.run(os.getpid).values()))
                killer = threading.Timer(here / 4, os.kill, (victim, signal.SIGKILL))
                killer.start()
            seconds, outputs = timed(executor)
            if killing:
                killer.join()
            assert torch.equal(outputs, expected)
            return seconds

    Retrain(setting, seeds=(1, 2))(masks[:64])
    here, expected = timed()
    rows = [("one process, one thread", here)]
    with Processes(2) as processes:
        Retrain(setting, seeds=(1, 2), executor=processes)(masks[:64])
        beside, outputs = timed(processes)
    assert torch.equal(outputs, expected)
    rows += [
        ("`Processes(2)`", beside),
        ("Dask, two worker processes, as it comes", on_dask(profiler=True)),
        ("Dask, without its profiler", on_dask(profiler=False)),
        ("Dask, without its profiler, one worker killed half-way", on_dask(profiler=False, killing=True)),
    ]
    again, _ = timed()
    rows.append(("one process, one thread, once more", again))
    table(
        f"{runs} retrainings of the digits MLP, bit for bit the same everywhere",
        ("", "seconds", "against one process"),
        [(what, f"{seconds:.1f}", f"{(here + again) / 2 / seconds:.2f} x") for what, seconds in rows],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
