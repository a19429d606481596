"""Likely label errors: training points whose label the rest of the data contradict.

Scores, the larger the more suspicious, with `f` the margin of the point's own label:

    held-out margin    -(f_hat_i(1) - effects[i, i]): minus what the model says of a point that it did not train on
    self-influence      effects[i, i]: how much a point needs itself
    harm                -mean_j effects[j, i] over the margins j of clean targets
    training loss       of the trained model: the baseline that is hard to beat
    confident learning  max_c (p_i[c] - t[c]) - (p_i[y_i] - t[y_i]), c another class, p from cross-validation,
                        t[c] the mean p[c] of class c

References: Koh & Liang, 2017, arXiv:1703.04730 (self-influence); Northcutt, Jiang & Chuang, "Confident Learning:
Estimating Uncertainty in Dataset Labels", 2021, arXiv:1911.00068 (adjusted normalized margin).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Curves, Examples, Finding, Strip, Term
from recipe.outputs import Logits, Loss
from recipe.retrain import Retrain

MEANINGS = {
    "held-out margin": "Minus the predicted margin of the point's label, had it not been in training.",
    "self-influence": "How much the margin of a point's label rises by its own presence, as predicted.",
    "harm": "Minus the mean predicted effect of the point on the margins of clean targets.",
    "training loss": "The loss of the point after training on everything.",
    "confident learning": "How far another class beats the label, out of fold, beyond what is usual for both classes.",
}


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Suspicion of every label, by several scores.

    Args:
        scores: `(n,)` by name, the larger the more suspicious; the first decides.
        labels: `(n,)`, as given.
    """

    scores: Mapping[str, Tensor]
    labels: Tensor

    @property
    def suspects(self) -> Tensor:
        """All points, the most suspicious by the first score first."""
        return next(iter(self.scores.values())).argsort(descending=True, stable=True)

    def auroc(self, wrong: Tensor) -> dict[str, float]:
        """How well each score tells wrong labels from right ones, where that is known: .5 is chance, 1 perfect.

        Raises:
            ValueError: all labels are right, or all wrong.
        """
        from sklearn.metrics import roc_auc_score

        if not 0 < int(wrong.sum()) < len(wrong):
            raise ValueError(f"AUROC needs right and wrong labels; {int(wrong.sum())} of {len(wrong)} are wrong.")
        return {name: float(roc_auc_score(wrong.cpu().numpy(), s.cpu().numpy())) for name, s in self.scores.items()}

    def to_pandas(self) -> Any:
        """A row a training point, a column a score, the most suspicious first."""
        import pandas as pd

        frame = pd.DataFrame({name: s.cpu().numpy() for name, s in self.scores.items()})
        frame.insert(0, "label", self.labels.cpu().numpy())
        return frame.rename_axis("point").iloc[self.suspects.cpu().numpy()]

    def finding(
        self, points: Examples, targets: Examples | None = None, wrong: Tensor | None = None, k: int = 24
    ) -> Finding:
        """A section of a report; `wrong (n,)` tells which labels really are, where that is known."""
        first = next(iter(self.scores))
        top = self.suspects[:k].tolist()
        cards = [
            Card(
                points[i],
                f"point {i}",
                f"{float(self.scores[first][i]):.3g}",
                "wrong" * bool(wrong is not None and wrong[i]),
            )
            for i in top
        ]
        parts: list[Any] = [
            Strip(f"The {len(top)} most suspicious labels", cards, Term(first, MEANINGS.get(first, first)))
        ]
        answer = f"These {len(top)} labels of {len(self.labels)} are the most suspicious by {first}. Look at them."
        if wrong is not None:
            x = Term("inspected", "The share of the training points that somebody looks at, most suspicious first.")
            y = Term("found", "The share of all wrong labels among them.")
            parts.insert(
                0, Curves("Wrong labels found", x, y, {name: _found(s, wrong) for name, s in self.scores.items()})
            )
            areas = ", ".join(f"{name} {value:.3f}" for name, value in self.auroc(wrong).items())
            answer = (
                f"{int(wrong[top].sum())} of the {len(top)} most suspicious labels by {first} are wrong. AUROC: {areas}"
            )
        return Finding(
            "Likely label errors",
            "Which training labels do the rest of the data contradict?",
            answer,
            parts,
            frame=self.to_pandas,
        )


