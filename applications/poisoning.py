"""Poisoning: what could a few malicious training points do?

    maximise  mean_j loss(f_j(w, (x, y)))   over poison inputs x in a box, by gradient ascent through the datamodel,

with f the losses on target examples, or their margins, and y labels that the attacker chooses. Meant for measuring
how fragile a training set is, and for testing defences.

References: Koh, Steinhardt, Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2018,
arXiv:1811.00741; Muñoz-González et al., "Towards Poisoning of Deep Learning Algorithms with Back-gradient
Optimization", 2017, arXiv:1708.08689. Deviation: no sanitisation constraint; pass another feasible set for one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications._target_loss import target_loss
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import OutputFunction
from recipe.feasible import Box
from recipe.problem import Feasible, Maximize, Problem
from recipe.setting import Setting


@dataclass(frozen=True, eq=False)
class Poisoning:
    """Added examples that make the mean target loss large.

    Args:
        start: the poisons to begin with, b of them with their labels, for example `random_label_flips`.
        feasible: the inputs that are allowed; default the box from the universe's least to its largest value.
        entry: which tensor of a batch is changed: its position in a tuple, its name in a mapping.
        draws: how many random poisons the baseline averages over.
        seed: of the random baseline.

    Raises on use:
        ValueError: there is no poison.
        NotImplementedError: a datamodel that cannot value added examples.
    """

    start: Batch
    feasible: Feasible | None = None
    entry: int | str = 0
    draws: int = 3
    seed: int = 0

    def batch(self, inputs: Tensor) -> Batch:
        """The poisons with these inputs; the first of them where there are fewer inputs than poisons."""
        kept = batches.take(self.start, slice(0, len(inputs)))
        if isinstance(kept, tuple):
            return tuple(inputs if i == self.entry else t for i, t in enumerate(kept))
        return {**kept, str(self.entry): inputs}

    def problem(self, f: OutputFunction) -> Problem:
        """Maximise the mean target loss; the decision is the poison inputs `(b, ...)`.

        Baselines: no poison ("do nothing"), random allowed inputs with the same labels ("random"), and the poisons
        before they are optimised ("start").
        """
        inputs = self.start[self.entry]  # type: ignore[index]
        if not len(inputs):
            raise ValueError("Poisoning needs at least one poison to start from; got none.")
        feasible = self.feasible or _range_of(inputs if f.setting is None else f.setting.pool[self.entry], inputs)  # type: ignore[index]
        generator = torch.Generator().manual_seed(self.seed)
        weights, loss = torch.ones(f.n, dtype=inputs.dtype), target_loss(f)
        return Problem(
            Maximize(lambda x: loss(f(weights, self.batch(x))).mean()),
            inputs,
            feasible,
            lambda x: (weights, self.batch(x)),
            {
                "do nothing": inputs[:0],
                "random": [feasible.sample(generator) for _ in range(self.draws)],
                "start": inputs,
            },
        )


def _range_of(known: Tensor, inputs: Tensor) -> Box:
    """The box, of the shape of `inputs`, from the least to the largest value of known ones."""
    low, high = (float(value) for value in known.aminmax())
    return Box.between(torch.full_like(inputs, low), torch.full_like(inputs, high))


def random_label_flips(setting: Setting, count: int, seed: int = 0) -> Batch:
    """`count` random training examples, each with a random other label of the universe: the attack without a thought.

    Raises:
        ValueError: more poisons than training points, or a universe of a single class.
    """
    y = batches.labels(setting.pool)
    classes = y.unique()
    if len(classes) < 2 or not 1 <= count <= setting.n:
        raise ValueError(
            f"Label flips need two classes and between 1 and {setting.n} poisons; got {len(classes)} and {count}."
        )
    generator = torch.Generator().manual_seed(seed)
    chosen = batches.take(setting.pool, torch.randperm(setting.n, generator=generator)[:count])
    rank = torch.searchsorted(classes, batches.labels(chosen))
    shift = torch.randint(1, len(classes), (count,), generator=generator).to(rank)
    flipped = classes[(rank + shift) % len(classes)]
    return batches.relabel(chosen, flipped)
