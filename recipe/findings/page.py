"""Draws a report as HTML: a template, one style rule for every picture, plots as SVG; all text from the data escaped.

A picture that is shown often is stored once. So are long texts and wide rows within exhibits: where they stand there is
their beginning, and a button that opens the whole, which lies once at the end of the page, and the names of a table's
columns once in its style. Characters that would change how the text around them is shown, such as right-to-left
overrides, are written out: what the data say is read, not obeyed.
"""

import base64
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recipe.findings.charts import curves, data, scatter
from recipe.findings.examples import Content
from recipe.findings.parts import Facts, Finding, Part, Term
from recipe.findings.words import fitting, shortened, shown, visible

EXCERPT = 75  # columns of a text within an exhibit: about three lines of a card
LEAD = 24  # characters before the strongest piece, where that is far from the beginning
CELLS, CELL = 4, 32  # names and values of a wide row within an exhibit, and columns of each
NUMERIC = re.compile(r"[+-]?\d[\d.]*(e[+-]?\d+)?( ± \S+)?%?")


def render(title: str, introduction: str, findings: Sequence[Finding], facts: Facts) -> str:
    """The page as a string."""
    environment = Environment(
        loader=PackageLoader("recipe.findings", "."), autoescape=True, undefined=StrictUndefined, finalize=_finalize
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    pictures, wholes, numbers = _Pictures(), _Wholes(), itertools.count(1)
    context = {
        "title": title,
        "introduction": introduction,
        "findings": findings,
        "facts": facts,
        "kind": _kind,
        "shown": shown,
        "picture": pictures,
        "wholes": wholes,
        "excerpt": excerpt,
        "scatter": lambda part: Markup(scatter(part)),
        "curves": lambda part: Markup(curves(part)),
        "data": data,
        "strength": _strength,
        "number": lambda: next(numbers),
        "is_number": _is_number,
        "is_term": lambda value: isinstance(value, Term),
    }
    body = environment.get_template("body.html.j2").render(context)
    return environment.get_template("page.html.j2").render(
        title=title, body=Markup(body), rules=Markup(f"{pictures.rules}\n{wholes.rules}")
    )


def excerpt(content: Content) -> Content:
    """What an exhibit shows at once: the beginning of a long text, or some of a wide row.

    Of a marked text it is the part around the strongest mark.

    >>> excerpt(Content(pieces=[("a" * 200, 0.0), ("here", 0.9)])).pieces
    (('… ', 0.0), ('aaaaaaaaaaaaaaaaaaaaaaaa', 0.0), ('here', 0.9))
    >>> list(excerpt(Content(row={f"x{i}": "1" for i in range(30)})).row)
    ['x0', 'x1', 'x2', 'x3']
    """
    row = content.row
    if row is not None:
        most = CELLS if len(row) > CELLS + 1 else len(row)  # no button for one cell
        some = itertools.islice(row.items(), most)
        row = {shortened(name, CELL): shortened(value, CELL) for name, value in some}
    return replace(content, pieces=_around(content.pieces), row=row)


def _around(pieces: Sequence[tuple[str, float]]) -> Sequence[tuple[str, float]]:
    text = "".join(piece for piece, _ in pieces)
    fits = fitting(text, EXCERPT)
    if fits == len(text):
        return pieces
    strongest = max(range(len(pieces)), key=lambda i: abs(pieces[i][1]))
    at = sum(len(piece) for piece, _ in pieces[:strongest])
    start = max(0, at - LEAD) if at + len(pieces[strongest][0]) > fits else 0
    end = start + len(text[start : start + fitting(text[start:], EXCERPT)].rstrip())
    starts = itertools.accumulate((len(piece) for piece, _ in pieces), initial=0)
    cut = [
        (piece[max(0, start - place) : max(0, end - place)], weight)
        for (piece, weight), place in zip(pieces, starts, strict=False)
    ]
    around = [("… " * (start > 0), 0.0), *cut, (" …" * (end < len(text)), 0.0)]
    return tuple(one for one in around if one[0])


def _finalize(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _strength(value: float) -> int:
    """How strongly a piece of text is marked: -4 to 4."""
    return max(-4, min(4, round(4 * value)))


def _is_number(value: Any) -> bool:
    """Whether a value stands in a column of numbers, as "0.5 ± 0.1" does."""
    if isinstance(value, str):
        return NUMERIC.fullmatch(value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _Pictures:
    """Style classes of pictures, each with its data once."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._rules: list[str] = []

    def __call__(self, content: Content) -> str:
        key = hashlib.sha256(content.picture).hexdigest()
        if key not in self._classes:
            self._classes[key] = f"p{len(self._classes)}"
            data = base64.b64encode(content.picture).decode()
            self._rules.append(f".{self._classes[key]}{{background-image:url(data:{content.kind};base64,{data})}}")
        return self._classes[key]

    @property
    def rules(self) -> str:
        return "\n".join(self._rules)


class _Wholes:
    """Long texts and wide rows by the identifiers under which they lie at the end of the page, each once.

    The names of the columns are style as well: thousands of rows have them in common.
    """

    def __init__(self) -> None:
        self._found: dict[Any, tuple[str, Content]] = {}
        self._columns: dict[tuple[str, ...], str] = {}

    def __call__(self, content: Content) -> str:
        key = (tuple(content.pieces), tuple((content.row or {}).items()))
        return self._found.setdefault(key, (f"w{len(self._found)}", content))[0]

    def __iter__(self) -> Iterator[tuple[str, Content]]:
        return iter(self._found.values())

    def columns(self, content: Content) -> str:
        """The style class of a row: its columns' names."""
        return self._columns.setdefault(tuple(content.row or ()), f"n{len(self._columns)}")

    @property
    def rules(self) -> str:
        return "\n".join(
            f'.{style} li:nth-child({place})::before{{content:"{_quoted(name)}"}}'
            for names, style in self._columns.items()
            for place, name in enumerate(names, 1)
        )


def _quoted(text: str) -> str:
    r"""The text as it may stand between the quotes of a style rule: all but plain letters, digits and spaces as codes.

    >>> print(_quoted('age_of"</style>'))
    age_of\000022\00003C\00002Fstyle\00003E
    """
    return re.sub("[^A-Za-z0-9_ ]", lambda found: f"\\{ord(found.group()):06X}", visible(text))
