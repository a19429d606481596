"""Values and texts as people read them."""

import html
import re
import unicodedata
from typing import Any

# Controls but tab and line feed, whatever reorders text, and what has no shape: fillers, joiners, selectors, tags
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
JOINERS, SELECTORS = "\u200c\u200d", re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Scripts that write with joiners, from Arabic to Vedic and further Indic ones; between Latin letters they only hide
JOINED = re.compile("[\u0620-\u1cff\ua800-\uabff\U00010a00-\U00011fff]")
EMOJI = re.compile("[\u2190-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff]")  # arrows and signs among them
SELECTED = re.compile("[#*0-9\xa9\xae\u1820-\u18aa\u203c-\u2bff\u3030-\u9fff\U0001f000-\U0003ffff]")


def visible(text: str) -> str:
    """The text with its invisible characters written out, so that it cannot change how others are shown.

    Line ends become one line feed, and what writing needs stays: joiners within Persian or Hindi words and within
    emoji, and a selector of a sign's form.

    >>> visible("abc" + chr(0x202E) + "def" + chr(0xAD) + "g")
    'abc⟨U+202E⟩def⟨U+00AD⟩g'
    >>> visible(chr(0x1F469) + chr(0x200D) + chr(0x1F680)) == chr(0x1F469) + chr(0x200D) + chr(0x1F680)
    True
    """
    text = text.replace("\r\n", "\n")
    return INVISIBLE.sub(lambda found: found.group() if _needed(text, found.start()) else _code(found.group()), text)


def escaped(text: str) -> str:
    """The text as it may stand in HTML, in an attribute too.

    >>> escaped('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(visible(text), quote=True)


def shown(value: Any) -> str:
    """A value as people read it.

    >>> shown(0.123456), shown(12), shown(True), shown(None), shown(-3e-7), shown(1234567.0)
    ('0.1235', '12', 'yes', '-', '-3e-07', '1234567')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != value:
            return "-"
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def counted(n: int, one: str, many: str = "") -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(3, "seed"), counted(2, "copy", "copies")
    ('1 seed', '3 seeds', '2 copies')
    """
    return f"{n} {one if n == 1 else many or one + 's'}"


def shortened(text: str, columns: int) -> str:
    """The beginning of a text that is wider than so many columns, of which a Chinese character takes two.

    >>> shortened("training data", 8), shortened("训练数据", 8), shortened("训练数据", 6)
    ('training …', '训练数据', '训练数 …')
    """
    at = fitting(text, columns)
    return text if at == len(text) else text[:at].rstrip() + " …"


def fitting(text: str, columns: int) -> int:
    """How many characters fit in so many columns."""
    left = columns
    for i, character in enumerate(text):
        left -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if left < 0:
            return i
    return len(text)


def _code(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def _needed(text: str, at: int) -> bool:
    """Whether writing needs the invisible character there."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if text[at] in JOINERS:
        letters = all(JOINED.match(one) and unicodedata.category(one)[0] in "LM" for one in (before, after))
        skin = "\U0001f3fb" <= before <= "\U0001f3ff"
        emoji = text[at] == "\u200d" and EMOJI.match(after) and (skin or EMOJI.match(before))
        return bool(letters or emoji)
    return bool(SELECTORS.match(text[at]) and SELECTED.match(before))
