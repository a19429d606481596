"""BM25: training texts that share rare words with a target. The baseline for text that knows no model.

With `c(t, x)` how often token t is in text x, `|x|` its length, and `df(t)` in how many of the n training texts it is,

    score(target, x) = sum_t c(t, target) idf(t) c(t, x) (k1 + 1) / (c(t, x) + k1 (1 - b + b |x| / mean |x|)),
    idf(t) = log(1 + (n - df(t) + 1/2) / (df(t) + 1/2)),

    effects[j, i] = score(target, x_i) C <d f_j / d z, onehot(y_i) - 1/C> / n,

where labels are one class an example: a text votes for its class, and the output's slope says what that does to it. For
language models, and whatever else predicts more than one class, a similar text is taken to lower the target's loss:

    effects[j, i] = score(target, x_i) s_j / n,        s_j = -<d f_j / d z, g> / |g|,    g = d l_target / d z.

Both are taken at the prediction `z = 0` of who knows nothing, since no model is trained or asked. So the level of the
outputs is unknown and put at 0: read predictions as changes. The unit is nominal: trust the ranks.

Reference: Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.
Deviations: a 1 inside the logarithm of idf, as in Lucene, keeps tokens that most texts have from counting against; the
saturation of a token's frequency in the target (k3) is left out. Votes give scores a sign.
Cost: sparse counts, memory linear in the number of tokens; one sparse product.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from estimators._anchored import where
from estimators._votes import descents, ignorance, label_votes, one_class_each, slopes
from recipe import batch as batches
from recipe.batch import LABELS, Batch
from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.work import Work

IDS, MASK = "input_ids", "attention_mask"  # the names that HuggingFace's tokenizers give


@dataclass(frozen=True)
class BM25:
    """Effects by the overlap of tokens; inputs are token ids `(b, T)`.

    Ids are the entry `input_ids` of a mapping, without the positions whose `attention_mask` is 0; else the first input
    of integers `(b, T)`, padding and all (in every text, it counts for next to nothing).

    Args:
        k1: how fast a token's repetitions stop counting; 0 counts whether it is there.
        b: how much long texts are discounted, from 0 to 1.

    Raises:
        ValueError: a negative k1, or a b outside 0 to 1.

    Example:
        >>> from recipe import SGD, Setting
        >>> texts = torch.tensor([[1, 2, 3], [1, 2, 4], [5, 6, 7]]), torch.tensor([0, 1, 0])
        >>> model = lambda: torch.nn.Sequential(torch.nn.EmbeddingBag(8, 4), torch.nn.Linear(4, 2))
        >>> targets = torch.tensor([[2, 3, 5]]), torch.tensor([0])
        >>> setting = Setting(model, texts, targets, SGD(epochs=1, batch_size=1, lr=0.1))
        >>> BM25().fit(setting).effects.sign()  # the second text shares a token, and votes for the other class
        tensor([[ 1., -1.,  1.]])
    """

    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if not (self.k1 >= 0 and 0 <= self.b <= 1):
            raise ValueError(f"BM25 needs k1 of at least 0 and b from 0 to 1; got k1={self.k1}, b={self.b}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Count tokens; nothing is trained.

        Args:
            setting: what to attribute.
            at: `(weights, added)` where the predicted outputs are 0; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `effect` for other texts (which has no gradient: tokens are discrete) and
            `on`.

        Raises:
            ValueError: inputs that are not token ids, or outputs without a gradient.
        """
        weights, added = where(setting, at)
        index = _Index.of(setting, self.k1, self.b)
        outputs = _Outputs.of(setting)

        def effect(batch: Batch) -> Tensor:
            batch = setting.check_added(batch)
            scores = torch.from_numpy(index.scores(batch)).to(outputs.signs)  # (t, b)
            return scores.repeat_interleave(setting.m // len(scores), 0) * outputs.votes(batch) / setting.n

        def on(targets: Any, output: Measure | None) -> LinearDatamodel:
            return self.fit(setting.on(targets, output), at)

        effects = effect(setting.pool)
        bias = -effects @ weights - (0 if added is None else effect(added).sum(1))
        return LinearDatamodel(bias, effects, effect, output_shape=setting.output_shape, on=on)


@dataclass(frozen=True, eq=False)
class _Index:
    """The tokens of the targets, weighted by idf, and what it takes to score texts against them."""

    vocabulary: np.ndarray  # (v,) sorted ids of universe and targets
    targets: sparse.csr_array  # (t, v): c(t, target) idf(t)
    length: float  # mean |x|
    k1: float
    b: float

    @classmethod
    def of(cls, setting: Setting, k1: float, b: float) -> "_Index":
        texts, queries = _tokens(setting.pool), _tokens(setting.probe)
        vocabulary = np.unique(np.concatenate([texts[1], queries[1]]))
        n = setting.n
        counts = _counts(*texts, n, vocabulary)
        df = np.bincount(counts.indices, minlength=len(vocabulary))
        idf = np.log(1 + (n - df + 0.5) / (df + 0.5))
        targets = _counts(*queries, batches.size(setting.probe), vocabulary) @ sparse.diags_array(idf)
        return cls(vocabulary, targets.tocsr(), max(1.0, len(texts[1]) / n), k1, b)

    def scores(self, batch: Batch) -> np.ndarray:
        """`score(target, x)`, `(t, b)`."""
        size, (rows, ids) = batches.size(batch), _tokens(batch)
        lengths = np.bincount(rows, minlength=size)
        counts = _counts(rows, ids, size, self.vocabulary)
        damp = self.k1 * (1 - self.b + self.b * lengths / self.length)  # (b,)
        counts.data *= (self.k1 + 1) / (counts.data + np.repeat(damp, np.diff(counts.indptr)))
        return (self.targets @ counts.T).toarray()


@dataclass(frozen=True, eq=False)
class _Outputs:
    """What a score does to each output: slopes `(m, C)` along which labels vote, or one sign `(m, 1)` for all texts."""

    signs: Tensor
    classes: bool

    @classmethod
    def of(cls, setting: Setting) -> "_Outputs":
        if one_class_each(setting):
            z = ignorance(setting, setting.probe)
            return cls(z.shape[1] * slopes(setting, z), True)
        return cls(descents(setting, lambda targets: ignorance(setting, targets))[:, None], False)

    def votes(self, batch: Batch) -> Tensor:
        """`(m, b)`, or `(m, 1)`."""
        return self.signs @ label_votes(batch, self.signs).T if self.classes else self.signs


def _tokens(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of a batch: the row and the id of each."""
    ids, kept = _ids(batch), None
    if isinstance(batch, Mapping) and MASK in batch:
        kept = batch[MASK].cpu().numpy() != 0
    rows, columns = np.nonzero(np.ones(ids.shape, dtype=bool) if kept is None else kept)
    return rows, ids.cpu().numpy()[rows, columns]


def _ids(batch: Batch) -> Tensor:
    if isinstance(batch, Mapping):
        inputs = [batch[name] for name in sorted(batch, key=lambda name: name != IDS) if name not in (LABELS, MASK)]
    else:
        inputs = list(batch[:-1])
    found = [t for t in inputs if t.ndim == 2 and not torch.is_floating_point(t) and t.dtype != torch.bool]
    if not found:
        raise ValueError(
            "BM25 needs token ids, an input of integers (b, T): the entry `input_ids` of a mapping, or an input of a "
            f"tuple; got {batches.describe(batch)}. Tokenize the texts, or use Similarity for other inputs."
        )
    return found[0]


def _counts(rows: np.ndarray, ids: np.ndarray, size: int, vocabulary: np.ndarray) -> sparse.csr_array:
    """How often each token of the vocabulary is in each text, `(b, v)`."""
    columns = np.searchsorted(vocabulary, ids).clip(max=len(vocabulary) - 1)
    known = vocabulary[columns] == ids
    ones = np.ones(int(known.sum()))
    counts = sparse.coo_array((ones, (rows[known], columns[known])), shape=(size, len(vocabulary))).tocsr()
    counts.sum_duplicates()
    return counts
