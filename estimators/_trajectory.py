"""Training runs along the way, and what weight on an example does to the parameters on each stretch of them.

A step on a batch B descends on `g_B = sum_B w grad l / sum_B w`. The weight of an example i of the batch moves it by

    d (-lr P g_B) / d w_i = -lr P (grad l_i - g_B) / sum_B w,        P: Adam's preconditioner; 1 for SGD.

What the example gains, the others lose. It is in the share |B| / n of the batches, so that over a stretch of steps in
which gradients hardly change, with learning rates that sum to `rate`, it is in expectation worth

    rate P move_i,        move_i = -(grad l_i - g) / W,        g = sum w grad l / W,  W = sum w.

For an algorithm that minimises a sum, `g` and `W` drop out. Momentum adds up: the gradient of step t goes on in later
steps, so that its rate is `sum_{s >= t} lr_s mu^(s - t)`, about `lr_t / (1 - mu)`.

Weights stay positive here, so the number of steps stays what it is. A subset that trains by itself takes fewer, which
is worth the same `g` for every point left out: it changes no comparison of subsets of one size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import by_member, check_differentiable, check_examples
from recipe import batch as batches
from recipe import calculus
from recipe.algorithms import SGD, AdamW
from recipe.batch import Batch
from recipe.datamodel import LinearDatamodel
from recipe.problem import Arguments
from recipe.setting import Checkpoint, Measure, Parameters, Setting
from recipe.stores import collected
from recipe.training import progress

FLOOR = 0.01  # of Adam's divisors, relative to their mean


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of steps, and the checkpoint that stands for it.

    Args:
        parameters: of the checkpoint.
        rate: the sum of the steps' learning rates, momentum included.
        preconditioner: `(p,)`, what Adam multiplies a gradient with; None: 1.
        mean: `g`, the gradient of the weighted mean loss there, `(p,)`, or 0.
        total: `W`.
    """

    parameters: Parameters
    rate: float
    preconditioner: Tensor | None
    mean: Tensor
    total: Tensor

    def owed(self, setting: Setting, batch: Batch, queries: Tensor) -> Tensor:
        """Products of queries `(m, p)` with `-(grad l_i - g) / W` of a batch's examples, `(m, b)`, differentiable."""
        products = calculus.gradient_products(setting, self.parameters, batch, queries)
        return ((queries @ self.mean)[:, None] - products) / self.total

    def carry(self, gradients: Tensor) -> Tensor:
        """What outputs with these gradients owe to a move in every step, `rate P grad f_j`, `(m, p)`."""
        carried = self.rate * gradients
        return carried if self.preconditioner is None else carried * self.preconditioner


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run: its phases in the order of time, and its last parameters."""

    phases: list[Phase]
    end: Parameters

    def at_end(self, setting: Setting, at: Arguments) -> "Trajectory":
        """The run as if all of it had happened at its end; `at` is where it was trained."""
        data, weights = calculus.training_set(setting, *at)
        rate, preconditioner = total_rate(self.phases), mean_preconditioner(self.phases)
        return Trajectory([_phase(setting, data, weights, self.end, rate, preconditioner)], self.end)


def total_rate(phases: Sequence[Phase]) -> float:
    """The sum of all steps' learning rates."""
    return sum(phase.rate for phase in phases)


def mean_preconditioner(phases: Sequence[Phase]) -> Tensor | None:
    """The harmonic mean by the rates, `(p,)`, in which a few that are huge do not drown the others; None: 1."""
    known = [phase.rate / phase.preconditioner for phase in phases if phase.preconditioner is not None]
    return total_rate(phases) / torch.stack(known).sum(0) if known else None


Queries = Callable[[Setting], list[Tensor]]  # what the outputs owe to the moves of each phase of a run: `(m, p)` each


