"""Batches: a few examples as tensors, either a tuple `(inputs..., labels)` or a mapping with a `labels` entry.

Everything in the recipe that touches data goes through this file, so that a tuple of tensors, a torch `Dataset` and a
`datasets.Dataset` look the same from there on: tensors whose first axis runs over examples.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from recipe.columns import read_all

Batch = tuple[Tensor, ...] | Mapping[str, Tensor]

LABELS = "labels"  # the entry of a mapping that holds the labels, as in HuggingFace's batches
DIGEST = 16  # bytes that identify an example by its content
PROBES = 3  # examples read twice to find data that change between two reads


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch in a fixed order.

    >>> [t.shape[0] for t in tensors({"labels": torch.zeros(2), "x": torch.zeros(2, 5)})]
    [2, 2]
    """
    return [batch[k] for k in sorted(batch)] if isinstance(batch, Mapping) else list(batch)


def apply(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with `function` applied to every tensor."""
    if isinstance(batch, Mapping):
        return {name: function(t) for name, t in batch.items()}
    return tuple(function(t) for t in batch)


def size(batch: Batch) -> int:
    """The number of examples `b`."""
    return len(tensors(batch)[0])


def labels(batch: Batch) -> Tensor:
    """The labels: the last tensor of a tuple, the entry `labels` of a mapping.

    >>> labels((torch.zeros(2, 5), torch.tensor([3, 1])))
    tensor([3, 1])
    """
    return batch[LABELS] if isinstance(batch, Mapping) else batch[-1]


def relabel(batch: Batch, y: Tensor) -> Batch:
    """The same examples with other labels."""
    return {**batch, LABELS: y} if isinstance(batch, Mapping) else (*batch[:-1], y)


def take(batch: Batch, index: Tensor | slice | int) -> Batch:
    """The examples at `index`; an `(r, b)` index gives tensors of shape `(r, b, ...)`."""
    return apply(lambda t: t[index], batch)


def concatenate(first: Batch, second: Batch) -> Batch:
    """The examples of `first`, then those of `second`.

    Raises:
        ValueError: the two do not have the same entries, or examples of another shape.
    """
    _check_alike(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {name: torch.cat([t, _like(second[name], t)]) for name, t in first.items()}
    return tuple(torch.cat([t, _like(s, t)]) for t, s in zip(tensors(first), tensors(second), strict=True))


def example(batch: Batch) -> Batch:
    """One example without a batch axis, as seen under `vmap`, as a batch of one."""
    return apply(lambda t: t.unsqueeze(0), batch)


def materialise(data: Any, collate: Callable[[list[Any]], Any] = default_collate, what: str = "universe") -> Batch:
    """All examples of `data` as one batch of tensors.

    Args:
        data: a tuple or mapping of tensors or arrays, or anything map-style with `len` and integer indices
            (a torch `Dataset`, a `datasets.Dataset` with `.with_format("torch")`).
        collate: what makes a batch of a list of examples; not called for tensors.
        what: how to call the data in an error.

    Raises:
        ValueError: there is no example, the tensors differ in length, or an example changes from one read to the next.

    >>> size(materialise((torch.zeros(4, 2), torch.zeros(4))))
    4
    """
    data = _arrays_as_tensors(data)
    batch = _canonical(data) if _is_batch(data) else _read(data, collate, what)
    lengths = {len(t) for t in tensors(batch)}
    if len(lengths) != 1:
        raise ValueError(
            f"The tensors of the {what} must have one row an example; their lengths are {sorted(lengths)}."
        )
    if lengths == {0}:
        raise ValueError(f"The {what} is empty; pass at least one example.")
    return batch


def content_hash(batch: Batch) -> str:
    """Sixteen hex digits that depend on names, types, shapes and values of the batch alone.

    >>> content_hash((torch.ones(2),)) == content_hash((torch.ones(2),)) != content_hash((torch.zeros(2),))
    True
    """
    digest = hashlib.sha256()
    for key, values in sorted(batch.items()) if isinstance(batch, Mapping) else enumerate(batch):
        t = values.detach().cpu().contiguous()
        digest.update(f"{key}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def example_hashes(batch: Batch) -> np.ndarray:
    """The content of each example, `(b, 16)` bytes.

    Example:
        >>> same = example_hashes((torch.tensor([1.0, 2.0, 1.0]),))
        >>> bool((same[0] == same[2]).all()), bool((same[0] == same[1]).all())
        (True, False)
    """
    columns = sorted(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))
    heads = [f"{name} {t.dtype} {tuple(t.shape[1:])}".encode() for name, t in columns]
    rows = [t.detach().cpu().contiguous().flatten(1) if t.ndim > 1 else t.detach().cpu()[:, None] for _, t in columns]
    raw = [t.contiguous().view(torch.uint8).numpy() for t in rows]
    out = np.empty((size(batch), DIGEST), dtype=np.uint8)
    for i in range(len(out)):
        digest = hashlib.blake2b(digest_size=DIGEST)
        for head, bytes_of in zip(heads, raw, strict=True):
            digest.update(head)
            digest.update(bytes_of[i].data)
        out[i] = np.frombuffer(digest.digest(), dtype=np.uint8)
    return out


def describe(batch: Batch) -> str:
    """Shapes and types in one line, for errors."""
    pairs = sorted(batch.items()) if isinstance(batch, Mapping) else enumerate(batch)
    return ", ".join(f"{name}: {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in pairs)


def _arrays_as_tensors(data: Any) -> Any:
    if isinstance(data, Mapping) and data and all(isinstance(a, (Tensor, np.ndarray)) for a in data.values()):
        return {name: torch.as_tensor(a) for name, a in data.items()}
    if isinstance(data, (tuple, list)) and data and all(isinstance(a, (Tensor, np.ndarray)) for a in data):
        return tuple(torch.as_tensor(a) for a in data)
    return data


def _is_batch(data: Any) -> bool:
    if isinstance(data, Mapping):
        return bool(data) and all(isinstance(t, Tensor) for t in data.values())
    return isinstance(data, (tuple, list)) and len(data) > 0 and all(isinstance(t, Tensor) for t in data)


def _read(data: Any, collate: Callable[[list[Any]], Any], what: str) -> Batch:
    try:
        n = len(data)
    except TypeError as error:
        raise ValueError(
            f"The {what} must be tensors or a map-style data set with a length; got {type(data).__name__}."
        ) from error
    if n == 0:
        raise ValueError(f"The {what} is empty; pass at least one example.")
    probes = sorted({0, n // 2, n - 1})[:PROBES]
    first, second = (collate([data[i] for i in probes]) for _ in range(2))
    if not _is_batch(first):
        raise ValueError(
            f"The {what} must collate to a tuple or mapping of tensors; got {type(first).__name__}. Pass `collate=`, "
            'or `.with_format("torch")` for a datasets.Dataset.'
        )
    first, second = _canonical(first), _canonical(second)
    if any(not torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True)):
        raise ValueError(
            f"The {what} gives another example when the same index is read twice (random augmentation?). Attribution "
            "needs fixed examples: turn the randomness off, or augment in a `Custom` training loop."
        )
    batch = _canonical(read_all(data, collate))
    if size(batch) != n or len(data) != n:
        raise ValueError(f"The {what} changed while it was read: it had {n} examples, now {len(data)}.")
    return batch


def _canonical(batch: Any) -> Batch:
    return dict(batch) if isinstance(batch, Mapping) else tuple(batch)


def _like(t: Tensor, other: Tensor) -> Tensor:
    # Inputs of added examples carry gradients: `.to` keeps them.
    return t.to(device=other.device, dtype=other.dtype)


def _check_alike(first: Batch, second: Batch) -> None:
    same = isinstance(first, Mapping) == isinstance(second, Mapping) and len(first) == len(second)
    if same and isinstance(first, Mapping) and isinstance(second, Mapping):
        same = first.keys() == second.keys()
    if same:
        same = all(a.shape[1:] == b.shape[1:] for a, b in zip(tensors(first), tensors(second), strict=True))
    if not same:
        raise ValueError(
            f"Added examples must look like the universe ({describe(first)}); got {describe(second)}. "
            "Pass the same entries with the same shape an example."
        )
