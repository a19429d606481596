"""Examples that stay where they are: columns of a `datasets.Dataset`, and data too large to hold in memory.

A `datasets.Dataset` lies on disk in many pieces; training draws examples at random, and wants one tensor a column. So
data are read once, block by block, and laid out in memory-mapped files: tensors like any other, of which memory holds
what was used last and gives it back when it is needed. The files lie in the folder that `RECIPE_CACHE` names (default
the system's temporary one) and vanish with the process, however it ends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe.scratch import in_file

ROWS = 1024  # examples read at once


@dataclass(frozen=True, eq=False)
class Columns:
    """A universe made of columns of a `datasets.Dataset`, chosen by name, read where it lies.

    Args:
        dataset: a `datasets.Dataset`, or anything map-style whose examples are mappings. Lists have the type of their
            column, images become `(channels, height, width)`.
        inputs: the columns that the model gets, in its order.
        labels: the column of the labels.

    Raises:
        ValueError: there is no such column.

    Example:
        >>> rows = [{"pixels": [0, 1], "digit": 3, "by": "a"}, {"pixels": [1, 1], "digit": 5, "by": "b"}]
        >>> data = Columns(rows, inputs=["pixels"], labels="digit")
        >>> len(data), data[1]
        (2, (tensor([1, 1]), tensor(5)))
    """

    dataset: Any
    inputs: Sequence[str]
    labels: str = "label"

    def __post_init__(self) -> None:
        names = list(getattr(self.dataset, "column_names", None) or self.dataset[0])
        if missing := [name for name in self._names if name not in names]:
            raise ValueError(f"There is no column {missing[0]!r}; there are {', '.join(map(repr, names))}.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return self._example(self.dataset[i])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """Several examples at once, as PyTorch's loaders ask for them."""
        return [self._example(row) for row in _rows(self.dataset, indices)]

    @property
    def _names(self) -> list[str]:
        return [*self.inputs, self.labels]

    def _example(self, row: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(self._tensor(name, row[name]) for name in self._names)

    def _tensor(self, name: str, value: Any) -> Tensor:
        if isinstance(value, list):
            value = np.asarray(value, dtype=self._floats.get(name))
        elif hasattr(value, "getbands"):  # an image of PIL, whose channels come last
            pixels = torch.from_numpy(np.array(value))
            return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        return torch.as_tensor(value)

    @cached_property
    def _floats(self) -> dict[str, str]:
        """The types of columns of numbers that are not whole: in Python's lists they would all be float64."""
        found = {}
        for name, feature in (getattr(self.dataset, "features", None) or {}).items():
            while isinstance(feature, list) or hasattr(feature, "feature"):
                feature = feature[0] if isinstance(feature, list) else feature.feature
            kind = str(getattr(feature, "dtype", ""))
            if kind.startswith("float"):
                found[name] = kind
        return found


def read_all(data: Any, collate: Callable[[list[Any]], Any]) -> Any:
    """All examples of a map-style data set as one batch, read block by block, in memory-mapped files."""
    n = len(data)
    blocks = (collate(_rows(data, range(i, min(n, i + ROWS)))) for i in range(0, n, ROWS))
    first = next(blocks)
    places: dict[Any, Tensor] = {key: in_file((n, *t.shape[1:]), t.dtype, ".examples") for key, t in _items(first)}
    start = 0
    for block in _chain(first, blocks):
        rows = min(ROWS, n - start)
        for key, t in _items(block):
            if len(t) != rows:
                raise ValueError(
                    f"collate made {len(t)} rows of {rows} examples; expected one row an example, in their order."
                )
            if t.dtype != places[key].dtype:
                raise ValueError(
                    f"The examples from {start} on are {t.dtype}, those before them {places[key].dtype}. Give all "
                    "examples one type."
                )
            if t.shape[1:] != places[key].shape[1:]:  # padded to the longest of a block: only all at once fit
                return collate(_rows(data, range(n)))
            places[key][start : start + len(t)] = t
        start += rows
    return places if isinstance(first, Mapping) else tuple(places.values())


def _rows(data: Any, indices: Sequence[int]) -> list[Any]:
    several = getattr(data, "__getitems__", None)  # PyTorch's protocol for reading examples together
    return list(several(list(indices))) if several is not None else [data[i] for i in indices]


def _items(batch: Any) -> list[tuple[Any, Tensor]]:
    return list(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
