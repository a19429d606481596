"""The k-nearest-neighbours classifier on the representation as a stand-in for the model.

With `c(w) (C,)` the labels of the k nearest of the retained points (a point of weight w counts as w points) and one
pseudo-neighbour spread over the C classes, it predicts

    f_hat_j(w) = f_j(theta) + g_j(w) - g_j(w0),        g_j(w) = output_j(log p(w)),   p(w) = (c(w) + 1/C) / (sum c + 1),

the setting's own output, measured on the k-NN: how *its* margin or loss changes from `w0`, where the models were
trained. That is the change of a network's margin in name only: trust the ranks; the slope that is printed beside an LDS
says how far off the values are.

Features are standardised, since a feature measured in thousands would decide alone who is near.

Reference: Cover & Hart, "Nearest Neighbor Pattern Classification", 1967; as a surrogate of a deep network, Jia et al.,
"Scalability vs. Utility: Do We Have to Sacrifice One for the Other in Data Importance Quantification?", 2021,
arXiv:1911.07128. Deviations: points count by their weights, one pseudo-neighbour keeps probabilities from zero, and
what is predicted is the setting's output, not the accuracy.
Cost: `t n d` for the distances and `n log n` a target to sort them; a call looks at the whole `(t, n)` order for every
weight vector. Not differentiable in the inputs of an added example, since orders are not: it cannot drive a poisoner.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from estimators._anchored import where
from estimators._ensemble import members
from estimators._neighbours import Neighbours, check_k
from estimators._representation import Representation
from estimators._votes import check_labels, ignorance, onehot
from recipe import batch as batches
from recipe.batch import Batch
from recipe.cost import Cost
from recipe.datamodel import OutputFunction, records_origin, same_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Parameters, Setting
from recipe.work import Work

BLOCK_BYTES = 2**26  # of sorted weights that are held at once


@dataclass(frozen=True)
class KNN:
    """The k-nearest-neighbours classifier on the representation, as a function of the training set; not linear.

    Args:
        k: how many neighbours vote.
        representation: `representation(model, batch) -> (b, d)`, of a trained model in eval mode; default: the input of
            the model's last trained layer. `lambda model, batch: batch[0].flatten(1)` compares the inputs themselves.
        models: an ensemble of as many seeds, whose predictions are averaged. Ignored where the setting has checkpoints.
        seed: of the first model.

    Raises:
        ValueError: fewer than one neighbour.

    Example:
        >>> from recipe import Correct, Newton, Setting
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> setting = Setting(lambda: torch.nn.Linear(1, 2), (x, y), (x[:1], y[:1]), Newton(l2=0.1), output=Correct())
        >>> f_hat = KNN(k=1).fit(setting)
        >>> f_hat([1.0, 1.0, 1.0, 1.0]), f_hat([0.0, 0.0, 1.0, 1.0])  # without its neighbours, the target is lost
        (tensor([1.]), tensor([0.]))
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
    def fit(self, setting: Setting, at: Arguments | None = None) -> "KNNDatamodel":
        """Train (or take the setting's checkpoints), and sort the universe by its distance to every target.

        Args:
            setting: what to attribute.
            at: `(weights, added)` to train at; default all points at weight 1.

        Returns:
            A datamodel that gives the models' mean outputs at `at`, with `on`; added examples may be valued, but have
            no gradient.

        Raises:
            ValueError: labels that are not one class an example, or a representation that is not `(b, d)`.
        """
        check_labels(setting, "KNN")
        there = where(setting, at)
        return KNNDatamodel(self, setting, members(setting, self.models, self.seed, at), there)


class KNNDatamodel(OutputFunction):
    """What `KNN` fits: piecewise linear in the weights before the output is taken, constant in added inputs."""

    def __init__(self, knn: KNN, setting: Setting, trained: list[Parameters], at: Arguments) -> None:
        self.n, self.output_shape = setting.n, setting.output_shape
        self._knn, self._setting, self._trained, self._at = knn, setting, trained, at
        self._neighbours = [Neighbours.of(setting, theta, knn.representation) for theta in trained]
        self._orders = [near.order(None) for near in self._neighbours]
        self._votes = onehot(setting.pool, ignorance(setting, setting.probe))  # (n, C)
        with torch.no_grad():
            level = torch.stack([setting.outputs(theta) for theta in trained]).mean(0)
            self._offset = level - self._measured(at[0][None], at[1])[0]

    def __call__(self, weights: Any, added: Batch | None = None) -> Tensor:
        """Predicted outputs `(..., m)`.

        Raises:
            ValueError: weights of another length, negative, NaN or infinite, or no point with weight.
            NotImplementedError: a gradient in added examples.
        """
        if added is not None and torch.is_grad_enabled() and any(t.requires_grad for t in batches.tensors(added)):
            raise NotImplementedError(
                "A k-NN has no gradient in added examples (poisons), since who is near changes in jumps. Use an "
                "estimator that has one, such as Influence, or evaluate under `torch.no_grad()`."
            )
        w = self._setting.check_weights(weights).to(self._setting.dtype)
        added = None if added is None or not batches.size(added) else self._setting.check_added(added)
        measured = self._measured(w.reshape(-1, self.n), added)
        return (self._offset + measured).view(*w.shape[:-1], self.m)

    def on(self, targets: Any = None, output: Measure | None = None) -> "KNNDatamodel":
        """The same trained models, measured on other targets or by another output."""
        setting = self._setting.on(targets, output)
        other = KNNDatamodel(self._knn, setting, self._trained, self._at)
        same_origin(self, other, targets, output)
        return other

    def _measured(self, w: Tensor, added: Batch | None) -> Tensor:
        """Outputs of the k-NN classifiers `(r, m)`, averaged over the ensemble."""
        orders, votes = self._orders, self._votes
        if added is not None:
            orders = [near.order(added) for near in self._neighbours]
            votes = torch.cat([votes, onehot(added, votes)])
            w = F.pad(w, (0, batches.size(added)), value=1.0)
        return torch.stack([self._outputs(w, votes, order) for order in orders]).mean(0)

    def _outputs(self, w: Tensor, votes: Tensor, order: Tensor) -> Tensor:
        rows = max(1, BLOCK_BYTES // (8 * len(w) * order.shape[1]))
        counts = torch.cat([_counts(w, votes, part, self._knn.k) for part in order.split(rows)], 1)  # (r, t, C)
        p = (counts + 1 / counts.shape[2]) / (counts.sum(2, keepdim=True) + 1)
        return vmap(lambda z: self._setting.output(z, self._setting.probe).reshape(-1))(p.log())


def _counts(w: Tensor, votes: Tensor, order: Tensor, k: int) -> Tensor:
    """Labels of the k nearest retained points: weights `(r, n)` and orders `(t, n)` to `(r, t, C)`."""
    sorted_weights = w[:, order]  # (r, t, n)
    nearer = sorted_weights.cumsum(2) - sorted_weights
    taken = torch.minimum(sorted_weights, (k - nearer).clamp_min(0))
    return torch.einsum("rtn,tnc->rtc", taken, votes[order])
