"""Records: frozen dataclasses and tensors as JSON and `.npy` files, and back, without pickle.

A folder is written beside its place and renamed, so that it is there whole or not at all.
"""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = ".recipe"  # an empty file in every folder that this package wrote, and may overwrite
GROUPS = ("recipe.estimators", "recipe.applications", "recipe.solvers")


class Folder:
    """What is being written to, or read from, one folder: JSON documents and arrays.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = 0

    def encode(self, value: Any) -> Any:
        """JSON for a value; tensors go to `.npy` files beside it."""
        if isinstance(value, Tensor):
            name = f"array-{self._count}.npy"
            self._count += 1
            np.save(self.path / name, value.detach().cpu().numpy(), allow_pickle=False)
            return {"array": name}
        if is_dataclass(value) and not isinstance(value, type):
            values = {f.name: self.encode(getattr(value, f.name)) for f in fields(value) if f.init}
            return {"type": _path(type(value)), "fields": values}
        if isinstance(value, Mapping):
            return {"mapping": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, (tuple, list)):
            return {type(value).__name__: [self.encode(v) for v in value]}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}  # JSON has no NaN
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        return {"opaque": repr(value)}

    def decode(self, value: Any) -> Any:
        """The value that `encode` wrote.

        Raises:
            ValueError: a class that is not part of the recipe or of an installed plug-in, or a value without a record.
        """
        if not isinstance(value, dict):
            return value
        ((kind, content), *rest) = value.items()
        if kind == "array":
            return torch.from_numpy(np.load(self.path / Path(content).name, allow_pickle=False))
        if kind == "type":
            return _class(content)(**{k: self.decode(v) for k, v in rest[0][1].items()})
        if kind == "mapping":
            return {self.decode(k): self.decode(v) for k, v in content}
        if kind == "float":
            return float(content)
        if kind in ("tuple", "list"):
            return (tuple if kind == "tuple" else list)(self.decode(v) for v in content)
        raise ValueError(f"{content} was not saved, since only tensors, numbers and frozen dataclasses can be.")

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """A JSON document."""
        (self.path / name).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def read(self, name: str) -> dict[str, Any]:
        """A JSON document. Raises `FileNotFoundError` with what the folder holds."""
        if not (self.path / name).is_file():
            raise FileNotFoundError(f"{self.path} holds no {name}; was it saved here, and completely?")
        return dict(json.loads((self.path / name).read_text(encoding="utf-8")))


def write_folder(path: str | os.PathLike[str], fill: Callable[[Folder], None], overwrite: bool = False) -> None:
    """Fill a new folder beside `path`, then rename it there.

    Raises:
        FileExistsError: `path` holds something already and `overwrite` is not set.
    """
    target = check_free(path, overwrite).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        (part / MARK).touch()
        fill(Folder(part))
        part.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            os.replace(target, old / target.name)
            try:
                os.replace(part, target)
            except OSError:
                os.replace(old / target.name, target)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_free(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """The path, where a run may be written to it.

    Raises:
        FileExistsError: it holds something that is no run, or a run and `overwrite` is not set.
    """
    target = Path(path)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not (target / MARK).is_file():
        raise FileExistsError(
            f"{target} exists and holds something else than a run, which is never overwritten. Choose another "
            "directory."
        )
    if not overwrite:
        raise FileExistsError(
            f"{target} exists and holds another run. Choose another directory, or pass overwrite (--overwrite) to "
            "replace it."
        )
    return target


def summary(value: Any) -> Any:
    """A value as plain JSON for provenance: dataclasses by name and fields, tensors by shape.

    >>> from recipe import SGD
    >>> summary(SGD(epochs=1, batch_size=2, lr=0.1))["epochs"]
    1
    """
    if isinstance(value, Tensor):
        return value.tolist() if value.ndim < 2 and value.numel() <= 8 else f"tensor{tuple(value.shape)}"
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: summary(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): summary(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [summary(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers."""
    names = ("plug-in-recipe", "torch", "numpy", "scipy", "cvxpy")
    return {"python": sys.version.split()[0], **{name: metadata.version(name) for name in names}}


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(path: str) -> Any:
    """The class at `module:name`, of the recipe itself or of a module or package that holds an installed plug-in."""
    module, _, name = path.partition(":")
    known = {"recipe", *(entry.module for group in GROUPS for entry in metadata.entry_points(group=group))}
    if not any(module == one or module.startswith(f"{one}.") for one in known):
        raise ValueError(
            f"{path} is neither part of the recipe nor of an installed plug-in, so it is not imported from a file. "
            "Load with `task=` and pass the task yourself."
        )
    kind = getattr(import_module(module), name, None)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{path} is not a dataclass; the file was written by another version of the package.")
    return kind
