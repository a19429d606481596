"""Problems with known optima, and solvers with what each promises on them. A new solver is one more line in `SOLVERS`.

`PROBLEMS` are over subsets of N points, where brute force is the truth; `CONTINUOUS` have closed forms.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from applications.data_selection import TargetSets
from recipe.datamodel import LinearDatamodel
from recipe.diversity import Alike, FacilityLocation
from recipe.feasible import Ball, Box, Free, Subset
from recipe.problem import Maximize, Minimize, Problem
from recipe.solvers import Convex, GradientAscent, Greedy, GumbelTopK, Metagradient, Restarts, TopK

N, M = 8, 3
GENERATOR = torch.Generator().manual_seed(0)
F_HAT = LinearDatamodel(
    torch.randn(M, generator=GENERATOR, dtype=torch.float64),
    torch.randn(M, N, generator=GENERATOR, dtype=torch.float64),
)
WANTED = torch.tensor([0.5, -0.3, 1.0], dtype=torch.float64)
WORST = TargetSets(torch.tensor([0, 1, 1]), worst=True)
WEIGHTED = TargetSets(torch.tensor([0, 1, 1]), weights={0: 3.0, 1: 1.0})
POINTS = torch.randn(N, 2, generator=GENERATOR, dtype=torch.float64)
ALIKE, COVER = Alike.cosine(POINTS, weight=0.5), FacilityLocation(features=POINTS)
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
COSTS = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.2, 1.5, 2.5, 1.0], dtype=torch.float64)

FEASIBLE = {
    "size": Subset(N, size=3),
    "range": Subset(N, size=(2, 6)),
    "quotas": Subset(N, size=4, groups=GROUPS, quotas={0: 1, 1: (1, 2)}),
    "quotas and range": Subset(N, size=(3, 6), groups=GROUPS, quotas={0: (1, 2), 2: 1}),
    "two groupings": Subset(
        N, size=4, groups=(GROUPS, torch.arange(N) % 2), quotas=({1: (1, 2), 2: 1}, {0: (0, 3), 1: 2})
    ),
    "costs": Subset(N, size=(2, 5), costs=COSTS, budget=4.0),
    "in and out": Subset(N, size=4, include=torch.tensor([3, 6]), exclude=torch.tensor([0, 5])),
    "counts": Subset(N, size=(3, 5), repeats=2),
    "counts and quotas": Subset(
        N, size=5, groups=GROUPS, quotas={0: (1, 3), 1: (1, 2)}, include=torch.tensor([3, 7, 7]), repeats=2
    ),
    "everything": Subset(
        N, size=(3, 5), groups=GROUPS, quotas={0: (1, 2), 2: 1}, costs=COSTS, budget=6.0,
        include=torch.tensor([1]), exclude=torch.tensor([6]),
    ),
    "everything, counts and two groupings": Subset(
        N, size=(3, 6), groups=(GROUPS, torch.arange(N) % 2), quotas=({0: (1, 3), 2: 1}, {0: (1, 3)}), costs=COSTS,
        budget=7.0, include=torch.tensor([1]), exclude=torch.tensor([6]), repeats=2,
    ),
    "counts and costs": Subset(N, size=(2, 5), costs=COSTS, budget=4.0, repeats=2, include=torch.tensor([5])),
}  # fmt: skip
LINEAR = {
    "min mean": Minimize(lambda w: F_HAT(w).mean()),
    "max mean": Maximize(lambda w: F_HAT(w).mean()),
    "min weighted sets": Minimize(lambda w: WEIGHTED.of(F_HAT(w))),
}
CURVED = {
    "min squares": Minimize(lambda w: ((F_HAT(w) - WANTED) ** 2).mean()),
    "max minus squares": Maximize(lambda w: -((F_HAT(w) - WANTED) ** 2).sum()),
    "min largest": Minimize(lambda w: F_HAT(w).max()),
    "min worst set": Minimize(lambda w: WORST.of(F_HAT(w))),
    "min mean and alike": Minimize(lambda w: F_HAT(w).mean() + ALIKE(w, 4)),
}
COVERED = {"min mean and cover": Minimize(lambda w: F_HAT(w).mean() + COVER(w, 4))}  # cvxpy cannot trace it
OBJECTIVES = {**LINEAR, **CURVED, **COVERED}


def weights_problem(objective, feasible) -> Problem:
    """A fresh problem, since solvers write notes."""
    problem = Problem(objective, torch.ones(N, dtype=torch.float64), feasible, arguments=lambda w: (w, None))
    return replace(problem, refit=lambda decision: problem)


PROBLEMS = {(o, f): (OBJECTIVES[o], FEASIBLE[f]) for o in OBJECTIVES for f in FEASIBLE}


@dataclass(frozen=True)
class Promise:
    """A solver and the problems, as `(objective, feasible set)`, on which it must reach the optimum of brute force."""

    solver: object
    solves: frozenset[tuple[str, str]] = frozenset(itertools.product(OBJECTIVES, FEASIBLE))
    reaches: frozenset[tuple[str, str]] = frozenset(itertools.product(LINEAR, FEASIBLE))


# Adding the best point, one by one, is exact for a linear score where the constraints are (generalised poly)matroids.
STEPWISE = frozenset(
    itertools.product(LINEAR, {k for k, f in FEASIBLE.items() if f.costs is None and len(f.groupings) < 2})
)
TRACED = frozenset(itertools.product({*LINEAR, *CURVED}, FEASIBLE))
AS_INTEGERS = frozenset(itertools.product({*LINEAR, "min largest", "min worst set"}, FEASIBLE))
SOLVERS = {
    "TopK": Promise(TopK()),
    "Greedy": Promise(Greedy(), reaches=STEPWISE),
    "Greedy, adding": Promise(Greedy(adding=True), reaches=STEPWISE),
    "Greedy, refreshed": Promise(Greedy(refresh=4)),
    "Greedy, adding, refreshed": Promise(Greedy(refresh=4, adding=True)),
    "GumbelTopK": Promise(GumbelTopK(temperature=0.0)),
    "GumbelTopK, noisy": Promise(GumbelTopK(), reaches=frozenset()),
    "Metagradient": Promise(Metagradient(steps=5), reaches=frozenset()),
    "Convex": Promise(Convex(), solves=TRACED),
    "Convex, integer": Promise(Convex(integer=True), solves=AS_INTEGERS, reaches=AS_INTEGERS),
}


def subsets(feasible: Subset) -> Tensor:
    """All allowed subsets `(count, n)`."""
    counts = range(int(feasible.most.max()) + 1)
    vertices = torch.tensor(list(itertools.product(counts, repeat=feasible.n)), dtype=torch.float64)
    return vertices[[feasible.contains(x) for x in vertices]]


allowed = cache(subsets)  # by the identity of the feasible set


@cache
def optimum(objective: str, feasible: str) -> float:
    """By brute force."""
    sense = OBJECTIVES[objective].sense
    return sense * max(sense * float(OBJECTIVES[objective].fn(x)) for x in allowed(FEASIBLE[feasible]))


CENTER = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([[0.7, 3.0], [-1.0, 0.1], [4.0, 1.0]], dtype=torch.float64)
BOWL = Minimize(lambda x: ((x - TARGET) ** 2).sum())
HILL = Maximize(lambda x: 1e-6 * (1 - ((x - TARGET) ** 2).sum()))  # the scale must not matter
PLANE = Maximize(lambda x: (x[0, 0] * 3) - x[2, 1])
PLANE_SCORE = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
TO_TARGET = (TARGET - CENTER) / (TARGET - CENTER).norm()
CONTINUOUS = {  # name -> problem and its best decision
    "bowl, free": (BOWL, Free((3, 2)), TARGET),
    "bowl, box": (BOWL, Box(CENTER, 1.0), TARGET.clamp(CENTER - 1, CENTER + 1)),
    "bowl, ball": (BOWL, Ball(CENTER, 1.5), CENTER + 1.5 * TO_TARGET),
    "hill, box": (HILL, Box(CENTER, 1.0), TARGET.clamp(CENTER - 1, CENTER + 1)),
    "hill, ball": (HILL, Ball(CENTER, 1.5), CENTER + 1.5 * TO_TARGET),
    "plane, ball": (PLANE, Ball(CENTER, 1.5), CENTER + 1.5 * PLANE_SCORE / PLANE_SCORE.norm()),
}
CONTINUOUS_SOLVERS = {
    "Convex": Convex(),
    "Adam": GradientAscent(lr=0.1, steps=800, decay=True),
    "sign": GradientAscent(lr=0.1, steps=800, sign=True, decay=True),
    "restarts": Restarts(GradientAscent(lr=0.1, steps=400, decay=True), count=2),
}


def continuous_problem(objective, feasible) -> Problem:
    return Problem(objective, CENTER.clone(), feasible, arguments=lambda x: (torch.ones(1), (x,)))


def fresh(problem: Problem, **changes) -> Problem:
    """A copy with empty notes."""
    return replace(problem, notes={}, **changes)
