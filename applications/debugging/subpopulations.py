"""Subpopulations: the directions in which the effects vary most, and clusters of targets that lean on the same data.

With every column of the effects (a training point, an output) scaled to length one, and the means of rows and columns
taken off, `E = U S V^T`: component k has scores `U S` on the targets and loadings `V` on the training points. Targets
at one end of a component hold on to the points at that end. Clusters are k-means on the first components.

Over all classes the first components are the classes. What is *within* a class shows where its own targets and training
points are decomposed alone, best through all logits, `Logits()`: a feature that marks some of a class is then the first
component.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 5.2,
principal components of the datamodel embedding).
Deviation: columns have length one and both means are taken off; else a few training points of large effects on
everything, those that the model finds hard, are the components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Examples, Exhibit, Exhibits, Finding, Grid, Strip, Term
from recipe.findings.examples import check_examples
from recipe.findings.words import counted

SCORE = Term("score", "Where the example lies along the component: far from zero means typical of its end.")
TINY = 1e-300  # lengths below are zero


@dataclass(frozen=True, eq=False)
class Subpopulations:
    """Components and clusters of the effects.

    Args:
        scores: `(t, c)` of the targets on each component.
        loadings: `(c, n)` of the training points; over several outputs their mean, each in the direction in which the
            point usually moves it.
        explained: `(c,)` shares of the effects' variance.
        clusters: `(t,)` which cluster each target is in.
        of_targets: `(t,)` which targets these are.
        of_points: `(n,)` which training points.
        size: how many targets and training points there are in all.
    """

    scores: Tensor
    loadings: Tensor
    explained: Tensor
    clusters: Tensor
    of_targets: Tensor
    of_points: Tensor
    size: tuple[int, int]

    def ends(self, component: int, k: int) -> tuple[Tensor, Tensor]:
        """The k targets at the upper and at the lower end of a component, the outermost first."""
        return _ends(self.scores[:, component], self.of_targets, k)

    def points(self, component: int, k: int) -> tuple[Tensor, Tensor]:
        """The k training points at either end."""
        return _ends(self.loadings[component], self.of_points, k)

    def to_pandas(self) -> Any:
        """A row a target: its `cluster` and its score on every component."""
        import pandas as pd

        frame = pd.DataFrame(self.scores.cpu().numpy(), columns=[f"component {c}" for c in range(self.scores.shape[1])])
        frame.insert(0, "cluster", self.clusters.cpu().numpy())
        frame.index = self.of_targets.tolist()
        return frame.rename_axis("target")

    def finding(self, points: Examples, targets: Examples, k: int = 8) -> Finding:
        """A section of a report."""
        check_examples(targets, self.size[0], "targets")
        check_examples(points, self.size[1], "training points")
        items = [
            Exhibit(self._head(c, targets), [*self._strips(c, targets, points, k)]) for c in range(self.scores.shape[1])
        ]
        groups = sorted(self.clusters.unique().tolist(), key=lambda g: -int((self.clusters == g).sum()))
        strips = [self._cluster(g, targets, k) for g in groups]
        columns = [
            Term("component", "A direction in which the effects of targets vary, the strongest first."),
            Term("variance", "The share of the variance of all effects that lies along it."),
        ]
        rows = [(c, float(share)) for c, share in enumerate(self.explained)]
        return Finding(
            "Subpopulations",
            "Which targets lean on the same training data, apart from the others?",
            f"{counted(len(self.explained), 'component')} together: {float(self.explained.sum()):.0%} of the variance "
            "of the effects, "
            f"the first {float(self.explained[0]):.0%}; {len(groups)} clusters of targets lean on the same points.",
            [
                Exhibits("Components, with their most typical examples", items, columns[1]),
                *strips,
                Grid("Variance", columns, rows),
            ],
            frame=self.to_pandas,
        )

    def _head(self, c: int, targets: Examples) -> Card:
        top = int(self.ends(c, 1)[0])
        return Card(targets[top], f"component {c}", f"{float(self.explained[c]):.1%} of the variance")

    def _strips(self, c: int, targets: Examples, points: Examples, k: int) -> list[Strip]:
        scores = dict(zip(self.of_targets.tolist(), self.scores[:, c].tolist(), strict=True))
        loadings = dict(zip(self.of_points.tolist(), self.loadings[c].tolist(), strict=True))
        strips = []
        for end, some, own in zip(("Upper", "Lower"), self.ends(c, k), self.points(c, k), strict=True):
            cards = [Card(targets[j], f"target {j}", f"{scores[j]:+.2g}") for j in some.tolist()]
            strips.append(Strip(f"{end} end: targets", cards, SCORE))
            cards = [Card(points[i], f"point {i}", f"{loadings[i]:+.2g}") for i in own.tolist()]
            strips.append(Strip(f"{end} end: training points that hold them up", cards, SCORE))
        return strips

    def _cluster(self, group: int, targets: Examples, k: int) -> Strip:
        members = (self.clusters == group).nonzero().squeeze(1)
        centre = self.scores[members].mean(0)
        near = members[(self.scores[members] - centre).norm(dim=1).argsort(stable=True)][:k]
        cards = [Card(targets[j], f"target {j}") for j in self.of_targets[near].tolist()]
        return Strip(f"Cluster of {len(members)} targets: the {len(cards)} most typical", cards)


def subpopulations(
    f_hat: OutputFunction | Tensor,
    components: int = 5,
    clusters: int = 6,
    seed: int = 0,
    *,
    targets: Sequence[int] | Tensor | None = None,
    points: Sequence[int] | Tensor | None = None,
) -> Subpopulations:
    """Principal components and clusters of the effects.

    Args:
        f_hat: a datamodel of one output a target or more, or effects `(targets, n)` of one.
        components: how many.
        clusters: how many clusters of targets.
        seed: of k-means.
        targets: which of them, such as those of one class; default all.
        points: which training points' effects; default all.

    Raises:
        ValueError: more components than targets or points, or more clusters than targets.
        IndexError: there is no such target or training point.

    Example:
        >>> effects = torch.tensor([[1.0, 0, 0], [0.9, 0, 0.1], [0, 1, 0], [0, 0.9, 0.1]])
        >>> subpopulations(effects, components=1, clusters=2).clusters.unique(return_counts=True)[1]
        tensor([2, 2])
    """
    from sklearn.cluster import KMeans

    effects = f_hat.detach().double().cpu()[:, None] if isinstance(f_hat, Tensor) else by_output(f_hat)
    size = (len(effects), effects.shape[2])
    rows, columns = _index(targets, size[0], "targets"), _index(points, size[1], "training points")
    effects = effects[rows][:, :, columns]  # (t, C, n)
    t, outputs, n = effects.shape
    most = min(t, n)
    if not 1 <= components <= most or not 1 <= clusters <= t:
        raise ValueError(
            f"Effects of {t} targets and {n} points have 1 to {most} components and 1 to {t} clusters; got "
            f"{components} and {clusters}."
        )
    unit = F.normalize(effects, dim=0, eps=TINY)
    centred = unit - unit.mean(0)
    centred = (centred - centred.mean(2, keepdim=True)).flatten(1)
    u, s, v = _svd(centred, components, seed)
    explained = s.square() / centred.square().sum().clamp_min(torch.finfo(centred.dtype).tiny)
    usual = unit.mean(0).sign() if outputs > 1 else torch.ones_like(unit[0])  # (C, n)
    loadings = (v.view(components, outputs, n) * usual).mean(1)
    scores = u * s
    found = torch.from_numpy(KMeans(clusters, n_init=10, random_state=seed).fit_predict(scores.numpy())).long()
    return Subpopulations(scores, loadings, explained, found, torch.tensor(rows), torch.tensor(columns), size)


def by_output(f_hat: OutputFunction) -> Tensor:
    """Effects `(targets, outputs, n)` in float64."""
    effects = effects_of(f_hat).detach().double().cpu()
    return effects.view(f_hat.output_shape[0], -1, f_hat.n)


def _index(chosen: Sequence[int] | Tensor | None, n: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(n))
    index: list[int] = torch.as_tensor(chosen, dtype=torch.long).reshape(-1).tolist()
    if not index or min(index) < 0 or max(index) >= n:
        raise IndexError(f"Expected {what} from 0 to {n - 1}, at least one; got {index[:5]}.")
    return index


def _ends(scores: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = scores.argsort(descending=True, stable=True)
    return index[order[:k]], index[order.flip(0)[:k]]


def _svd(rows: Tensor, components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading `U (t, c)`, `S (c,)`, `V (c, n)`; the sign makes the largest target score positive."""
    from sklearn.utils.extmath import randomized_svd

    u, s, v = (torch.from_numpy(a.copy()) for a in randomized_svd(rows.cpu().numpy(), components, random_state=seed))
    sign = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return u * sign, s, v * sign.T


def precision(order: Tensor, members: Tensor, size: int) -> float:
    """The share of the first `size` that are members: "precision at the group's size".

    >>> precision(torch.tensor([2, 0, 1]), torch.tensor([True, False, True]), 2)
    1.0
    """
    return float(members[order[:size]].double().mean())
