"""What identifies a setting, a run and a measurement across processes and machines: content, never position or address.

    run     = the examples it trains on, added ones included, with their weights, and the seed
    setting = model, algorithm, loss and how the model is called                       (its fingerprint)
    measure = the targets and the output

A run is known by *which* examples it trained on, not by where a data set lists them. So a data set that was shuffled or
extended still finds its runs. (With minibatches the order of the data set decides which batches a seed draws: after
shuffling, the run found is the one of the order it was first trained in, another draw of the same distribution. With
`replay=True`, where the whole universe decides the batches, the order counts.)

A function is known by its name, its compiled code and what it encloses, and, where it is the user's own, by the
functions, classes and constants of the same package that it names, and theirs in turn. Installed packages, and this
one, are taken as they are. Code is compiled differently by another version of Python. `Custom` is known by its name and
objective.
"""

import functools
import hashlib
import pickle
import sys
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
OWN_DEPTH = 4  # the same of a module's attributes, which may lead to its configuration and to other modules
OF_MODULES = set(vars(nn.Module()))  # attributes that any module has: parameters, submodules, hooks
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype)
TAKEN = {"recipe", "estimators", "applications"}  # packages whose functions stand for themselves


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
    structure = content_key(_structure(blank).encode(), " ".join(setting.trained).encode())
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
    if value is None or isinstance(value, (*PLAIN, torch.device)):
        return repr(value)
    if depth == 0:
        return type(value).__name__
    inner = functools.partial(identity, depth=depth - 1)
    if isinstance(value, (Tensor, np.ndarray)):
        t = torch.as_tensor(value)
        return f"tensor{tuple(t.shape)} {batches.content_hash((t,))}"
    if isinstance(value, nn.Module):
        structure = content_key(_structure(value, depth).encode())
        return f"{type(value).__name__} {structure} {batches.content_hash(dict(value.state_dict()))}"
    if isinstance(value, (type, types.ModuleType)):
        return _name(value)
    if is_dataclass(value):
        # As in the value's own equality: what does not take part in it does not distinguish two settings either.
        parts = ", ".join(f"{f.name}={inner(getattr(value, f.name))}" for f in fields(value) if f.compare)
        return f"{type(value).__name__}({parts}){_behaviour(type(value))}"
    if isinstance(value, functools.partial):
        return f"partial({inner(value.func)}, {inner(value.args)}, {inner(value.keywords)})"
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        own = (enclosed, value.__defaults__, value.__kwdefaults__)
        return f"{_name(value)} {content_key(*_codes(value))}{inner(own) if any(own) else ''}"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__self__)}.{value.__name__}"
    if isinstance(value, types.BuiltinFunctionType):
        return _name(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{inner(k)}: {inner(v)}" for k, v in value.items())) + "}"
    if isinstance(value, (tuple, list, set, frozenset)):
        each = [inner(v) for v in value]
        return f"[{', '.join(sorted(each) if isinstance(value, (set, frozenset)) else each)}]"
    return f"{_name(type(value))}{_behaviour(type(value))}{inner(_state(value))}"


def _structure(model: nn.Module, depth: int = DEPTH) -> str:
    """What a model computes, but for its parameters: every module's kind, its own attributes and its code."""
    lines = []
    for path, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
        code = "" if type(module).__module__.startswith("torch.") else content_key(*_codes(type(module)))
        shapes = [(name, tuple(t.shape), t.requires_grad) for name, t in module.named_parameters(recurse=False)]
        lines.append(f"{path}: {_name(type(module))} {code} {shapes} {identity(own, min(depth, OWN_DEPTH) - 1)}")
    return "\n".join(lines)


def _behaviour(kind: type) -> str:
    """What the methods of a class do, where it is the user's own."""
    own = any(isinstance(method, types.FunctionType) for method in vars(kind).values())
    return f" {content_key(*_codes(kind))}" if own and _package(kind) not in TAKEN else ""


def _state(value: Any) -> Any:
    """What distinguishes an object from others of its type: its attributes, or what would make it again."""
    if hasattr(value, "__dict__"):
        own = not _is_installed(type(value))  # of other packages' objects what is private is a matter of their own
        return {name: attribute for name, attribute in vars(value).items() if own or not name.startswith("_")}
    try:
        return value.__reduce_ex__(pickle.DEFAULT_PROTOCOL)[1:3]  # `operator.itemgetter(1)`, say, or one with slots
    except (TypeError, AttributeError, IndexError):
        return {}


def _codes(value: types.FunctionType | type) -> list[bytes]:
    """The code of a function, or of a class' methods, and of what of the same package it uses, by name."""
    found: dict[str, bytes] = {}
    package = _package(value)

    def visit(value: types.FunctionType | type) -> None:
        if _name(value) in found:
            return
        if isinstance(value, type):
            found[_name(value)] = b"class"
            for kind in value.__mro__:
                for member in vars(kind).values() if _package(kind) == package else ():
                    for method in _functions(member):
                        visit(method)
            return
        found[_name(value)] = _code(value.__code__) + "".join(map(_default, _defaults(value))).encode()
        if package in TAKEN or "-packages" in value.__code__.co_filename:  # site-packages, dist-packages
            return
        places = {name: value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__}
        for name, used in places.items():
            if isinstance(used, (types.FunctionType, type)):
                if _package(used) == package:
                    visit(used)
            elif _is_constant(used):
                found[f"{value.__module__}.{name}"] = identity(used).encode()

    visit(value)
    return [code for _, code in sorted(found.items())]


def _functions(member: Any) -> list[types.FunctionType]:
    """Those behind a member of a class: a method, a property, a class method."""
    around = (member, getattr(member, "__func__", None), getattr(member, "fget", None), getattr(member, "func", None))
    return [function for function in around if isinstance(function, types.FunctionType)]


def _defaults(function: types.FunctionType) -> list[Any]:
    by_name = function.__kwdefaults__ or {}
    return [*(function.__defaults__ or ()), *(by_name[name] for name in sorted(by_name))]


def _default(value: Any) -> str:
    return _constant(value) if _is_constant(value) and not isinstance(value, (Tensor, np.ndarray)) else ""


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, (*PLAIN, Tensor, np.ndarray))


def _is_installed(kind: type) -> bool:
    return "-packages" in (getattr(sys.modules.get(kind.__module__), "__file__", None) or "")


def _package(value: Any) -> str:
    return (value.__module__ or "").partition(".")[0]


def _names(code: types.CodeType) -> set[str]:
    """The global names in a function's code, those of the functions within it too."""
    within = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*within)


def content_key(*parts: bytes) -> str:
    """Thirty-two hex digits that identify a list of byte strings."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts run together to the same bytes
        digest.update(part)
    return digest.hexdigest()


def _name(value: Any) -> str:
    return value.__name__ if isinstance(value, types.ModuleType) else f"{value.__module__}.{value.__qualname__}"


def _code(code: types.CodeType) -> bytes:
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c).encode() for c in code.co_consts]
    return b" ".join([code.co_code, *constants, *(name.encode() for name in code.co_names)])


def _constant(value: Any) -> str:
    """Its text, the same in every process: a set has no order of its own."""
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)
