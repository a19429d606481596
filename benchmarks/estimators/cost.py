"""What estimators say that they will cost, and what they then cost: seconds of a core, and memory.

Both are CPU seconds of this process on one thread, since other work on a machine changes the clock; the machine's speed
is measured again for every line. Trained models are given; regression, MAGIC and the like train for themselves.
"""

import ctypes
import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

import recipe.cost
from benchmarks.estimators.entries import SEVERAL
from benchmarks.estimators.measure import PeakMemory
from benchmarks.estimators.runs import first_members, with_checkpoints
from benchmarks.estimators.settings import SETTINGS, MissingDataError
from benchmarks.tables import table
from estimators.banzhaf import Banzhaf
from estimators.data_shapley import DataShapley
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.empirical_influence import EmpiricalInfluence
from estimators.gas import GAS
from estimators.influence import Influence
from estimators.knn import KNN
from estimators.knn_shapley import KNNShapley
from estimators.last_layer import LastLayer
from estimators.logra import LoGra
from estimators.magic import MAGIC
from estimators.newton_step import NewtonStep
from estimators.random import Random
from estimators.regression import Regression, Ridge
from estimators.representer_points import RepresenterPoints
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.source import SOURCE
from estimators.tracin import GradCos, GradDot, TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from recipe import CG, Arnoldi, Calibrated, DataInf, Ensembling, LiSSA, Nystroem, Retrain, Setting, random_subsets
from recipe import batch as batches
from recipe.work import Work

NAMES = ("digits logistic", "digits MLP", "CIFAR-2 CNN")
FACTOR = 3  # predictions are wanted within
SMALL = (0.02, 16.0)  # seconds and MiB below which a factor says nothing: noise of the clock and of the allocator
HEADER = ("estimator", "predicted s", "actual s", "ratio", "predicted MiB", "actual MiB", "ratio", "FLOP", "asking, s")


@dataclass(frozen=True)
class Retraining:
    """Truth on a few subsets, beside the estimators."""

    runs: int

    def cost(self, setting: Setting) -> recipe.cost.Cost:
        """See `Estimator.cost`."""
        return Work(setting).retraining(self.runs, setting.n // 2)

    def fit(self, setting: Setting) -> object:
        """Train and measure."""
        return Retrain(setting).paired(random_subsets(setting.n, self.runs, 0.5, seed=1), range(self.runs))


def estimators(name: str) -> list:
    """Those that a setting can afford."""
    found = [
        Retraining(20),
        EKFAC(),
        TRAK(512),
        LoGra(),
        GradCos(),
        GradDot(),
        GAS(layerwise=True),
        TracIn(),
        SOURCE(),
        LastLayer(),
        RepresenterPoints(),
        Similarity(),
        TrainLoss(),
        KNN(k=5),
        KNNShapley(k=5),
        Random(),
        NewtonStep(),
        Influence(inverse=DataInf()),
        Influence(inverse=Nystroem(100)),
        Influence(inverse=Arnoldi(50)),
        Influence(lazy=True, inverse=CG(1e-2)),
        Ensembling([EKFAC(), TRAK(512)]),
        Calibrated(EKFAC(), subsets=10),
        Regression(100, penalty=Ridge()),
        Regression(100),
        EmpiricalInfluence(100),
        Banzhaf(100),
    ]
    if name.startswith("digits"):
        found += [EKFACCG(), Influence(inverse=CG(1e-2)), Influence(inverse=LiSSA(iterations=30))]
    if name == "digits logistic":
        found += [Influence(), Regression(500)]
    if name == "digits MLP":
        found += [MAGIC(), Regression(500, prior=EKFAC())]
    return found


def main() -> None:
    """A table for every setting, and who was wrong by more than a factor of three."""
    torch.set_num_threads(1)
    recipe.cost.CLOCK = time.process_time
    for name in NAMES:
        try:
            setting = with_checkpoints(SETTINGS[name]().setting, SEVERAL)
        except MissingDataError as error:
            print(f"\n{name} is left out: {error}")
            continue
        outside: list[str] = []
        title = f"{name}: n = {setting.n}, p = {setting.p}, m = {setting.m}"
        one = first_members(setting, 1)
        table(title, HEADER, _rows(one, estimators(name), outside))
        table(f"{name}, five models", HEADER, _rows(setting, [EKFAC(), TRAK(512), LoGra(), SOURCE()], outside))
        fresh = replace(one, checkpoints=())
        table(f"{name}, models to be trained", HEADER, _rows(fresh, [EKFAC(models=2), GradDot()], outside))
        few = fresh.on(batches.take(setting.probe, slice(0, 20)))
        costly = [Simfluence(5, penalty=1.0, every=10), DataShapley(2, tolerance=0.0, truncation=0.0)]
        if name == "digits logistic":
            small = replace(few, universe=batches.take(few.pool, slice(0, 200)))
            title = f"{name}, of which 200 points and 20 targets"
            table(title, HEADER, _rows(small, costly, outside))
        print(f"\nOutside a factor of {FACTOR}: {', '.join(outside) or 'nobody'}.", flush=True)


def _rows(setting: Setting, found: list, outside: list[str]) -> Iterator[tuple[str, ...]]:
    setting.pool, setting.output_shape, setting.layers.covered  # noqa: B018  (they belong to no estimator)
    for estimator in found:
        recipe.cost._machine.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = time.process_time()
            said = recipe.cost.cost_of(estimator, setting)
            asked = time.process_time() - asked
            seconds, mebibytes = _actual(lambda estimator=estimator: estimator.fit(setting))  # type: ignore[misc]
        said_mebibytes = said.bytes / 2**20
        time_off, time_ok = _ratio(said.seconds, seconds, SMALL[0])
        room_off, room_ok = _ratio(said_mebibytes, mebibytes, SMALL[1])
        if not time_ok:
            outside.append(f"{estimator} in seconds")
        if not room_ok:
            outside.append(f"{estimator} in memory")
        yield (
            f"`{estimator}`"[:60],
            *(f"{said.seconds:.2f}", f"{seconds:.2f}", time_off),
            *(f"{said_mebibytes:.0f}", f"{mebibytes:.0f}", room_off),
            *(f"{said.flops:.1e}", f"{asked:.1f}"),
        )


def _actual(fit: Callable[[], object]) -> tuple[float, float]:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with PeakMemory() as memory:
        start = time.process_time()
        fit()
        seconds = time.process_time() - start
    return seconds, memory.mebibytes


def _ratio(predicted: float, actual: float, least: float) -> tuple[str, bool]:
    if max(predicted, actual) < least:
        return "small", True
    ratio = max(predicted, least / FACTOR) / max(actual, least / FACTOR)
    return f"{ratio:.2f}", 1 / FACTOR <= ratio <= FACTOR
