"""A pretended accelerator for machines without one: tensors there are on the CPU in truth, and say that they are not.

Operations refuse to mix tensors from here and there, as on a GPU, and looks at values there are counted: each would
make the CPU wait for a GPU. What it cannot show is that kernels exist and are right there, and how fast they are.
"""

from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
THERE = torch.device("meta")  # a device that any torch knows and whose tensors autograd takes
MOVES = {aten._to_copy, aten.copy_, aten.copy}
TAKES_INDICES_FROM_HERE = {aten.index, aten.index_put, aten.index_put_}
LOOKS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_dim),
    *(aten.bincount, aten.repeat_interleave),
}


class There(Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        there = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=THERE,
            requires_grad=False,
        )
        there.here = here
        return there

    def tolist(self) -> list:
        return self.cpu().tolist()  # torch's own refuses subclasses

    def __repr__(self) -> str:
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("Tensors of a pretended device live within `with PretendedDevice():`.")


class Made(TorchFunctionMode):
    """What makes tensors where dispatch does not see it: `torch.tensor`, `torch.as_tensor`, lists as indices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]) if args[1] else torch.tensor(args[1], dtype=torch.long), *args[2:])
        return func(*args, **kwargs)


class PretendedDevice(TorchDispatchMode):
    """Within: `device=THERE` is an accelerator. `looks` counts by operation what would have to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: Counter[str] = Counter()
        self._around = ExitStack()

    def __enter__(self) -> "PretendedDevice":
        known = optimizer._get_fused_kernels_supported_devices()
        self._around.enter_context(Made())
        self._around.enter_context(
            patch.object(optimizer, "_get_fused_kernels_supported_devices", lambda: [*known, THERE.type])
        )
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._around.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        operation = func.overloadpacket
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, There)]
        assert all(isinstance(t, There) for t in tensors if t.device == THERE), f"{operation}: a tensor without values"
        self._check(operation, args, kwargs, tensors, there)
        to = kwargs.get("device")
        masks = operation in TAKES_INDICES_FROM_HERE and any(t is not None and t.dtype == torch.bool for t in args[1])
        if there and (operation in LOOKS or masks):
            self.looks[str(operation)] += 1
        if there and to is not None and torch.device(to).type == "cpu":
            self.looks["to the CPU"] += 1
        lands = torch.device(to) == THERE if to is not None else bool(there)
        if to is not None:
            kwargs["device"] = torch.device("cpu")
        if operation is aten._efficientzerotensor:
            func = aten.zeros.default  # tensors without memory cannot be wrapped
        args, kwargs = tree_map(_here, (args, kwargs))
        answer = func(*args, **kwargs)
        known = {id(t.here): t for t in there}  # what an operation in place returns
        land = lambda t: known.get(id(t)) if id(t) in known else There(t) if isinstance(t, Tensor) else t  # noqa: E731
        return tree_map(land, answer) if lands else answer

    def _check(self, operation, args, kwargs, tensors, there) -> None:
        if operation in MOVES or not (there or kwargs.get("device") == THERE):
            return
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{operation}: a generator of the CPU draws on the CPU.")
        indices = set()
        if operation in TAKES_INDICES_FROM_HERE and there and isinstance(args[0], There):
            indices = {id(t) for t in args[1] if t is not None}
        here = [t for t in tensors if not isinstance(t, There) and t.ndim and id(t) not in indices]
        if here and there:
            shapes = [tuple(t.shape) for t in here]
            raise RuntimeError(f"{operation}: tensors of shapes {shapes} are on the CPU, others on the accelerator.")


def _here(value):
    return value.here if isinstance(value, There) else value
