"""Findings: one valid page that needs nothing else, escaped, and usable in a browser, by keyboard and on a phone."""

import re

import pytest
import torch

from recipe.findings import (
    Card,
    Curves,
    Exhibit,
    Exhibits,
    Finding,
    Grid,
    Images,
    Report,
    Rows,
    Scatter,
    Strip,
    Term,
    Texts,
    Unseen,
)
from tests.browser import Window, look, needs_chromium
from tests.recipe.test_report import Page

HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked=2'>\"'&" + chr(0x202E) + "abc"
SHOWN = HOSTILE.replace(chr(0x202E), "⟨U+202E⟩")
EFFECT = Term("effect", "What a point does.")


def report(word="word", images=6):
    pictures = Images(
        torch.linspace(0, 1, images * 64).view(images, 8, 8), labels=[f"{word} {i}" for i in range(images)]
    )
    texts = Texts([word, [(word, 0.9), (" and ", 0.0), ("harm", -0.6)]])
    rows = Rows({word: [1.0], "age": [39]}, labels=[word])
    items = [
        Exhibit(Card(pictures[i], f"target {i}", "1.2", word), [Strip(word, [Card(texts[1], word)])]) for i in range(4)
    ]
    cards = [Card(pictures[i], f"point {i}", "+0.1", word * (i == 1)) for i in range(images)]
    parts = [
        Strip(word, [*cards, Card(texts[0], word), Card(rows[0], word)], EFFECT),
        Grid(word, [Term(word, word), Term("value", "A number.")], [[word, 0.12345], [word, 2]], best=0),
        Scatter(word, Term(word, word), Term("actual", "By retraining."), [(0.0, 0.1), (1.0, 0.9)], [word, word]),
        Curves(
            word, Term(word, word), Term("share", "Of all."), {word: ([1, 2, 4], [0.0, 0.5, 1.0])}, logarithmic=True
        ),
        Exhibits(word, items, Term(word, word)),
    ]
    first = Finding(word, word, word, parts, [word])
    return Report(word, word, [first, Finding("Second", "And?", "Nothing.")], {word: word})


# ---- the page ------------------------------------------------------------------------------------------------------
def test_the_page_is_well_formed_and_shows_what_it_was_given():
    read = Page(report().html)
    assert read.open == []
    text = " ".join(" ".join(read.text).split())
    for shown in ("Second", "0.1235", "+0.1", "By retraining.", "What a point does.", "word and harm", "age 39"):
        assert shown in text.replace("  ", " ")


def test_the_page_needs_nothing_else():
    page = report().html
    assert all(link.startswith("#") for link in Page(page).links)
    assert set(re.findall(r"url\((.{5})", page)) == {"data:"}
    assert not {"link", "iframe", "object", "embed", "form"} & set(Page(page).tags)
    assert "default-src 'none'" in page
    for link in Page(page).links:
        assert f'id="{link[1:]}"' in page


def test_all_text_is_escaped_everywhere():
    page = report(HOSTILE).html
    read = Page(page)
    assert read.tags.count("script") == 1
    assert "img" not in read.tags
    assert chr(0x202E) not in page
    assert " ".join(read.text).count(SHOWN) >= 20
    assert "<script>window" not in page
    assert "&lt;script&gt;window" in report(HOSTILE)._repr_html_().replace("&amp;", "&")


def test_a_picture_is_stored_once():
    one = Images(torch.rand(1, 8, 8))[0]
    page = Report("", "", [Finding("", "", "", [Strip("", [Card(one, f"{i}") for i in range(50)])])]).html
    assert page.count("data:image/png") == 1
    assert page.count('class="img p0"') == 50


def test_five_hundred_photos_stay_below_ten_megabytes():
    photos = Images(torch.randint(0, 256, (500, 128, 128, 3), dtype=torch.uint8))  # noise: the worst there is
    cards = [Card(photos[i], f"{i}") for i in range(500)]
    assert len(Report("", "", [Finding("", "", "", [Strip("", cards)])]).html) < 10e6


def test_the_text_says_what_the_page_says():
    text = str(report())
    for line in ("Second", "note: word", "  word  0.1235", "  point 0  word 0  +0.1"):
        assert line in text


def test_a_notebook_gets_a_frame_of_its_own():
    read = Page(report()._repr_html_())
    assert read.tags == ["iframe"]
    assert Page(report().findings[1]._repr_html_()).tags == ["iframe"]


def test_saving(tmp_path):
    assert report().save(tmp_path / "report.html").read_text(encoding="utf-8") == report().html


# ---- examples ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 8, 3), (2, 3, 8, 8), (2, 1, 8, 8), (2, 8, 8, 1)])
def test_images_of_every_known_shape(shape):
    images = Images(torch.rand(shape), labels=torch.tensor([3, 4]))
    assert len(images) == 2
    assert (images[1].label, images[1].kind) == ("4", "image/png")
    assert images[0].picture.startswith(b"\x89PNG")


def test_pixels_arrive_as_they_are():
    import io

    from PIL import Image

    pixels = torch.randint(0, 256, (1, 5, 7, 3), dtype=torch.uint8)
    picture = Image.open(io.BytesIO(Images(pixels)[0].picture))
    assert picture.size == (7, 5)
    assert list(picture.tobytes()) == pixels.flatten().tolist()
    ink = Image.open(io.BytesIO(Images(torch.tensor([[[0.0, 1.0]]]), ink=True)[0].picture))
    assert list(ink.tobytes()) == [255, 0]


