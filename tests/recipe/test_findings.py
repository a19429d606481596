"""Findings: one valid page that needs nothing else, escaped, small, and the same in words."""

import random
import re
import unicodedata

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
from recipe.findings.page import EXCERPT, excerpt
from recipe.findings.words import visible
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
        Grid(word, [Term(word, word), Term("value", "A number.")], [[word, 0.12345], [word, "2 ± 0.1"]], best=0),
        Grid(word, [Term("", ""), Term("margin", "A mean.")], [[Term("p-value", "Of a t-test."), "0.03"], [word, 4]]),
        Scatter(word, Term(word, word), Term("actual", "By retraining."), [(0.0, 0.1), (1.0, 0.9)], [word, word]),
        Curves(
            word, Term(word, word), Term("share", "Of all."), {word: ([1, 2, 4], [0.0, 0.5, 1.0])}, logarithmic=True
        ),
        Exhibits(word, items, Term(word, word)),
    ]
    first = Finding(word, word, word, parts, [word], [Term(word, word)])
    facts = {word: word, Term("points", "How many are in training."): "100"}
    return Report(word, word, [first, Finding("Second", "And?", "From 0.1 ± 0.02 to 0.2 ± 0.02.")], facts)


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
    for line in ("Second", "note: word", "  word  0.1235", "  p-value  0.03", "  point 0  label word 0  +0.1"):
        assert line in text


def test_a_notebook_gets_a_frame_of_its_own():
    read = Page(report()._repr_html_())
    assert read.tags == ["iframe"]
    assert Page(report().findings[1]._repr_html_()).tags == ["iframe"]


def test_saving(tmp_path):
    assert report().save(tmp_path / "report.html").read_text(encoding="utf-8") == report().html


def test_a_page_too_large_to_send_warns(tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.findings.report.LARGEST", 1000)
    with pytest.warns(
        UserWarning, match=r"browsers are slow beyond 0\. Show fewer predictions .*Texts\(longest=\.\.\.\)"
    ):
        report().save(tmp_path / "report.html")


def test_data_frames_come_from_the_findings():
    frame, other = torch.zeros(1), torch.ones(1)
    findings = [Finding("Leaks", "", "", frame=lambda: frame), Finding("Groups", "", "")]
    findings.append(Finding("Leaks", "", "", frame=lambda: other))
    assert Report("", "", findings).to_pandas() == {"Leaks": frame, "Leaks (2)": other}


def test_the_model_is_compared_with_the_label():
    images = Images(torch.rand(2, 8, 8), labels=[4, 7], predicted=torch.tensor([1, 7]))
    shown = [Exhibit(Card(images[i], f"target {i}"), [Strip("", [Card(images[i], "")])]) for i in range(2)]
    page = Report("", "", [Finding("", "", "", [Exhibits("", shown)])]).html
    text = " ".join(" ".join(Page(page).text).split())
    assert "target 0 · label 4 · predicted 1 ✗" in text
    assert "target 1 · label 7 · predicted 7 " in text
    assert page.count('class="predicted differs"') == 2
    assert "target 0  label 4  predicted 1" in str(Finding("", "", "", [Strip("", [shown[0].card])]))


def test_a_row_may_have_its_own_definition_and_none_may_be_ragged():
    with pytest.raises(
        ValueError, match="Expected 2 values in every row of 'groups', one a column; row 1 has 1. Put None"
    ):
        Grid("groups", [EFFECT, EFFECT], [[1, 2], [3]])
    with pytest.raises(ValueError, match="The rows of 'groups' are 0 to 0; `best` is 1"):
        Grid("groups", [EFFECT], [[1]], best=1)


def test_what_hides_is_written_out_and_what_is_written_stays():
    for code in (0xAD, 0x34F, 0x180E, 0x3164, 0x202E, 0x200B, 0xFE01, 0xE0041, 0xE007F, 0xE0101, 0x0D):
        assert visible(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"
    for code in (0x200C, 0x200D):  # between letters that do not join, they only hide
        assert visible(f"pass{chr(code)}word") == f"pass⟨U+{code:04X}⟩word"
    assert visible("one\r\ntwo\nthree\t") == "one\ntwo\nthree\t"
    persian, hindi = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937"
    family, artist = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f9d1\U0001f3fd\u200d\U0001f3a8"
    for text in (persian, hindi, family, artist, "\u2764\ufe0f\u200d\U0001f525", "1\ufe0f\u20e3", "\u845b\U000e0100"):
        assert visible(text) == text
    hidden = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"]
    signs = (
        set(range(0x600, 0x606)) | {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD} | set(range(0x13430, 0x13440))
    )
    assert {ord(one) for one in hidden if visible(one) == one} <= signs  # format characters that have a shape


# ---- its size ------------------------------------------------------------------------------------------------------
def exhibits(points, targets, k=20):
    draw = random.Random(0)
    cards = [Card(points[i], f"point {i}", "+0.123") for i in range(len(points))]
    strip = lambda: Strip("Holds it up", draw.sample(cards, k), EFFECT)  # noqa: E731
    items = [Exhibit(Card(targets[j], f"target {j}"), [strip()]) for j in range(len(targets))]
    return Report("", "", [Finding("", "", "", [Exhibits("Predictions", items)])])


CHINESE = "".join(chr(0x4E00 + i) for i in range(400))
CODE = '    if x < 3 and y > 4:\n        return {"a": x & y}\n' * 8
ENGLISH = "the quick brown fox jumps over the lazy dog " * 10


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, CODE], ids=["English", "Chinese", "code"])
def test_five_hundred_predictions_with_texts_stay_below_ten_megabytes(text):
    texts = [f"{i} {text}"[:400] for i in range(2500)]
    assert len(exhibits(Texts(texts[:2000]), Texts(texts[2000:])).html.encode()) < 10e6


