"""A Dask cluster of two worker processes on this machine against one process with one thread; and a killed worker."""

import os
import signal
import sys
import threading

import torch
from distributed import Client, LocalCluster

from benchmarks.tables import Clock, table
from recipe import Processes, Retrain, Setting, random_subsets
from recipe.digits import MLP_SGD, load_digits, mlp


def main(runs: int = 1024) -> None:
    """The same retrainings, interleaved so that what else the machine does falls on all."""
    torch.set_num_threads(1)
    digits = load_digits()
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD)
    masks = random_subsets(setting.n, r=runs, alpha=0.5, seed=0)

    def timed(executor=None) -> tuple[float, torch.Tensor]:
        clock = Clock()
        outputs = Retrain(setting, executor=executor)(masks)
        return clock(), outputs

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        Processes(2) as processes,
    ):
        for executor in (None, client.get_executor(), processes):
            Retrain(setting, seeds=(1, 2), executor=executor)(masks[:64])  # start-up and imports do not count
        here, expected = timed()
        there, outputs = timed(client.get_executor())
        beside, others = timed(processes)
        assert torch.equal(outputs, expected)
        assert torch.equal(others, expected)
        victim = next(iter(client.run(os.getpid).values()))
        killer = threading.Timer(there / 2, os.kill, (victim, signal.SIGKILL))
        killer.start()
        after, outputs = timed(client.get_executor())
        killer.join()
        assert torch.equal(outputs, expected)
    table(
        f"{runs} retrainings of the digits MLP, bit for bit the same everywhere",
        ("", "seconds", "against one process"),
        [
            ("one process, one thread", f"{here:.1f}", "1.00 x"),
            ("Dask, two worker processes", f"{there:.1f}", f"{here / there:.2f} x"),
            ("`Processes(2)`", f"{beside:.1f}", f"{here / beside:.2f} x"),
            ("Dask, one worker killed half-way", f"{after:.1f}", f"{here / after:.2f} x"),
        ],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
