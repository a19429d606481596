"""Baselines: what the field does to a model so that it forgets, without predicting what it should say.

    FineTune      descend on the retained points
    GradAscent    ascend the loss of the forget set
    GradDiff      descend on retained and ascend on forgotten points in one step
    SCRUB         in turns: away from the deployed model on the forget set, towards it on the rest
    NoisyDescent  descend on the retained points with Gaussian noise

Ascent has no value at which to stop ("missing targets", Georgiev et al. 2024, arXiv:2410.23232, section 3), so its
learning rate and steps decide between doing nothing and breaking the model.

References: Graves et al. 2021, arXiv:2010.10981 (ascent); Liu et al. 2022, arXiv:2203.12817 (difference); Kurmanji et
al. 2023, arXiv:2302.09880 (SCRUB); Chien et al. 2024, arXiv:2401.10371, and Neel et al. 2021, arXiv:2007.02923 (noise).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.unlearning.deployed import Deployed, FromDeployed
from recipe import batch as batches
from recipe.algorithms import SGD, Algorithm
from recipe.batch import Batch
from recipe.setting import Parameters, Setting
from recipe.training import DivergedError

Step = Callable[[Parameters], Tensor]  # trained parameters -> what the step descends on


@dataclass(frozen=True)
class FineTune(FromDeployed):
    """Go on training, on the retained points only.

    Args:
        algorithm: of the fine-tuning; the loss stays the setting's.
    """

    algorithm: Algorithm = SGD(epochs=5, batch_size=64, lr=0.01)

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        setting = replace(deployed.setting, model=deployed.setting.module(deployed.parameters))
        return self.algorithm.train(setting, keep, seed)


@dataclass(frozen=True)
class GradAscent(FromDeployed):
    """Ascend the mean loss of the forget set.

    Args:
        epochs: passes over the forget set.
        lr: of plain SGD.
        batch_size: examples a step.
    """

    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 64

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        setting, draw = deployed.setting, torch.Generator().manual_seed(seed)
        forgotten = _epochs(setting, keep == 0, self.batch_size, self.epochs, draw)

        def ascent(b: Batch, theta: Parameters) -> Tensor:
            return -setting.losses(theta, b).mean()

        steps = (partial(ascent, b) for b in forgotten)
        return _descend(setting, deployed.parameters, steps, self.lr)


@dataclass(frozen=True)
class GradDiff(FromDeployed):
    """Descend on retained points and ascend on forgotten ones in one step: `mean l(retained) - mean l(forgotten)`.

    Args:
        epochs: passes over the forget set; each of its batches goes with a batch of retained points.
        lr: of plain SGD.
        batch_size: examples of each kind a step.
    """

    epochs: int = 5
    lr: float = 1e-3
    batch_size: int = 64

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        setting, draw = deployed.setting, torch.Generator().manual_seed(seed)
        forgotten = _epochs(setting, keep == 0, self.batch_size, self.epochs, draw)
        retained = _endless(setting, keep > 0, self.batch_size, draw)

        def difference(b: Batch, r: Batch, theta: Parameters) -> Tensor:
            return setting.losses(theta, r).mean() - setting.losses(theta, b).mean()

        steps = (partial(difference, b, r) for b, r in zip(forgotten, retained, strict=False))
        return _descend(setting, deployed.parameters, steps, self.lr)


@dataclass(frozen=True)
class SCRUB(FromDeployed):
    """Teacher and student: away from the deployed model on the forget set, then towards it and the labels on the rest.

        ascent epochs:   maximise  KL(teacher || student)  on the forget set, then, in every epoch,
        descent:         minimise  gamma l + alpha T^2 KL(teacher || student)  on the retained points.

    Args:
        epochs: passes over the retained points.
        ascent: how many of the first epochs begin with a pass of ascent over the forget set.
        lr: of Adam.
        gamma: weight of the labels' loss.
        alpha: weight of the teacher.
        temperature: T, at which the distributions are compared.
        batch_size: examples a step.
    """

    epochs: int = 5
    ascent: int = 3
    lr: float = 5e-4
    gamma: float = 0.99
    alpha: float = 0.1
    temperature: float = 4.0
    batch_size: int = 64

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        # The optimiser holds the *student's* parameters; a published benchmark hands it the teacher's, and its SCRUB
        # leaves the model as it was.
        return _descend(deployed.setting, deployed.parameters, self._steps(deployed, keep, seed), self.lr, adam=True)

    def _steps(self, deployed: Deployed, keep: Tensor, seed: int) -> Iterator[Step]:
        setting, draw = deployed.setting, torch.Generator().manual_seed(seed)

        def divergence(b: Batch, theta: Parameters) -> Tensor:
            with torch.no_grad():
                teacher = setting.predict(deployed.parameters, b) / self.temperature
            student = setting.predict(theta, b) / self.temperature
            student, teacher = (z.flatten(0, -2).log_softmax(-1) for z in (student, teacher))
            return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * self.temperature**2

        def towards(b: Batch, theta: Parameters) -> Tensor:
            return self.gamma * setting.losses(theta, b).mean() + self.alpha * divergence(b, theta)

        def away(b: Batch, theta: Parameters) -> Tensor:
            return -divergence(b, theta)

        for epoch in range(self.epochs):
            if epoch < self.ascent:
                for b in _epochs(setting, keep == 0, self.batch_size, 1, draw):
                    yield partial(away, b)
            for b in _epochs(setting, keep > 0, self.batch_size, 1, draw):
                yield partial(towards, b)


@dataclass(frozen=True)
class NoisyDescent(FromDeployed):
    """Langevin unlearning: `theta <- theta - lr grad L(theta; w) + sqrt(2 lr) noise * normal`, on the retained points.

    Args:
        epochs: passes over the retained points.
        lr: of the descent; with the setting's own weight decay.
        noise: standard deviation of the noise of one unit of time.
        batch_size: examples a step.
    """

    epochs: int = 1
    lr: float = 0.01
    noise: float = 0.01
    batch_size: int = 64

    def unlearn(self, deployed: Deployed, keep: Tensor, seed: int = 0) -> Parameters:
        """See `FromDeployed.unlearn`."""
        setting, draw = deployed.setting, torch.Generator().manual_seed(seed)
        l2 = setting.algorithm.objective.l2

        def objective(b: Batch, theta: Parameters) -> Tensor:
            return setting.losses(theta, b).mean() + 0.5 * l2 * setting.flat(theta).square().sum()

        retained = _epochs(setting, keep > 0, self.batch_size, self.epochs, draw)
        steps = (partial(objective, b) for b in retained)
        size = math.sqrt(2 * self.lr) * self.noise
        return _descend(setting, deployed.parameters, steps, self.lr, noise=(size, draw))


def _descend(
    setting: Setting,
    start: Parameters,
    steps: Iterator[Step],
    lr: float,
    adam: bool = False,
    noise: tuple[float, torch.Generator] | None = None,
) -> Parameters:
    """Parameters after the steps, from a copy of `start`.

    Raises:
        DivergedError: parameters that are no longer finite.
    """
    theta = {name: t.detach().clone() for name, t in start.items()}
    leaves = [theta[name].requires_grad_() for name in setting.trained]
    optimizer = torch.optim.Adam(leaves, lr=lr) if adam else torch.optim.SGD(leaves, lr=lr)
    for step in steps:
        optimizer.zero_grad()
        step(theta).backward()
        optimizer.step()
        for leaf in leaves if noise else ():
            size, draw = noise or (0.0, None)
            leaf.data += size * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype).to(leaf)
    if not all(leaf.isfinite().all() for leaf in leaves):
        raise DivergedError("Unlearning left parameters that are not finite; lower its learning rate or its steps.")
    return {name: t.detach() for name, t in theta.items()}


def _epochs(setting: Setting, chosen: Tensor, size: int, epochs: int, draw: torch.Generator) -> Iterator[Batch]:
    """Batches of the chosen points, each once an epoch, in a new order."""
    points = chosen.nonzero().squeeze(1)
    for _ in range(epochs):
        for part in points[torch.randperm(len(points), generator=draw)].split(size):
            yield batches.take(setting.pool, part)


def _endless(setting: Setting, chosen: Tensor, size: int, draw: torch.Generator) -> Iterator[Batch]:
    while True:
        yield from _epochs(setting, chosen, size, 1, draw)
