"""Tensors as numpy has them, and back: what travels between processes and lies in stores."""

import numpy as np
import torch
from torch import Tensor


def as_array(t: Tensor) -> np.ndarray:
    """A tensor as numpy has it; bfloat16, which numpy has not, by its bits.

    >>> as_array(torch.ones(1, dtype=torch.bfloat16))
    array([16256], dtype=uint16)
    """
    t = t.detach().cpu().contiguous()
    return (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy()


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The tensor of this type of which `as_array` made an array.

    >>> as_tensor(as_array(torch.ones(1, dtype=torch.bfloat16)), torch.bfloat16)
    tensor([1.], dtype=torch.bfloat16)
    """
    t = torch.from_numpy(array)
    return t.view(dtype) if dtype == torch.bfloat16 and t.dtype == torch.uint16 else t
