"""Draws a report as HTML: a template, one style rule for every picture, plots as SVG; all text from the data escaped.

A picture that is shown often is stored once. Characters that would change how the text around them is shown, such as
right-to-left overrides, are written out: what the data say is read, not obeyed.
"""

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recipe.findings.charts import curves, scatter
from recipe.findings.examples import Content
from recipe.findings.parts import Finding, Part
from recipe.findings.words import shown, visible


def render(title: str, introduction: str, findings: Sequence[Finding], facts: Mapping[str, str]) -> str:
    """The page as a string."""
    environment = Environment(
        loader=PackageLoader("recipe.findings", "."), autoescape=True, undefined=StrictUndefined, finalize=_finalize
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    pictures, numbers = _Pictures(), itertools.count(1)
    context = {
        "title": title,
        "introduction": introduction,
        "findings": findings,
        "facts": facts,
        "kind": _kind,
        "shown": shown,
        "picture": pictures,
        "scatter": lambda part: Markup(scatter(part)),
        "curves": lambda part: Markup(curves(part)),
        "strength": _strength,
        "number": lambda: next(numbers),
        "is_number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    }
    body = environment.get_template("body.html.j2").render(context)
    return environment.get_template("page.html.j2").render(title=title, body=Markup(body), rules=Markup(pictures.rules))


def _finalize(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _strength(value: float) -> int:
    """How strongly a piece of text is marked: -4 to 4."""
    return max(-4, min(4, round(4 * value)))


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
