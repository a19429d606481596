"""Room for what memory need not hold: files that vanish with the process, however it ends.

They lie in the folder that `RECIPE_CACHE` names (default the system's temporary one). Mapped into memory they are
tensors like any other, of which memory holds what was used last and gives it back when it is needed.
"""

import contextlib
import math
import os
import tempfile
from typing import IO

import numpy as np
import torch
from torch import Tensor

HELD_BYTES = 2**27  # that memory may hold at once


def room(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros: in memory, or, where they are more than `HELD_BYTES`, in a file.

    >>> room((2, 3), torch.float64).sum()
    tensor(0., dtype=torch.float64)
    """
    if math.prod(shape) * dtype.itemsize <= HELD_BYTES:
        return torch.zeros(shape, dtype=dtype)
    return in_file(shape, dtype, ".zeros")


def in_file(shape: tuple[int, ...], dtype: torch.dtype, suffix: str) -> Tensor:
    """Zeros in a file that no longer has a name, so that nothing of it is left behind.

    Raises:
        OSError: see `scratch`.

    >>> in_file((2, 3), torch.float64, ".numbers").shape
    torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    with scratch(size, suffix) as file:
        raw = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
        return torch.from_numpy(raw).view(dtype).view(shape)


def scratch(size: int, suffix: str) -> IO[bytes]:
    """A file of so many bytes without a name, for what memory need not hold.

    Raises:
        OSError: there is no such folder, or no room in it: said now, since a memory map that runs out of room later
            ends the process.
    """
    folder = os.environ.get("RECIPE_CACHE") or tempfile.gettempdir()
    with contextlib.ExitStack() as undo:
        try:
            file = undo.enter_context(tempfile.TemporaryFile(dir=folder, suffix=suffix))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{size / 2**20:.0f} MiB of data find no room in {folder} ({error.strerror}). They lie in files: "
                "make some there, or let RECIPE_CACHE name a folder on a larger disk",
            ) from error
        undo.pop_all()  # it is the caller's to close
    return file
