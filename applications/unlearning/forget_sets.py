"""Forget sets: which training points a request means.

Every function returns indices `(k,)` in increasing order, for `Unlearning(forget=...)`, `Forgetter.forget(...)` and the
methods. A person, an author or a tenant is a group of points (`of_group`), a class is a label (`of_class`), and a
subpopulation is what the datamodel itself thinks belongs together: the points at one end of a principal component of
the effects, as in Georgiev et al. 2024 (arXiv:2410.23232), appendix on forget sets.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe.setting import Setting

# one set: indices or (n,) booleans; k sets: a list of such, or (k, n) booleans
ForgetSets = Tensor | Sequence[int] | Sequence[Tensor]


def points(forget: Any, n: int) -> Tensor:
    """One forget set as sorted distinct indices.

    Args:
        forget: indices (a tensor, a list, a range) or `(n,)` booleans.
        n: of the universe.

    Raises:
        ValueError: a set that is empty, is everything, lies outside the universe, or is no list of integers.

    >>> points(torch.tensor([False, True, True]), n=3), points([2, 0, 2], n=3)
    (tensor([1, 2]), tensor([0, 2]))
    """
    t = torch.as_tensor(forget if isinstance(forget, Tensor) else list(forget))
    if t.dtype == torch.bool and t.shape != (n,):
        raise ValueError(f"A boolean forget set needs n = {n} entries; got {len(t)}.")
    if t.ndim != 1 or (len(t) and torch.is_floating_point(t)):
        raise ValueError(
            f"A forget set is a vector of integer indices, or of booleans; got {t.dtype} {tuple(t.shape)}."
        )
    index = t.nonzero().squeeze(1) if t.dtype == torch.bool else t.long()
    unique = index.unique()
    if not len(index) or len(unique) >= n or index.min() < 0 or index.max() >= n:
        raise ValueError(
            f"A forget set needs between 1 and {n - 1} of the indices 0..{n - 1}; got {len(index)} indices"
            + (f" from {int(index.min())} to {int(index.max())}." if len(index) else ".")
        )
    return unique


def retained(forget: ForgetSets, n: int) -> Tensor:
    """The weights without a forget set: `(n,)` zeros and ones, `(k, n)` for k sets. Raises as `points`."""
    if not many(forget):
        return torch.ones(n).index_fill(0, points(forget, n), 0.0)
    if not len(forget):
        raise ValueError("Expected at least one forget set; got none.")
    columns = [points(one, n) for one in forget]
    rows = torch.arange(len(columns)).repeat_interleave(torch.tensor([len(c) for c in columns]))
    w = torch.ones(len(columns), n)
    w[rows, torch.cat(columns)] = 0.0
    return w


def many(forget: ForgetSets) -> bool:
    """Whether these are several forget sets: `(k, n)` booleans or a sequence of sets, not of indices or booleans."""
    if isinstance(forget, Tensor):
        return forget.ndim == 2
    return not len(forget) or isinstance(forget[0], Sequence) or getattr(forget[0], "ndim", 0) > 0


def where(setting: Setting, predicate: Callable[[Any], bool]) -> Tensor:
    """The points whose example satisfies a predicate.

    Args:
        setting: its universe is asked: what `universe[i]` gives for a data set, a tuple or mapping of single tensors
            where the universe is tensors.
        predicate: `example -> bool`.

    Raises:
        ValueError: no point satisfies it, or all do.
    """
    data = setting.universe if hasattr(setting.universe, "__getitem__") and not _tensors(setting.universe) else None
    examples = (data[i] if data is not None else batches.take(setting.pool, i) for i in range(setting.n))
    return _some(torch.tensor([bool(predicate(example)) for example in examples]), "satisfies the predicate")


def of_class(setting: Setting, label: int) -> Tensor:
    """The points of a class. Raises `ValueError` where there is none, or no other."""
    return _some(batches.labels(setting.pool).cpu() == label, f"has the label {label}")


def of_group(groups: Sequence[Any] | Tensor, *names: Any) -> Tensor:
    """The points of one or more groups: a person's records, the works of an author.

    Args:
        groups: of each of the n points, the group it belongs to.
        names: which groups.

    Raises:
        ValueError: a group without points, or all points.

    >>> of_group(["ann", "bob", "ann", "eve"], "ann")
    tensor([0, 2])
    """
    owners = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    absent = [name for name in names if name not in owners]
    if absent or not names:
        known = ", ".join(str(g) for g in list(dict.fromkeys(owners))[:5])
        what = f"There is no point of the group {absent[0]!r}" if absent else "Name the groups to forget"
        raise ValueError(f"{what}; there are {known}...")
    return _some(torch.tensor([owner in names for owner in owners]), "lies in the groups")


def subpopulation(effects: Any, size: int, component: int = 0, largest: bool = True) -> Tensor:
    """The points at one end of a principal component of their effects.

    Args:
        effects: `(m, n)`, such as `effects_of(f_hat)`; columns are compared.
        size: how many points.
        component: which principal component, 0 is the one of most variance.
        largest: the end with the largest projections; else the other one. The component's largest loading is positive.

    Raises:
        ValueError: as many points as there are, or more; a component that does not exist.
    """
    columns = torch.as_tensor(effects).detach().T.double()  # (n, m)
    centred = columns - columns.mean(0)
    if not 0 <= component < min(centred.shape):
        raise ValueError(f"There are {min(centred.shape)} principal components; got component {component}.")
    _, vectors = torch.linalg.eigh(centred.T @ centred if centred.shape[1] <= len(centred) else centred @ centred.T)
    vector = vectors[:, -1 - component]
    axis = vector if centred.shape[1] <= len(centred) else centred.T @ vector
    axis = axis * axis[axis.abs().argmax()].sign()
    return _top((centred @ axis) * (1 if largest else -1), size)


def neighbours(features: Any, point: int, size: int) -> Tensor:
    """The points whose features are nearest to those of one point, itself among them.

    Args:
        features: `(n, d)`: representations, inputs, or `effects.T`.
        point: whose neighbourhood.
        size: how many points, that one included.
    """
    x = torch.as_tensor(features).detach().flatten(1).double()
    if not 0 <= point < len(x):
        raise ValueError(f"There are {len(x)} points; got point {point}.")
    return _top(-(x - x[point]).square().sum(1), size)


def stream(n: int, requests: int, size: int | tuple[int, int], seed: int = 0) -> Iterator[Tensor]:
    """Requests as they may come: disjoint random forget sets, one after the other.

    Args:
        n: of the universe.
        requests: how many.
        size: points a request, or the fewest and the most.
        seed: decides which.

    Raises:
        ValueError: sizes below 1 or in the wrong order, or more points than there are, one of which must stay.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = (size, size) if isinstance(size, int) else size
    if not 1 <= low <= high:
        raise ValueError(f"Expected sizes from 1 on, the fewest points first; got {size}.")
    sizes = torch.randint(low, high + 1, (requests,), generator=generator).tolist()
    if sum(sizes) >= n:
        raise ValueError(f"{requests} requests of {low} to {high} points ask for {sum(sizes)} of {n}; one must stay.")
    order = torch.randperm(n, generator=generator)
    return (part.sort().values for part in order[: sum(sizes)].split(sizes))


def _top(score: Tensor, size: int) -> Tensor:
    if not 1 <= size < len(score):
        raise ValueError(f"A forget set needs between 1 and {len(score) - 1} points; got size {size}.")
    return score.topk(size).indices.sort().values


def _some(chosen: Tensor, what: str) -> Tensor:
    count = int(chosen.sum())
    if not 0 < count < len(chosen):
        raise ValueError(
            f"{'Every' if count else 'No'} point {what}; a forget set needs some points, and some must stay."
        )
    return chosen.nonzero().squeeze(1)


def _tensors(data: Any) -> bool:
    return isinstance(data, (tuple, list, dict))
