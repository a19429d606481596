"""One training run that can be walked backwards: the states between its steps, forgotten and computed again.

A state is what a step starts from: the parameters and what the optimiser remembers. Of its T states the run keeps one
every `ceil(sqrt(T))` steps; the others come back, a stretch at a time, by training on from the kept one. Walking back
costs one more training run and holds about `2 sqrt(T)` states.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174, with steps for layers.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.algorithms import SGD, AdamW
from recipe.batch import Batch
from recipe.setting import Parameters, Setting
from recipe.training import DivergedError, weighted_mean

GRAPH_BYTES = 2**28  # of the graphs of a stretch; where they do not fit, each is built when its turn comes
CHUNK_BYTES = 2**24  # of what differentiating one graph along many vectors at once may hold


@dataclass(frozen=True, eq=False)
class State:
    """What a step starts from: the trained parameters `(p,)`, and what the optimiser remembers of the steps before."""

    theta: Tensor
    memory: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Link:
    """One step, ready to be differentiated: its gradient `g(theta, weights)` and the graph behind it."""

    step: int
    before: State
    theta: Tensor  # (p,)
    weights: Tensor  # (batch,)
    gradient: Tensor  # (p,)
    inputs: tuple[Tensor, ...] = ()  # floating tensors of the batch, (batch, ...) each, where they are asked for

    def products(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """`<v, g>` differentiated in `theta` and in `weights`, for k vectors `(k, p)`: `(k, p)` and `(k, batch)`."""
        inputs, options = (self.theta, self.weights), {"retain_graph": True, "materialize_grads": True}
        if len(vectors) == 1:  # vmap of one costs half as much again
            return tuple(t[None] for t in torch.autograd.grad(self.gradient, inputs, vectors[0], **options))
        return torch.autograd.grad(self.gradient, inputs, vectors, is_grads_batched=True, **options)

    def product(self, vector: Tensor) -> tuple[Tensor, ...]:
        """`<v, g>` differentiated in `theta`, `weights` and all `inputs`, for one vector `(p,)`."""
        leaves = (self.theta, self.weights, *self.inputs)
        return torch.autograd.grad(self.gradient, leaves, vector, materialize_grads=True)


@dataclass(frozen=True, eq=False)
class Run:
    """The steps of one training run.

    Args:
        setting: what is trained.
        algorithm: how, on the batches of the full universe (`replay=True`).
        weights: `(n,)`; they multiply the losses.
        seed: decides the start and the batches.
        steps: T, at most those of the algorithm; a shorter run still goes through the whole schedule.
        added: b examples that join the universe; the weights are then `(n + b,)`.
        entries: which tensors of a batch, in the order of `batches.tensors`, links are differentiated in.
    """

    setting: Setting
    algorithm: SGD | AdamW
    weights: Tensor
    seed: int
    steps: int
    added: Batch | None = None
    entries: tuple[int, ...] = ()

    @cached_property
    def data(self) -> Batch:
        """The universe and what was added to it."""
        pool = self.setting.pool
        return pool if self.added is None else batches.concatenate(pool, self.setting.check_added(self.added))

    @cached_property
    def start(self) -> Parameters:
        """All parameters before the first step, those that are not trained included."""
        return self.setting.initial(self.seed)

    @cached_property
    def index(self) -> Tensor:
        """The examples of every step, `(T, batch)`."""
        return torch.cat(list(self.algorithm.batches(self.weights, self.seed)))[: self.steps].to(self.weights.device)

    @cached_property
    def empty(self) -> list[bool]:
        """Whether the batch of a step has no weight, so that it takes no data step."""
        return (self.weights[self.index].sum(1) <= 0).tolist()

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.algorithm.rate(step / self.steps)

    def batch(self, step: int) -> Batch:
        """The examples of a step."""
        return batches.take(self.data, self.index[step])

    def loss(self, step: int, theta: Tensor, weights: Tensor, data: Batch | None = None) -> Tensor:
        """`sum w l / sum w` over the batch of a step, at `(p,)` parameters and `(batch,)` weights."""
        data = self.batch(step) if data is None else data
        return weighted_mean(self.setting.losses(self.setting.unflat(theta, self.start), data, training=True), weights)

    def gradient(self, step: int, theta: Tensor) -> Tensor:
        """The gradient of the loss of a step, `(p,)`."""
        theta = theta.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(step, theta, self.weights[self.index[step]]), theta)[0]

    def link(self, step: int, state: State) -> Link:
        """A step from this state, with the graph of its gradient."""
        theta = state.theta.detach().requires_grad_()
        weights = self.weights[self.index[step]].requires_grad_()
        data = batches.apply(Tensor.detach, self.batch(step)) if self.entries else self.batch(step)
        inputs = tuple(batches.tensors(data)[i].requires_grad_() for i in self.entries)
        with torch.enable_grad():
            gradient = torch.autograd.grad(self.loss(step, theta, weights, data), theta, create_graph=True)[0]
        return Link(step, state, theta, weights, gradient, inputs)

    @cached_property
    def graph_bytes(self) -> int:
        """What the graph of one link holds."""
        kept: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            link = self.link(0, State(self.setting.flat(self.start), {}))
        return sum(kept.values()) + link.theta.nbytes

    @property
    def chunk(self) -> int:
        """How many vectors go through a link together."""
        return max(1, CHUNK_BYTES // self.graph_bytes)

    def check(self) -> None:
        """Raise `NotImplementedError` where a step is no function of parameters and weights alone."""
        theta, weights = self.setting.flat(self.start), self.weights[self.index[0]]
        before = {name: t.clone() for name, t in self.start.items()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, second = (self.loss(0, theta, weights) for _ in range(2))
        changed = [name for name, t in self.start.items() if not torch.equal(t, before[name])]
        if changed:
            raise NotImplementedError(
                f"A replay cannot be differentiated through the buffers that training changes ({', '.join(changed)}: "
                "batch norm?). Use a layer without running statistics, GroupNorm or LayerNorm."
            )
        if first != second:
            raise NotImplementedError(
                "A replay takes the same steps every time, but this model draws at random while it trains (dropout?). "
                "Turn that off: `p=0`."
            )


class Walk:
    """A run in motion.

    Args:
        run: whose steps are taken.
        state: where to start.
    """

    def __init__(self, run: Run, state: State) -> None:
        self._run, self._theta = run, state.theta.clone()
        self._optimizer = run.algorithm.optimizer([self._theta])
        self._optimizer.state[self._theta] = {name: t.clone() for name, t in state.memory.items()}

    @property
    def theta(self) -> Tensor:
        """The parameters here, `(p,)`; the next step changes them in place."""
        return self._theta

    def state(self) -> State:
        """A copy of what the next step starts from."""
        memory = self._optimizer.state[self._theta]
        return State(self._theta.clone(), {name: t.clone() for name, t in memory.items()})

    def step(self, step: int, gradient: Tensor) -> None:
        """Take a step, exactly as training does."""
        self._theta.grad = gradient
        self._optimizer.param_groups[0]["lr"] = self._run.rate(step)
        self._optimizer.step()


@dataclass(frozen=True, eq=False)
class Replay:
    """A finished run: the states before the steps `0, stride, 2 stride, ...`, and the parameters after the last."""

    run: Run
    stride: int
    kept: list[State]
    end: Parameters

    @classmethod
    def of(cls, run: Run, advance: Callable[[int], object]) -> "Replay":
        """Train; `advance(steps)` is told after every stretch.

        Raises:
            DivergedError: a parameter is no longer finite.
        """
        stride = math.ceil(math.sqrt(run.steps))
        walk, kept = Walk(run, State(run.setting.flat(run.start), {})), []
        for steps in _stretches(run.steps, stride):
            kept.append(walk.state())
            for step in steps:
                walk.step(step, run.gradient(step, walk.theta))
            if not walk.theta.isfinite().all():
                raise DivergedError(
                    f"The replay of seed {run.seed} was no longer finite after step {steps.stop} of {run.steps}. Lower "
                    f"the learning rate (lr={run.algorithm.lr}), or look for NaN and infinity in the training examples."
                )
            advance(len(steps))
        return cls(run, stride, kept, run.setting.unflat(walk.theta, run.start))

    def backwards(self, advance: Callable[[int], object]) -> Iterator[Link]:
        """Every step, the last one first; `advance(steps)` is told after every stretch."""
        stretches = zip(_stretches(self.run.steps, self.stride), self.kept, strict=True)
        for steps, state in reversed(list(stretches)):
            yield from self._links(steps, state)
            advance(len(steps))

    def _links(self, steps: range, state: State) -> Iterator[Link]:
        """The steps of one stretch, the last one first."""
        walk, run = Walk(self.run, state), self.run
        if self.stride * run.graph_bytes <= GRAPH_BYTES:
            links = []
            for step in steps:
                links.append(run.link(step, walk.state()))
                walk.step(step, links[-1].gradient.detach())
            while links:
                yield links.pop()
        else:
            states = []
            for step in steps:
                states.append(walk.state())
                walk.step(step, run.gradient(step, walk.theta))
            for step in reversed(steps):
                yield run.link(step, states.pop())


def _stretches(total: int, stride: int) -> list[range]:
    return [range(first, min(first + stride, total)) for first in range(0, total, stride)]
