"""What work costs, said before it is done: operations, seconds and memory.

    a + b: one after the other,      k * a: k times,      a.holding(bytes): while so much is held beside.

A piece of the work is really done at small sizes, counted and timed (`measured`), and goes on along a straight line
(`along`): what is linear in the number of examples, outputs or steps is counted exactly. Factorisations, whose cost is
no line, follow from the speed of this machine and the textbook (`Machine`).

Operations are those of matrix products, convolutions and fused attention, two for a multiplication and an addition, as
`torch.utils.flop_counter` has them, and of factorisations. Bytes are those of tensors that are alive at once, at their
peak. Seconds are of the clock, of this machine as busy as it was when it was measured.
"""

import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

PATIENCE = 0.1  # seconds of a piece above which it is timed once; what is short is timed up to `ROUNDS` times
ROUNDS = 3
SURE = 0.7  # of the growth of operations, seconds grow by at least
CLOCK = time.perf_counter  # a benchmark on a busy machine takes `time.process_time`


@dataclass(frozen=True)
class Cost:
    """Operations, seconds, and the bytes that are held at once.

    Example:
        >>> fit, verify = Cost(flops=3e9, seconds=2.0, bytes=2**20), Cost(flops=1e9, seconds=1.0, bytes=2**30)
        >>> fit + 5 * verify
        Cost(flops=8000000000.0, seconds=7.0, bytes=1073741824)
        >>> print(fit + 5 * verify)
        7.0 s, 8.0 GFLOP, 1.0 GiB of memory
    """

    flops: float = 0.0
    seconds: float = 0.0
    bytes: float = 0.0
    _alive: Tensor | None = field(default=None, repr=False, compare=False)  # bytes after each operation, if measured

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.seconds + other.seconds, max(self.bytes, other.bytes))

    def __rmul__(self, times: float) -> "Cost":
        return Cost(times * self.flops, times * self.seconds, self.bytes if times else 0.0)

    def holding(self, number: float) -> "Cost":
        """The same work while so many bytes are held beside it."""
        return Cost(self.flops, self.seconds, self.bytes + number)

    def __str__(self) -> str:
        return f"{_time(self.seconds)}, {_short(self.flops, 1e3, ' kMGTPE')}FLOP, {_memory(self.bytes)} of memory"


def cost_of(estimator: Any, setting: Any) -> Cost:
    """What fitting an estimator to a setting will cost.

    Raises:
        NotImplementedError: an estimator that does not say.
    """
    asked = getattr(estimator, "cost", None)
    if asked is None:
        raise NotImplementedError(
            f"{type(estimator).__name__} does not say what it costs. Give it a method `cost(self, setting)` that "
            "returns a recipe.Cost; `recipe.Work(setting)` has what it is made of."
        )
    return asked(setting)


def measured(piece: Callable[[], object]) -> Cost:
    """Do a piece of work a few times: counted the first time, timed after that, the least of them.

    Example:
        >>> a = torch.ones(10, 20)
        >>> measured(lambda: a @ a.T).flops  # 2 * 10 * 20 * 10
        4000.0
    """
    counted = metered(piece)
    seconds = [_timed(piece)]
    while len(seconds) < ROUNDS and sum(seconds) < PATIENCE:
        seconds.append(_timed(piece))
    return replace(counted, seconds=min(seconds))


def metered(piece: Callable[[], object]) -> Cost:
    """Do a piece of work once; operations and bytes, without seconds."""
    meter = _Meter()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = piece_under(meter, piece)
    del kept
    alive = torch.tensor(meter.alive or [0], dtype=torch.float64)
    return Cost(float(meter.flops), 0.0, float(alive.max()), alive)


def piece_under(meter: TorchDispatchMode, piece: Callable[[], object]) -> object:
    """What the piece returns, done under a mode."""
    with meter:
        return piece()