def trajectories(setting: Setting, checkpoints: int, models: int, seed: int, at: Arguments | None) -> list[Trajectory]:
    """The runs of an ensemble.

    Args:
        setting: what to train; where it has checkpoints and `at` is None, those of each of their members are taken
            instead of training. Each stands for the steps that are nearest to it, up to the last one's.
        checkpoints: for as many equally long stretches of a run, each in the middle of one; at most one a step.
        models: how many runs to train; run k has the seed `seed + k`.
        seed: of the first one.
        at: `(weights (n,), added)` to train at; default all points at weight 1.

    Raises:
        ValueError: fewer than one model or checkpoint, or checkpoints that do not fit, or without what is needed.
        NotImplementedError: an algorithm without steps.
        DivergedError: a run that is no longer finite.
    """
    if models < 1 or checkpoints < 1:
        raise ValueError(
            f"A trajectory needs at least one model and one checkpoint; got models={models}, checkpoints={checkpoints}."
        )
    check_differentiable(setting)
    check_examples(setting)
    there = where(setting, at)
    data, weights = calculus.training_set(setting, *there)
    phase = partial(_phase, setting, batches.apply(Tensor.detach, data), weights)
    if setting.checkpoints and at is None:
        return [_given(setting, points, phase) for points in progress(by_member(setting), "mean gradients")]
    steps, seeds = with_steps(setting).plan(weights).total, range(seed, seed + models)
    return [_trained(setting, checkpoints, s, there, steps, phase) for s in progress(seeds, "training")]


def unrolled(setting: Setting, runs: list[Trajectory], queries: Sequence[Queries], at: Arguments) -> LinearDatamodel:
    """The datamodel `effects[j, i] = sum over phases of <query_j, move_i>`, averaged over the runs.

    Args:
        setting: what is measured.
        runs: of the ensemble.
        queries: one for each run.
        at: checked weights and added examples; there it gives the mean outputs of the runs' ends.
    """
    found = [zip(run.phases, of(setting), strict=True) for run, of in zip(runs, queries, strict=True)]
    parts = [(phase, query / len(runs)) for run in found for phase, query in run]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        return torch.stack([phase.owed(setting, batch, query) for phase, query in parts]).sum(0)

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return unrolled(setting.on(targets, output), runs, queries, at)

    with torch.no_grad():
        effects = collected(effect, calculus.multiplied(setting, setting.pool))
    return anchored(setting, [run.end for run in runs], at, effects, effect, on)


def _phase(
    setting: Setting, data: Batch, weights: Tensor, theta: Parameters, rate: float, preconditioner: Tensor | None
) -> Phase:
    """With the mean gradient at its parameters."""
    total, mean = calculus.normaliser(setting, weights), torch.zeros_like(setting.flat(theta))
    if setting.algorithm.objective.mean:
        start, shares = 0, weights / total
        for part in calculus.passes(setting, data):
            share = shares[start : start + batches.size(part)]
            start += batches.size(part)
            mean += calculus.pulled(setting, theta, partial(setting.losses, batch=part), share[None])[0]
    return Phase(theta, rate, preconditioner, mean, total)


