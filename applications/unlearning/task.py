"""Unlearning: what would the deployed model say had it never seen the forget set?

    wanted = outputs(deployed) + f(w) - f(1),      w = 0 on the forget set and 1 elsewhere.

With predicted outputs this needs no retraining. The deployed model's own seed is kept: only the predicted *change* is
added. One forget set or thousands are the same product with the weights.

Reference: Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching", 2024, arXiv:2410.23232.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.unlearning.forget_sets import ForgetSets, many, retained
from recipe.datamodel import OutputFunction
from recipe.feasible import Free
from recipe.problem import Minimize, Problem

BLOCK_BYTES = 2**26  # of weight vectors that are held at once


@dataclass(frozen=True, eq=False)
class Unlearning:
    """Outputs that the deployed model would have without the forget set.

    Args:
        forget: indices of the forget set, or `(n,)` booleans; of k forget sets at once, a list of such tensors or
            `(k, n)` booleans.
        deployed: `(m,)`, the outputs of the deployed model, e.g. `setting.outputs(parameters)`.

    Raises on use:
        ValueError: a forget set that is empty, is everything, or lies outside the universe; outputs of another length.

    Example:
        >>> import torch
        >>> from recipe import LinearDatamodel
        >>> f_hat = LinearDatamodel(torch.zeros(1), torch.tensor([[-1.0, 2.0, -3.0]]))
        >>> Unlearning(torch.tensor([1]), torch.tensor([0.5])).wanted(f_hat)
        tensor([-1.5000])
        >>> Unlearning([torch.tensor([1]), torch.tensor([0, 2])], torch.tensor([0.5])).wanted(f_hat)
        tensor([[-1.5000],
                [ 4.5000]])
    """

    forget: ForgetSets
    deployed: Tensor

    def retained(self, n: int) -> Tensor:
        """The weights without the forget set, zeros and ones `(n,)`, or `(k, n)` for k forget sets."""
        return retained(self.forget, n)

    def wanted(self, f: OutputFunction) -> Tensor:
        """`deployed + f(w) - f(1)`, `(m,)` or `(k, m)`: the unlearned outputs, predicted or true."""
        if self.deployed.shape != (f.m,):
            raise ValueError(
                f"Expected {f.m} outputs of the deployed model, one for every output of f; got "
                f"{tuple(self.deployed.shape)}. Use setting.outputs(parameters)."
            )
        with torch.no_grad():
            start = self.deployed - f(torch.ones(f.n))
            return torch.cat([start + f(w) for w in self._blocks(f.n)]).reshape(*self._sets, f.m)

    @property
    def _sets(self) -> tuple[int, ...]:
        """`()` for one forget set, `(k,)` for k."""
        return (len(self.forget),) if many(self.forget) else ()

    def _blocks(self, n: int) -> list[Tensor]:
        """The weights in parts that fit `BLOCK_BYTES`; what is one forget set stays a vector, as some `f` need it."""
        if not self._sets:
            return [self.retained(n)]
        if not len(self.forget):
            raise ValueError("Expected at least one forget set; got none.")
        rows = max(1, BLOCK_BYTES // (4 * n))
        parts: list[ForgetSets] = [self.forget[i : i + rows] for i in range(0, len(self.forget), rows)]
        return [retained(part, n) for part in parts]

    def problem(self, f: OutputFunction) -> Problem:
        """Minimise the mean squared distance of outputs `(m,)` or `(k, m)`, the decision, from the wanted ones.

        Baselines: the deployed outputs ("do nothing"), and what retraining without as many random points gives
        ("random"): has it mattered which points are forgotten?
        """
        w = self.retained(f.n)
        other = w[..., torch.randperm(f.n, generator=torch.Generator().manual_seed(0))]
        wanted = self.wanted(f)
        nothing = self.deployed.expand(wanted.shape).clone()
        return Problem(
            Minimize(lambda u: ((u - wanted) ** 2).mean()),
            nothing,
            Free(tuple(wanted.shape)),
            lambda u: (w, None),
            {"do nothing": nothing, "random": lambda true: self.deployed + true(other) - true(torch.ones(f.n))},
        )
