"""Representation similarity: similar training points vote for their label. The baseline that an estimator has to beat.

With `phi` the representation that a trained model has of an example and `z` its prediction on the target of output j,

    effects[j, i] = cos(phi(target), phi(x_i)) <d f_j / d z, onehot(y_i) - 1/C> / n,        averaged over the models.

The first factor says how alike the two are, the second in which direction a vote for the class `y_i` moves the output:
up for a margin of that class, down for its loss, and for any other output whatever its derivative says.

Reference: the cosine score is the baseline of Hanawa et al., "Evaluation of Similarity-based Explanations", 2021,
arXiv:2006.04528.
Deviation: the score alone has neither sign nor output; the second factor, the vote of a kernel classifier, gives both.
The unit stays nominal: effects shrink like 1/n as they should, but their size is not that of a retrained output. Trust
the ranks; the slope that is printed beside an LDS says how far off the values are.
Cost: a forward pass over the data, and `2 t n d`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import members
from estimators._representation import Encoder, Representation, blocks, unit
from estimators._votes import check_labels, label_votes, slopes
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected
from recipe.work import Work


@dataclass(frozen=True)
class Similarity:
    """Effects by cosine similarity of representations; labels must be classes.

    Args:
        representation: `representation(model, batch) -> (b, d)`, of a trained model in eval mode; default: the input of
            the model's last trained layer, flattened.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Example:
        >>> from recipe import Newton, Setting
        >>> x = torch.tensor([[2.0, 0.1], [0.1, 2.0]])
        >>> data = (x, torch.tensor([0, 1]))
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2), data, data, Newton(l2=0.1))
        >>> Similarity().fit(setting).effects.sign()  # a point of its own class raises a margin, another lowers it
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """

    representation: Representation | None = None
    models: int = 1
    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints) and compare.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` that gives the models' mean outputs where it was fitted, with `effect` and `on`.

        Raises:
            ValueError: labels that are not one class an example, outputs without a gradient, or a representation that
                is not `(b, d)`.
        """
        check_labels(setting, "Similarity")
        there = where(setting, at)
        return _datamodel(setting, self.representation, members(setting, self.models, self.seed, at), there)


@dataclass(frozen=True, eq=False)
class _Voter:
    """One trained model: unit representations of the targets `(t, d)` and slopes of the outputs `(m, C)`."""

    encoder: Encoder
    targets: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, setting: Setting, representation: Representation | None, theta: Parameters) -> "_Voter":
        encoder = Encoder.of(setting, theta, representation)
        with torch.no_grad():
            z = setting.predict(theta, setting.probe)
        return cls(encoder, unit(encoder.all(setting.probe)), slopes(setting, z))

    def votes(self, batch: Batch) -> Tensor:
        """`cos(phi(target), phi(x_i)) <d f_j / d z, onehot(y_i) - 1/C>`, `(m, b)`."""
        alike = self.targets @ unit(self.encoder(batch)).T  # (t, b)
        width = len(self.slopes) // len(self.targets)
        return alike.repeat_interleave(width, 0) * (self.slopes @ label_votes(batch, self.slopes).T)


def _datamodel(
    setting: Setting, representation: Representation | None, trained: list[Parameters], at: Arguments
) -> LinearDatamodel:
    voters = [_Voter.of(setting, representation, theta) for theta in trained]

    def effect(batch: Batch) -> Tensor:
        batch = setting.check_added(batch)
        return torch.stack([voter.votes(batch) for voter in voters]).mean(0) / setting.n

    def on(targets: Any, output: Measure | None) -> LinearDatamodel:
        return _datamodel(setting.on(targets, output), representation, trained, at)

    with torch.no_grad():
        effects = collected(effect, blocks(setting.pool))
    return anchored(setting, trained, at, effects, effect, on)
