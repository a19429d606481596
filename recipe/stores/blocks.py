"""Blocks: an `(m, n)` matrix on disk as a zarr array whose chunks are all outputs of some training points.

A chunk is there whole or not at all, with its checksum (crc32c); the array's own document says what it belongs to.
There is no other record: what is there is done.
"""

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import fsspec
import google_crc32c
import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from recipe.stores.segments import DOCUMENT, FORMAT, DamagedError, put

TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "uint16"}  # zarr has no bfloat16
RUNS, ROWS, AT = "runs", "rows", "at-"  # beside the blocks: a bank, rows that wait, effects at other weights
CHECKSUM = 4  # bytes, at the end of a block
AHEAD = 2  # blocks that are read while one is used


class Effects:
    """`(m, n)` effects in a zarr array; slices are read from disk as tensors.

    Args:
        path: a folder, or any fsspec address.

    Raises:
        ValueError: no effects there, or of a newer format.
        DamagedError: blocks are missing: the job that wrote them was interrupted.
    """

    ndim = 2

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._store = Blocks.opened(self.path)
        if missing := self._store.missing():
            raise DamagedError(
                f"{self.path} lacks {len(missing)} of {self._store.count} blocks, the first of training point "
                f"{missing[0] * self._store.width}. Fit the estimator with `Stored` again: it writes what is missing."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`."""
        return self._store.shape

    @property
    def chunks(self) -> tuple[int, int]:
        """The shape of a block: all outputs of so many training points."""
        return self.shape[0], self._store.width

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the effects are stored."""
        return self._store.dtype

    def __getitem__(self, index: Any) -> Tensor:
        """A part, read from disk.

        Raises:
            DamagedError: a block is missing, cut short or changed.
        """
        return self._store.read(index)

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """All effects block by block, `(first point, (m, width))`; the next ones are read while one is used.

        Raises:
            DamagedError: a block is missing, cut short or changed.
        """
        store = self._store
        with ThreadPoolExecutor(AHEAD) as reader:
            coming = deque(reader.submit(store.block, i) for i in range(min(AHEAD, store.count)))
            for i in range(store.count):
                block = coming.popleft().result()
                if i + AHEAD < store.count:
                    coming.append(reader.submit(store.block, i + AHEAD))
                yield store.span(i)[0], block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them in memory, float32 where numpy has no such type: what cvxpy asks for."""
        effects = self[:]
        return np.asarray((effects.float() if self.dtype == torch.bfloat16 else effects).numpy(), dtype=dtype)


class Blocks:
    """A zarr array of effects and what it belongs to."""

    def __init__(self, path: str, array: Any) -> None:
        self.path, self._array = path, array
        self.shape: tuple[int, int] = array.shape
        self.width: int = array.chunks[1]
        self.count = math.ceil(self.shape[1] / self.width)

    @classmethod
    def found(cls, path: str) -> "Blocks | None":
        """The store there, if there is one. Raises `ValueError` for something else, or a newer format."""
        fs, root = fsspec.url_to_fs(path)
        try:
            document = json.loads(fs.cat_file(f"{root}/{DOCUMENT}"))
        except (FileNotFoundError, NotADirectoryError):
            if fs.exists(root) and not all(map(_belongs, fs.ls(root, detail=False))):
                raise ValueError(f"{path} holds something else than effects; choose another address.") from None
            return None
        except ValueError:
            document = {}
        head = document.get("attributes", {}).get("recipe", {})
        if head.get("format", 0) > FORMAT:
            raise ValueError(
                f"{path} was written in format {head['format']}, which is newer than {FORMAT}, the newest that this "
                "version of the package reads. It was left untouched; upgrade the package."
            )
        if head.get("kind") != "effects":
            raise ValueError(f"{path} holds something else than effects; choose another address.")
        return cls(path, zarr.open_array(path, mode="r"))

    @classmethod
    def opened(cls, path: str) -> "Blocks":
        """The store there. Raises `ValueError` where there is none."""
        store = cls.found(path)
        if store is None:
            raise ValueError(f"There are no effects at {path}.")
        return store

    @classmethod
    def create(
        cls, path: str, shape: tuple[int, int], width: int, dtype: torch.dtype, described: dict[str, str]
    ) -> "Blocks":
        """A new one, where no other process is faster; raises `ValueError` where that one fits something else."""
        head = {
            "kind": "effects",
            "format": FORMAT,
            "dtype": str(dtype).removeprefix("torch."),
            "fingerprint": described,
        }
        attributes: Any = {"recipe": head}
        composed: dict[str, Any] = {}
        zarr.create_array(
            MemoryStore(composed),
            shape=shape,
            chunks=(shape[0], min(width, shape[1])),
            dtype=TYPES[dtype],
            compressors=[Crc32cCodec()],
            attributes=attributes,
        )
        fs, root = fsspec.url_to_fs(path)
        put(fs, f"{root}/{DOCUMENT}", composed[DOCUMENT].to_bytes(), new=True)
        store = cls.opened(path)
        store.check(described, dtype)
        return store

    @property
    def head(self) -> dict[str, Any]:
        """What the store says of itself."""
        return dict(self._array.attrs["recipe"])

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the effects."""
        return getattr(torch, self.head["dtype"])

    def check(self, described: dict[str, str], dtype: torch.dtype) -> None:
        """Raise `ValueError` where the store belongs to something else."""
        theirs = {**self.head["fingerprint"], "dtype": str(self.dtype)}
        mine = {**described, "dtype": str(dtype)}
        named = [
            f"{k.capitalize()}: the store has {theirs.get(k)}, this fit {mine[k]}."
            for k in mine
            if theirs.get(k) != mine[k]
        ]
        if named:
            raise ValueError(f"The effects at {self.path} belong to another fit. {' '.join(named)} Use another path.")

    def missing(self, deep: bool = False) -> list[int]:
        """The blocks that are not there; with `deep`, or are damaged."""
        fs, root = fsspec.url_to_fs(self.path)
        fs.invalidate_cache()
        try:
            there = {path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(f"{root}/c/0", detail=False)}
        except FileNotFoundError:
            there = set()
        return [i for i in range(self.count) if str(i) not in there or (deep and not self._sound(i))]

    def has(self, block: int) -> bool:
        """Whether a block is there."""
        fs, root = fsspec.url_to_fs(self.path)
        fs.invalidate_cache()
        return bool(fs.exists(f"{root}/c/0/{block}"))

    def span(self, block: int) -> tuple[int, int]:
        """The first training point of a block, and the first after it."""
        return block * self.width, min(self.shape[1], (block + 1) * self.width)

    def read(self, index: Any) -> Tensor:
        """A part of the effects. Raises `DamagedError`."""
        if missing := self.missing():  # zarr reads zeros there
            raise self._damaged(missing)
        try:
            values = torch.from_numpy(np.asarray(self._array[index]))
        except ValueError as error:
            damaged = [i for i in range(self.count) if not self._sound(i)]
            if not damaged:
                raise
            raise self._damaged(damaged) from error
        return values.view(torch.bfloat16) if self.dtype == torch.bfloat16 else values

    def block(self, block: int) -> Tensor:
        """One block, `(m, width)`: its bytes are as they are in memory, so that this is as fast as reading a file.

        Raises:
            DamagedError: it is missing, cut short or changed.
        """
        size = self.shape[0] * self.width * self.dtype.itemsize
        data = np.empty(size + CHECKSUM, dtype=np.uint8)
        fs, root = fsspec.url_to_fs(self.path)
        try:
            with fs.open(f"{root}/c/0/{block}", "rb") as file:
                whole = file.readinto(data) == len(data)
        except FileNotFoundError:
            whole = False
        if not whole or _checksum(data[:size]) != data[size:].tobytes():
            raise self._damaged([block])
        low, high = self.span(block)
        return torch.from_numpy(data[:size]).view(self.dtype).view(-1, self.width)[:, : high - low]

    def write(self, block: int, values: Tensor) -> None:
        """One block, whole or not at all, also where it is all zeros, which zarr would leave out.

        Raises:
            OSError: the disk is full, say; what is still there is named.
            ValueError: a block of another shape.
        """
        low, high = self.span(block)
        if values.shape != (self.shape[0], high - low):
            raise ValueError(
                f"The effects at {self.path} come in blocks of {self.width} training points, this fit makes others. "
                "Use another path."
            )
        whole = torch.zeros(self.shape[0], self.width, dtype=self.dtype)
        whole[:, : high - low] = values.detach()
        data = whole.view(torch.uint8).numpy().tobytes()
        fs, root = fsspec.url_to_fs(self.path)
        try:
            put(fs, f"{root}/c/0/{block}", data + _checksum(data))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error} while writing to {self.path}. The blocks that were complete are still "
                "there and readable; make room and start again: it goes on from there.",
            ) from error

    def kept_rows(self, some: slice, compute: Callable[[], Tensor]) -> Tensor:
        """The effects on some outputs, `(k, n)`, float32: what waits beside the blocks, else computed and put there."""
        fs, root = fsspec.url_to_fs(self.path)
        name = f"{root}/{ROWS}/{some.start}-{some.stop}"
        try:
            data = fs.cat_file(name)
            if _checksum(data[:-CHECKSUM]) == data[-CHECKSUM:]:
                return torch.frombuffer(bytearray(data[:-CHECKSUM]), dtype=torch.float32).view(-1, self.shape[1])
        except FileNotFoundError:
            pass
        rows = compute()
        data = rows.contiguous().view(torch.uint8).numpy().tobytes()
        put(fs, name, data + _checksum(data))
        return rows

    def drop_rows(self) -> None:
        """Forget what waited: all blocks are there."""
        fs, root = fsspec.url_to_fs(self.path)
        if fs.exists(f"{root}/{ROWS}"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                fs.rm(f"{root}/{ROWS}", recursive=True)

    def _sound(self, block: int) -> bool:
        try:
            self.block(block)
        except DamagedError:
            return False
        return True

    def _damaged(self, blocks: Sequence[int]) -> DamagedError:
        names = ", ".join(f"{self.path}/c/0/{i}" for i in blocks[:5])
        return DamagedError(
            f"{len(blocks)} of {self.count} blocks are damaged: {names}. `Stored(..., redo=True)` computes them again."
        )


def _belongs(path: str) -> bool:
    """Whether a file or folder belongs to a store."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return name in ("c", RUNS, ROWS) or name.startswith(AT) or name.endswith(".part")


def _checksum(data: Any) -> bytes:
    return google_crc32c.value(data).to_bytes(CHECKSUM, "little")
