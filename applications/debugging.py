"""Debugging: which training data made the model say this?

    minimise  f_target(w)   over removals of at most k training points,

with f the `TopMargin` of the label that the model predicts, so that below zero the prediction has flipped. Which points
that are is a hypothesis; `smallest_flip` tests it by retraining without them.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 4,
data support of a prediction).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.feasible import Subset
from recipe.outputs import Logits
from recipe.problem import Minimize, Problem


@dataclass(frozen=True)
class Debugging:
    """Remove at most `remove` training points so that the output of one target falls furthest.

    Args:
        target: which target.
        remove: how many points at most.
        draws: how many random removals the baseline averages over.
        seed: of the random baseline.

    Example:
        >>> import torch
        >>> from recipe import LinearDatamodel, TopK, solve
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, 3.0]]))
        >>> solve(Debugging(target=0, remove=1), f_hat, TopK()).decision
        tensor([1., 1., 0.])
    """

    target: int
    remove: int
    draws: int = 3
    seed: int = 0

    def problem(self, f: OutputFunction) -> Problem:
        """Minimise the target's output; the decision is `(n,)` zeros and ones.

        Baselines: keep everything ("do nothing"), remove as many points at random.
        """
        if not 1 <= self.remove < f.n:
            raise ValueError(f"Between 1 and {f.n - 1} points can be removed; got remove={self.remove}.")
        rows = f.rows(self.target)
        exactly = Subset(f.n, f.n - self.remove)
        generator = torch.Generator().manual_seed(self.seed)
        return Problem(
            Minimize(lambda w: f(w)[rows].mean()),
            torch.ones(f.n),
            Subset(f.n, (f.n - self.remove, f.n)),
            lambda w: (w, None),
            {
                "do nothing": torch.ones(f.n),
                "random": [exactly.sample(generator) for _ in range(self.draws)],
            },
        )


@dataclass(frozen=True, eq=False)
class Blame:
    """Training points by what they do to one output: `helpful` and `harmful` indices, most first, with `effects`."""

    helpful: Tensor
    harmful: Tensor
    effects: Tensor


def blame(f_hat: OutputFunction, target: int, k: int = 10) -> Blame:
    """The k training points that hold an output up most, and the k that pull it down most.

    Args:
        f_hat: a datamodel of an output that is better when larger, such as `TopMargin`.
        target: which target.
        k: how many of each.

    Returns:
        Indices, and the output's derivative `(n,)` in every point's weight at full weights.
    """
    w = torch.ones(f_hat.n, requires_grad=True)
    (effects,) = torch.autograd.grad(f_hat(w)[f_hat.rows(target)].mean(), w)
    order = effects.argsort(descending=True, stable=True)
    return Blame(order[:k], order.flip(0)[:k], effects)


@dataclass(frozen=True)
class Flip:
    """The smallest removal found that flips a prediction.

    Args:
        size: how many points; None where no removal of the tried sizes flipped it.
        before: the output with everything.
        after: the output without the points (of the largest removal, where none flipped it).
    """

    size: int | None
    before: float
    after: float


def smallest_flip(order: Tensor, f: OutputFunction, target: int, sizes: Sequence[int]) -> Flip:
    """Retrain without the first points of an order, more and more of them, until the output falls below zero.

    Args:
        order: training points, the first to be removed first, for example `blame(f_hat, target, k).helpful`.
        f: true outputs of a margin, `Retrain(setting, seeds)`; their mean over seeds decides.
        target: which target.
        sizes: numbers of points to try, ascending; each is one retraining for every seed, all trained together.

    Raises:
        ValueError: sizes that do not ascend, or exceed the order.
    """
    if list(sizes) != sorted(set(sizes)) or not sizes or sizes[0] < 1 or sizes[-1] > len(order):
        raise ValueError(f"sizes must ascend from at least 1 to at most {len(order)}; got {list(sizes)}.")
    weights = torch.ones(len(sizes) + 1, f.n)
    for row, size in zip(weights[1:], sizes, strict=True):
        row[order[:size]] = 0
    with torch.no_grad():
        outputs = f(weights)[:, f.rows(target)].mean(1).tolist()
    before, tried = outputs[0], outputs[1:]
    flipped = next((i for i, value in enumerate(tried) if value < 0), None)
    if flipped is None:
        return Flip(None, before, tried[-1])
    return Flip(sizes[flipped], before, tried[flipped])


def as_predicted(f: OutputFunction) -> Batch:
    """The targets of `f`, labelled with what the model trained on everything predicts.

    The targets to debug with `f.on(as_predicted(f), TopMargin())`.
    """
    if f.setting is None:
        raise ValueError("as_predicted needs an output function that knows its setting, such as Retrain.")
    targets = f.setting.probe
    logits = f.on(targets, Logits())(torch.ones(f.n)).detach()
    y = logits.view(batches.size(targets), -1).argmax(1)
    return batches.relabel(targets, y)
