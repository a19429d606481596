"""Segments: a few named arrays that are written once, whole or not at all, and never changed.

    store/zarr.json                       what kind of store it is, its format, what it belongs to
    store/segments/<name>/<column>/...    a zarr array, in one chunk
    store/segments/<name>/zarr.json       the segment's own document, written last

The document lists the digest of every other object of its segment, and the segment's name is the digest of the
document. So a segment without a document was interrupted and does not count, damage is found wherever it is, and two
writers never touch each other's objects unless they write the very same bytes. Nothing is shared and mutable: no index,
no lock.

Everything is plain zarr (format 3), which any zarr reader opens. Arrays are written by zarr and read directly, since
their one chunk is not compressed: it takes a tenth of the time, which counts with hundreds of segments.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import zarr
from zarr.storage import MemoryStore

FORMAT = 1
DOCUMENT = "zarr.json"
NAME = 32  # hex digits


class DamagedError(OSError):
    """An object of a store is missing, cut short or changed; the message names it and says how to redo it."""


class Segments:
    """The segments of one store.

    Args:
        address: a folder, or any fsspec address (`s3://...`, `memory://...`).
        kind: what the store holds, in a word.

    Example:
        >>> store = Segments("memory://example", "bank")
        >>> name = store.write({"seed": np.arange(3)}, {"of": "an example"})
        >>> store.names() == [name], store.read(name, "seed"), store.document(name)["of"]
        (True, array([0, 1, 2]), 'an example')
    """

    def __init__(self, address: str, kind: str) -> None:
        self.address, self.kind = address, kind
        self.fs, self.root = fsspec.url_to_fs(address)
        self._documents: dict[str, dict[str, Any]] = {}

    # ---- the store as a whole ----------------------------------------------------------------------------------------
    def head(self) -> dict[str, Any] | None:
        """What the store belongs to; None where there is no store yet.

        Raises:
            ValueError: the address holds something else, or a newer format; it is left untouched.
            DamagedError: there are segments, and what says whose they are is missing or damaged.
        """
        data = self._get(DOCUMENT)
        if (data is None or not _is_json(data)) and (segments := self.names()):
            raise DamagedError(
                f"{self.address}/{DOCUMENT}, which says to what setting {len(segments)} segments belong, is "
                f"{'missing' if data is None else 'damaged'}. Copy it there again; nothing was changed."
            )
        if data is None:
            self._check_free()
            return None
        try:
            head = json.loads(data)["attributes"]["recipe"]
            kind, version = head["kind"], int(head["format"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.address} holds something else than a {self.kind}; choose another address."
            ) from None
        if version > FORMAT:
            raise ValueError(
                f"{self.address} was written in format {version}, which is newer than {FORMAT}, the newest that this "
                "version of the package reads. It was left untouched; upgrade the package."
            )
        if kind != self.kind:
            raise ValueError(f"{self.address} is a store of kind {kind!r}, not a {self.kind}; choose another address.")
        return dict(head)

    def found(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Make the store, where no other process is faster; what it belongs to then."""
        put(self.fs, f"{self.root}/segments/{DOCUMENT}", _group({}))
        document = _group({"recipe": {"kind": self.kind, "format": FORMAT, **head}})
        put(self.fs, f"{self.root}/{DOCUMENT}", document, new=True)
        return self.head() or {}

    # ---- segments ----------------------------------------------------------------------------------------------------
    def names(self) -> list[str]:
        """All that have a place in the store, complete or not, in order."""
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(f"{self.root}/segments", detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in paths if len(name := path.rstrip("/").rsplit("/", 1)[-1]) == NAME)

    def document(self, name: str) -> dict[str, Any] | None:
        """What a segment says of itself; None for one that was never completed.

        Raises:
            DamagedError: the document is not what was written.
        """
        if name not in self._documents:
            data = self._get(f"segments/{name}/{DOCUMENT}")
            if data is None:
                return None
            if _digest(data) != name:
                raise self._damaged(name, DOCUMENT)
            self._documents[name] = json.loads(data)["attributes"]["recipe"]
        return self._documents[name]

    def columns(self, name: str) -> list[str]:
        """The names of a segment's arrays; none where it was never completed."""
        return list((self.document(name) or {}).get("columns", []))

    def read(self, name: str, column: str) -> np.ndarray:
        """An array of a complete segment.

        Raises:
            DamagedError: an object of it is missing, cut short or changed.
        """
        objects = (self.document(name) or {})["objects"]
        described = json.loads(self._checked(name, f"{column}/{DOCUMENT}", objects))
        shape = tuple(described["shape"])
        dtype = np.dtype(described["data_type"]).newbyteorder("<")
        chunk = "/".join([column, "c", *["0"] * len(shape)])
        if chunk not in objects:  # zarr leaves out a chunk that holds nothing but zeros
            return np.zeros(shape, dtype)
        return np.frombuffer(self._checked(name, chunk, objects), dtype=dtype).reshape(shape)

    def write(self, columns: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
        """Write a segment; the name under which it can be read as soon as this returns.

        Raises:
            OSError: the disk is full, say; what was complete stays readable, and nothing of this segment is left.
        """
        objects = _composed(columns)
        digests = {path: _digest(data) for path, data in sorted(objects.items())}
        document = _group({"recipe": {**attributes, "columns": list(columns), "objects": digests}})
        name = _digest(document)
        if self.document(name) is not None:
            return name  # written before, by another process perhaps
        try:
            for path, data in objects.items():
                put(self.fs, f"{self.root}/segments/{name}/{path}", data)
            put(self.fs, f"{self.root}/segments/{name}/{DOCUMENT}", document)
        except OSError as error:
            if self.document(name) is None:
                self.remove(name)
            raise OSError(
                error.errno,
                f"{error.strerror or error} while writing to {self.address}. What was complete before is still there "
                "and readable; make room, or copy the store to another place, and start again: it goes on from there.",
            ) from error
        return name

    def damage(self, name: str) -> list[str]:
        """The objects of a segment that are not what was written; empty for a sound one."""
        try:
            objects = (self.document(name) or {"objects": {}})["objects"]
        except DamagedError:
            return [DOCUMENT]
        found = []
        for path in objects:
            try:
                self._checked(name, path, objects)
            except DamagedError:
                found.append(path)
        return found

    def remove(self, name: str) -> None:
        """Take a segment out of the store, its document first."""
        self._documents.pop(name, None)
        place = f"{self.root}/segments/{name}"
        for path in (f"{place}/{DOCUMENT}", place):
            if self.fs.exists(path):
                self.fs.rm(path, recursive=path == place)

    # ---- objects -----------------------------------------------------------------------------------------------------
    def _get(self, path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{path}"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _checked(self, name: str, path: str, digests: Mapping[str, str]) -> bytes:
        data = self._get(f"segments/{name}/{path}")
        if data is None or _digest(data) != digests[path]:
            raise self._damaged(name, path)
        return data

    def _damaged(self, name: str, path: str) -> DamagedError:
        return DamagedError(
            f"{self.address}/segments/{name}/{path} is missing or was damaged: it is not what was written. "
            f"`recipe bank check --repair {self.address}` takes damaged segments out; asking again then redoes them."
        )

    def _check_free(self) -> None:
        try:
            some = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return
        # Another process may be founding the same store: its folder of segments comes first.
        others = [
            path for path in some if path.rstrip("/").rsplit("/", 1)[-1].split(".")[0] not in ("segments", "zarr")
        ]
        if others:
            raise ValueError(f"{self.address} holds something else than a {self.kind}; choose another address.")


def put(fs: Any, target: str, data: bytes, new: bool = False) -> None:
    """Write an object whole or not at all: by renaming on a local disk, as object stores do by themselves.

    Args:
        fs: of fsspec.
        target: the path in it.
        data: to write.
        new: leave alone what is there already, also where another process writes it at this moment.
    """
    if "file" not in fs.protocol:
        with contextlib.suppress(FileExistsError):
            fs.pipe_file(target, data, mode="create" if new else "overwrite")
        return
    part = Path(f"{target}.{uuid.uuid4().hex}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(data)
        if new:
            with contextlib.suppress(FileExistsError):
                os.link(part, target)
        else:
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _composed(columns: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The objects of a zarr group with these arrays, without the group's own document."""
    objects: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(objects))
    for name, values in columns.items():
        array = np.ascontiguousarray(values)
        chunks = tuple(max(1, length) for length in array.shape)
        group.create_array(name, data=array, chunks=chunks, compressors=None)
    return {path: data.to_bytes() for path, data in objects.items() if path != DOCUMENT}


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _group(attributes: Mapping[str, Any]) -> bytes:
    document = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=NAME // 2).hexdigest()
