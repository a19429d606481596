"""Poisoning: what could a few malicious training points do?

    maximise  mean_j loss(f_j(w, (x, y)))   over poison inputs x in a feasible set, by ascent through the datamodel,

with f the losses on target examples, or their margins, and y labels that the attacker chooses. Meant for testing one's
own systems: how fragile is a training set, and would a defence have noticed?

References: Koh, Steinhardt, Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2018,
arXiv:1811.00741; Muñoz-González et al., "Towards Poisoning of Deep Learning Algorithms with Back-gradient
Optimization", 2017, arXiv:1708.08689. What a defence lets through is a feasible set (`sanitation.py`); the attacks of
the literature differ in the datamodel alone: influence refitted on the way, EK-FAC, gradient matching, metagradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications._target_loss import target_loss
from applications.poisoning._inputs import replaced
from applications.poisoning.label_flips import random_label_flips as random_label_flips  # what plug-ins keep beside
from applications.poisoning.poisons import Poisons as Poisons
from applications.poisoning.sanitation import let_through as let_through
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.feasible import Box
from recipe.problem import Feasible, Maximize, Minimize, Problem


@dataclass(frozen=True, eq=False)
class Poisoning:
    """Examples that join the training set, or replace some of it, so that an attacker's goal is met.

    Args:
        start: the poisons to begin with, b of them with their labels, for example `random_label_flips`.
        feasible: the inputs that are allowed; default the box from the universe's least to its largest value.
        entry: which tensor of a batch is changed: its position in a tuple, its name in a mapping.
        draws: how many random poisons the baseline averages over.
        seed: of the random baseline.
        towards: make the targets' losses small instead of large, because they carry the labels that the attacker wants
            (`Targeted`, `Backdoor` in `goals.py`).
        copies: how often each poison is added, b whole numbers; default once. Two distinct points and many copies do
            nearly as much harm as many points.
        replaces: indices of training points that the poisons take the place of; default none, they are added.

    Raises on use:
        ValueError: there is no poison, copies that do not fit, or points to replace that are not there.
        NotImplementedError: a datamodel that cannot value added examples.
    """

    start: Batch
    feasible: Feasible | None = None
    entry: int | str = 0
    draws: int = 3
    seed: int = 0
    towards: bool = False
    copies: tuple[int, ...] | None = None
    replaces: tuple[int, ...] = ()

    def batch(self, inputs: Tensor) -> Batch:
        """The poisons with these inputs, copies included; the first of them where there are fewer inputs."""
        kept = replaced(batches.take(self.start, slice(0, len(inputs))), self.entry, inputs)
        if self.copies is None:
            return kept
        times = torch.tensor(self.copies[: len(inputs)], dtype=torch.long)
        return batches.apply(lambda t: t.repeat_interleave(times.to(t.device), 0), kept)

    def weights(self, n: int) -> Tensor:
        """Training weights `(n,)`: zero for what the poisons replace."""
        return torch.ones(n).index_fill(0, torch.tensor(self.replaces, dtype=torch.long), 0.0)

    def problem(self, f: OutputFunction) -> Problem:
        """Maximise (or minimise) the mean target loss; the decision is the poison inputs `(b, ...)`.

        Baselines: no poison ("do nothing", the points to be replaced stay), random allowed inputs with the same labels
        ("random"), and the poisons before they are optimised ("start").
        """
        inputs = self.start[self.entry]  # type: ignore[index]
        self._check(f, len(inputs))
        feasible = self.feasible or _range_of(inputs if f.setting is None else f.setting.pool[self.entry], inputs)  # type: ignore[index]
        generator = torch.Generator().manual_seed(self.seed)
        kept, loss = self.weights(f.n).to(inputs.dtype), target_loss(f)

        def weights(x: Tensor) -> Tensor:  # of no poison at all: the points to be replaced are still there
            return kept if len(x) else torch.ones_like(kept)

        return Problem(
            (Minimize if self.towards else Maximize)(lambda x: loss(f(weights(x), self.batch(x))).mean()),
            inputs,
            feasible,
            lambda x: (weights(x), self.batch(x)),
            {
                "do nothing": inputs[:0],
                "random": [feasible.sample(generator) for _ in range(self.draws)],
                "start": inputs,
            },
        )

    def _check(self, f: OutputFunction, b: int) -> None:
        if not b:
            raise ValueError("Poisoning needs at least one poison to start from; got none.")
        if self.copies is not None and (len(self.copies) != b or min(self.copies) < 0 or not any(self.copies)):
            raise ValueError(f"Expected how often each of {b} poisons is added, once at least; got {self.copies}.")
        if self.replaces and not (min(self.replaces) >= 0 and max(self.replaces) < f.n and len(self.replaces) < f.n):
            raise ValueError(f"Points to replace are indices below {f.n}, not all of them; got {self.replaces}.")


def _range_of(known: Tensor, inputs: Tensor) -> Box:
    """The box, of the shape of `inputs`, from the least to the largest value of known ones."""
    low, high = (float(value) for value in known.aminmax())
    return Box.between(torch.full_like(inputs, low), torch.full_like(inputs, high))
