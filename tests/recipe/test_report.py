"""The report: one valid page that needs nothing else, shows the numbers, and escapes what the data say."""

import base64
import io
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import matplotlib.image
import pytest
import torch

from recipe import LinearDatamodel
from recipe.feasible import Subset
from recipe.problem import Minimize, Problem
from recipe.report import Gallery, Picture, Row, Section, Table, bar, html, image
from recipe.run import Measured, solve, verify
from recipe.solvers import TopK

HOSTILE = "<script>alert('&\"')</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass(frozen=True)
class Few:
    """Two points of three that make the mean output small."""

    def problem(self, f):
        ones = torch.ones(f.n)
        objective = Minimize(lambda w: f(w).mean())
        return Problem(objective, ones, Subset(f.n, 2), lambda w: (w, None), {"do nothing": ones})


class Page(HTMLParser):
    """Tags that are not closed in order raise; text, attributes and embedded images are collected."""

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.links, self.images, self.text = [], [], [], [], []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [tag] * (tag not in VOID)
        values = dict(attributes)
        self.links += [values[name] for name in ("src", "href", "data", "action", "srcset") if name in values]
        self.images += [values["src"]] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def section():
    """Predicted .7 (effects 1, -.5, .2 and a bias of 1), really .8."""
    f_hat = LinearDatamodel(torch.tensor([1.0, 1.0]), torch.tensor([[1.0, -0.5, 0.2]] * 2))
    f = LinearDatamodel(torch.tensor([1.1, 1.1]), torch.tensor([[1.0, -0.5, 0.2]] * 2))
    solution = solve(Few(), f_hat, TopK())
    return Section("Few", "Which two?", "minimise f(w)", solution, verify(solution, f))


def page(*sections):
    return Page(html("A report", "What it is about.", sections))


def test_a_page_is_well_formed_and_shows_the_numbers(section):
    accuracy = Table("accuracy", [Row("ours", Measured(0.8765, 0.0123, 5), "ours"), Row("random", 0.5432)])
    read = page(replace(section, tables=[accuracy]))
    assert read.open == []
    text = " ".join(" ".join(read.text).split())
    for shown in ("Which two?", "minimise f(w)", "TopK()", "0.8765 ± 0.012", "0.5432"):
        assert shown in text
    for name, value in (("predicted", "0.7"), ("actual", "0.8"), ("before (do nothing)", "1.8")):
        assert f"{name} {value} " in text


def test_a_page_needs_nothing_else(section):
    gallery = Gallery("points", [Picture(torch.eye(4), "a point")])
    document = html("A report", "", [replace(section, galleries=[gallery])])
    read = Page(document)
    assert len(read.images) == 2
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in read.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    assert "@import" not in document
    assert "url(" not in document


def test_links_within_the_page_lead_somewhere(section):
    document = html("A report", "", [section, section])
    for link in Page(document).links:
        assert link.startswith("data:") or f'id="{link[1:]}"' in document


def test_what_the_data_say_is_escaped(section):
    rows = [Row(HOSTILE, 1.0, HOSTILE)]
    hostile = replace(
        section,
        title=HOSTILE,
        question=HOSTILE,
        objective=HOSTILE,
        unit=HOSTILE,
        output=HOSTILE,
        tables=[Table(HOSTILE, rows)],
        galleries=[Gallery(HOSTILE, [Picture(torch.eye(2), HOSTILE, HOSTILE)])],
        verification=replace(
            section.verification, provenance={**section.verification.provenance, "notes": {HOSTILE: HOSTILE}}
        ),
    )
    document = html(HOSTILE, HOSTILE, [hostile])
    assert "script" not in Page(document).tags
    assert "<script" not in document
    assert " ".join(Page(document).text).count(HOSTILE) >= 10  # shown, not dropped


def test_thumbnails_are_the_pixels_dark_on_white():
    source = image(Picture(torch.tensor([[0.0, 1.0], [0.5, 2.0]]), ""))
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert pixels[..., 0] == pytest.approx(torch.tensor([[1.0, 0.0], [0.5, 0.0]]).numpy(), abs=0.01)


def test_colours_stay():
    colours = torch.rand(3, 5, 3)
    source = image(Picture(colours, ""))
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert pixels[..., :3] == pytest.approx(colours.numpy(), abs=0.01)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ((2.0, 4.0), [(0, 50), (0, 100)]),
        ((-1.0, 3.0), [(0, 25), (25, 75)]),
        ((float("inf"), 2.0, float("nan")), [(0, 100), (0, 100), (0, 0)]),
        ((0.0,), [(0, 0)]),
    ],
)
def test_bars_share_a_scale_that_contains_zero(values, bars):
    table = Table("", [Row("", value) for value in values])
    assert [bar(row, table) for row in table.rows] == bars


def test_text_says_what_the_page_says(section):
    read = str(replace(section, tables=[Table("accuracy", [Row("ours", 0.25)])]))
    lines = [" ".join(line.split()) for line in read.splitlines()]
    for line in ("Few", "Which two?", "solver: TopK()", "predicted 0.7", "actual 0.8", "accuracy", "ours 0.25"):
        assert line in lines
