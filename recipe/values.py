"""Looks at many values that take no memory of their own."""

from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, without another tensor of that size.

    Example:
        >>> import torch
        >>> all_finite(torch.tensor([1.0, 2.0])), all_finite(torch.tensor([1.0, torch.nan]))
        (True, False)
    """
    if not values.numel() or not values.is_floating_point():
        return True
    low, high = values.aminmax()  # NaN comes through
    return bool(low.isfinite() and high.isfinite())


def distinct(values: Tensor) -> Tensor:
    """The same values, of an expanded tensor only once.

    Example:
        >>> import torch
        >>> distinct(torch.ones(()).expand(3)), distinct(torch.arange(3))
        (tensor([1.]), tensor([0, 1, 2]))
    """
    return values[tuple(slice(1 if stride == 0 else None) for stride in values.stride())]


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, without a look at each value of expanded ones.

    Example:
        >>> import torch
        >>> same_values(torch.ones(()).expand(3), torch.ones(()).expand(3))
        True
    """
    if a.shape != b.shape:
        return False
    if a.stride() == b.stride():
        a, b = distinct(a), distinct(b)
    return bool((a.detach().to(b) == b).all())
