"""What a fit decides by itself, such as a damping, noted for the record of where a datamodel comes from.

Whatever works inside a fit may say `note(damping=...)`, however deep; `Origin.notes` has it. What a fit inside a fit
notes, a prior's say, is in the outer one's notes under the name of its estimator.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Notes = dict[str, list[Any]]  # of each name, what was said one after the other: of each model of an ensemble
_open: ContextVar[Notes | None] = ContextVar("notes", default=None)


def note(**decided: Any) -> None:
    """Say what was decided; where no fit is under way, nobody listens."""
    notes = _open.get()
    if notes is not None:
        for name, value in decided.items():
            notes.setdefault(name, []).append(value)


@contextmanager
def taking_notes(author: str) -> Iterator[Notes]:
    """Collect what is said inside; then pass it on to whoever collects outside.

    Example:
        >>> with taking_notes("EKFAC") as notes:
        ...     note(damping=0.1)
        >>> notes
        {'damping': [0.1]}
    """
    notes: Notes = {}
    token = _open.set(notes)
    try:
        yield notes
    finally:
        _open.reset(token)
    if notes:
        note(**{author: notes})
