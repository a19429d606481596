"""Receipts: what was forgotten, how, and how close it came; never the data itself."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Receipt:
    """The answer to a request to forget.

    Args:
        id: of the request.
        ids: the points that were asked for.
        forgotten: those of them that this request forgot.
        already: those that earlier requests had forgotten, with the receipt that did.
        hashes: of the forgotten points' contents, by id.
        method: its name and parameters.
        model: hash of the parameters of the model after the request, and of the report of the method, such as ε and δ.
        predicted: how far the model before the request was from one that never saw the points, as the datamodel has it:
            the mean absolute change of an output; None without a datamodel, or where nothing was forgotten.
        measured: after an audit, distances to really retrained models; None before.
        time: when, in UTC.
    """

    id: str
    ids: Sequence[int]
    forgotten: Sequence[int]
    already: Mapping[str, str]
    hashes: Mapping[str, str]
    method: Mapping[str, Any]
    model: Mapping[str, Any]
    predicted: float | None = None
    measured: Mapping[str, Any] | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Receipt":
        """From what `json` wrote."""
        return cls(**{f.name: record[f.name] for f in fields(cls)})


def new_id() -> str:
    """A name for a request that nobody else has."""
    return uuid.uuid4().hex
