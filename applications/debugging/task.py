"""Debugging: which training data made the model say this?

    minimise  f_target(w)   over removals of at most k training points,

with f the `TopMargin` of the label that the model predicts, so that below zero the prediction has flipped. Which points
that are is a hypothesis; `smallest_flip` tests it by retraining without them.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 4,
data support of a prediction).
"""

from dataclasses import dataclass

import torch

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
