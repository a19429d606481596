"""Plug-ins: estimators, tasks, solvers and unlearning methods by name, wherever they are installed from.

A package offers a plug-in by an entry point in one of four groups, and needs nothing else to be found:

    [project.entry-points."recipe.estimators"]
    my-method = "my_package.my_method:MyMethod"

The library itself takes objects; names exist for the command line only.
"""

import ast
import contextlib
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import metadata
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from recipe import calculus, inverses

ESTIMATORS, TASKS, SOLVERS = "recipe.estimators", "recipe.applications", "recipe.solvers"
UNLEARNING = "recipe.unlearning"
NOUNS = {ESTIMATORS: "estimator", TASKS: "task", SOLVERS: "solver", UNLEARNING: "unlearning method"}

Pieces = Mapping[str, Callable[..., Any]]


def available(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points of a group by name, sorted; nothing is imported.

    >>> "influence" in available("recipe.estimators")
    True
    """
    found = {entry.name: entry for entry in metadata.entry_points(group=group)}
    return dict(sorted(found.items()))


def find(group: str, name: str) -> Any:
    """The class behind a name.

    Raises:
        ValueError: an unknown name, with the nearest ones, or a plug-in that cannot be imported.
    """
    installed = available(group)
    noun = NOUNS.get(group, "plug-in")
    if name not in installed:
        raise ValueError(
            f"There is no {noun} {name!r}.{_nearest(name, installed)} Installed: {', '.join(installed) or 'none'}."
        )
    try:
        return installed[name].load()
    except Exception as error:
        raise ValueError(
            f"The {noun} {name!r} ({installed[name].value}) is installed but cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def module(group: str, name: str) -> Any:
    """The module that an entry point names: the class and what goes with it. Raises as `find`."""
    find(group, name)
    return importlib.import_module(available(group)[name].module)


def build(kind: Callable[..., Any], assignments: Iterable[str] = ()) -> Any:
    """An instance of a plug-in from `key=value` strings; of one key the last value counts.

    A value is a Python literal (`5`, `0.1`, `True`, `(2, 3)`), a plain word where the parameter is a string, or a piece
    written as a call, such as `Hessian()` or `EKFAC(models=5)`: a dataclass that `recipe.calculus`, `recipe.inverses`
    or the plug-in's module holds, or an installed estimator. Nothing is evaluated.

    Raises:
        ValueError: not `key=value`, an unknown or a missing key, or a value that does not fit; and what the plug-in
            itself raises.

    Example:
        >>> from recipe.solvers.gradient_ascent import GradientAscent
        >>> build(GradientAscent, ["lr=0.1", "steps=20"])
        GradientAscent(lr=0.1, steps=20, sign=False, refit=None, decay=False, measured=False)
    """
    values = dict(_assignment(text) for text in assignments)
    return _construct(kind, values, _pieces(kind))


def about(kind: Any) -> str:
    """The first line of a docstring."""
    return next(iter((inspect.getdoc(kind) or "").splitlines()), "")


# ---- from text to values -------------------------------------------------------------------------------------------
def _assignment(text: str) -> tuple[str, ast.expr]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise ValueError(f"Expected key=value, for example models=5; got {text!r}.")
    try:
        return key, ast.parse(value, mode="eval").body
    except SyntaxError:
        return key, ast.Constant(value)


def _construct(kind: Callable[..., Any], values: Mapping[str, ast.expr], pieces: Pieces) -> Any:
    """`kind(**values)`, each value read for its parameter."""
    parameters = inspect.signature(kind).parameters
    _check_keys(kind, values, parameters)
    hints, name = _hints(kind), kind.__name__
    return kind(**{k: _value(node, hints.get(k, Any), f"{name}.{k}", pieces) for k, node in values.items()})


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind.__init__)
    except NameError:  # an annotation that is imported for type checkers only
        return {}


def _check_keys(kind: Callable[..., Any], values: Iterable[str], parameters: Mapping[str, inspect.Parameter]) -> None:
    described = ", ".join(str(p).split(":")[0] if p.default is p.empty else _brief(p) for p in parameters.values())
    for key in values:
        if key not in parameters:
            raise ValueError(
                f"{kind.__name__} has no parameter {key!r}.{_nearest(key, parameters)} "
                f"Its parameters: {described or 'none'}."
            )
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in values]
    if missing:
        raise ValueError(f"{kind.__name__} needs a value for {', '.join(missing)}. Its parameters: {described}.")


def _value(node: ast.expr, hint: Any, where: str, pieces: Pieces) -> Any:
    value = _read(node, hint, where, pieces)
    if not _fits(value, hint):
        raise ValueError(f"{where} must be {inspect.formatannotation(hint)}; got {ast.unparse(node)}.")
    wants_float = hint is float or (float in get_args(hint) and int not in get_args(hint))
    return float(value) if wants_float and type(value) is int else value


def _read(node: ast.expr, hint: Any, where: str, pieces: Pieces) -> Any:
    if isinstance(node, ast.Call):
        return _piece(node, hint, where, pieces)
    try:
        return ast.literal_eval(node)
    except ValueError:
        text = ast.unparse(node)
        if _fits(text, hint):
            return text
        remedy = f"write {text}()" if text in pieces else "a number, a text, or a piece such as Hessian(), is"
        raise ValueError(f"{where}={text} cannot be read: {remedy.removesuffix(' is')}.") from None


def _piece(call: ast.Call, hint: Any, where: str, pieces: Pieces) -> Any:
    """The dataclass that a call such as `Lasso(penalty=0.1)` describes."""
    name = ast.unparse(call.func)
    if name not in pieces:
        known = [one for one, piece in pieces.items() if _fits(piece, hint)]
        raise ValueError(f"{where} cannot be {name}(...).{_nearest(name, known)} Known: {', '.join(known) or 'none'}.")
    names = list(inspect.signature(pieces[name]).parameters)
    if len(call.args) > len(names) or any(isinstance(argument, ast.Starred) for argument in call.args):
        raise ValueError(f"{where}: {name} takes {', '.join(names) or 'no arguments'}; got {ast.unparse(call)}.")
    values = dict(zip(names, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise ValueError(f"{where}: give every argument of {name} once, by name; got {ast.unparse(call)}.")
        values[keyword.arg] = keyword.value
    return _construct(pieces[name], values, {**pieces, **_pieces(pieces[name])})


def _pieces(kind: Callable[..., Any]) -> Pieces:
    """By name: the estimators, and the public dataclasses of the plug-in's module and those of curvature."""
    own = inspect.getmodule(kind)
    seen = {**_estimators(), **vars(calculus), **vars(inverses), **(vars(own) if own else {})}
    return {
        name: value
        for name, value in sorted(seen.items())
        if isinstance(value, type) and is_dataclass(value) and not name.startswith("_") and value is not kind
    }


def _estimators() -> Pieces:
    """The installed estimators by the names of their classes, such as `EKFAC` for a regression's prior."""
    found = {}
    for name in available(ESTIMATORS):
        with contextlib.suppress(ValueError):  # one that is broken is no piece
            kind = find(ESTIMATORS, name)
            found[kind.__name__] = kind
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as that can be seen."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    base = type(None) if hint is None else origin or hint
    if base is Any or not isinstance(base, type):
        return True
    if base in (int, float):
        return isinstance(value, (int, base)) and not isinstance(value, bool)
    if getattr(base, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(base) if not name.startswith("_"))
    return isinstance(value, base)


# ---- messages ------------------------------------------------------------------------------------------------------
def _nearest(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Nearest: {', '.join(close)}." if close else ""


def _brief(parameter: inspect.Parameter) -> str:
    return f"{parameter.name}={parameter.default!r}"
