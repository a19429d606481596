"""Unlearning: what would the deployed model say had it never seen the forget set?

    wanted = outputs(deployed) + f(w) - f(1),      w = 0 on the forget set and 1 elsewhere.

With predicted outputs this needs no retraining. The deployed model's own seed is kept: only the predicted *change* is
added. `datamodel_matching` makes a model of it, by training the deployed one towards the wanted logits.

Reference: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, arXiv:2410.23232.
Deviation: retained points are sampled once, not anew each epoch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.algorithms import Algorithm
from recipe.datamodel import OutputFunction
from recipe.feasible import Free
from recipe.losses import SquaredError
from recipe.outputs import Logits
from recipe.problem import Minimize, Problem
from recipe.setting import Parameters, Setting


@dataclass(frozen=True, eq=False)
class Unlearning:
    """Outputs that the deployed model would have without the forget set.

    Args:
        forget: indices of the forget set, or `(n,)` booleans.
        deployed: `(m,)`, the outputs of the deployed model, e.g. `setting.outputs(parameters)`.

    Raises on use:
        ValueError: a forget set that is empty, is everything, or lies outside the universe; outputs of another length.

    Example:
        >>> import torch
        >>> from recipe import LinearDatamodel
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> Unlearning(torch.tensor([1]), torch.tensor([0.5])).wanted(f_hat)
        tensor([-1.5000])
    """

    forget: Tensor
    deployed: Tensor

    def retained(self, n: int) -> Tensor:
        """The weights without the forget set, `(n,)` zeros and ones."""
        index = self.forget.nonzero().squeeze(1) if self.forget.dtype == torch.bool else self.forget
        if self.forget.dtype == torch.bool and len(self.forget) != n:
            raise ValueError(f"A boolean forget set needs n = {n} entries; got {len(self.forget)}.")
        if not len(index) or len(index.unique()) >= n or index.min() < 0 or index.max() >= n:
            raise ValueError(
                f"A forget set needs between 1 and {n - 1} of the indices 0..{n - 1}; got {len(index)} indices"
                + (f" from {int(index.min())} to {int(index.max())}." if len(index) else ".")
            )
        return torch.ones(n).index_fill(0, index, 0.0)

    def wanted(self, f: OutputFunction) -> Tensor:
        """`deployed + f(w) - f(1)`, `(m,)`: the unlearned outputs, predicted or true."""
        if self.deployed.shape != (f.m,):
            raise ValueError(
                f"Expected {f.m} outputs of the deployed model, one for every output of f; got "
                f"{tuple(self.deployed.shape)}. Use setting.outputs(parameters)."
            )
        with torch.no_grad():
            return self.deployed + f(self.retained(f.n)) - f(torch.ones(f.n))

    def problem(self, f: OutputFunction) -> Problem:
        """Minimise the mean squared distance of outputs `(m,)`, the decision, from the wanted ones.

        Baselines: the deployed outputs ("do nothing"), and what retraining without as many random points gives
        ("random"): has it mattered which points are forgotten?
        """
        w = self.retained(f.n)
        other = w[torch.randperm(f.n, generator=torch.Generator().manual_seed(0))]
        wanted = self.wanted(f)
        return Problem(
            Minimize(lambda u: ((u - wanted) ** 2).mean()),
            self.deployed,
            Free(tuple(self.deployed.shape)),
            lambda u: (w, None),
            {"do nothing": self.deployed, "random": lambda true: self.deployed + true(other) - true(torch.ones(f.n))},
        )


def datamodel_matching(
    setting: Setting,
    deployed: Parameters,
    f_hat: OutputFunction,
    forget: Tensor,
    algorithm: Algorithm,
    retained: float = 3.0,
    seed: int = 0,
) -> Parameters:
    """Train the deployed model towards its unlearned logits on the forget set and on a retained sample.

    This is training in a new setting: start, the deployed model; data, those points labelled with the wanted logits;
    loss, squared error.

    Args:
        setting: of the deployed model.
        deployed: its parameters.
        f_hat: a datamodel of the setting that has `on`; it is asked for logits on the points.
        forget: indices of the forget set.
        algorithm: of the fine-tuning.
        retained: how many retained points go with a forgotten one.
        seed: of the retained sample and of the fine-tuning.

    Returns:
        The parameters of the unlearned model.
    """
    keep = Unlearning(forget, torch.empty(0)).retained(setting.n)
    forgotten, rest = (keep == 0).nonzero().squeeze(1), keep.nonzero().squeeze(1)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    points = torch.cat([forgotten, rest[order[: round(retained * len(forgotten))]]])
    data = batches.take(setting.pool, points)
    logits = setting.on(data, Logits()).outputs(deployed).detach()
    wanted = Unlearning(forget, logits).wanted(f_hat.on(data, Logits())).view(len(points), -1)
    labelled = batches.relabel(data, wanted)
    matching = Setting(
        setting.module(deployed), labelled, labelled, algorithm, SquaredError(), Logits(), setting.forward,
        device=setting.device,
    )  # fmt: skip
    return algorithm.train(matching, torch.ones(len(points)), seed)