def _trained(
    setting: Setting, checkpoints: int, seed: int, at: Arguments, steps: int, phase: Callable[..., Phase]
) -> Trajectory:
    """Train, with a checkpoint in the middle of every stretch of the run."""
    algorithm, (weights, added) = with_steps(setting), at
    rates = _carried(algorithm, steps)
    count = min(checkpoints, steps)
    edges = [steps * i // count for i in range(count + 1)]
    middles = {(a + b) // 2: sum(rates[a:b]) for a, b in pairwise(edges)}
    before, after = {}, {}

    def watch(step: int, theta: Parameters, second_moments: Parameters) -> None:
        if step in middles:
            before[step] = {name: t.clone() for name, t in theta.items()}
        if step - 1 in middles:  # with what the step itself adds to them
            after[step - 1] = _preconditioner(setting, second_moments, step)

    end = algorithm.train(setting, weights, seed, added, watch)
    return Trajectory([phase(before[step], rate, after[step]) for step, rate in middles.items()], end)


def _carried(algorithm: SGD | AdamW, steps: int) -> list[float]:
    """How far a unit of gradient at each step carries by the end of the run, through momentum."""
    b = algorithm.momentum if isinstance(algorithm, SGD) else algorithm.betas[0]
    carried, later = [], 0.0
    for step in reversed(range(steps)):
        kick = algorithm.rate(step / steps)
        later = b * later + (kick if isinstance(algorithm, SGD) else kick * (1 - b) / (1 - b ** (step + 1)))
        carried.append(later)
    return carried[::-1]


def _preconditioner(setting: Setting, second_moments: Parameters, steps: int) -> Tensor | None:
    """`1 / (sqrt(v) + eps)`, `(p,)`, after so many steps of Adam; None for SGD.

    Held fixed when weights move, it is wrong where a few examples alone make `v`: their gradient is divided by itself,
    and Adam's step does not grow with it. So the divisor is taken to be at least a `FLOOR` of its mean.
    """
    algorithm = setting.algorithm
    if not isinstance(algorithm, AdamW):
        return None
    v = setting.flat(second_moments) / (1 - algorithm.betas[1] ** steps)
    divisor = v.sqrt() + algorithm.eps
    return 1 / divisor.clamp_min(FLOOR * float(divisor.mean()))


def _given(setting: Setting, points: list[Checkpoint], phase: Callable[..., Phase]) -> Trajectory:
    """The setting's own checkpoints of one member."""
    algorithm, member = setting.algorithm, points[0].member
    steps = [point.step for point in points]
    edges = [0, *((a + b) / 2 for a, b in pairwise(steps)), steps[-1]]
    gain = 1 / (1 - algorithm.momentum) if isinstance(algorithm, SGD) else 1.0
    rates = [gain * point.lr * (b - a) for point, (a, b) in zip(points, pairwise(edges), strict=True)]
    if not sum(rates) > 0:
        lacking = "learning rate `lr`" if not any(point.lr for point in points) else "`step` where it was taken"
        raise ValueError(
            f"How far training went is not known: no checkpoint of member {member} ({len(points)} of them) has a "
            f"{lacking}. Pass Checkpoint(parameters, lr=..., step=...), at least one with a learning rate above 0, or "
            "leave the checkpoints out: then the estimator trains."
        )
    counting = [(point, rate) for point, rate in zip(points, rates, strict=True) if rate > 0]
    phases = [phase(point.parameters, rate, _given_preconditioner(setting, point)) for point, rate in counting]
    return Trajectory(phases, points[-1].parameters)


def _given_preconditioner(setting: Setting, point: Checkpoint) -> Tensor | None:
    """What Adam multiplied a gradient with."""
    if not isinstance(setting.algorithm, AdamW):
        return None
    if point.second_moments is None or not point.step:
        raise ValueError(
            f"The setting trains by AdamW, but its checkpoint of member {point.member}, step {point.step}, has no "
            "second moments. Pass `second_moments={name: optimizer.state[parameter]['exp_avg_sq'], ...}` and a step "
            "above 0, or leave the checkpoints out: then the estimator trains."
        )
    moments = {name: point.second_moments[name].to(point.parameters[name]) for name in setting.trained}
    return _preconditioner(setting, moments, point.step)


def with_steps(setting: Setting) -> SGD | AdamW:
    """The setting's algorithm, one whose steps can be followed; else `NotImplementedError`."""
    if isinstance(setting.algorithm, (SGD, AdamW)):
        return setting.algorithm
    raise NotImplementedError(
        f"This estimator follows the steps of SGD or AdamW; the setting trains by {setting.algorithm}. Pass the "
        "checkpoints of your runs, Setting(checkpoints=(Checkpoint(parameters, lr=..., step=...), ...)), or use "
        "Influence, which looks at the trained model only."
    )
