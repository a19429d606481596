"""Context citations: which sources of a context made a language model say this?

The context is split into sources (sentences, documents); leave random ones out, ask the model how likely its response
still is, and regress. The recipe's engine does that as it stands, with sources in the place of training points:

    f(w) = log p(response | the sources i with w_i = 1),       effects[0, i] = what source i adds to it.

`Context` makes the setting: "training" on weighted sources is choosing them, and the output asks the model. Whatever
estimator masks points fits its datamodel, `Regression(subsets=64)` as in the paper, and `citations` reads it.

Reference: Cohen-Wang, Shah, Georgiev & Madry, "ContextCite: Attributing Model Generation to Context", 2024,
arXiv:2409.00729. Deviation: the paper fits log p / (1 - p) of the whole response, which for long responses is log p.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipe.algorithms import Custom, Objective
from recipe.composition import effects_of
from recipe.datamodel import OutputFunction
from recipe.findings import Card, Content, Finding, Grid, Strip, Term, Texts
from recipe.setting import Setting

SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
EFFECT = Term(
    "effect", "The predicted change of the response's log-probability, in nats, by having this source in the context."
)


def sentences(text: str) -> list[str]:
    """A text's sentences, as sources.

    >>> sentences("One is here. Two is there!  Three?")
    ['One is here.', 'Two is there!', 'Three?']
    """
    return [part for part in SENTENCE.split(text.strip()) if part.strip()]


@dataclass(frozen=True)
class Context:
    """Sources, and how likely a response is given some of them.

    Args:
        sources: what may be left out.
        log_probability: `(sources kept) -> float`, the log-probability of the response given these, in their order. The
            question, the response and the model are the function's own.

    Raises:
        ValueError: fewer than two sources.

    Example:
        >>> context = Context(["Cats purr.", "Dogs bark."], lambda kept: -1.0 if "Cats purr." in kept else -5.0)
        >>> context.setting.n
        2
    """

    sources: Sequence[str]
    log_probability: Callable[[list[str]], float]

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise ValueError(f"A context needs at least two sources to leave some out; got {len(self.sources)}.")

    @property
    def setting(self) -> Setting:
        """The setting that estimators fit: n sources, one output."""
        n = len(self.sources)
        index = torch.arange(n)
        rule = Custom(_keep, Objective(), "keep these sources")
        nothing = torch.zeros(1, dtype=torch.long)
        universe = (index, torch.zeros(n, dtype=torch.long))
        return Setting(_Kept(n), universe, (nothing, nothing), rule, loss=_no_loss, output=_as_said, forward=self._ask)

    def _ask(self, model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(model, _Kept):
            raise TypeError("A context is measured by its own forward; leave `forward` as it is.")
        kept = [source for source, weight in zip(self.sources, model.weights.tolist(), strict=True) if weight > 0]
        value = float(self.log_probability(kept))
        return torch.full((len(batch[0]),), value, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Citations:
    """What each source adds to the response.

    Args:
        sources: the context.
        effects: `(n,)` in nats of the response's log-probability.
        response: what the model said, to read.
        dropped: how much less likely the response really is without the most cited sources; None where not measured.
        control: the same without as many random sources.
        predicted: the same as the datamodel says.
        k: how many were left out.
    """

    sources: Sequence[str]
    effects: Tensor
    response: str = ""
    dropped: float | None = None
    control: float | None = None
    predicted: float | None = None
    k: int = 0

    @property
    def order(self) -> list[int]:
        """Sources, the most cited first."""
        return self.effects.argsort(descending=True, stable=True).tolist()

    def to_pandas(self) -> Any:
        """A row a source, the most cited first."""
        import pandas as pd

        rows = [(i, float(self.effects[i]), self.sources[i]) for i in self.order]
        return pd.DataFrame(rows, columns=["source", "effect", "text"])

    def finding(self, points: Any = None, targets: Any = None) -> Finding:
        """A section of a report: the context, marked by what each source adds."""
        scale = float(self.effects.abs().max().clamp_min(1e-12))
        marked = [(f"{s} ", float(e) / scale) for s, e in zip(self.sources, self.effects, strict=True)]
        whole = Card(Content(pieces=tuple(marked)), "the context, marked by effect")
        shown = Texts(self.sources)
        best = [Card(shown[i], f"source {i}", f"{float(self.effects[i]):+.3g} nats") for i in self.order[:5]]
        parts: list[Any] = [Strip("The context", [whole], EFFECT), Strip("Most cited", best, EFFECT)]
        answer = f"Source {self.order[0]} adds most: {float(self.effects[self.order[0]]):.3g} nats."
        if self.dropped is not None:
            columns = [
                Term("left out", f"{self.k} sources are taken from the context and the model is asked again."),
                Term("drop", "How much less likely the response is, in nats of its log-probability."),
            ]
            rows = [("most cited, predicted", self.predicted), ("most cited, actual", self.dropped)]
            rows.append(("random sources", self.control))
            parts.append(Grid("Asked again", columns, rows, best=1))
            answer += f" Without the {self.k} most cited sources it is {self.dropped:.3g} nats less likely."
        return Finding(
            "Citations", f"Which sources made the model say this: {self.response}", answer, parts, frame=self.to_pandas
        )


def citations(
    context: Context,
    f_hat: OutputFunction,
    response: str = "",
    f: OutputFunction | None = None,
    k: int | None = None,
    seed: int = 0,
) -> Citations:
    """Read a datamodel of a context.

    Args:
        context: what it was fitted to.
        f_hat: a datamodel of `context.setting`.
        response: what the model said, to read.
        f: `Retrain(context.setting)`: asks the model again without the k most cited sources.
        k: how many to leave out for that, default 3, or all but one of fewer; as many random ones beside them.
        seed: of the random ones.

    Raises:
        ValueError: a datamodel of another number of sources, or k out of range.
    """
    n = len(context.sources)
    if f_hat.n != n or f_hat.m != 1:
        raise ValueError(f"Expected a datamodel of {n} sources and one output; it has {f_hat.n} and {f_hat.m}.")
    k = min(3, n - 1) if k is None else k
    if not 1 <= k < n:
        raise ValueError(f"Between 1 and {n - 1} sources can be left out; got k={k}.")
    effects = effects_of(f_hat).detach()[0]
    found = Citations(context.sources, effects, response, k=k)
    if f is None:
        return found
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.tensor(found.order[:k]), *(torch.randperm(n, generator=generator)[:k] for _ in range(5))]
    without = torch.stack([torch.ones(n).index_fill(0, draw, 0.0) for draw in draws])
    with torch.no_grad():
        actual = float(f(torch.ones(n))) - f(without)[:, 0]
        predicted = float(f_hat(torch.ones(n))) - float(f_hat(without[0]))
    return Citations(context.sources, effects, response, float(actual[0]), float(actual[1:].mean()), predicted, k)


class _Kept(nn.Module):
    """The "model": which sources are kept."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(n))


def _keep(model: nn.Module, dataset: Any, seed: int) -> nn.Module:
    assert isinstance(model, _Kept)
    with torch.no_grad():
        for i in range(len(dataset)):
            model.weights[int(dataset[i][0])] = 1.0
    return model


def _as_said(prediction: Tensor, batch: Any) -> Tensor:
    return prediction


def _no_loss(prediction: Tensor, batch: Any) -> Tensor:
    return torch.zeros_like(prediction)
