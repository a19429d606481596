"""Is a run smooth in its weights? Train without a few points and look whether a derivative saw that coming.

A derivative holds for small changes of the weights, and leaving points out is no small change. In a smooth run it
holds nevertheless; in a rough one every small change bends the path somewhere, and the derivative, exact as it is, says
little about retraining. Nothing in the derivative tells which of the two it is of.

Reference: Engstrom et al., "Optimizing ML Training with Metagradient Descent", 2025, arXiv:2503.13751, whose
metasmoothness compares two differences of trained parameters along a direction. Deviation: here outputs are compared,
and with what the derivative predicts, since that is what is used afterwards. What all outputs have in common is left
out: less data moves them all beyond first order, in smooth runs too.
"""

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from estimators._replay import Replay, Run
from recipe.retrain import outputs_of
from recipe.setting import Parameters, Setting


@dataclass(frozen=True)
class Smoothness:
    """How well predicted changes `p` of the outputs agree with actual ones `a`, over outputs and replays.

    Of both, the mean over the outputs is taken off, unless there is one output only.

    Args:
        agreement: `2 <p, a> / (|p|^2 + |a|^2)`: 1 where they are equal, 0.8 where one is twice the other, 0 where they
            have nothing in common.
        slope: actual change per predicted change, least squares.
        changes: how many were compared; from less than about ten the agreement is coarse.
    """

    agreement: float
    slope: float
    changes: int

    def __str__(self) -> str:
        return f"agreement {self.agreement:.2f}, slope {self.slope:.2f} ({self.changes} changes of outputs)"


@dataclass(frozen=True)
class SmoothnessCheck:
    """Replays the run without some of its points, and warns where the derivative did not see the outcome coming.

    Args:
        replays: how many; each costs a training run.
        drop: which share of the points each leaves out, at random.
        wanted: the least agreement that does not warn.
    """

    replays: int = 1
    drop: float = 0.05
    wanted: float = 0.85

    def __post_init__(self) -> None:
        if self.replays < 1 or not 0 < self.drop < 1:
            raise ValueError(f"Expected replays >= 1 and 0 < drop < 1; got {self.replays} and {self.drop}.")

    def probe(self, run: Run, end: Parameters) -> "Probe":
        """Replay on the batches of the run, without a random share of its points."""
        generator = torch.Generator().manual_seed(run.seed)
        present = run.weights.cpu().nonzero().squeeze(1)
        count = min(max(1, round(self.drop * len(present))), len(present) - 1)  # the last point cannot be left out
        weights = run.weights.repeat(self.replays, 1)
        for row in weights:
            row[present[torch.randperm(len(present), generator=generator)[:count]]] = 0
        trained = [Replay.of(replace(run, weights=row), lambda steps: None).end for row in weights]
        return Probe(self, weights - run.weights, [end, *trained])


@dataclass(frozen=True, eq=False)
class Probe:
    """Changes of the weights `(replays, n)`, and the parameters before and after each of them."""

    check: SmoothnessCheck
    moves: Tensor
    trained: list[Parameters]

    def compare(self, setting: Setting, foreseen: Tensor) -> Smoothness:
        """The agreement with foreseen changes `moves @ effects.T`, `(replays, m)`; warns where it is low."""
        before, *after = outputs_of(setting, self.trained)
        actual, predicted = (_apart(t) for t in (torch.stack(after) - before, foreseen))
        product, square = (actual * predicted).sum(), predicted.square().sum()
        agreement = float(2 * product / (square + actual.square().sum()))
        found = Smoothness(agreement, float(product / square), actual.numel())
        if agreement < self.check.wanted:
            warnings.warn(
                "The run does not look smooth in its weights, and then its derivative says little about retraining: "
                f"without {self.check.drop:.0%} of the points, the actual changes of {setting.m} outputs agree with "
                f"the predicted ones to {agreement:.2f} (1 is perfect, {self.check.wanted:.2f} is wanted). Train more "
                "smoothly: with a smooth activation (GELU instead of ReLU), a lower learning rate or momentum, larger "
                "batches, a larger eps of AdamW. Or use an estimator that does not follow the run, such as Influence. "
                "Where it is close, SmoothnessCheck(replays=3) tells more.",
                stacklevel=5,  # the line that called `fit` or `on`
            )
        return found


def _apart(changes: Tensor) -> Tensor:
    """Changes `(replays, m)` of the outputs without what they have in common."""
    return changes - changes.mean(1, keepdim=True) if changes.shape[1] > 1 else changes