def test_images_of_an_unknown_shape_or_range():
    with pytest.raises(ValueError, match=r"got \(2, 64\)\. Reshape flat pixels"):
        Images(torch.rand(2, 64))
    with pytest.raises(ValueError, match=r"got \(2, 5, 8, 8\)"):
        Images(torch.rand(2, 5, 8, 8))
    with pytest.raises(ValueError, match="range from -2 to 1. Undo the standardisation"):
        Images(torch.tensor([[[-2.0, 1.0]]]))
    with pytest.raises(ValueError, match="range from nan to nan"):
        Images(torch.tensor([[[float("nan"), 1.0]]]))


def test_long_texts_are_cut_and_examples_without_anything_are_numbers():
    assert Texts(["x" * 500], longest=10)[0].pieces == (("x" * 10 + " …", 0.0),)
    assert Unseen(3)[1].label == ""
    assert len(Unseen(3)) == 3


# ---- in a browser --------------------------------------------------------------------------------------------------
@needs_chromium
def test_in_a_browser(tmp_path):
    script = """
        const field = document.querySelector(".find input"), items = [...document.querySelectorAll("details.exhibit")];
        field.value = "target 2"; field.dispatchEvent(new Event("input"));
        const left = items.filter((item) => !item.hidden).length;
        const summary = items[2].querySelector("summary");
        summary.focus(); summary.click();
        const images = [...document.querySelectorAll(".img")];
        return {
            hacked: window.hacked || 0, left, open: items[2].open,
            unnamed: images.filter((e) => !e.getAttribute("aria-label")).length,
            drawn: images.every((e) => getComputedStyle(e).backgroundImage.startsWith('url("data:')),
            heads: [...document.querySelectorAll("h1, h2, h3")].map((h) => h.tagName).join(" "),
            focusable: document.activeElement === summary,
            wide: document.documentElement.scrollWidth, lang: document.documentElement.lang,
        };"""
    found, errors = look(report(HOSTILE).html, script, tmp_path)
    assert errors == []
    assert found["hacked"] == 0
    assert (found["left"], found["open"], found["focusable"]) == (1, True, True)
    assert (found["unnamed"], found["drawn"]) == (0, True)
    assert found["heads"].startswith("H1 H2")
    assert found["lang"] == "en"
    assert found["wide"] <= 1200


@needs_chromium
def test_by_keyboard_mouse_and_screen_reader(tmp_path):
    told = """(() => { const tip = document.activeElement.querySelector(".tip");
        return tip && getComputedStyle(tip).visibility === "visible" ? tip.textContent : ""; })()"""
    with Window(report().html, tmp_path) as window:
        window.press("Tab")
        assert window.run("document.activeElement.textContent") == "Skip to the findings"
        seen = []
        while "What a point does." not in seen and len(seen) < 40:
            window.press("Tab")
            seen.append(window.run(told))
        assert seen[-1] == "What a point does."
        assert "By retraining." in seen  # of a plot's axis
        window.press("Escape")
        assert window.run(told) == ""
        for _ in range(40):
            window.press("Tab")
            if window.run("document.activeElement.tagName") == "SUMMARY":
                break
        window.press("Enter")
        assert window.run('document.querySelector("details").open')
        term = 'document.querySelector("figcaption .term")'
        window.run(f'{term}.scrollIntoView({{ block: "center", behavior: "instant" }})')
        x, y = window.run(f"(() => {{ const r = {term}.getBoundingClientRect(); return [r.left + 3, r.top + 5]; }})()")
        window.move(x, y)
        assert window.run(f'getComputedStyle({term}.querySelector(".tip")).visibility') == "visible"
        nodes = window.tree()
    assert {"main", "navigation", "heading", "table", "searchbox"} <= {node["role"] for node in nodes}
    assert all(node["name"] for node in nodes if node["role"] in ("image", "link", "searchbox", "region"))
    assert any("What a point does." in node["description"] for node in nodes)


@needs_chromium
def test_every_number_has_its_definition(tmp_path):
    script = """
        const numbers = [...document.querySelectorAll(".value, td.n")];
        return { many: numbers.length, unnamed: numbers.filter((e) => !e.title).map((e) => e.textContent) };"""
    found, errors = look(report().html, script, tmp_path)
    assert (found["unnamed"], errors) == ([], [])
    assert found["many"] >= 10
    with pytest.raises(ValueError, match="The cards of 'points' have numbers; pass the `Term`"):
        Strip("points", [Card(Unseen(1)[0], "point 0", "+0.1")])


@needs_chromium
def test_on_a_phone(tmp_path):
    script = """
        document.querySelectorAll("details").forEach((item) => { item.open = true; });
        const words = [...document.querySelectorAll("p, td, .card, summary")];
        const small = words.filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11);
        return { wide: document.documentElement.scrollWidth, width: window.innerWidth, small: small.length };"""
    found, errors = look(report("averylongwordwithoutanyspaceinit" * 3).html, script, tmp_path, width=360, height=740)
    assert errors == []
    assert found["width"] == 360
    assert found["wide"] <= 360
    assert found["small"] == 0
