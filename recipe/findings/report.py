"""A report: findings on one page that needs nothing else."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.findings.page import render
from recipe.findings.parts import Finding
from recipe.findings.words import escaped

FRAME = 640  # pixels of height in a notebook


@dataclass(frozen=True)
class Report:
    """Findings under a title.

    Args:
        title: of the page.
        introduction: a paragraph of plain text.
        findings: in the order in which they are shown.
        facts: names and values: where it all comes from.
        answers: the answers behind the findings, by the findings' titles; what `to_pandas` gives.

    Example:
        >>> report = Report("Digits", "What held these predictions up?", [Finding("Leaks", "Any?", "None <found>.")])
        >>> "None &lt;found&gt;." in report.html
        True
    """

    title: str
    introduction: str
    findings: Sequence[Finding]
    facts: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def html(self) -> str:
        """The page: one document without external resources."""
        return render(self.title, self.introduction, self.findings, self.facts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, and return where it lies."""
        where = Path(path)
        where.write_text(self.html, encoding="utf-8")
        return where

    def to_pandas(self) -> dict[str, Any]:
        """A data frame an answer, by the findings' titles."""
        return {title: answer.to_pandas() for title, answer in self.answers.items()}

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and the notebook's do not meet."""
        page = html.escape(self.html, quote=True)
        return (
            f'<iframe title="{escaped(self.title)}" srcdoc="{page}" sandbox="allow-scripts" '
            f'style="width:100%;height:{FRAME}px;border:1px solid #ccc;border-radius:8px"></iframe>'
        )

    def __str__(self) -> str:
        return "\n\n".join([self.title, *map(str, self.findings)])
