"""Simfluence: a simulator of training learned from logs: each visit of a point scales and shifts an output.

With `y_t` an output before step t, and `x_t (n,)` what step t takes in of each point (`1/b` for the points of a batch
of b, times the share that the learning rate still has, and what momentum carries over from the batches before),

    y_{t+1} = y_t + sum_i x_t[i] (A_i y_t + B_i),

where `A_i` says how visits of point i draw the output to a level, `B_i` how they push it: 2 n numbers for every output,
by ridge regression over all steps of the logged runs. A training set is simulated step by step from the mean of the
runs' starts, on what a step takes in on average over its batches, `w_i / sum w` of each point. That is smooth in the
weights and not linear: points can be redundant, and the number of steps follows the size of the set.

Reference: Guu et al., "Simfluence: Modeling the Influence of Individual Training Examples by Simulating Training Runs",
2023, arXiv:2303.08114 (its linear simulator).
Deviations: learning rate and momentum are in `x`, not left for the fit to average over; `A` and `B` are shrunk to what
all points have in common, not to zero; any output, not just losses; expected batches, where the paper takes a run's.
Cost: `subsets` training runs one after the other, with the outputs measured every `every` steps; then for each output
normal equations in `2 n + 2` unknowns, `4 n^2` operations a logged step and `5 n^3` to solve. For hundreds of points
and dozens of outputs: on the digits MLP 50 runs of 280 steps take 166 seconds for 200 outputs. They score .27 there,
where regression on the ends of 50 runs scores .20, and attribution by gradients, at a hundredth of the cost, .74.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from estimators._subset_training import SubsetTraining
from estimators._trajectory import with_steps
from recipe import batch as batches
from recipe.algorithms import SGD, AdamW
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin
from recipe.problem import Arguments
from recipe.setting import Parameters, Setting
from recipe.training import progress
from recipe.work import Work

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # to choose from
FEW = 5  # outputs on which the choice is made, and the share of the runs that is held out: a fifth


@dataclass(frozen=True)
class Simfluence:
    """The datamodel that simulates runs by `SGD` or `AdamW`.

    Args:
        subsets: how many runs to log, each on a random subset; run i trains with the seed `seed + i`.
        alpha: the share of the points in a subset, between 0 and 1. Fit near the size that you will ask about.
        every: steps between two measurements; what they take in counts together.
        penalty: of the ridge regression, relative to the mean square of what is regressed on. A fit that is too free
            predicts single steps, and runs away over many; so None takes the penalty for which simulations come closest
            to the last outputs of runs that are held out.
        seed: of the subsets and of the first run.

    Example:
        >>> from recipe import SGD, Retrain, Setting, lds, random_subsets
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(12, 2), torch.arange(12) % 2)
        >>> setting = Setting(torch.nn.Linear(2, 2), data, data, SGD(epochs=20, batch_size=2, lr=0.1))
        >>> f_hat = Simfluence(subsets=30).fit(setting)
        >>> lds(f_hat, Retrain(setting, seeds=range(4)), random_subsets(12, r=20, alpha=0.5, seed=1)).mean > 0.7
        True
    """

    subsets: int
    alpha: float = 0.5
    every: int = 1
    penalty: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subsets < 2 or self.every < 1:
            raise ValueError(
                "Simfluence needs at least two runs, better dozens, measured every one or more steps; got "
                f"subsets={self.subsets}, every={self.every}."
            )
        if not 0 < self.alpha < 1:
            raise ValueError(f"The share alpha of the points in a subset must be between 0 and 1; got {self.alpha}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        work, algorithm, half = Work(setting), with_steps(setting), round(self.alpha * setting.n)
        steps = algorithm.plan((torch.arange(setting.n) < half).to(setting.dtype)).total
        rows, size = self.subsets * -(-steps // self.every), 2 * setting.n + 2
        logs = work.training(self.subsets, half, apart=True) + work.outputs(self.subsets + rows)
        fits = setting.m + (min(FEW, setting.m) * len(PENALTIES) if self.penalty is None else 0)
        machine = work.machine
        normal = 2 * machine.product(setting.n + 1, rows, setting.n + 1)  # the weighted and the mixed one
        return logs.holding(3 * rows * setting.n * work.number) + fits * (normal + 4 * machine.cholesky(size))

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "SimfluenceDatamodel":
        """Train on subsets, log the outputs, and regress their steps.

        Args:
            setting: what to attribute.
            at: `(weights, added)`: subsets are drawn from the points with positive weight (others get what all points
                have in common), and the added examples are in every training set, fitted and simulated. Default: all
                points.

        Returns:
            A datamodel `(n,) -> (m,)`, differentiable in the weights, not linear, without `effect` and `on`: other
            outputs need other logs.

        Raises:
            NotImplementedError: an algorithm without steps.
            ValueError: so few points that every subset is empty or full.
            DivergedError: a run that is no longer finite.
        """
        algorithm = with_steps(setting)
        training = SubsetTraining.of(setting, at)
        subsets = training.spread(training.draw(self.subsets, self.alpha, self.seed)).to(setting.dtype)
        world, extra = training.f.setting, training.f.n - setting.n
        rows = list(F.pad(subsets, (0, extra), value=1.0))
        seeds = range(self.seed, self.seed + self.subsets)
        runs = progress(list(zip(rows, seeds, strict=True)), "logging runs")
        logs = [_logged(world, algorithm, row, seed, self.every) for row, seed in runs]
        penalty = _chosen(logs) if self.penalty is None else self.penalty
        return SimfluenceDatamodel(setting, algorithm, extra, self.every, _regressed(logs, penalty))


class _Log(NamedTuple):
    """One run: what K stretches of it took in, `(K, n)`, the outputs around them, `(K + 1, m)`, and its weights."""

    taken: Tensor
    outputs: Tensor
    weights: Tensor


class _Simulator(NamedTuple):
    """Outputs before training `(m,)`, and `A` and `B`, `(m, n)`."""

    start: Tensor
    scales: Tensor
    shifts: Tensor

    def run(self, weights: Tensor, taken: Sequence[float] | Tensor) -> Tensor:
        """Outputs `(m,)` after stretches that take in so much in all, of points with these weights `(n,)`."""
        share, y = weights / weights.sum(), self.start
        scale, shift = self.scales @ share, self.shifts @ share
        for much in taken:
            y = y + much * (scale * y + shift)
        return y


class SimfluenceDatamodel(OutputFunction):
    """What `Simfluence` fits: a simulated run for every weight vector.

    Args:
        setting: what is attributed.
        algorithm: whose steps are simulated.
        extra: how many examples are in every training set, after those of the universe.
        every: how many steps are one of the simulation's.
        simulator: of the outputs.
    """

    def __init__(self, setting: Setting, algorithm: SGD | AdamW, extra: int, every: int, simulator: _Simulator) -> None:
        self.n, self.output_shape = setting.n, setting.output_shape
        self._setting, self._algorithm, self._extra, self._every = setting, algorithm, extra, every
        self._simulator = simulator

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Simulated outputs `(..., m)`; their derivative takes the number of steps as given.

        Raises:
            ValueError: weights of another length, negative, NaN or infinite, or all zero.
            NotImplementedError: added examples.
        """
        if added is not None and batches.size(added):
            raise NotImplementedError(
                "A simulator knows only the points whose visits it has seen. Put the examples into the universe, or "
                "into every run: fit(setting, at=(weights, added))."
            )
        w = self._setting.check_weights(weights).to(self._setting.dtype)
        rows = F.pad(w.reshape(-1, self.n), (0, self._extra), value=1.0)
        return torch.stack([self._simulator.run(row, self._taken(row)) for row in rows]).view(*w.shape[:-1], self.m)

    def _taken(self, row: Tensor) -> list[float]:
        """What the stretches of a run take in of all its points together: the same whatever its batches."""
        steps = torch.ones(self._algorithm.plan(row).total, dtype=torch.float64)
        return [float(part.sum()) for part in torch.stack(list(_taken(self._algorithm, steps))).split(self._every)]


