"""Square roots of the loss's curvature in the prediction, by which the Fisher matrix is a second moment of gradients.

With `H_i` the Hessian of the loss of example i in its prediction, both objects give vectors `v_i` with

    sum_k v_ik v_ik^T = H_i,        so that        sum_k (J_i^T v_ik)(J_i^T v_ik)^T = J_i^T H_i J_i,

exactly or in expectation. For a cross-entropy that is the true Fisher information, of labels as the model has them and
never the observed ones. For other losses it is the Gauss-Newton matrix, which for them plays its part.

In expectation, `v = R e` with a root of the Hessian, `R R^T = H`, and random signs `e`; for a cross-entropy

    R = diag(sqrt(p)) - p sqrt(p)^T,        R R^T = diag(p) - p p^T.

Gradients for labels drawn from the model have the same second moments, and far wilder squares: rare labels weigh much
or nothing. One draw an example gives EK-FAC on the digits MLP the score .692 by signs and .672 by labels, where all
labels give .702; on a character GPT, draws of labels that miss a rare character make single effects enormous.

Reference: Kunstner, Balles & Hennig, "Limitations of the Empirical Fisher Approximation", 2019, arXiv:1905.12558.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.func import hessian, vmap

from estimators._draws import signs
from recipe import batch as batches
from recipe.batch import Batch
from recipe.losses import IGNORED, CrossEntropy
from recipe.setting import Setting

NEGLIGIBLE = 1e-2  # of the trace, left out where all labels are gone through


class Fisher(Protocol):
    """How the expectation over labels is taken."""

    def cotangents(self, setting: Setting, z: Tensor, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """Vectors like the prediction `(b, ...)` whose second moments sum to the curvature of each example's loss."""


@dataclass(frozen=True)
class ExactFisher:
    """The expectation over all labels: one backward pass a class but one (or an entry of the prediction).

    The likely labels of every example come first, and the passes end where less than `NEGLIGIBLE` of the trace is left.
    In a sequence the positions get random signs, which makes what is between them vanish in expectation.
    """

    def cotangents(self, setting: Setting, z: Tensor, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Fisher.cotangents`."""
        if not isinstance(setting.loss, CrossEntropy):
            yield from _roots(setting, z, batch).unbind(-1)
            return
        p = z.softmax(-1)
        scale = _scale(p, batch)
        if z.ndim > 2:
            scale = scale * signs((*z.shape[:-1], 1), generator, z)
        for root in _multinomial_roots(p):
            yield scale * root


@dataclass(frozen=True)
class SampledFisher:
    """Random combinations of the labels, by signs.

    Args:
        samples: draws an example; one backward pass each.
        seed: of the draws.
    """

    samples: int = 1
    seed: int = 0

    def cotangents(self, setting: Setting, z: Tensor, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Fisher.cotangents`."""
        share = self.samples**-0.5
        if not isinstance(setting.loss, CrossEntropy):
            roots = _roots(setting, z, batch)
            for _ in range(self.samples):
                drawn = signs((len(z), roots.shape[-1], 1), generator, z)
                yield share * (roots.reshape(len(z), -1, roots.shape[-1]) @ drawn).view_as(z)
            return
        p = z.softmax(-1)
        scale, roots = share * _scale(p, batch), p.sqrt()
        for _ in range(self.samples):
            turned = roots * signs(p.shape, generator, p)
            yield scale * (turned - p * turned.sum(-1, keepdim=True))


@dataclass(frozen=True)
class TrueFisher:
    """All labels where they are few, else random combinations of them.

    Args:
        most: labels (entries of a prediction) that are gone through one by one.
        samples: draws an example where there are more.
    """

    most: int = 16
    samples: int = 1

    def cotangents(self, setting: Setting, z: Tensor, batch: Batch, generator: torch.Generator) -> Iterator[Tensor]:
        """See `Fisher.cotangents`."""
        few = z[0].numel() <= self.most
        rule = ExactFisher() if few else SampledFisher(self.samples)
        return rule.cotangents(setting, z, batch, generator)


def _scale(p: Tensor, batch: Batch) -> Tensor:
    """The root of a position's share of its example's loss: 0 for labels of -100, `1/sqrt(T)` in a sequence."""
    counts = (batches.labels(batch) != IGNORED).to(p)
    if counts.ndim > 1:
        total = counts.flatten(1).sum(1).clamp_min(1)
        counts = counts / total.view(-1, *[1] * (counts.ndim - 1))
    return counts.sqrt().unsqueeze(-1)


def _multinomial_roots(p: Tensor) -> Iterator[Tensor]:
    """The first columns of the Cholesky factor of `diag(p) - p p^T`, vectors `(..., C)`, likely labels first.

    With labels in the order of their probability and `q_c` the probability of all behind label c, column c is
    `sqrt(p_c / (q_{c-1} q_c))` times `q_c` at c and `-p` behind. C - 1 columns are all there is; of predictions that
    are sure, a few leave less than `NEGLIGIBLE` of the trace.

    Reference: Tanabe & Sagae, "An exact Cholesky decomposition and the generalized inverse of the variance-covariance
    matrix of the multinomial distribution, with applications", J. R. Statist. Soc. B 54, 1992.
    """
    tiny = torch.finfo(p.dtype).tiny
    p, order = p.sort(-1, descending=True)
    behind = torch.ones(p.shape[-1], p.shape[-1]).to(p).tril()  # sums from a label on
    rest, squares = p @ behind, p.square() @ behind  # q_{c-1}
    left = (rest - squares / rest.clamp_min(tiny)).flatten(0, -2).sum(0)  # of the trace, before column c
    for c in range(p.shape[-1] - 1):
        if c > 0 and left[c] <= NEGLIGIBLE * left[0]:  # of predictions that are all certain, one column of zeros
            return
        root, q = torch.zeros_like(p), rest[..., c + 1 : c + 2].sqrt()
        share = (p[..., c : c + 1] / rest[..., c : c + 1].clamp_min(tiny)).sqrt()
        root[..., c : c + 1] = share * q
        root[..., c + 1 :] = -share * p[..., c + 1 :] / q.clamp_min(tiny)
        yield torch.zeros_like(p).scatter(-1, order, root)


def _roots(setting: Setting, z: Tensor, batch: Batch) -> Tensor:
    """Square roots of the loss's Hessian in the prediction, `(*z.shape, D)` with D the entries of one prediction."""

    def loss(one: Tensor, example: Batch) -> Tensor:
        return setting.loss(one.view(1, *z.shape[1:]), batches.example(example)).squeeze(0)

    matrices = vmap(hessian(loss))(z.reshape(len(z), -1), batch)
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)).view(*z.shape, -1)
