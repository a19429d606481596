"""What the pieces are that estimators and retraining are made of, and what each costs in a setting.

Every piece is done on a few examples at parameters as they are before training (or at the setting's checkpoints), and
goes on along lines in the numbers of examples, targets, vectors or steps (`recipe/cost.py`). What depends on the
trained model, such as the iterations of a solver, is looked at on those examples too, and is the least certain.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from recipe import batch as batches
from recipe import calculus
from recipe.algorithms import AdamW
from recipe.batch import Batch
from recipe.calculus import Curvature, Operator, Point, Product
from recipe.cost import Cost, Machine, along, measured, metered
from recipe.retrain import train_runs
from recipe.setting import Checkpoint, Parameters, Setting
from recipe.training import Minibatch, _runs_at_once, _vectorises

EXAMPLES = (32, 256)  # of the universe, on which pieces are measured
TARGETS = (4, 32)
VECTORS = (2, 16)
STEPS = (2, 10)
TRIED = 4  # right-hand sides on which the iterations of a solver are counted


class Fits(Protocol):
    """An estimator."""

    def fit(self, setting: Setting) -> object:
        """A datamodel."""


@dataclass(frozen=True, eq=False)
class Work:
    """The pieces of a setting.

    Args:
        setting: what is to be trained and measured.

    Example:
        >>> from recipe import SGD, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, SGD(epochs=10, batch_size=5, lr=0.1))
        >>> Work(setting).training().flops  # 40 steps of 5 examples: 3 x 2 numbers there and back, 2 operations each
        4800.0
    """

    setting: Setting

    @cached_property
    def machine(self) -> Machine:
        """The speed of where the setting is."""
        return Machine.of(self.setting.flat(self.setting.initial(0)))

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return self.setting.dtype.itemsize

    # ---- training ------------------------------------------------------------------------------------------------
    def training(self, runs: int = 1, points: int | None = None, apart: bool = False) -> Cost:
        """Train models on the universe, or on so many of its points.

        Args:
            runs: how many models.
            points: default all n.
            apart: one after the other, as what follows a run does.
        """
        points = self.setting.n if points is None else max(1, points)
        if runs < 1:
            return Cost()
        algorithm = self.setting.algorithm
        if isinstance(algorithm, Minibatch):
            plan = algorithm.plan((torch.arange(self.setting.n) < points).float())
            together = self._together(algorithm, plan.batch) if runs > 1 and not apart else 1
            once = min(runs, together)

            @lru_cache
            def steps(count: int) -> Cost:
                return self._trained(once, count * plan.batch, replace(algorithm, epochs=1))  # type: ignore[type-var]

            found = along(steps, plan.total, *STEPS)
            found = (runs / once) * replace(found, bytes=min(found.bytes, steps(STEPS[1]).bytes))  # the same every step
        else:
            once = min(runs, 4)
            found = (runs / once) * along(lambda b: self._trained(once, b, algorithm), points, *EXAMPLES)
        return found.holding(2 * (runs - once) * self._parameter_bytes)

    def outputs(self, runs: int = 1) -> Cost:
        """Measure models on the targets."""
        setting, theta = self.setting, self.theta

        def measure(t: int) -> Cost:
            targets = self.targets(t)
            with torch.no_grad():
                return measured(lambda: setting.outputs(theta, targets))

        return (runs * along(measure, batches.size(setting.probe), *TARGETS)).holding(runs * setting.m * self.number)

    def retraining(self, runs: int, points: int | None = None) -> Cost:
        """Train models, and measure each of them on the targets."""
        return self.training(runs, points) + self.outputs(runs)

    def ensemble(self, models: int, apart: bool = False) -> tuple[Cost, int]:
        """What an estimator's models cost to train, and how many they are: nothing where there are checkpoints."""
        given = len({point.member for point in self.setting.checkpoints})
        return (Cost(), given) if given else (self.training(models, apart=apart), models)

    # ---- estimators ----------------------------------------------------------------------------------------------
    def fitted(
        self, estimator: Fits, models: int = 0, checkpoints: int = 1, apart: bool = False, kept: float = 0.0
    ) -> Cost:
        """Train an ensemble, and fit an estimator to it.

        Args:
            estimator: whose work beside training is linear in the universe and in the targets.
            models: of the ensemble; 0 for an estimator that looks at none.
            checkpoints: of each.
            apart: the runs are trained one after the other, as what follows a run does.
            kept: bytes that stay for every example.
        """
        if not models:
            return self._fit(estimator, 1, checkpoints, kept)
        training, count = self.ensemble(models, apart)
        one = self._fit(estimator, 1, checkpoints, kept)
        if count == 1:
            return training + one
        more = self._fit(estimator, 2, checkpoints, kept, only_bytes=True).bytes - one.bytes
        return training + (count * one).holding(max(0.0, more) * (count - 1))

    def _fit(self, estimator: Fits, members: int, checkpoints: int, kept: float, only_bytes: bool = False) -> Cost:
        """Fit to models that are there, on lines in the examples and in the targets."""
        setting, taken = self.setting, self.checkpoints(checkpoints, members)
        rows = calculus._rows(setting.p)  # beyond them, only what is returned or kept grows
        take = metered if only_bytes else measured

        def fit(n: int, t: int) -> Cost:
            small = replace(setting, universe=self.examples(n), targets=self.targets(t), checkpoints=taken)
            small.output_shape, small.layers.covered  # noqa: B018  (what is known of a setting already)
            return take(lambda: estimator.fit(small))

        def on(n: int) -> Cost:
            return along(lambda t: along(lambda b: fit(b, t), n, *EXAMPLES), batches.size(setting.probe), *TARGETS)

        found = on(setting.n)
        if setting.n <= max(rows, EXAMPLES[1]):
            return found
        held = on(max(rows, EXAMPLES[1])).bytes
        returned = 2 * setting.m * self.number + kept
        return replace(found, bytes=min(found.bytes, held + returned * (setting.n - rows)))

    # ---- pieces ---------------------------------------------------------------------------------------------------
    @cached_property
    def theta(self) -> Parameters:
        """Parameters to measure at: the last checkpoint's, or a start."""
        return self.checkpoints(1)[-1].parameters

    def checkpoints(self, count: int, members: int = 1) -> tuple[Checkpoint, ...]:
        """The first member's own, or so many that could be: what work on them costs does not depend on which."""
        setting, start = self.setting, self.setting.initial(0)
        own = sorted(
            (c for c in setting.checkpoints if c.member == setting.checkpoints[0].member), key=lambda c: c.step
        )
        moments = {k: torch.ones_like(start[k]) for k in setting.trained}
        second = moments if isinstance(setting.algorithm, AdamW) else None
        found = own or [Checkpoint(start, lr=0.1, step=k + 1, second_moments=second) for k in range(count)]
        found = [replace(c, parameters={**start, **c.parameters}) for c in found]
        return tuple(replace(c, member=member) for member in range(members) for c in found)

    def examples(self, count: int) -> Batch:
        """So many of the universe, over again where there are fewer."""
        return batches.take(self.setting.pool, torch.arange(count, device=self.setting.device) % self.setting.n)

    def targets(self, count: int) -> Batch:
        """So many of the targets."""
        size = batches.size(self.setting.probe)
        return batches.take(self.setting.probe, torch.arange(count, device=self.setting.device) % size)

    def point(self, count: int) -> Point:
        """So many examples, of weight 1, at the parameters to measure at."""
        return Point(
            self.setting, self.theta, torch.ones(count).to(self.setting.flat(self.theta)), self.examples(count)
        )

    @property
    def _parameter_bytes(self) -> int:
        return sum(t.nbytes for t in self.setting.initial(0).values())

    def _together(self, algorithm: Minibatch, batch: int) -> int:
        """How many runs train together."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setting = self.setting
            if not _vectorises(setting, setting.pool, batch):
                return 1
            return _runs_at_once(algorithm, setting, setting.pool, batch)

    def _trained(self, runs: int, points: int, algorithm: Any) -> Cost:
        few = replace(self.setting, universe=self.examples(points), targets=self.targets(1), algorithm=algorithm)
        weights = torch.ones(runs, points, dtype=few.dtype, device=few.device)
        return measured(lambda: train_runs(few, weights, range(runs)))


@dataclass(frozen=True, eq=False)
class Products:
    """Products with a curvature, of which inverses are made.

    Args:
        work: of the setting.
        curvature: of the objective.
        damping: added to its diagonal.
    """

    work: Work
    curvature: Curvature
    damping: float = 0.0

    @property
    def p(self) -> int:
        """The number of parameters."""
        return self.work.setting.p

    @property
    def machine(self) -> Machine:
        """See `Work.machine`."""
        return self.work.machine

    def few(self, count: int = EXAMPLES[1]) -> Operator:
        """The curvature of a few examples."""
        return self.curvature.at(self.work.point(count), self.damping)

    def product(self, vectors: float) -> Cost:
        """The curvature of all n examples times so many vectors."""
        return self.applied(lambda operator: operator.product, vectors)

    def applied(self, inverse: Callable[[Operator], Product], vectors: float) -> Cost:
        """Make an inverse, or whatever is linear in examples and vectors, and apply it."""
        setting = self.work.setting
        together = calculus._passes(setting, setting.pool)  # vectors that go through the model at once

        def on(n: int, k: int) -> Cost:
            operator, some = self.few(n), torch.ones(k, self.p).to(setting.flat(self.work.theta))
            return measured(lambda: inverse(operator)(some))

        def at(k: int) -> Cost:
            return along(lambda kk: along(lambda n: on(n, kk), setting.n, *EXAMPLES), k, *VECTORS)

        k = max(1, math.ceil(vectors))
        found = at(k)
        return found if k <= together else replace(found, bytes=at(together).bytes).holding(3 * k * self.vector_bytes)

    @property
    def vector_bytes(self) -> int:
        """Of a vector over the parameters."""
        return self.p * self.work.number

    def iterations(self, solver: Callable[[Operator], Product]) -> float:
        """Products for a right-hand side: counted on a few examples and outputs."""
        setting, count = self.work.setting, 0
        operator = self.few(min(EXAMPLES[1], setting.n))

        def product(vectors: Tensor) -> Tensor:
            nonlocal count
            count += len(vectors)
            return operator.product(vectors)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solve = solver(replace(operator, product=product))
            some = setting.on(self.work.targets(TRIED))
            right = calculus.output_gradients(some, self.work.theta)[:TRIED]
            count = 0
            try:
                solve(right)
            except ValueError:  # an indefinite Hessian, say: of a model that is not trained yet
                return float(setting.p)
        return max(1.0, count / len(right))
