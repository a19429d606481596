"""Where work runs: here, in other processes, on many machines; through Python's `concurrent.futures.Executor`.

    Retrain(setting, seeds)                                                   # here, vectorised
    Retrain(setting, seeds, executor=Processes(8))                            # eight processes of this machine
    Retrain(setting, seeds, executor=dask.distributed.Client(...).get_executor())     # a cluster

Any executor will do whose workers are processes. Threads are safe but train one part at a time, since models are seeded
through torch's one generator.
"""

import contextlib
import ctypes
import functools
import io
import multiprocessing
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import connection
from typing import Any

import cloudpickle
import torch
from torch import Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
ALONE = threading.Lock()  # torch has one generator and a model's hooks are its own: a process does one part at a time
OUT = 32  # tasks that are out at once where workers are not counted, or may become more
DEATHS = 3  # of workers that run a task alone, before the task is to blame


class WorkerDiedError(RuntimeError):
    """Worker processes died, again and again, over one task; the message says which."""


class Processes(Executor):
    """Worker processes on this machine, replaced when one dies (killed for memory, say).

    `ProcessPoolExecutor` gives up for good when a worker dies; this one starts new ones, and who waits for a result
    asks again. The cores are shared among the workers.

    Args:
        workers: how many; default one a core.

    Example:
        >>> with Processes(1) as executor:
        ...     executor.submit(abs, -3).result()
        3
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = _cores() if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"Processes needs at least one worker; got {workers}.")
        self._pool = self._start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See `concurrent.futures.Executor.submit`."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self._pool.shutdown(wait=True)
            self._pool = self._start()
            return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _start(self) -> ProcessPoolExecutor:
        # Not forked from here: a fork of a process whose libraries have threads may hang. A server that has imported
        # the package, and done nothing else, forks new workers in no time.
        threads = max(1, _cores() // self.workers)
        there = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if there else "spawn")
        if there:
            context.set_forkserver_preload(["recipe.shards"])
        return ProcessPoolExecutor(self.workers, context, initializer=_begin, initargs=(threads,))


def _begin(threads: int) -> None:
    """In a new worker: its share of the cores, and an end when who started it is gone, killed say."""
    torch.set_num_threads(threads)
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def completed(
    executor: Executor,
    function: Callable[..., Any],
    task: Callable[[int], tuple[Any, ...]],
    names: Sequence[str],
    again: Callable[[int, Any], bool] = lambda i, result: False,
    ahead: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """`(i, function(*task(i)))` for every name, as results come.

    Tasks are made when their turn comes: a few more are out at once than there are workers. One whose worker died
    is tried again where the executor replaces workers: alone, so that a task that kills its workers is found out.

    Args:
        executor: whose workers call the function.
        function: what they call.
        task: the arguments for number i.
        names: what each task does, for errors.
        again: whether to ask once more, given the number and the result.
        ahead: start no task that is further ahead of the first unfinished one; default: any.

    Raises:
        WorkerDiedError: workers died over a task again and again, or the executor does not replace them.
        Exception: what a task raised, with a note that names the task.
    """
    waiting, suspects = deque(range(len(names))), deque[int]()
    deaths = [0] * len(names)
    flying: dict[Future[Any], int] = {}
    try:
        while waiting or suspects or flying:
            most = 1 if suspects else _room(executor)
            first = min([*flying.values(), *suspects, *([waiting[0]] if waiting else [])])
            while len(flying) < most and (suspects or (waiting and (ahead is None or waiting[0] < first + ahead))):
                i = (suspects or waiting).popleft()
                try:
                    flying[executor.submit(_in_worker, function, *task(i))] = i
                except BrokenExecutor as error:
                    _check_replaced(executor, names[i], deaths[i], error)
                    raise
                if deaths[i]:
                    break  # alone
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                i = flying.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor as error:
                    deaths[i] += 1
                    _check_replaced(executor, names[i], deaths[i], error)
                    suspects.append(i)
                    continue
                except Exception as error:
                    error.add_note(f"while {names[i]}")
                    raise
                if again(i, result):
                    waiting.appendleft(i)
                else:
                    yield i, result
    finally:
        for future in flying:
            future.cancel()


def _room(executor: Executor) -> int:
    """How many tasks are out at once: more than there are workers, so that none waits for the next."""
    if isinstance(executor, Processes):
        return executor.workers + 1  # few are to be tried again where one dies
    client = getattr(executor, "_client", None)
    if client is not None:  # Dask's, whose workers come and go, and come where there is work for them
        return max(OUT, 2 * sum(client.nthreads().values()))
    return 2 * getattr(executor, "_max_workers", 0) or OUT


def _in_worker(function: Callable[..., Any], *arguments: Any) -> Any:
    keep_memory()
    return function(*arguments)


@functools.cache
def keep_memory() -> None:
    """Let this process keep what it frees for the next step, as far as the C library can be asked (glibc).

    Training takes and frees the same memory at every step. Handed back to the system and taken again, that costs a
    tenth of the time here, and half of it in Dask's workers, which are told to hand memory back at once.
    """
    with contextlib.suppress(AttributeError, OSError):
        adjust = ctypes.CDLL(None).mallopt
        adjust(M_MMAP_THRESHOLD, 2**25)
        adjust(M_TRIM_THRESHOLD, 2**28)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_replaced(executor: Executor, name: str, deaths: int, error: BaseException) -> None:
    if not isinstance(executor, Processes):
        raise WorkerDiedError(
            f"A worker of {type(executor).__name__} died while {name}, and this executor does not replace workers. "
            "What was complete is in the bank, if there is one: start again, with `recipe.Processes(workers)` or a "
            "Dask cluster, which do."
        ) from error
    if deaths > DEATHS:
        raise WorkerDiedError(
            f"Workers died {deaths} times while {name}, the last times with nothing beside it. It may need more memory "
            "than there is, or crash; try it in this process, without an executor. In a script, work that starts "
            'processes belongs below `if __name__ == "__main__":`, since each of them imports the script.'
        ) from error


def dumps(value: Any, what: str) -> bytes:
    """The value as bytes for a worker; lambdas and what a notebook defines by value, views without what they show.

    Raises:
        ValueError: it cannot travel.
    """
    data = io.BytesIO()
    try:
        _Pickler(data).dump(value)
        return data.getvalue()
    except Exception as error:
        raise ValueError(
            f"{what} cannot travel to another process: {error}. Keep open files and locks out of models, outputs and "
            "data sets."
        ) from error


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        # A view would travel with all that it is a view of: a part of the data with all data.
        if type(obj) is Tensor and obj.layout == torch.strided and obj.untyped_storage().nbytes() > obj.nbytes:
            return obj.detach().clone().requires_grad_(obj.requires_grad).__reduce_ex__(cloudpickle.DEFAULT_PROTOCOL)
        return super().reducer_override(obj)


def loads(data: bytes) -> Any:
    """What `dumps` wrote: bytes that a coordinator sent to its own worker, never what lies in a store."""
    return pickle.loads(data)
