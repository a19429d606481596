"""Values and texts as people read them."""

import html
import re
from typing import Any

# C0 and C1 controls but tab and line feed, and whatever reorders text or hides in it
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with its invisible characters written out, so that it cannot change how others are shown.

    >>> visible("abc" + chr(0x202E) + "def")
    'abc⟨U+202E⟩def'
    """
    return INVISIBLE.sub(lambda found: f"⟨U+{ord(found.group()):04X}⟩", text)


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