def _logged(setting: Setting, algorithm: SGD | AdamW, weights: Tensor, seed: int, every: int) -> _Log:
    index = torch.cat(list(algorithm.batches(weights, seed))).to(weights.device)  # (T, batch)
    shares = weights.new_zeros(len(index), setting.n).scatter_(1, index, weights[index])
    shares /= shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    taken = torch.stack(list(_taken(algorithm, shares)))
    outputs = []

    def watch(steps: int, theta: Parameters, _: Parameters) -> None:
        if steps % every == 0 or steps == len(index):
            with torch.no_grad():
                outputs.append(setting.outputs(theta))

    algorithm.train(setting, weights, seed, watch=watch)
    return _Log(torch.stack([part.sum(0) for part in taken.split(every)]), torch.stack(outputs), weights)


def _taken(algorithm: SGD | AdamW, shares: Tensor) -> Iterator[Tensor]:
    """What each step takes in, by the shares of its batch `(T, ...)`: scaled by the rate, carried on by momentum."""
    carried, total = torch.zeros_like(shares[0]), len(shares)
    for step, share in enumerate(shares):
        rate = algorithm.rate(step / total) / algorithm.lr
        if isinstance(algorithm, SGD):
            carried = algorithm.momentum * carried + share
        else:
            b = algorithm.betas[0]
            carried = b * carried + (1 - b) * share
            rate /= 1 - b ** (step + 1)
        yield rate * carried


