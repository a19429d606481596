"""How fast the solvers are where users have many points: quotas, convex programs, facility location.

Facility location is compared with apricot-select 0.6.1 and submodlib-py 0.0.3 where they are installed (an environment
of their own will do): the same similarities, the same choice item by item, CPU seconds.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tables import table
from recipe import Convex, FacilityLocation, Minimize, Problem, Subset, TopK


def quotas(n: int, groups: int) -> Problem:
    """A linear objective over n points, quotas for groups, a tenth of the points."""
    generator = torch.Generator().manual_seed(0)
    effects, group = torch.randn(n, generator=generator), torch.randint(groups, (n,), generator=generator)
    share = n // (10 * groups)
    limits = {g: (share // 2, 2 * share) for g in range(groups)}
    feasible = Subset(n, n // 10, groups=group, quotas=limits)
    return Problem(Minimize(lambda w: effects @ w), torch.ones(n), feasible, lambda w: (w, None))


def solvers() -> None:
    """Quotas by sorting at a million points, and by cvxpy at a hundred thousand."""
    rows = []
    for n, solver in ((1_000_000, TopK()), (100_000, TopK()), (100_000, Convex())):
        problem = quotas(n, 50)
        wall, cpu = time.perf_counter(), time.process_time()
        decision = solver.solve(problem)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        rows.append(
            (f"{n:,}", f"`{solver}`", f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", f"{problem.value(decision):.4f}")
        )
    header = ("points", "solver", "wall seconds", "CPU seconds", "objective")
    table("50 groups with quotas, a tenth of the points", header, rows)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its CPU seconds."""
    started = time.process_time()
    return run(), time.process_time() - started


def apricot(similarity: np.ndarray, k: int) -> list[int]:
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(similarity).ranking.tolist()


def submodlib(similarity: np.ndarray, k: int) -> list[int]:
    from submodlib import FacilityLocationFunction

    found = FacilityLocationFunction(n=len(similarity), mode="dense", sijs=similarity, separate_rep=False).maximize(
        budget=k, optimizer="LazyGreedy", show_progress=False
    )
    return [i for i, _ in found]


def similarities(n: int) -> tuple[Tensor, Tensor]:
    """Features of three clusters, and their cosines moved to 0..1."""
    generator = torch.Generator().manual_seed(0)
    features = (
        torch.randn(n, 32, generator=generator) + 2 * torch.randn(3, 32, generator=generator)[torch.arange(n) % 3]
    )
    unit = torch.nn.functional.normalize(features, dim=1)
    return features, ((1 + unit @ unit.T) / 2 if n <= 10_000 else features[:0])


def facility_location() -> None:
    """Beside the peers at 5 000 points, and alone at 50 000."""
    _, similarity = similarities(5_000)
    k = 200
    rows, ours = [], FacilityLocation(similarity.double())
    cover, seconds = timed(lambda: ours.greedy(k))
    rows.append(("5,000", "`FacilityLocation(similarity)`", f"{seconds:.2f}", ""))
    exact = similarity.double().numpy()
    for name, peer in (("apricot-select 0.6.1, lazy", apricot), ("submodlib-py 0.0.3, LazyGreedy", submodlib)):
        try:
            peer(exact[:50, :50].copy(), 3)  # compiles
        except ImportError:
            rows.append(("5,000", name, "not installed", ""))
            continue
        ranking, seconds = timed(lambda peer=peer: peer(exact, k))
        same = sum(a == b for a, b in zip(ranking, cover.ranking.tolist(), strict=True))
        rows.append(("5,000", name, f"{seconds:.2f}", f"{same} of {k} the same, in order"))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:  # whose peak memory is its own
        seconds, before, after = alone.submit(large, 50_000, k).result()
    memory = f"{after:.0f} MiB at most, {before:.0f} of it imports and data"
    rows.append(("50,000", "`FacilityLocation(features=)`", f"{seconds:.1f}", memory))
    table(f"Facility location, {k} points, greedy", ("points", "by", "CPU seconds", "remarks"), rows)


def large(n: int, k: int) -> tuple[float, float, float]:
    """CPU seconds of the exact greedy choice, and the peak memory before and after it, in MiB."""
    features, _ = similarities(n)
    before = peak()
    _, seconds = timed(lambda: FacilityLocation(features=features).greedy(k))
    return seconds, before, peak()


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the tables."""
    solvers()
    facility_location()
