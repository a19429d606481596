"""Corroborative attribution: which sources support an output, or have it nearly word for word?

It asks what *supports* a text, not what caused it: for copyright and citation checks. Two indices propose sources, BM25
(rare words shared; the library bm25s) and nearest neighbours of embeddings (scikit-learn); reciprocal ranks fuse them,

    score(s) = sum over indices of 1 / (60 + rank of s),

and of each proposal the longest passage that the output shares with it, word by word, tells how verbatim it is.

References: Worledge et al., "Unifying Corroborative and Contributive Attributions in Large Language Models", 2023,
arXiv:2311.12233 (the task); Cormack, Clarke & Buettcher, "Reciprocal Rank Fusion", 2009.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from recipe.findings import Card, Content, Exhibit, Exhibits, Finding, Strip, Term

FUSION = 60  # of reciprocal ranks, as in the paper
ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # written without spaces: every character is a word
WORD = re.compile(f"[{ALONE}]|[^\\W{ALONE}]+")
PROPOSED = 200  # sources that each index proposes
Embed = Callable[[Sequence[str]], Any]  # texts -> (b, d)
OVERLAP = Term("shared", "The longest run of words that the output and the source have in common.")


@dataclass(frozen=True)
class Support:
    """A source that supports an output: `score`, the `passage` they share, and the `words` it has."""

    source: int
    score: float
    passage: str
    words: int


@dataclass(frozen=True)
class Corroboration:
    """For every output the sources that support it best."""

    outputs: Sequence[str]
    sources: Sequence[str]
    supports: Sequence[Sequence[Support]]

    def verbatim(self, words: int) -> list[int]:
        """Outputs that share a run of so many words, or more, with a source."""
        return [j for j, found in enumerate(self.supports) if max((s.words for s in found), default=0) >= words]

    def to_pandas(self) -> Any:
        """A row an output and source."""
        import pandas as pd

        rows = [(j, s.source, s.score, s.words, s.passage) for j, found in enumerate(self.supports) for s in found]
        return pd.DataFrame(rows, columns=["output", "source", "score", "words", "passage"])

    def finding(self, points: Any = None, targets: Any = None, words: int = 8) -> Finding:
        """A section of a report; a run of `words` words counts as verbatim."""
        copied = self.verbatim(words)
        items = []
        for j, found in enumerate(self.supports):
            cards = [
                Card(_marked(self.sources[s.source], s), f"source {s.source}", f"{s.words} words shared") for s in found
            ]
            head = Card(Content(pieces=((self.outputs[j], 0.0),)), f"output {j}", mark="verbatim" * (j in copied))
            items.append(Exhibit(head, [Strip("Sources", cards, OVERLAP)]))
        return Finding(
            "Corroboration",
            "Which sources support these outputs, and are any of them copied?",
            f"{len(copied)} of {len(self.outputs)} outputs share {words} words in a row, or more, with a source.",
            [Exhibits("Outputs, each with its sources", items)],
            frame=self.to_pandas,
        )


@dataclass(frozen=True, eq=False)
class Corroborator:
    """Sources under two indices.

    Args:
        sources: texts.
        embed: `texts -> (b, d)`; default: tf-idf of the sources' character 4-grams, which finds near-verbatim text.

    Raises:
        ValueError: no sources, or embeddings that are not `(b, d)`.
        ImportError: bm25s is not installed.

    Example:
        >>> found = Corroborator(["the cat sat on the mat", "dogs bark at night"])(["a cat sat on the mat"], k=1)
        >>> found.supports[0][0].passage
        'cat sat on the mat'
    """

    sources: Sequence[str]
    embed: Embed | None = None
    _indices: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("There are no sources; pass at least one text.")
        self._indices.update(words=_bm25(self.sources), embed=self.embed or _character_grams(self.sources))
        self._indices["vectors"] = self._vectors(self.sources)

    def __call__(self, outputs: Sequence[str], k: int = 5) -> Corroboration:
        """The sources that support each output best, at most k; none where neither index finds anything in common.

        Raises:
            ValueError: k below 1, or no outputs.
        """
        if k < 1 or not outputs:
            raise ValueError(f"Expected outputs and k of at least 1; got {len(outputs)} outputs and k={k}.")
        found = []
        for text, alike in zip(outputs, self._alike(outputs), strict=True):
            scores = np.zeros(len(self.sources))
            for ranked in (alike, self._worded(text)):
                scores[ranked] += 1 / (FUSION + 1 + np.arange(len(ranked)))
            best = [s for s in np.argsort(-scores, kind="stable")[:k].tolist() if scores[s] > 0]
            found.append(tuple(Support(s, float(scores[s]), *_shared(text, self.sources[s])) for s in best))
        return Corroboration(outputs, self.sources, tuple(found))

    def _alike(self, outputs: Sequence[str]) -> list[np.ndarray]:
        """For every output the nearest sources by embedding; one at a right angle has nothing in common."""
        from sklearn.neighbors import NearestNeighbors

        most = min(len(self.sources), PROPOSED)
        near = NearestNeighbors(n_neighbors=most, metric="cosine").fit(self._indices["vectors"])
        distances, order = near.kneighbors(self._vectors(outputs))
        return [sources[far < 1 - 1e-9] for far, sources in zip(distances, order, strict=True)]

    def _worded(self, text: str) -> np.ndarray:
        """The sources that share words with a text, the best by BM25 first."""
        if not (words := _words(text)):
            return np.zeros(0, dtype=int)
        scores = self._indices["words"].get_scores(words)
        ranked = np.argsort(-scores, kind="stable")[:PROPOSED]
        return ranked[scores[ranked] > 0]

    def _vectors(self, texts: Sequence[str]) -> Any:
        vectors = self._indices["embed"](list(texts))
        if getattr(vectors, "ndim", 0) != 2 or vectors.shape[0] != len(texts):
            raise ValueError(
                f"embed must return (b, d), here ({len(texts)}, d); got {getattr(vectors, 'shape', vectors)}."
            )
        return vectors


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def _bm25(sources: Sequence[str]) -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise ImportError("Corroboration needs bm25s: `pip install 'plug-in-recipe[retrieval]'`.") from error
    index = bm25s.BM25()
    # A text without words still has its place; a token that no query has keeps the index from being empty.
    index.index([_words(text) or ["\0"] for text in sources], show_progress=False)
    return index


def _character_grams(sources: Sequence[str]) -> Embed:
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), sublinear_tf=True).fit(sources)
    return lambda texts: fitted.transform(texts)


def _shared(output: str, source: str) -> tuple[str, int]:
    """The longest run of words in both, as the source has it, and how many words it has."""
    spans = list(WORD.finditer(source))
    match = SequenceMatcher(
        None, _words(output), [m.group().lower() for m in spans], autojunk=False
    ).find_longest_match()
    if not match.size:
        return "", 0
    return source[spans[match.b].start() : spans[match.b + match.size - 1].end()], match.size


def _marked(source: str, support: Support) -> Content:
    start = source.find(support.passage) if support.passage else 0
    end = start + len(support.passage)
    pieces = ((source[:start], 0.0), (support.passage, 1.0), (source[end:], 0.0))
    return Content(pieces=tuple(piece for piece in pieces if piece[0]))
