"""The README's snippet runs as printed."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"\d*\.?\d+(?:e-?\d+)?")


def printed(code):
    """What a piece of code prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    return out.getvalue()


def test_the_snippet_prints_what_the_readme_shows():
    """The same words; numbers up to what another processor's rounding does to training."""
    snippet, shown = re.search(
        r"```python\n(from .*?)```\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S
    ).groups()
    text = printed(snippet)
    assert NUMBER.sub("#", text).split() == NUMBER.sub("#", shown).split()
    for ours, theirs in zip(text.splitlines(), shown.splitlines(), strict=True):
        a, b = (NUMBER.findall(line)[-1] for line in (ours.split("±")[0], theirs.split("±")[0]))
        assert float(a) == pytest.approx(float(b), abs=0.02 if "." in b else 4)


def test_the_first_screen_is_the_recipe():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line.split()[0] for line in lines[5:9]] == ["f", "f_hat", "solution", "print(verify(solution,"]
