"""Algorithms: weighted training set and seed in, parameters out.

An algorithm trains, and it declares what it minimises (`objective`), so that estimators can differentiate the same
thing. `Newton`, the exact one for convex models, has a file of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, StackDataset

from recipe import batch as batches
from recipe.batch import Batch
from recipe.setting import Parameters, Setting
from recipe.training import DivergedError, Minibatch, progress, stack


@dataclass(frozen=True)
class Objective:
    """What training minimises: `sum_i w_i l_i / sum_i w_i + l2/2 |theta|^2`, or without the division if not `mean`.

    Args:
        l2: the factor of half the squared norm of the trained parameters.
        mean: whether losses are averaged over the weights, or summed.
    """

    l2: float = 0.0
    mean: bool = True


class Algorithm(Protocol):
    """`train(setting, weights (n,), seed, added)` gives parameters; `train_many` the same for r runs, stacked."""

    @property
    def objective(self) -> Objective:
        """What training minimises."""

    def train(self, setting: Setting, weights: Tensor, seed: int, added: Batch | None = None) -> Parameters:
        """Parameters of one run: `(n,)` weights."""

    def train_many(
        self, setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None
    ) -> Parameters:
        """Parameters of r runs, stacked along a new first axis: `(r, n)` weights, r seeds."""


@dataclass(frozen=True)
class SGD(Minibatch):
    """Stochastic gradient descent as in `torch.optim.SGD`; losses are averaged over a batch.

    A subset trains as you would train it: batches are drawn from the points with positive weight, `|S| // batch_size`
    steps an epoch, the last partial batch dropped (a subset smaller than a batch is one batch).

    Args:
        epochs: passes over the training set.
        batch_size: examples a step.
        lr: the learning rate at the first step.
        momentum: of the heavy ball.
        weight_decay: the l2 of the objective.
        schedule: "linear" or "cosine" to zero, or "constant".
        replay: draw the batches of the full universe and let weights multiply the losses instead: the same seed then
            sees the same batches whatever the weights.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "linear"
    replay: bool = False

    @property
    def objective(self) -> Objective:
        """The mean loss with `weight_decay` as l2."""
        return Objective(l2=self.weight_decay)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The update rule; elementwise, so stacked runs do not touch each other."""
        decay, mu = self.weight_decay, self.momentum
        return torch.optim.SGD(parameters, lr=self.lr, momentum=mu, weight_decay=decay, fused=True)


@dataclass(frozen=True)
class AdamW(Minibatch):
    """Adam with decoupled weight decay as in `torch.optim.AdamW`; batches and schedules as in `SGD`.

    The decoupled decay is not the gradient of a penalty, so the objective declares no l2.

    Reference: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv:1711.05101.
    """

    epochs: int
    batch_size: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "linear"
    replay: bool = False

    @property
    def objective(self) -> Objective:
        """The mean loss."""
        return Objective()

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """The update rule; elementwise, so stacked runs do not touch each other."""
        decay, betas = self.weight_decay, self.betas
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, eps=self.eps, weight_decay=decay, fused=True)


@dataclass(frozen=True)
class Custom:
    """Your own training loop, one run at a time.

    Args:
        fn: `fn(model, dataset, seed) -> model`; `dataset` is a torch `Dataset` of the chosen examples (then the added
            ones) whose items look like the universe's. The model it gets is its own to change.
        objective: what the loop minimises, for estimators.
        name: enters the fingerprint of a run; change it when the loop changes.
    """

    fn: Callable[[nn.Module, Dataset, int], nn.Module] = field(compare=False)  # its name stands for it
    objective: Objective
    name: str

    def train(self, setting: Setting, weights: Tensor, seed: int, added: Batch | None = None) -> Parameters:
        """Parameters of one run. Raises `ValueError` for weights other than 0 and 1."""
        w = setting.check_weights(weights)
        if not ((w == 0) | (w == 1)).all():
            raise ValueError(
                "A Custom training loop gets a data set, so its weights must be 0 or 1; got others. Round them, or use "
                "SGD, AdamW or Newton, which take any weight."
            )
        data = batches.take(setting.pool, w.nonzero().squeeze(1))
        data = data if added is None else batches.concatenate(data, setting.check_added(added))
        dataset: Any = StackDataset(*data) if isinstance(data, tuple) else StackDataset(**data)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.fn(setting.module(setting.initial(seed)), dataset, seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"The training loop {self.name!r} must return the trained model; it returned {model!r}.")
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if not all(t.isfinite().all() for t in state.values()):
            raise DivergedError(
                f"The training loop {self.name!r} with seed {seed} returned parameters that are not finite. Lower its "
                "learning rate, or look for NaN in the training examples."
            )
        return {name: t.detach().clone() for name, t in state.items()}

    def train_many(
        self, setting: Setting, weights: Tensor, seeds: Sequence[int], added: Batch | None = None
    ) -> Parameters:
        """Parameters of r runs, one after the other."""
        runs = progress(list(zip(weights, seeds, strict=True)), f"training ({self.name})")
        return stack([self.train(setting, w, s, added) for w, s in runs])
