"""What the words on a command line mean: where a setting is, how many points, which points, which range."""

import functools
import importlib
import importlib.util
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor

from recipe.batch import Batch
from recipe.setting import Setting


def load_setting(spec: str) -> Setting:
    """The setting at `file.py:name` or `module:name`; a function without arguments is called.

    Raises:
        ValueError: another form, no such module or name, code that fails (with its message), or something else there.
        FileNotFoundError: no such file.
    """
    source, colon, name = spec.rpartition(":")
    if not (colon and source and name):
        raise ValueError(f"Expected SPEC as file.py:name or module:name, for example digits.py:setting; got {spec!r}.")
    module = _load_file(Path(source)) if source.endswith(".py") else _load_module(source)
    if not hasattr(module, name):
        raise ValueError(f"{source} has no {name!r}.{_candidates(module, name)}")
    value = getattr(module, name)
    if callable(value) and not isinstance(value, type):
        value = _guarded(value, f"{name}() in {source}")
    if not isinstance(value, Setting):
        raise ValueError(
            f"{spec} must be a Setting, or a function without arguments that returns one; got {type(value).__name__}."
        )
    return value


def read_size(text: str, n: int) -> int | tuple[int, int]:
    """How many of n points: `300`, `0.3` of them, or from fewest to most, `100:300`.

    >>> read_size("0.25:30", n=40)
    (10, 30)

    Raises:
        ValueError: anything else.
    """
    try:
        sizes = [_size(part, n) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2):
        raise ValueError(f"Expected a size as 300, 0.3 (of all points) or fewest:most; got {text!r}.")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def read_points(text: str) -> Tensor:
    """Indices of points: `0-9,17` (ends included), or a `.npy` file of indices or of n booleans.

    >>> read_points("0-2,7")
    tensor([0, 1, 2, 7])

    Raises:
        ValueError: anything else.
        FileNotFoundError: no such file.
    """
    if text.endswith(".npy"):
        return _indices(Path(text))
    try:
        ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
        points = [i for first, *last in ranges for i in range(first, _end(first, last) + 1)]
    except ValueError:
        raise ValueError(f"Expected points as 0-9,17 or a .npy file of indices; got {text!r}.") from None
    return torch.tensor(points)


def read_quota(text: str) -> tuple[str, int, int | tuple[int, int]]:
    """A grouping, a group of it and how many of its points: `source:3=20`, or `3=10:30` from fewest to most.

    Without a name the grouping is "", the only one.

    >>> read_quota("3=10:30"), read_quota("source:3=20")
    (('', 3, (10, 30)), ('source', 3, 20))

    Raises:
        ValueError: anything else.
    """
    try:
        group, limit = text.split("=")
        name, _, group = group.rpartition(":")
        low, *high = (int(part) for part in limit.split(":"))
        (most,) = high or (None,)
        return name, int(group), low if most is None else (low, most)
    except ValueError:
        raise ValueError(
            "Expected a quota as group=k or group=fewest:most, for example 3=20, or with the name of its grouping, "
            f"source:3=20; got {text!r}."
        ) from None


def read_numbers(text: str) -> Tensor:
    """A vector of numbers from a `.npy` file. Raises `ValueError` for anything else, `FileNotFoundError` for none."""
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected a .npy file with a number for each point.")
    values = np.load(path, allow_pickle=False)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise ValueError(f"{path} must hold a number for each point; got {values.dtype} of shape {values.shape}.")
    return torch.from_numpy(values if values.dtype.kind == "f" else values.astype(np.int64))


def read_range(text: str) -> tuple[float, float]:
    """Two numbers, `low:high`. Raises `ValueError` for anything else."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"Expected a range as low:high, for example 0:1; got {text!r}.") from None
    return low, high


def read_entry(text: str, batch: Batch) -> int | str:
    """Which tensor of a batch, labels excepted: its position in a tuple, its name in a mapping.

    Raises:
        ValueError: there is none, or it is not floating.
    """
    known: list[Any] = list(range(len(batch) - 1)) if isinstance(batch, tuple) else [k for k in batch if k != "labels"]
    entry = int(text) if isinstance(batch, tuple) and text.isdigit() else text
    if entry not in known or not torch.is_floating_point(batch[entry]):  # type: ignore[index]
        names = ", ".join(str(k) for k in known if torch.is_floating_point(batch[k]))
        raise ValueError(f"Expected an entry of floating inputs that can be changed ({names or 'none'}); got {text!r}.")
    return entry


# ---- modules -------------------------------------------------------------------------------------------------------
def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. SPEC is file.py:name or module:name.")
    name = f"_setting_{path.stem}"  # a file called random.py must not replace the module random
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses in the file look themselves up
    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import it
    _search(path.parent)
    _guarded(functools.partial(found.loader.exec_module, module), str(path))
    return module


def _load_module(name: str) -> ModuleType:
    _search(Path())
    try:
        missing = importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise ValueError(f"There is no module {name!r}. Run from its folder, or name a file, file.py:name.")
    return _guarded(functools.partial(importlib.import_module, name), name)


def _search(folder: Path) -> None:
    """Import from a folder first, as Python does for a script."""
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def _guarded(run: Any, what: str) -> Any:
    """What the user's code returns; what it raises as `ValueError` with its message and its last line."""
    try:
        return run()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{what} failed ({Path(last.filename).name}, line {last.lineno}): {type(error).__name__}: {error}"
        ) from error


def _candidates(module: ModuleType, name: str) -> str:
    settings = [key for key, value in vars(module).items() if isinstance(value, Setting)]
    names = settings or get_close_matches(name, [key for key in vars(module) if not key.startswith("_")])
    return f" Did you mean {', '.join(names)}?" if names else " Define a Setting there, or a function that returns one."


# ---- numbers -------------------------------------------------------------------------------------------------------
def _size(text: str, n: int) -> int:
    if text.strip().isdigit():
        return int(text)
    share = float(text)
    if not 0 < share < 1:
        raise ValueError
    return round(share * n)


def _end(first: int, last: list[int]) -> int:
    end, *rest = last or [first]
    if rest or end < first:
        raise ValueError
    return end


def _indices(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected points as 0-9,17 or a .npy file of indices.")
    points = np.load(path, allow_pickle=False)
    if points.ndim != 1 or points.dtype.kind not in "iub":
        raise ValueError(
            f"{path} must hold a vector of indices, or of booleans; got {points.dtype} of shape {points.shape}."
        )
    return torch.from_numpy(points if points.dtype == bool else points.astype(np.int64))
