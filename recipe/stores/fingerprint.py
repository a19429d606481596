"""What identifies a setting, a run and a measurement across processes and machines: content, never position or address.

    run     = the examples it trains on, added ones included, with their weights, and the seed
    setting = model, algorithm, loss and how the model is called                       (its fingerprint)
    measure = the targets and the output

A run is known by *which* examples it trained on, not by where a data set lists them. So a data set that was shuffled or
extended still finds its runs. (With minibatches the order of the data set decides which batches a seed draws: after
shuffling, the run found is the one of the order it was first trained in, another draw of the same distribution. With
`replay=True`, where the whole universe decides the batches, the order counts.)

A function is known by its name, its compiled code and what it encloses; code is compiled differently by another version
of Python. `Custom` is known by its name and objective.
"""

import functools
import hashlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipe import batch as batches
from recipe.batch import DIGEST, Batch
from recipe.setting import Setting

DEPTH = 8  # of objects within objects; a cycle ends there


def fingerprint(setting: Setting) -> dict[str, str]:
    """What the runs of a setting have in common, part by part.

    Example:
        >>> from recipe import Newton
        >>> data = (torch.eye(2), torch.arange(2))
        >>> fingerprint(Setting(lambda: nn.Linear(2, 2), data, data, Newton(l2=0.1)))["algorithm"]
        'Newton(l2=0.1, tolerance=None, steps=50)'
    """
    blank = setting._blank
    start = batches.content_hash(setting.initial(0))
    structure = content_key(repr(blank).encode(), *_forwards(blank), " ".join(setting.trained).encode())
    return {
        "model": f"{type(blank).__name__} with {setting.p} parameters, structure {structure}, start {start}",
        "algorithm": identity(setting.algorithm),
        "loss": identity(setting.loss),
        "forward": identity(setting.forward),
    }


def measure_key(setting: Setting) -> str:
    """What is measured: the targets, in their order, and the output."""
    return content_key(f"{batches.content_hash(setting.probe)} {identity(setting.output)}".encode())


def run_keys(
    setting: Setting, weights: Sequence[Tensor], seeds: Sequence[int], added: Batch | None = None
) -> list[str]:
    """What identifies r runs, weights `(n,)` and a seed each, within a fingerprint."""
    examples = setting.examples
    if added is not None and batches.size(added):  # as if they were examples of the universe, of weight 1
        examples = np.concatenate([examples, batches.example_hashes(setting.check_added(added))])
    replayed = getattr(setting.algorithm, "replay", False)  # then the whole universe decides the batches, in its order
    order = np.argsort(examples.view(f"V{DIGEST}")[:, 0], kind="stable")
    order = np.arange(len(examples)) if replayed else order
    examples, keys, ones = examples[order], [], np.ones(len(examples) - setting.n)
    for weight, seed in zip(weights, seeds, strict=True):
        row = np.concatenate([weight.detach().cpu().double().numpy(), ones])[order]
        chosen = np.full(len(row), True) if replayed else row > 0
        shares = b"" if (row[chosen] == 1).all() else row[chosen].tobytes()
        keys.append(content_key(f"{seed}".encode(), examples[chosen].tobytes(), shares))
    return keys


def identity(value: Any, depth: int = DEPTH) -> str:
    """A value as text that is the same in every process, for equal values alone.

    Example:
        >>> from recipe import SGD
        >>> identity(SGD(epochs=1, batch_size=2, lr=0.1))[:29]
        'SGD(epochs=1, batch_size=2, l'
        >>> identity(lambda z: z + 1) == identity(lambda z: z + 2)
        False
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        return repr(value)
    if depth == 0:
        return type(value).__name__
    inner = functools.partial(identity, depth=depth - 1)
    if isinstance(value, (Tensor, np.ndarray)):
        t = torch.as_tensor(value)
        return f"tensor{tuple(t.shape)} {batches.content_hash((t,))}"
    if isinstance(value, nn.Module):
        structure, state = content_key(repr(value).encode()), batches.content_hash(dict(value.state_dict()))
        return f"{type(value).__name__} {structure} {state}"
    if isinstance(value, type):
        return _name(value)
    if is_dataclass(value):
        # As in the value's own equality: what does not take part in it does not distinguish two settings either.
        parts = ", ".join(f"{f.name}={inner(getattr(value, f.name))}" for f in fields(value) if f.compare)
        return f"{type(value).__name__}({parts})"
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        rest = inner((enclosed, value.__defaults__, value.__kwdefaults__)) if enclosed or value.__defaults__ else ""
        return f"{_name(value)} {content_key(_code(value.__code__))}{rest}"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if isinstance(value, types.BuiltinFunctionType):
        return _name(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{inner(k)}: {inner(v)}" for k, v in value.items())) + "}"
    if isinstance(value, (tuple, list, set, frozenset)):
        each = [inner(v) for v in value]
        return f"[{', '.join(sorted(each) if isinstance(value, (set, frozenset)) else each)}]"
    return f"{_name(type(value))}{inner(getattr(value, '__dict__', {}))}"


def _forwards(model: nn.Module) -> list[bytes]:
    """The code of the modules that are not torch's own: what they are made of does not say what they compute."""
    kinds = {type(module) for module in model.modules() if not type(module).__module__.startswith("torch.")}
    codes = {_name(kind): getattr(kind.forward, "__code__", None) for kind in kinds}
    return [_code(code) for _, code in sorted(codes.items()) if code is not None]


def content_key(*parts: bytes) -> str:
    """Thirty-two hex digits that identify a list of byte strings."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts run together to the same bytes
        digest.update(part)
    return digest.hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _code(code: types.CodeType) -> bytes:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c).encode() for c in code.co_consts]
    return b" ".join([code.co_code, *constants, *(name.encode() for name in code.co_names)])
