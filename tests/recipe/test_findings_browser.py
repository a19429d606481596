"""The page of findings in a browser: by keyboard, mouse and screen reader, on a phone, in a notebook's frame."""

import pytest

from recipe.findings import (
    Card,
    Finding,
    Grid,
    Report,
    Rows,
    Scatter,
    Strip,
    Term,
    Texts,
    Unseen,
)
from tests.browser import Window, look, needs_chromium
from tests.recipe.test_findings import HOSTILE, exhibits, report


# ---- its parts -------------------------------------------------------------------------------------------------------
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
        assert window.run("document.activeElement.parentElement.open")
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
        const cells = [...document.querySelectorAll("td")].filter((e) => /\\d/.test(e.textContent));
        const numbers = [...document.querySelectorAll(".value, td.n, .facts dd[title]"), ...cells];
        const unnamed = numbers.filter((e) => !e.closest("[title]"));
        const answers = [...document.querySelectorAll(".answer")].filter((e) => e.textContent.includes("±"));
        return {
            many: numbers.length, unnamed: unnamed.map((e) => e.textContent),
            ofErrors: answers.map((e) => e.querySelector(".tip").textContent),
            ofFacts: [...document.querySelectorAll(".facts .tip")].map((e) => e.textContent),
            ofRows: cells.filter((e) => e.parentElement.querySelector("th")).map((e) => e.title),
            ofPairs: cells.filter((e) => e.textContent.includes("±")).map((e) => [e.className, e.title]),
            empty: [...document.querySelectorAll(".term")].filter((e) => !e.querySelector(".tip").textContent).length,
            blank: [...document.querySelectorAll("th")].filter((e) => !e.textContent).length,
        };"""
    found, errors = look(report().html, script, tmp_path)
    assert (found["unnamed"], errors) == ([], [])
    assert found["many"] >= 10
    assert found["ofErrors"] == ["One standard error of a mean over repeated runs: other seeds, or other random draws."]
    assert found["ofFacts"] == ["How many are in training."]
    assert found["ofRows"] == ["p-value: Of a t-test."]  # its own, not its column's
    assert found["ofPairs"] == [["n", "value: A number."]]
    assert (found["empty"], found["blank"]) == (0, 0)
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


# ---- its layout ----------------------------------------------------------------------------------------------------
def tables():
    groups = ["Wikipedia (English)", "news articles", "books", "a-name-without-any-space"]
    names = ("group", "points", "effect", "from", "to", "each", "actual")
    columns = [
        Term(name, "A definition of about the usual length, which says what the numbers are. " * 2) for name in names
    ]
    rows = [(group, 100, 0.123456, -0.1, 0.25, 0.00123456, "0.129 ± 0.023") for group in groups]
    wide = [Term(f"column number {i}", "A definition that is long enough to need two lines.") for i in range(16)]
    parts = [
        Grid("Effects of groups", columns, rows),
        Grid("Numbers first", [columns[1], columns[2], columns[0]], [(3, 0.5, "dogs")]),
        Grid("Wide", wide, [[1.2345] * 16]),
        Scatter("Dots", columns[2], columns[6], [(0.0, 0.1)] * 300),
        Strip("Rows", [Card(Rows({"a_very_long_name_of_a_column_" * 4: [1], "x": ["value" * 30]})[0], "row")]),
    ]
    return Report("Tables", "", [Finding("Tables", "", "0.1 ± 0.2", parts), Finding("Others", "", "None.")])


@needs_chromium
def test_tables_can_be_read_on_a_phone(tmp_path):
    script = """
        const cells = [...document.querySelectorAll(".scroll[aria-label='Effects of groups'] :is(td, th)")];
        const height = (e) => e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).lineHeight);
        return [document.documentElement.scrollWidth, Math.max(...cells.map(height)), cells.length];"""
    (wide, lines, many), errors = look(tables().html, script, tmp_path, width=390)
    assert (errors, wide) == ([], 390)
    assert lines < 6
    assert many == 35


@needs_chromium
@pytest.mark.parametrize("width", [1200, 900, 700, 390])
def test_definitions_are_within_the_window_and_wide_tables_can_be_reached(width, tmp_path):
    focus = """[...document.querySelectorAll("section > *:not(.plots) .term, .legend .term")].map((term) => {
        term.focus({ preventScroll: false });
        const box = term.querySelector(".tip").getBoundingClientRect();
        const seen = getComputedStyle(term.querySelector(".tip")).visibility === "visible";
        return seen && box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight
            && box.width > 50 ? "" : `${term.firstChild.textContent} ${box.left} ${box.right} ${box.top}`; })"""
    reach = """(() => { const wide = [...document.querySelectorAll(".scroll")].find((e) => e.ariaLabel == "Wide");
        wide.scrollLeft = 1e6;
        const last = [...wide.querySelectorAll("th")].at(-1).getBoundingClientRect();
        return [getComputedStyle(wide).overflowX, last.right <= wide.getBoundingClientRect().right + 1]; })()"""
    with Window(tables().html, tmp_path, width=width) as window:
        found = window.run(focus)
        assert len(found) > 25
        assert [one for one in found if one] == []
        assert window.run(reach) == ["auto", True]
        assert window.run("document.documentElement.scrollWidth") <= width


@needs_chromium
def test_the_sentence_under_a_plot_has_no_gaps_and_no_name_leaves_its_card(tmp_path):
    script = """
        const [plot, card] = [".plots", ".card.words"].map((found) => document.querySelector(found));
        const inside = [...card.querySelectorAll("dt, dd")].every((e) => e.scrollWidth <= e.clientWidth
            && e.getBoundingClientRect().right <= card.getBoundingClientRect().right);
        return { display: getComputedStyle(plot.querySelector("p.legend")).display, inside,
            rows: plot.querySelectorAll("details tbody tr").length, caption: plot.querySelector("caption").textContent,
            open: plot.querySelector("details").open };"""
    for width in (None, 390):
        found, errors = look(tables().html, script, tmp_path, width=width)
        assert errors == []
        assert (found["display"], found["inside"], found["open"]) == ("block", True, False)
        assert (found["rows"], found["caption"]) == (200, "Dots: the first 200 of 300")


@needs_chromium
def test_a_whole_text_opens_without_a_script(tmp_path):
    page = exhibits(Texts([f"{'word ' * 40}end"] * 2), Texts([f"{'so ' * 60}it ends", "short"]), k=2).html
    page = page[: page.rindex("<script>")] + page[page.rindex("</script>") + len("</script>") :]
    script = """
        const shown = (e) => getComputedStyle(e).display !== "none", whole = document.querySelector(".whole");
        document.querySelector("summary").click();
        const before = shown(whole), own = document.querySelector(".own").textContent;
        document.querySelector("button[popovertarget]").click();
        return [before, shown(whole), whole.textContent.trim().endsWith("end"), own.endsWith("it ends")];"""
    found, errors = look(page, script, tmp_path)
    assert (found, errors) == ([False, True, True, True], [])


@needs_chromium
def test_a_whole_row_has_the_names_of_its_columns_whatever_they_are(tmp_path):
    names = [f"x{i}" for i in range(28)] + ["</style><b>", '\\"} * {color:red} \n\u6570\u636e' + chr(0x202E)]
    row = Rows({name: [f"value {i}"] for i, name in enumerate(names)})
    script = """
        document.querySelector("summary").click();
        document.querySelector("button[popovertarget]").click();
        const cells = [...document.querySelectorAll("ol.row li")], box = document.querySelector("ol.row");
        return {
            names: cells.map((e) => getComputedStyle(e, "::before").content), values: cells.map((e) => e.textContent),
            shown: getComputedStyle(box).display, bold: document.querySelectorAll("style + b").length };"""
    found, errors = look(exhibits(row, Texts(["short"]), k=1).html, script, tmp_path)
    assert (errors, found["bold"], found["shown"]) == ([], 0, "grid")
    assert found["values"] == [f"value {i}" for i in range(30)]
    assert found["names"][27:29] == ['"x27"', '"</style><b>"']
    assert found["names"][29].endswith('\u6570\u636e⟨U+202E⟩"')


@needs_chromium
def test_links_stay_within_a_notebooks_frame(tmp_path):
    frame = tables()._repr_html_().replace('sandbox="allow-scripts"', 'sandbox="allow-scripts allow-same-origin"')
    script = """
        const inner = () => document.querySelector("iframe").contentWindow, seen = [];
        for (const link of [".skip", "nav a[href='#f2']"]) {
            inner().document.querySelector(link).click();
            await new Promise((done) => setTimeout(done, 300));
            const there = inner().document;
            seen.push([inner().location.hash, there.title, there.querySelectorAll("iframe").length]);
        }
        return seen;"""
    found, errors = look(f"<!doctype html><html><head></head><body>{frame}</body></html>", script, tmp_path)
    assert errors == []
    assert found == [["#findings", "Tables", 0], ["#f2", "Tables", 0]]