def label_errors(
    f: Retrain,
    on_itself: OutputFunction | None = None,
    on_clean: OutputFunction | None = None,
    folds: int = 5,
    seed: int = 0,
) -> LabelErrors:
    """Score every training label.

    Args:
        f: true outputs; trains on everything once, and once a fold for confident learning.
        on_itself: a datamodel whose targets are the training points: fit to `setting.on(setting.pool, Margin())`.
        on_clean: a datamodel of margins on targets whose labels can be trusted.
        folds: of confident learning; 0 leaves it out.
        seed: of the folds.

    Raises:
        ValueError: `on_itself` has other targets than the training points, or `on_clean` another universe.
    """
    pool, n = f.setting.pool, f.n
    scores: dict[str, Tensor] = {}
    if on_itself is not None:
        if (on_itself.n, on_itself.m) != (n, n) or not _of(on_itself, pool):
            raise ValueError(
                f"on_itself must have the {n} training points as targets, with one output each; it has {on_itself.n} "
                f"points and {on_itself.m} outputs, or others of them. Fit an estimator to "
                "`setting.on(setting.pool, Margin())`."
            )
        own = effects_of(on_itself).detach().diagonal()
        with torch.no_grad():
            scores["held-out margin"] = -(on_itself(torch.ones(n)) - own)
        scores["self-influence"] = own
    if on_clean is not None:
        if on_clean.n != n or not _of(on_clean, pool):
            raise ValueError(f"on_clean knows {on_clean.n} training points, not the {n} of the setting.")
        scores["harm"] = -effects_of(on_clean).detach().mean(0)
    scores["training loss"] = f.on(pool, Loss(f.setting.loss))(torch.ones(n)).detach()
    if folds:
        scores["confident learning"] = confident_learning(f, folds, seed)
    return LabelErrors(scores, batches.labels(pool))


def _of(f_hat: OutputFunction, pool: Batch) -> bool:
    """Whether a datamodel is of this universe, as far as it is known."""
    return f_hat.setting is None or batches.content_hash(f_hat.setting.pool) == batches.content_hash(pool)


def confident_learning(f: Retrain, folds: int = 5, seed: int = 0) -> Tensor:
    """Suspicion of every label by out-of-fold probabilities, `(n,)`.

    Raises:
        ValueError: fewer than two folds, or more than points.
    """
    p, y = out_of_fold(f, folds, seed), batches.labels(f.setting.pool).cpu()
    usual = torch.stack([p[y == c, c].mean() if (y == c).any() else p.new_tensor(1.0) for c in range(p.shape[1])])
    confidence = p - usual
    own = confidence.gather(1, y[:, None]).squeeze(1)
    return confidence.scatter(1, y[:, None], -torch.inf).amax(1) - own


def out_of_fold(f: Retrain, folds: int = 5, seed: int = 0) -> Tensor:
    """Probabilities `(n, C)` of every point by a model that was trained on the other folds. Raises `ValueError`."""
    n = f.n
    if not 2 <= folds <= n:
        raise ValueError(f"Cross-validation needs between 2 and {n} folds; got {folds}.")
    fold = torch.empty(n, dtype=torch.long)
    fold[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] = torch.arange(n) % folds
    weights = torch.stack([(fold != k).float() for k in range(folds)])
    logits = f.on(f.setting.pool, Logits())(weights).detach().view(folds, n, -1).cpu()
    return logits[fold, torch.arange(n)].softmax(1)


def _found(score: Tensor, wrong: Tensor, steps: int = 25) -> tuple[list[float], list[float]]:
    order = score.argsort(descending=True, stable=True)
    hits = wrong[order].double().cumsum(0) / wrong.sum()
    at = torch.linspace(1, len(score), steps).round().long()
    return [0.0, *(at / len(score)).tolist()], [0.0, *hits[at - 1].tolist()]
