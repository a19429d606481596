"""The parts of a finding: tables, strips of examples, exhibits, plots. Data only; `page.py` draws them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recipe.findings.examples import Content
from recipe.findings.words import shown


@dataclass(frozen=True)
class Term:
    """A name with its definition, which the page shows on hover and on focus; "" where the name says it all."""

    name: str
    meaning: str


STANDARD_ERROR = Term("±", "One standard error of a mean over repeated runs: other seeds, or other random draws.")


Facts = Mapping[str, str] | Mapping[str | Term, str]


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
        rows: values; numbers are shown with four digits. A row that begins with a `Term` has a definition of its own,
            which then holds for its values instead of the column's.
        best: the row to set off, if any.

    Raises:
        ValueError: a row of another length than the columns, or no such row to set off.

    Example:
        >>> rows = [(Term("change", "± is over seeds."), "0.1 ± 0.02"), (Term("random", "± is over draws."), "0 ± 0.1")]
        >>> Grid("A test", [Term("", ""), Term("margin", "The mean over the targets.")], rows).meaning(1, 1).meaning
        '± is over draws.'
    """

    caption: str
    columns: Sequence[Term]
    rows: Sequence[Sequence[Any]]
    best: int | None = None

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"Expected {len(self.columns)} values in every row of {self.caption!r}, one a column; row {i} has "
                    f"{len(row)}. Put None where there is no value."
                )
        if self.best is not None and not 0 <= self.best < len(self.rows):
            raise ValueError(f"The rows of {self.caption!r} are 0 to {len(self.rows) - 1}; `best` is {self.best}.")

    def meaning(self, row: int, column: int) -> Term:
        """What a value is: its row's definition where there is one, else its column's."""
        first = self.rows[row][0]
        own = column > 0 and isinstance(first, Term) and bool(first.meaning)
        return first if own else self.columns[column]


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
        terms: definitions of what the answer speaks of, shown after it; where nothing is said of a ±, the page does.
        frame: gives the numbers behind it as a data frame, such as the bound `to_pandas` of an answer.
    """

    title: str
    question: str
    answer: str
    parts: Sequence[Part] = ()
    notes: Sequence[str] = ()
    terms: Sequence[Term] = ()
    frame: Callable[[], Any] | None = field(default=None, repr=False, compare=False)

    @property
    def defined(self) -> Sequence[Term]:
        """The terms of the answer.

        >>> [term.name for term in Finding("Test", "Does it move?", "By 0.1 ± 0.02.").defined]
        ['±']
        """
        known = any("±" in term.name + term.meaning for term in self.terms)
        return [*self.terms, *([STANDARD_ERROR] if "±" in self.answer and not known else [])]

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
        cells = [[value.name if isinstance(value, Term) else shown(value) for value in row] for row in part.rows]
        rows = [[term.name for term in part.columns], *cells]
        widths = [max(len(row[i]) for row in rows) for i in range(len(part.columns))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return [part.caption, *(f"  {line}".rstrip() for line in table)]
    if isinstance(part, Strip):
        return [part.caption, *(f"  {_card(card)}" for card in part.cards)]
    if isinstance(part, Exhibits):
        return [f"{part.caption} ({len(part.items)})"]
    return []


def _card(card: Card) -> str:
    content = card.content
    text = "".join(piece for piece, _ in content.pieces)
    row = ", ".join(f"{name} {value}" for name, value in (content.row or {}).items())
    label = content.label and f"label {content.label}"
    predicted = content.predicted and f"predicted {content.predicted}"
    return "  ".join(word for word in (card.name, label, predicted, card.value, card.mark, text, row) if word)
