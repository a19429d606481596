"""A task on a setting, as the command line puts them together: what it will cost, the fit, the solution, the proof."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from recipe import plugins
from recipe.announcement import expected, models_of
from recipe.cost import Cost, cost_of
from recipe.datamodel import OutputFunction
from recipe.options import Choice, TaskOptions, say
from recipe.problem import Task
from recipe.retrain import Retrain
from recipe.run import Solution, solve, verify
from recipe.setting import Measure

INFLUENCE, TOP_K = Choice("influence"), Choice("top-k")
DEFAULTS = {  # of a task: estimator and solver
    "select": (INFLUENCE, TOP_K),
    "unlearn": (Choice("newton-step", ("curvature=GaussNewton()",)), Choice("convex")),
    "poison": (INFLUENCE, Choice("gradient-ascent", ("lr=0.05", "steps=50"))),
    "debug": (INFLUENCE, TOP_K),
}


@dataclass(frozen=True)
class Job:
    """A task to solve on a setting: all that is known before anything is trained.

    Args:
        options: what the user asked for.
        kind: the task's class.
        estimator: what fits the datamodel.
        solver: what solves the problem.
        f: the true outputs, measured as the task wants.
        helpers: the module with what goes with the task.
    """

    options: TaskOptions
    kind: Any
    estimator: Any
    solver: Any
    f: Retrain
    helpers: Any

    @classmethod
    def of(cls, name: str, options: TaskOptions, output: Measure | None = None) -> "Job":
        """Everything that the task needs; `output` is what it measures, default the setting's own."""
        kind = plugins.find(plugins.TASKS, name)
        by_default, solver_by_default = DEFAULTS[name]
        solver = solver_by_default.build(plugins.SOLVERS, options.solver, options.solver_assignments)
        estimator, f = options.prepare(by_default)
        return cls(options, kind, estimator, solver, f.on(output=output), plugins.module(plugins.TASKS, name))

    def announce(self, sets: int, before: int = 0) -> None:
        """Say what it will cost.

        Args:
            sets: how many training sets a verification retrains.
            before: how many of these models are trained before the datamodel is fitted.
        """
        seeds = self.options.seeds
        refits = getattr(self.solver, "refit", None) or 0
        later = max(0, seeds * sets - before)
        fitted = models_of(self.estimator, self.f.setting) * (1 + refits)
        fit = f"to fit {name_of(self.estimator)}"
        costs = {
            fit: lambda: (1 + refits) * cost_of(self.estimator, self.f.setting),
            "to verify": lambda: self.f.cost(sets),
        }
        announce(
            self.f, {"to start from": before, fit: fitted, "to verify": later}, costs if seeds else {fit: costs[fit]}
        )

    def answer(self, task: Task) -> tuple[OutputFunction, Solution, dict[str, Any]]:
        """Fit, solve and verify: the datamodel, the solution and the parts of a report."""
        f_hat = self.estimator.fit(self.f.setting)
        try:
            solution = solve(task, f_hat, self.solver, self.estimator, self.f.setting)
        except TypeError as error:  # a solver that was made for other decisions
            raise ValueError(f"{name_of(self.solver)} cannot solve {name_of(task)}: {error}") from error
        parts = {"solution": solution, "verification": verify(solution, self.f) if self.options.seeds else None}
        return f_hat, solution, parts


# ---- words ---------------------------------------------------------------------------------------------------------
def announce(f: Retrain, runs: Mapping[str, int], costs: Mapping[str, Callable[[], Cost]]) -> None:
    """The size of the setting, how many models will be trained for what, and what that will cost."""
    models = ", ".join(f"{count} {why}" for why, count in runs.items() if count) or "none"
    say(f"n = {f.n} training points, m = {f.m} outputs, p = {f.setting.p} parameters. Models to train: {models}.")
    for why, cost in costs.items():
        say(f"Expected {why}: {expected(cost)}.")


def name_of(value: Any) -> str:
    """What a reader calls an estimator, a solver or a task."""
    return type(value).__name__


def training_sets(task: Task, f: Retrain) -> int:
    """How many training sets a verification retrains: the solution's and the baselines'. Raises where `f` does not fit.

    A baseline that is a function trains its decision, and what it looks at, which another baseline trains anyway.
    """
    baselines = task.problem(f).baselines.values()
    return 1 + sum(1 if isinstance(b, Tensor) or callable(b) else len(b) for b in baselines)
