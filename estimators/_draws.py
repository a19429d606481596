"""Random numbers that follow from what they are for, whatever was drawn before."""

import hashlib
import math

import torch
from torch import Tensor


def generator(*purpose: object) -> torch.Generator:
    """A generator on the CPU, the same for the same purpose, whose parts say by their `str` what they are.

    Example:
        >>> one, same, other = (torch.rand(1, generator=generator(0, name)) for name in ("a", "a", "b"))
        >>> bool(one == same), bool(one == other)
        (True, False)
    """
    digest = hashlib.sha256(" ".join(map(str, purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Random signs, eight of each byte drawn: a vocabulary at every position of a batch is a great many."""
    count = math.prod(shape)
    drawn = torch.randint(0, 256, (-(-count // 8), 1), generator=generator, dtype=torch.uint8).to(like.device)
    bits = drawn >> torch.arange(8, dtype=torch.uint8, device=like.device) & 1
    return bits.flatten()[:count].view(shape).to(like) * 2 - 1