def along(cost_at: Callable[[int], Cost], size: int, small: int, large: int) -> Cost:
    """The cost at a size, on the line through the costs at two smaller ones.

    Args:
        cost_at: measures at a size.
        size: where it is wanted; where that is no larger than `large`, it is measured there.
        small: the smaller size, at least 1.
        large: the larger one.

    Returns:
        The line's value. Noise of the clock may bend it: seconds grow by no less than `SURE` of what operations grow
        by, and by no more than the size does.

    Example:
        >>> along(lambda n: Cost(flops=7 + 2 * n, seconds=n, bytes=8 * n), size=1000, small=1, large=10)
        Cost(flops=2007.0, seconds=1000.0, bytes=8000.0)
    """
    if size <= large or large <= small:
        return cost_at(size) if size <= large else (size / large) * cost_at(large)
    few, many = cost_at(small), cost_at(large)
    further = (size - large) / (large - small)

    def on(low: Any, high: Any) -> Tensor:
        low, high = (torch.as_tensor(value, dtype=torch.float64) for value in (low, high))
        return torch.minimum(torch.maximum(high + further * (high - low), high), high * size / large)

    flops, seconds, held = (float(on(getattr(few, k), getattr(many, k))) for k in ("flops", "seconds", "bytes"))
    growth = flops / many.flops if many.flops else 1.0
    seconds = max(seconds, SURE * growth * many.seconds)
    low, high = few._alive, many._alive
    if low is None or high is None or len(low) != len(high):
        return Cost(flops, seconds, held)
    alive = on(low, high)  # operation by operation: the peak of many examples may be elsewhere than that of few
    return Cost(flops, seconds, float(alive.max()), alive)


@dataclass(frozen=True)
class Machine:
    """How fast this machine is in one type: for what is better computed than measured.

    Args:
        rate: operations a second in a matrix product.
        bandwidth: bytes a second that a copy reads and writes.
        eigen: seconds for an eigendecomposition of size 1, of which one of size k takes `k^3`.
        number: bytes of a number.
    """

    rate: float
    bandwidth: float
    eigen: float
    number: int

    @classmethod
    def of(cls, like: Tensor) -> "Machine":
        """Where a tensor is, in its type; measured once, and kept."""
        return _machine(like.device, like.dtype, torch.get_num_threads())

    def product(self, a: float, b: float, c: float) -> Cost:
        """`(a, b) @ (b, c)`."""
        flops, touched = 2 * a * b * c, self.number * (a * b + b * c + 2 * a * c)
        return Cost(flops, max(flops / self.rate, touched / self.bandwidth), self.number * a * c)

    def cholesky(self, k: float, vectors: float = 0.0) -> Cost:
        """Factor a `(k, k)` matrix and solve with the factor."""
        flops = k**3 / 3 + 2 * k**2 * vectors
        return Cost(flops, 2 * flops / self.rate, self.number * (2 * k**2 + k * vectors))

    def eigh(self, k: float) -> Cost:
        """Eigenvalues and eigenvectors of a symmetric `(k, k)` matrix."""
        return Cost(9 * k**3, self.eigen * k**3, 3 * self.number * k**2)


class _Meter(TorchDispatchMode):
    """Counts operations, and the bytes of the tensors that appear and have not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self._held = 0, 0
        self.alive: list[int] = []
        self._known = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and being skipped takes its time

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, Tensor):  # what is changed in place was there before
                self._known.setdefault(t.untyped_storage(), None)
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._appeared(t.untyped_storage())
        self.alive.append(self._held)
        return out

    def _appeared(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known[storage] = None
        self._held += storage.nbytes()
        weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, number: int) -> None:
        self._held -= number


@lru_cache(maxsize=8)
def _machine(device: torch.device, dtype: torch.dtype, threads: int) -> Machine:
    a = torch.randn(512, 512, device=device, dtype=dtype)
    small = a[:192, :192] + a[:192, :192].T
    long = torch.zeros(2**25 // a.element_size(), device=device, dtype=dtype)
    product, copy, eigen = (
        min(_timed(piece) for _ in range(ROUNDS))
        for piece in (lambda: a @ a, lambda: long.clone(), lambda: torch.linalg.eigh(small))
    )
    return Machine(2 * 512**3 / product, 2 * long.nbytes / copy, eigen / 192**3, a.element_size())


def _timed(piece: Callable[[], object]) -> float:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _wait()
        start = CLOCK()
        kept = piece()
        _wait()
        seconds = CLOCK() - start
    del kept
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _memory(number: float) -> str:
    return f"{_short(number, 1024.0, ' KMGTPE', 'i')}B"


def _short(value: float, step: float, prefixes: str, infix: str = "") -> str:
    """`1.2 G`: three digits at most and a prefix."""
    power = 0
    while value >= step and power < len(prefixes) - 1:
        value, power = value / step, power + 1
    digits = f"{value:.1f}" if value < 10 and power else f"{value:.0f}"
    return f"{digits} {prefixes[power].strip()}{infix if power else ''}"
