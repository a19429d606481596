"""Unrolled training, for metagradients: a run itself as an output function, differentiable in weights and added data.

    f_hat(w, added) = mean over seeds of output(targets; theta_T(w, added)),

where `theta_T` is the replay of the setting's algorithm (`replay=True`) on the universe and the added examples. Nothing
is approximated and nothing is linearised: every call trains, and the gradient goes back through all steps, as in MAGIC
(`magic.py`), with the inputs of the added examples beside the weights:

    d <a, g> / d x_k = w_k / sum_B w  *  d <a, grad l_k(theta; x_k)> / d x_k      for the added examples of a batch B.

What it predicts is the run of its own seeds on the batches of the full universe; other seeds, and subsets, which train
on batches of their own, are another thing, and `verify` measures how much of an attack or a selection carries over.
An ascent of many steps fits the seeds that it sees: with `fresh=True` every call runs seeds that no call has run
before, as in stochastic gradient descent, and what it finds holds for all.

Reference: Engstrom et al., "Optimizing ML Training with Metagradient Descent", 2025, arXiv:2503.13751.
Deviation: `sqrt(T)` states are kept instead of a tree of `log T`.

Cost of a call: a training run for every seed, and for its gradient about four more, whatever the number of outputs.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from estimators._adjoints import adjoint
from estimators._replay import Replay, Run
from recipe import batch as batches
from recipe.algorithms import SGD, AdamW
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting


@dataclass(frozen=True)
class Unrolled:
    """The replay of training runs by `SGD` or `AdamW`, as a function that can be differentiated.

    Args:
        models: how many seeds; their outputs are averaged.
        seed: of the first.
        fresh: whether every call takes the next seeds; then the same call gives another answer each time.

    Example:
        The derivative in a poison's pixel equals a finite difference of the replay:

        >>> from recipe import SGD, Retrain, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> algorithm = SGD(epochs=3, batch_size=8, lr=0.2, momentum=0.9, replay=True)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, algorithm)
        >>> f, f_hat, w = Retrain(setting), Unrolled().fit(setting), torch.ones(30, dtype=torch.float64)
        >>> x, y, step = torch.zeros(1, 2).double().requires_grad_(), torch.tensor([1]), torch.tensor([[1e-4, 0.0]])
        >>> (slope,) = torch.autograd.grad(f_hat(w, (x, y)).sum(), x)
        >>> actual = (f(w, (x + step, y)) - f(w, (x - step, y))).sum() / 2e-4
        >>> torch.allclose(actual, slope[0, 0], atol=1e-6)
        True
    """

    models: int = 1
    seed: int = 0
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.models < 1:
            raise ValueError(f"A mean over runs needs at least one; got models={self.models}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`, of the fit, which does nothing: every call trains (`Work(setting).training()`)."""
        return Cost()

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "Replayed":
        """Check that runs can be replayed; training waits for the calls, so that `at` does not matter.

        Raises:
            NotImplementedError: an algorithm other than `SGD` and `AdamW`, dropout or batch norm.
        """
        if not isinstance(setting.algorithm, (SGD, AdamW)):
            raise NotImplementedError(
                f"Unrolled runs go back through the steps of SGD or AdamW; this setting trains by {setting.algorithm}. "
                "Use Influence, which looks at the trained model only, or train by SGD."
            )
        replayed = Replayed(setting, _Seeds(self.seed, self.models, self.fresh))
        replayed._run(torch.ones(setting.n, dtype=setting.dtype), None, self.seed, ()).check()
        return replayed


@dataclass
class _Seeds:
    """Which seeds a call runs: always the same, or always others."""

    first: int
    count: int
    fresh: bool

    def take(self) -> range:
        seeds = range(self.first, self.first + self.count)
        if self.fresh:
            self.first += self.count
        return seeds


class Replayed(OutputFunction):
    """What `Unrolled` fits: outputs of replayed runs, differentiable in weights and added examples.

    Args:
        setting: what is trained.
        run_seeds: of the runs that a call averages.
    """

    def __init__(self, setting: Setting, run_seeds: "_Seeds") -> None:
        self._setting, self._seeds = setting, run_seeds
        self.n, self.output_shape = setting.n, setting.output_shape

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Outputs `(m,)` for `(n,)` weights: several weight vectors need several calls."""
        w = self._setting.check_weights(weights).to(self._setting.dtype)
        if w.ndim != 1:
            return torch.stack([self(row, added) for row in w])
        if added is None or not batches.size(added):
            return _Through.apply(w, self, None, ())
        added = self._setting.check_added(added)
        parts = batches.tensors(added)
        entries = tuple(i for i, t in enumerate(parts) if t.requires_grad)
        return _Through.apply(w, self, batches.apply(Tensor.detach, added), entries, *(parts[i] for i in entries))

    def on(self, targets: Any = None, output: Measure | None = None) -> "OutputFunction":
        """See `OutputFunction.on`."""
        return same_origin(self, Replayed(self._setting.on(targets, output), self._seeds), targets, output)

    def _run(self, weights: Tensor, added: Batch | None, seed: int, entries: tuple[int, ...]) -> Run:
        algorithm = replace(self._setting.algorithm, replay=True)  # type: ignore[type-var]
        if added is not None:
            weights = torch.cat([weights, weights.new_ones(batches.size(added))])
        steps = algorithm.plan(weights).total  # type: ignore[attr-defined]
        return Run(self._setting, algorithm, weights.detach(), seed, steps, added, entries)  # type: ignore[arg-type]


class _Through(torch.autograd.Function):
    """Runs of all seeds forwards, and the gradient of a combination of outputs backwards through each."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, f: Replayed, added: Batch | None, entries: tuple[int, ...], *_: Tensor) -> Tensor:
        runs = [f._run(w, added, seed, entries) for seed in f._seeds.take()]
        ctx.replays, ctx.setting, ctx.n = [Replay.of(run, lambda steps: None) for run in runs], f._setting, f.n
        return torch.stack([f._setting.outputs(replay.end) for replay in ctx.replays]).mean(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        parts = [_back(ctx.setting, replay, gradient) for replay in ctx.replays]
        weights, *inputs = (torch.stack(same).mean(0) for same in zip(*parts, strict=True))
        return weights[: ctx.n], None, None, None, *(t[ctx.n :] for t in inputs)


def _back(setting: Setting, replay: Replay, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradient of `<gradient, outputs>` in the weights and the inputs of one run, over universe and added."""
    run = replay.run
    theta = setting.flat(replay.end).requires_grad_()
    with torch.enable_grad():
        value = setting.outputs(setting.unflat(theta, replay.end)) @ gradient
    adjoints = adjoint(run.algorithm, torch.autograd.grad(value, theta)[0][None])
    tensors = batches.tensors(run.data)
    totals = [torch.zeros_like(run.weights), *(torch.zeros_like(tensors[i]) for i in run.entries)]
    for link in replay.backwards(lambda steps: None):
        vector = adjoints.back(link, run.rate(link.step))[0]
        if run.empty[link.step]:
            continue
        curved, *others = link.product(vector)
        adjoints.theta[0] += curved
        for total, part in zip(totals, others, strict=True):
            total.index_add_(0, run.index[link.step], part)
    return tuple(totals)
