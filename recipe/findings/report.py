"""A report: findings on one page that needs nothing else."""

import html
import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.findings.page import render
from recipe.findings.parts import Facts, Finding
from recipe.findings.words import escaped

FRAME = 640  # pixels of height in a notebook
LARGEST = 10_000_000  # bytes beyond which saving warns
BASE = '<base href="about:srcdoc">'  # or links within the page would lead to the notebook, inside the frame


@dataclass(frozen=True)
class Report:
    """Findings under a title.

    Args:
        title: of the page.
        introduction: a paragraph of plain text.
        findings: in the order in which they are shown.
        facts: names, or terms, and values: where it all comes from.
        answers: answers whose data frames `to_pandas` gives besides those of the findings, by names of their own.

    Example:
        >>> report = Report("Digits", "What held these predictions up?", [Finding("Leaks", "Any?", "None <found>.")])
        >>> "None &lt;found&gt;." in report.html
        True
    """

    title: str
    introduction: str
    findings: Sequence[Finding]
    facts: Facts = field(default_factory=dict)
    answers: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def html(self) -> str:
        """The page: one document without external resources."""
        return render(self.title, self.introduction, self.findings, self.facts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, and return where it lies. Warns where it becomes too large to send or to open with ease."""
        where, page = Path(path), self.html.encode()
        where.write_bytes(page)
        if len(page) > LARGEST:
            warnings.warn(
                f"The report has {len(page) / 1e6:.1f} MB, and browsers are slow beyond {LARGEST / 1e6:.0f}. Show "
                "fewer predictions (`overview(chosen=...)`) or points of each (`k=...`), or less of every example: "
                "`Texts(longest=...)`, fewer columns for `Rows`.",
                stacklevel=2,
            )
        return where

    def to_pandas(self) -> dict[str, Any]:
        """Data frames: of the findings that have one, by their titles, and of `answers`, by their names.

        >>> import pandas as pd
        >>> leaks = Finding("Leaks", "Any?", "One.", frame=lambda: pd.DataFrame({"point": [3]}))
        >>> Report("Digits", "", [leaks, leaks]).to_pandas().keys()
        dict_keys(['Leaks', 'Leaks (2)'])
        """
        frames: dict[str, Any] = {}
        for finding in self.findings:
            if finding.frame is not None:
                frames[_unused(finding.title, frames)] = finding.frame()
        for name, answer in self.answers.items():
            frames[_unused(name, frames)] = answer.to_pandas()
        return frames

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and the notebook's do not meet."""
        page = html.escape(self.html.replace("<head>", f"<head>{BASE}", 1), quote=True)
        return (
            f'<iframe title="{escaped(self.title)}" srcdoc="{page}" sandbox="allow-scripts" '
            f'style="width:100%;height:{FRAME}px;border:1px solid #ccc;border-radius:8px"></iframe>'
        )

    def __str__(self) -> str:
        return "\n\n".join([self.title, *map(str, self.findings)])


def _unused(title: str, taken: Mapping[str, Any]) -> str:
    names = itertools.chain([title], (f"{title} ({k})" for k in itertools.count(2)))
    return next(name for name in names if name not in taken)