def _chosen(logs: Sequence[_Log]) -> float:
    """The penalty whose simulations end closest to runs that were held out, on a few outputs."""
    m = logs[0].outputs.shape[1]
    some = torch.linspace(0, m - 1, min(FEW, m)).long()
    few = [log._replace(outputs=log.outputs[:, some]) for log in logs]
    held, kept = few[::FEW], [log for i, log in enumerate(few) if i % FEW]

    spread = torch.stack([log.outputs[-1] for log in few]).var(0).clamp_min(torch.finfo(logs[0].outputs.dtype).tiny)

    def error(penalty: float) -> float:
        simulator = _regressed(kept, penalty)
        ends = torch.stack([simulator.run(log.weights, log.taken.sum(1)) for log in held])
        distance = (ends - torch.stack([log.outputs[-1] for log in held])).square().mean(0)
        return float((distance / spread).nan_to_num(torch.inf).mean())  # runs away: infinite

    return min(progress(PENALTIES, "penalties"), key=error)


def _regressed(logs: Sequence[_Log], penalty: float) -> _Simulator:
    taken = torch.cat([log.taken for log in logs])
    X = torch.cat([taken, taken.sum(1, keepdim=True)], 1)  # (R, n + 1): the last is what all points have in common
    before, after = (torch.cat([log.outputs[part] for log in logs]).T for part in (slice(-1), slice(1, None)))
    outputs, XX = list(zip(before, after - before, strict=True)), X.T @ X
    fitted = [_fitted(X, XX, y, change, penalty) for y, change in progress(outputs, "regression")]
    scales, shifts = (torch.stack(part).to(X) for part in zip(*fitted, strict=True))
    return _Simulator(torch.stack([log.outputs[0] for log in logs]).mean(0), scales, shifts)


def _fitted(X: Tensor, XX: Tensor, y: Tensor, change: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """`A (n,)` and `B (n,)` with `change = X (A y + B)`, by ridge regression in units of the output's own spread."""
    mean, spread = y.mean(), y.std().clamp_min(torch.finfo(y.dtype).tiny)
    u = (y - mean) / spread
    uX = u[:, None] * X
    gram = torch.cat([torch.cat([uX.T @ uX, uX.T @ X], 1), torch.cat([X.T @ uX, XX], 1)]).double()
    goal = torch.cat([change @ uX, change @ X]).double()
    ridge = penalty * gram.diagonal().view(2, -1)[:, :-1].mean().expand(2, X.shape[1]).clone()
    ridge[:, -1] *= 1e-6  # what is common is not shrunk
    a, b = torch.linalg.solve(gram + ridge.flatten().diag(), goal).view(2, -1)
    scales, shifts = a[:-1] + a[-1], b[:-1] + b[-1]
    return scales / spread, shifts - scales * (mean / spread)
