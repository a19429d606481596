"""Minibatch training of one model, or of many at once.

`train_many` stacks r models along a first axis and trains them together: one `vmap`ped forward pass, one backward pass
through the sum of their losses (models do not share parameters, so each gets its own gradient), one elementwise update.
Runs with the same number of steps train together, in chunks that fit a memory budget.
"""

import functools
import importlib.util
import inspect
import math
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from tqdm import tqdm

from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Parameters, Setting

CHUNK_BYTES = 2**26  # of parameters, optimiser state and activations that train together: about a CPU's last cache
PATIENCE = 2.0  # seconds before a progress bar shows

SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the run that is over -> factor of the learning rate
    "linear": lambda t: 1 - t,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "constant": lambda t: 1.0,
}


# `watch(steps, parameters, second_moments)` is told what a run is after so many steps, 0 included; second moments by
# name are what Adam remembers, none with SGD. The run goes on changing what it shows: copy what you keep.
Watch = Callable[[int, Parameters, Parameters], None]


class DivergedError(ArithmeticError):
    """A loss or a parameter became NaN or infinite during training; the message says where and what to try."""


class Minibatch(ABC):
    """What `SGD` and `AdamW` share: the batches, the schedule, the loop."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    replay: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite; got {self.lr}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}.")

    @abstractmethod
    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The update rule; elementwise, so stacked runs do not touch each other."""

    def train(
        self,
        setting: Setting,
        weights: Tensor,
        seed: int,
        added: Batch | None = None,
        watch: Watch | None = None,
    ) -> Parameters:
        """Parameters of one run: a plain loop, which `watch` may look at.

        Raises:
            DivergedError: a loss or parameter is no longer finite.
        """
        w = setting.check_weights(weights)
        data, w = _training_set(setting, w[None], added)
        stacked = _Chunk(self, setting, data, w, (seed,), batched=False, watch=watch).run(lambda steps: None)
        return {name: t[0] for name, t in stacked.items()}

    def train_many(
        self, setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None
    ) -> Parameters:
        """Parameters of r runs, stacked; a model that `vmap` cannot run trains one run at a time, with a warning.

        Args:
            setting: what to train.
            weights: `(r, n)`.
            seeds: r of them.
            added: examples from outside the universe, weight 1 in every run.

        Raises:
            DivergedError: a loss or parameter is no longer finite.
        """
        w = setting.check_weights(weights)
        if w.ndim != 2 or len(w) != len(seeds):
            raise ValueError(
                f"train_many needs (r, n) weights and r seeds; got {tuple(w.shape)} and {len(seeds)} seeds."
            )
        data, w = _training_set(setting, w, added)
        plans = [self.plan(row) for row in w]
        batched = len(seeds) > 1 and _vectorises(setting, data, plans[0].batch)
        room = _runs_at_once(self, setting, data, plans[0].batch) if batched else 1
        chunks = _chunks(plans, room)
        out: Parameters = {}
        with progress_bar(sum(plans[c[0]].total * len(c) for c in chunks), "training", unit="step") as bar:
            for chunk in chunks:
                runs = _Chunk(self, setting, data, w[chunk], [seeds[i] for i in chunk], batched)
                done = runs.run(bar.update)
                for name, t in done.items():
                    out.setdefault(name, torch.empty((len(seeds), *t.shape[1:]), dtype=t.dtype, device=t.device))
                    out[name][chunk] = t
        return out

    def plan(self, weights: Tensor) -> "Plan":
        """How many steps a run on `(n,)` weights takes."""
        count = len(weights) if self.replay else int((weights > 0).sum())
        return Plan(min(self.batch_size, count), max(1, count // self.batch_size), self.epochs)

    def batches(self, weights: Tensor, seed: int) -> Iterator[Tensor]:
        """The examples that a run on `(n,)` weights sees: indices `(steps, batch)` for every epoch."""
        plan, generator = self.plan(weights), torch.Generator().manual_seed(seed)
        pool = torch.arange(len(weights)) if self.replay else weights.cpu().nonzero().squeeze(1)
        for _ in range(plan.epochs):
            order = torch.randperm(len(pool), generator=generator)[: plan.steps * plan.batch]
            yield pool[order].view(plan.steps, plan.batch)

    def rate(self, share: float) -> float:
        """The learning rate when this share of the run is over."""
        return self.lr * SCHEDULES[self.schedule](share)


@dataclass(frozen=True)
class Plan:
    """How many steps a run takes: runs with equal plans train together."""

    batch: int
    steps: int  # an epoch
    epochs: int

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.steps * self.epochs


@dataclass
class _Chunk:
    """Runs that train together: weights `(r, n + b)` over the training set `data`, all with the same plan."""

    algorithm: Any
    setting: Setting
    data: Batch
    weights: Tensor
    seeds: Sequence[int]
    batched: bool
    watch: Watch | None = None  # of a single run

    def run(self, advance: Callable[[int], Any]) -> Parameters:
        """Train; `advance(steps)` is told after every epoch how many steps its runs took together."""
        plan = self.algorithm.plan(self.weights[0])
        theta = stack([self.setting.initial(seed) for seed in self.seeds])
        leaves = [theta[name].requires_grad_() for name in self.setting.trained]
        optimizer = self.algorithm.optimizer(leaves)
        epochs = zip(*map(self.algorithm.batches, self.weights, self.seeds), strict=True)
        uniform = bool((self.weights.amax(1) == self.weights.sum(1) / (self.weights > 0).sum(1)).all())
        uniform = uniform and not self.algorithm.replay
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seeds[0])  # for what the model draws itself, dropout say; such runs train alone
            self._show(0, theta, optimizer)
            for epoch, orders in enumerate(epochs):
                order = torch.stack(orders).to(self.weights.device)  # (r, steps, batch)
                history = []
                for step in range(plan.steps):
                    index = order[:, step]
                    losses = self._losses(theta, batches.take(self.data, index))  # (r, batch)
                    run_losses = losses.mean(1) if uniform else weighted_mean(losses, self.weights.gather(1, index))
                    history.append(run_losses.detach())
                    gradients = torch.autograd.grad(run_losses.sum(), leaves, allow_unused=True)
                    for leaf, gradient in zip(leaves, gradients, strict=True):
                        # Contiguous: a fused optimiser reads the memory of a gradient in the order of its parameter.
                        leaf.grad = torch.zeros_like(leaf) if gradient is None else gradient.contiguous()
                    optimizer.param_groups[0]["lr"] = self.algorithm.rate((epoch * plan.steps + step) / plan.total)
                    optimizer.step()
                    self._show(epoch * plan.steps + step + 1, theta, optimizer)
                self._check_finite(torch.stack(history), leaves, epoch, plan)
                advance(plan.steps * len(self.seeds))
        return {name: t.detach() for name, t in theta.items()}

    def _show(self, steps: int, theta: Parameters, optimizer: torch.optim.Optimizer) -> None:
        if self.watch is None:
            return
        states = {name: optimizer.state.get(t, {}) for name, t in theta.items()}
        moments = {name: s["exp_avg_sq"][0] for name, s in states.items() if "exp_avg_sq" in s}
        self.watch(steps, {name: t.detach()[0] for name, t in theta.items()}, moments)

    def _losses(self, theta: Parameters, data: Batch) -> Tensor:
        if self.batched:
            return vmap(lambda t, b: self.setting.losses(t, b, training=True))(theta, data)
        one = {name: t[0] for name, t in theta.items()}
        return self.setting.losses(one, batches.take(data, 0), training=True)[None]

    def _check_finite(self, history: Tensor, leaves: list[Tensor], epoch: int, plan: Plan) -> None:
        # Once an epoch: a look at every step would make a GPU wait for it.
        finite = history.isfinite()
        parameters = torch.stack([leaf.detach().flatten(1).isfinite().all(1) for leaf in leaves]).all(0)
        if finite.all() and parameters.all():
            return
        steps = torch.where(finite, plan.steps, torch.arange(plan.steps, device=finite.device)[:, None]).amin(0)
        run = int(steps.argmin()) if not finite.all() else int((~parameters).nonzero()[0])
        step = epoch * plan.steps + min(int(steps[run]), plan.steps - 1)
        what = "loss" if int(steps[run]) < plan.steps else "gradient"
        raise DivergedError(
            f"The {what} of the run with seed {self.seeds[run]} was no longer finite at step {step + 1} of "
            f"{plan.total} (epoch {epoch + 1}). Lower the learning rate (lr={self.algorithm.lr}), warm it up, or look "
            "for NaN and infinity in the training examples."
        )


def stack(runs: Sequence[Parameters]) -> Parameters:
    """Parameter dictionaries of r runs as one, with a first axis of length r."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def progress_bar(total: int, what: str, unit: str) -> tqdm:
    """A bar with the time left, on a terminal or in a notebook, and only for what takes longer than two seconds."""
    return _bar()(total=total, desc=what, unit=unit, unit_scale=True, leave=False, delay=PATIENCE)


def progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """`items` under a progress bar."""
    return _bar()(items, desc=what, leave=False, delay=PATIENCE)


def _bar() -> Any:
    """The kind of bar that can be shown: a widget where a notebook has widgets, else text on a terminal."""
    if "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    return functools.partial(tqdm, disable=None)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """`sum w l / sum w` over the last axis; a batch without weight takes no data step."""
    total = weights.sum(-1)
    return (weights * losses).sum(-1) / torch.where(total > 0, total, 1)


def _training_set(setting: Setting, weights: Tensor, added: Batch | None) -> tuple[Batch, Tensor]:
    """The universe and the added examples as one batch, and weights `(r, n + b)` over it."""
    weights = weights.to(setting.dtype)
    if added is None:
        return setting.pool, weights
    added = setting.check_added(added)
    ones = weights.new_ones(len(weights), batches.size(added))
    return batches.apply(Tensor.detach, batches.concatenate(setting.pool, added)), torch.cat([weights, ones], 1)


def _chunks(plans: Sequence[Plan], room: int) -> list[list[int]]:
    """Indices of runs with equal plans, at most `room` together."""
    groups: dict[Plan, list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault(plan, []).append(i)
    return [g[i : i + room] for g in groups.values() for i in range(0, len(g), room)]


def runs_at_once(algorithm: Minibatch, setting: Setting) -> int:
    """How many runs on the whole universe train together."""
    plan = algorithm.plan(torch.ones(setting.n))
    return _runs_at_once(algorithm, setting, setting.pool, plan.batch)


def _runs_at_once(algorithm: Minibatch, setting: Setting, data: Batch, batch: int) -> int:
    """How many runs fit `CHUNK_BYTES`: parameters, gradient, optimiser state and what autograd keeps of one step."""
    theta = setting.initial(0)
    leaves = [theta[name].requires_grad_() for name in setting.trained]
    trained = sum(t.nbytes for t in leaves)
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    one = batches.take(data, torch.arange(batch, device=setting.device))  # a copy: a view's storage is the universe
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        setting.losses(theta, one, training=True)
    # Twice what is kept: the backward pass holds about as much again.
    run = 4 * trained + 2 * sum(kept.values()) + sum(t.nbytes for t in batches.tensors(one))
    return max(1, CHUNK_BYTES // run)


def _vectorises(setting: Setting, data: Batch, batch: int) -> bool:
    """Whether `vmap` runs one step of this model; if not, a warning names the layer that stopped it."""
    theta = stack([setting.initial(0)] * 2)
    index = torch.arange(batch, device=setting.device).expand(2, -1)
    entered: list[str] = []

    def leave(*_: Any) -> None:
        entered.pop()

    hooks = []
    for name, module in setting._bound.model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        hooks.append(module.register_forward_hook(leave))  # not reached by the one that fails
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # slower than one at a time
            vmap(lambda t, b: setting.losses(t, b, training=True))(theta, batches.take(data, index))
    except (RuntimeError, ValueError, NotImplementedError, UserWarning) as error:
        name = entered[-1] if entered else ""
        layer = setting._bound.model.get_submodule(name)
        warnings.warn(
            f"Models train one at a time, not vectorised: the layer {name or 'at the root'!r} ({_kind(layer)}) does "
            f"not run under torch.func.vmap ({_first_line(error)}).",
            stacklevel=_caller(),
        )
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return True


def _kind(layer: nn.Module) -> str:
    return type(layer).__name__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _caller() -> int:
    """The stack level of the first frame outside the recipe, so that the warning points at the user's line."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("recipe."):
        frame, level = frame.f_back, level + 1
    return level - 1