def test_five_hundred_predictions_with_wide_rows_stay_below_ten_megabytes():
    draw = random.Random(0)
    table = {f"column_number_{c}": [draw.gauss(0, 100) for _ in range(2500)] for c in range(30)}
    points, targets = ({name: v[part] for name, v in table.items()} for part in (slice(2000), slice(2000, None)))
    assert len(exhibits(Rows(points), Rows(targets)).html.encode()) < 10e6


def test_a_long_text_or_wide_row_is_stored_once():
    row = Rows({f"x{c}": [f"value{c}"] for c in range(30)})
    page = exhibits(Texts([f"{'word ' * 40}end"] * 2), Texts(["short"] * 9), k=2).html
    assert page.count(" end") == 1
    assert page.count('popovertarget="w0">whole text<') == 18
    page = exhibits(row, Texts(["short"] * 9), k=1).html
    assert (page.count("value29"), page.count("value3<")) == (1, 10)
    assert "all 30 columns" in page


def test_an_excerpt_shows_what_is_marked():
    pieces = (*((f"word{i} ", 0.0) for i in range(50)), ("this", -0.9), (" and", 0.1), *((" more", 0.0),) * 50)
    found = excerpt(Texts([pieces])[0])
    assert ("this", -0.9) in found.pieces
    assert sum(len(piece) for piece, _ in found.pieces) <= EXCERPT + 4
    short = Texts(["short"], labels=["a"])[0]
    assert excerpt(short) == short


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


def test_images_of_half_precision_and_what_cannot_be_shown():
    assert Images(torch.rand(2, 8, 8).bfloat16())[0].kind == "image/png"
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) looks like one colour image .* Pass `pixels\[None\]`"):
        Images(torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="text 1 is None. Replace missing texts"):
        Texts(["a text", None])
    with pytest.raises(ValueError, match="text 0 is 3.5"):
        Texts([3.5])
    with pytest.raises(ValueError, match=r"got the text 'one'. Pass \[text\]"):
        Texts("one")
    with pytest.raises(ValueError, match="Expected at least one column; got none"):
        Rows({})
    with pytest.raises(ValueError, match="'b' has 1 values and 'a' 2. Fill what is missing"):
        Rows({"a": [1, 2], "b": [1]})
    for make in (lambda **k: Images(torch.rand(3, 8, 8), **k), lambda **k: Rows({"a": [1, 2, 3]}, **k)):
        with pytest.raises(ValueError, match="Expected labels of all 3 examples, one each; got 2"):
            make(labels=[0, 1])
    with pytest.raises(ValueError, match="Expected predicted of all 3 examples"):
        Unseen(3, predicted=[0])


def test_long_texts_are_cut_and_examples_without_anything_are_numbers():
    assert Texts(["x" * 500], longest=10)[0].pieces == (("x" * 10 + " …", 0.0),)
    assert Unseen(3)[1].label == ""
    assert len(Unseen(3)) == 3
