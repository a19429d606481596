"""A journal: records that are on the disk when `append` returns, and whole or not there after a crash.

One JSON line a record, with a checksum before it. What a crash leaves of a last line is cut off when the journal is
opened again; a line that is damaged anywhere else is an error, never skipped. One process may hold a journal open.
"""

import fcntl
import json
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Journal:
    """Records in the order in which they were appended.

    Args:
        path: of the file; made where it is not there.

    Raises:
        ValueError: a damaged record.
        BlockingIOError: another process has the journal open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._closes = weakref.finalize(self, os.close, self._file)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BlockingIOError(
                f"{self.path} is open in another process; two of them would forget past each other. Stop that one."
            ) from None
        self.records = self._recover()
        sync_folder(self.path.parent)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records and wait until the disk has them, all in one go."""
        size = os.fstat(self._file).st_size
        try:
            left = memoryview(b"".join(_line(record) for record in records))
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError:  # a full disk: half a record must not stand before the next one
            os.ftruncate(self._file, size)
            raise
        self.records.extend(json.loads(json.dumps(record)) for record in records)

    def close(self) -> None:
        """Let another process open it."""
        self._closes()

    def _recover(self) -> list[dict[str, Any]]:
        records, good = [], 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            record = _record(line)
            if record is None and number == len(lines) - 1:  # torn by a crash, and never acknowledged
                os.ftruncate(self._file, good)
                os.fsync(self._file)
                break
            if record is None:
                raise ValueError(
                    f"Record {number + 1} of {self.path} is damaged, and others follow it: the disk or somebody else "
                    "changed it. Restore the file from a copy."
                )
            records.append(record)
            good += len(line)
        return records


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        return None
    return dict(json.loads(text))


def sync_folder(folder: Path) -> None:
    """Bring what was made or renamed in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
