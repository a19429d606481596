"""What was found, for people to look at: findings with their evidence, as one HTML page, a notebook's output or text.

An answer of an application makes a `Finding` of `Grid`, `Strip`, `Exhibits`, `Scatter` and `Curves`; a `Report`
collects findings. Numbers stand under `Term`s, which carry their definitions. `Images`, `Texts` and `Rows` show
examples.
"""

from recipe.findings.examples import Content, Examples, Images, Rows, Texts, Unseen
from recipe.findings.parts import Card, Curves, Exhibit, Exhibits, Finding, Grid, Scatter, Strip, Term
from recipe.findings.report import Report

__all__ = [
    "Card",
    "Content",
    "Curves",
    "Examples",
    "Exhibit",
    "Exhibits",
    "Finding",
    "Grid",
    "Images",
    "Report",
    "Rows",
    "Scatter",
    "Strip",
    "Term",
    "Texts",
    "Unseen",
]
