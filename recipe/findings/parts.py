"""The parts of a finding: tables, strips of examples, exhibits, plots. Data only; `page.py` draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.findings.examples import Content
from recipe.findings.words import shown


@dataclass(frozen=True)
class Term:
    """A name with its definition, which the page shows on hover and on focus."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Card:
    """An example in a strip.

    Args:
        content: what there is to see.
        name: which example it is.
        value: a number beneath it, already in words.
        mark: a remark that stands out.
    """

    content: Content
    name: str
    value: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Strip:
    """Examples in a row; `term` says what their numbers are.

    Raises:
        ValueError: numbers without a term.
    """

    caption: str
    cards: Sequence[Card]
    term: Term | None = None

    def __post_init__(self) -> None:
        _check_defined(self.caption, self.cards, self.term)


@dataclass(frozen=True)
class Exhibit:
    """One example with what belongs to it, folded until somebody looks."""

    card: Card
    strips: Sequence[Strip]


@dataclass(frozen=True)
class Exhibits:
    """Many examples, each with its strips; the page can search them. `term` says what the numbers of the examples are.

    Raises:
        ValueError: numbers without a term.
    """

    caption: str
    items: Sequence[Exhibit]
    term: Term | None = None

    def __post_init__(self) -> None:
        _check_defined(self.caption, [item.card for item in self.items], self.term)


@dataclass(frozen=True)
class Grid:
    """A table; every column's name has its definition.

    Args:
        caption: what the rows are.
        columns: names with definitions.
        rows: values; numbers are shown with four digits.
        best: the row to set off, if any.
    """

    caption: str
    columns: Sequence[Term]
    rows: Sequence[Sequence[Any]]
    best: int | None = None


@dataclass(frozen=True)
class Scatter:
    """Points, such as predicted against actual; `diagonal` draws the line on which the two agree."""

    caption: str
    x: Term
    y: Term
    points: Sequence[tuple[float, float]]
    names: Sequence[str] = ()
    diagonal: bool = True


@dataclass(frozen=True)
class Curves:
    """Lines by name, `(xs, ys)` each; the first stands out. `logarithmic` is about the horizontal axis."""

    caption: str
    x: Term
    y: Term
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    logarithmic: bool = False


Part = Strip | Exhibits | Grid | Scatter | Curves


@dataclass(frozen=True)
class Finding:
    """A question, its answer in a sentence, and the evidence.

    Args:
        title: a few words.
        question: what was asked.
        answer: what came out, in a sentence or two with the main numbers.
        parts: the evidence.
        notes: what to know before believing it.
    """

    title: str
    question: str
    answer: str
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()

    def _repr_html_(self) -> str:
        from recipe.findings.report import Report  # which is made of findings

        return Report(self.title, "", [self])._repr_html_()

    def __str__(self) -> str:
        lines = [self.title, "-" * len(self.title), self.question, self.answer]
        lines += [f"note: {note}" for note in self.notes]
        for part in self.parts:
            lines += _lines(part)
        return "\n".join(lines)


def _check_defined(caption: str, cards: Sequence[Card], term: Term | None) -> None:
    if term is None and any(card.value for card in cards):
        raise ValueError(f"The cards of {caption!r} have numbers; pass the `Term` that says what they are.")


def _lines(part: Part) -> list[str]:
    if isinstance(part, Grid):
        rows = [[term.name for term in part.columns], *[[shown(value) for value in row] for row in part.rows]]
        widths = [max(len(row[i]) for row in rows) for i in range(len(part.columns))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return [part.caption, *(f"  {line}".rstrip() for line in table)]
    if isinstance(part, Strip):
        return [part.caption, *(f"  {_card(card)}" for card in part.cards)]
    if isinstance(part, Exhibits):
        return [f"{part.caption} ({len(part.items)})"]
    return []


def _card(card: Card) -> str:
    text = "".join(piece for piece, _ in card.content.pieces)
    row = ", ".join(f"{name} {value}" for name, value in (card.content.row or {}).items())
    return "  ".join(word for word in (card.name, card.content.label, card.value, card.mark, text, row) if word)
