"""KNN-Shapley: the exact Shapley values of the training points in the game of a k-nearest-neighbours classifier.

The game of all n points, in which a subset S wins

    v_j(S) = C sum_c d f_j / d z_c  share_c(S),        share_c(S) = #(k nearest of S with label c) / k,

is the first-order term of `output_j(log p)` around `p = 1/C`. A right vote counts `1 - 1/C` in it and a wrong one
`-1/C`, times `-C` for a loss and `C^2 / (C - 1)` for a margin: the game of the probability that the k-NN gives to the
label. With the points sorted by their distance to the target, and `a_i` what a vote of point i is worth, the values
follow from the far end,

    s_n = a_n min(k, n) / (k n),        s_i = s_{i+1} + (a_i - a_{i+1}) min(k, i) / (k i).

They are the coefficients of a linear datamodel. What they share out is what the *k-NN* says of the target; a network's
margin has another unit, so theirs is nominal. Trust the ranks; the slope that is printed beside an LDS says how far off
the values are.

Features are standardised, since a feature measured in thousands would decide alone who is near.

Reference: Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", 2019, arXiv:1908.08619.
Deviation: the paper's game is that of the label's probability; the derivative of the output gives every output a sign.
Cost: `t n d` for the distances and `n log n` an output. No `effect`: a value is that of a player of the game.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from estimators._anchored import anchored, where
from estimators._ensemble import members
from estimators._neighbours import Neighbours, check_k
from estimators._representation import Representation
from estimators._votes import check_labels, ignorance, onehot, slopes
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.stores import collected_by_outputs
from recipe.work import Work


@dataclass(frozen=True)
class KNNShapley:
    """Effects by exact Shapley values in the game of a k-nearest-neighbours classifier; labels must be classes.

    Args:
        k: how many neighbours vote.
        representation: `representation(model, batch) -> (b, d)`, of a trained model in eval mode; default: the input of
            the model's last trained layer. `lambda model, batch: batch[0].flatten(1)` compares the inputs themselves.
        models: an ensemble of as many seeds; effects and bias are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Raises:
        ValueError: fewer than one neighbour.

    Example:
        >>> from recipe import Newton, Setting
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> setting = Setting(lambda: torch.nn.Linear(1, 2), (x, y), (x[:1], y[:1]), Newton(l2=0.1))
        >>> KNNShapley(k=1).fit(setting).effects  # one's own class raises a margin
        tensor([[ 1.5000,  1.5000, -0.5000, -0.5000]])
    """

    k: int
    representation: Representation | None = None
    models: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_k(self.k)

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self, self.models)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Train (or take the setting's checkpoints), sort, and value every point.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at, where the datamodel gives the models' mean outputs; default all points
                at weight 1. The game is that of all n points, whatever their weight, without the added examples.

        Returns:
            A datamodel `(n,) -> (m,)` with `on`. It has no `effect`: a value is that of a player of the game.

        Raises:
            ValueError: labels that are not one class an example, outputs without a gradient, or a representation that
                is not `(b, d)`.
        """
        check_labels(setting, "KNNShapley")
        there = where(setting, at)
        slopes(setting, ignorance(setting, setting.probe))  # an output without a gradient fails before any training
        return self._valued(setting, members(setting, self.models, self.seed, at), there)

    def _valued(self, setting: Setting, trained: list[Parameters], at: Arguments) -> LinearDatamodel:
        def on(targets: Any, output: Measure | None) -> LinearDatamodel:
            return self._valued(setting.on(targets, output), trained, at)

        slope = slopes(setting, ignorance(setting, setting.probe))  # (m, C)
        labels = onehot(setting.pool, slope)
        width = setting.m // setting.output_shape[0]
        found = [Neighbours.of(setting, theta, self.representation) for theta in trained]

        def effects(some: slice) -> Tensor:
            votes = slope.shape[1] * slope[some] @ labels.T  # (k, n)
            targets = slice(some.start // width, some.stop // width)
            orders = [replace(near, targets=near.targets[targets]).order(None) for near in found]
            values = [shapley_values(votes, order.repeat_interleave(width, 0), self.k) for order in orders]
            return torch.stack(values).mean(0)

        collected = collected_by_outputs(effects, setting.output_shape, setting.n)
        return anchored(setting, trained, at, collected, on=on)


def shapley_values(votes: Tensor, order: Tensor, k: int) -> Tensor:
    """Exact Shapley values of `v(S) = sum of the votes of the k nearest in S / k`.

    Args:
        votes: `(m, n)`, what a vote of a point is worth.
        order: `(m, n)`, indices of the points from near to far.
        k: how many vote.

    Returns:
        `(m, n)`.

    Example:
        >>> shapley_values(torch.tensor([[3.0, 1.0]]), torch.tensor([[0, 1]]), k=1)  # alone: 3 and 1, together: 3
        tensor([[2.5000, 0.5000]])
    """
    n = votes.shape[1]
    a = votes.gather(1, order)
    places = torch.arange(1, n + 1).to(a)
    share = places.clamp_max(k) / (k * places)  # min(k, i) / (k i)
    steps = torch.cat([(a[:, :-1] - a[:, 1:]) * share[:-1], a[:, -1:] * share[-1]], 1)
    values = steps.flip(1).cumsum(1).flip(1)
    return torch.empty_like(values).scatter_(1, order, values)
