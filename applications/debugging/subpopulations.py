"""Subpopulations: the directions in which the effects vary most, and clusters of targets that lean on the same data.

With the effects' rows centred over targets and scaled to length one, `E = U S V^T`: component k has scores `U S` on the
targets and loadings `V` on the training points. Targets at one end of a component hold on to the points at that end.
Clusters are k-means on the first components.

Reference: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, arXiv:2202.00622 (section 5.2,
principal components of the datamodel embedding).
Deviation: rows have length one, as in Shah, Park, Ilyas & Madry, 2022, arXiv:2211.12491; else a few targets of large
effects are the components.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Examples, Exhibit, Exhibits, Finding, Grid, Strip, Term
from recipe.findings.examples import check_examples

SCORE = Term("score", "Where the example lies along the component: far from zero means typical of its end.")


@dataclass(frozen=True, eq=False)
class Subpopulations:
    """Components and clusters of the effects.

    Args:
        scores: `(targets, c)` of the targets on each component.
        loadings: `(c, n)` of the training points.
        explained: `(c,)` shares of the effects' variance.
        clusters: `(targets,)` which cluster each target is in.
    """

    scores: Tensor
    loadings: Tensor
    explained: Tensor
    clusters: Tensor

    def ends(self, component: int, k: int) -> tuple[Tensor, Tensor]:
        """The k targets at the upper and at the lower end of a component, the outermost first."""
        order = self.scores[:, component].argsort(descending=True, stable=True)
        return order[:k], order.flip(0)[:k]

    def points(self, component: int, k: int) -> tuple[Tensor, Tensor]:
        """The k training points at either end."""
        order = self.loadings[component].argsort(descending=True, stable=True)
        return order[:k], order.flip(0)[:k]

    def to_pandas(self) -> Any:
        """A row a target: its `cluster` and its score on every component."""
        import pandas as pd

        frame = pd.DataFrame(self.scores.cpu().numpy(), columns=[f"component {c}" for c in range(self.scores.shape[1])])
        frame.insert(0, "cluster", self.clusters.cpu().numpy())
        return frame.rename_axis("target")

    def finding(self, points: Examples, targets: Examples, k: int = 8) -> Finding:
        """A section of a report."""
        check_examples(targets, len(self.scores), "targets")
        check_examples(points, self.loadings.shape[1], "training points")
        items = [
            Exhibit(self._head(c, targets), [*self._strips(c, targets, points, k)]) for c in range(self.scores.shape[1])
        ]
        groups = sorted(self.clusters.unique().tolist(), key=lambda g: -int((self.clusters == g).sum()))
        strips = [self._cluster(g, targets, k) for g in groups]
        columns = [
            Term("component", "A direction in which the effects of targets vary, the strongest first."),
            Term("variance", "The share of the variance of all effects, of length one each, that lies along it."),
        ]
        rows = [(c, float(share)) for c, share in enumerate(self.explained)]
        return Finding(
            "Subpopulations",
            "Which targets lean on the same training data, apart from the others?",
            f"{len(self.explained)} components hold {float(self.explained.sum()):.0%} of the variance of the effects, "
            f"the first {float(self.explained[0]):.0%}; {len(groups)} clusters of targets lean on the same points.",
            [Exhibits("Components, with their most typical examples", items), *strips, Grid("Variance", columns, rows)],
        )

    def _head(self, c: int, targets: Examples) -> Card:
        top = int(self.ends(c, 1)[0])
        return Card(targets[top], f"component {c}", f"{float(self.explained[c]):.1%} of the variance")

    def _strips(self, c: int, targets: Examples, points: Examples, k: int) -> list[Strip]:
        strips = []
        for end, some, own in zip(("Upper", "Lower"), self.ends(c, k), self.points(c, k), strict=True):
            cards = [Card(targets[j], f"target {j}", f"{float(self.scores[j, c]):+.2g}") for j in some.tolist()]
            strips.append(Strip(f"{end} end: targets", cards, SCORE))
            cards = [Card(points[i], f"point {i}", f"{float(self.loadings[c, i]):+.2g}") for i in own.tolist()]
            strips.append(Strip(f"{end} end: training points that hold them up", cards, SCORE))
        return strips

    def _cluster(self, group: int, targets: Examples, k: int) -> Strip:
        members = (self.clusters == group).nonzero().squeeze(1)
        centre = self.scores[members].mean(0)
        near = members[(self.scores[members] - centre).norm(dim=1).argsort(stable=True)][:k]
        cards = [Card(targets[j], f"target {j}") for j in near.tolist()]
        return Strip(f"Cluster of {len(members)} targets: the {len(cards)} most typical", cards)


def subpopulations(
    f_hat: OutputFunction | Tensor, components: int = 5, clusters: int = 6, seed: int = 0
) -> Subpopulations:
    """Principal components and clusters of the effects.

    Args:
        f_hat: a datamodel of one output a target, or its effects `(targets, n)`.
        components: how many.
        clusters: how many clusters of targets.
        seed: of k-means.

    Raises:
        ValueError: more components than targets or points, or more clusters than targets.

    Example:
        >>> effects = torch.tensor([[1.0, 0, 0], [0.9, 0, 0.1], [0, 1, 0], [0, 0.9, 0.1]])
        >>> subpopulations(effects, components=1, clusters=2).clusters.unique(return_counts=True)[1]
        tensor([2, 2])
    """
    from sklearn.cluster import KMeans

    effects = f_hat if isinstance(f_hat, Tensor) else by_target(f_hat)
    t, n = effects.shape
    if not 1 <= components <= min(t, n) or not 1 <= clusters <= t:
        raise ValueError(
            f"Effects of {t} targets and {n} points have 1 to {min(t, n)} components and 1 to {t} clusters; got "
            f"{components} and {clusters}."
        )
    rows = unit_rows(effects - effects.mean(0))
    u, s, v = _svd(rows, components, seed)
    explained = s.square() / rows.square().sum().clamp_min(torch.finfo(rows.dtype).tiny)
    scores = u * s
    found = KMeans(clusters, n_init=10, random_state=seed).fit_predict(scores.cpu().numpy())
    return Subpopulations(scores, v, explained, torch.from_numpy(found).long())


def by_target(f_hat: OutputFunction) -> Tensor:
    """Effects `(targets, n)` in float64, the mean where a target has several outputs."""
    effects = effects_of(f_hat).detach().double().cpu()
    return effects.view(f_hat.output_shape[0], -1, f_hat.n).mean(1)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one; a row of zeros stays."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)


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
