"""What the commands share: their options, how they are registered, how answers are saved and printed.

Results go to stdout, everything else to stderr; what the user can mend ends with its message and exit code 2.
"""

import contextlib
import functools
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, get_type_hints, runtime_checkable

import typer
from torch import Tensor

from recipe import plugins
from recipe.announcement import unannounced
from recipe.arguments import load_setting
from recipe.engine import engine
from recipe.executors import Processes, WorkerDiedError
from recipe.record import Folder, check_free, write_folder
from recipe.retrain import Retrain
from recipe.stores import Bank

USER_ERRORS = (ValueError, OSError, NotImplementedError, ArithmeticError, WorkerDiedError)
SHOWN = 20  # indices of points in a printed line


@dataclass(frozen=True)
class Choice:
    """A plug-in that is taken where the user names none, with parameters that the user's come after."""

    name: str
    assignments: tuple[str, ...] = ()

    def build(self, group: str, name: str | None, assignments: Sequence[str]) -> Any:
        """The plug-in that the user named, or this one."""
        own = self.assignments if name in (None, self.name) else ()
        return plugins.build(plugins.find(group, name or self.name), [*own, *assignments])


@dataclass(frozen=True)
class Options:
    """What every command on a setting understands."""

    spec: Annotated[str, typer.Argument(metavar="SPEC", help="The setting: file.py:name or module:name.")]
    estimator: Annotated[str | None, typer.Option(help="Which estimator, see `recipe list`.")] = None
    assignments: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Of the estimator: models=5, 'curvature=Hessian()'.")
    ] = field(default_factory=list)
    seeds: Annotated[int, typer.Option(min=0, help="How many seeds to retrain with; 0 does not verify.")] = 3
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Save the results in this folder.")] = None
    bank: Annotated[
        str | None, typer.Option(metavar="PATH", help="Keep retrainings here, and look them up before training.")
    ] = None
    workers: Annotated[int, typer.Option(min=0, help="Processes that train and compute; 0: this one.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False

    def prepare(self, default: Choice) -> tuple[Any, Retrain]:
        """The estimator and the true outputs, after all that can be checked without training."""
        if self.out is not None:
            check_free(self.out, self.overwrite)
        estimator = default.build(plugins.ESTIMATORS, self.estimator, self.assignments)
        return estimator, Retrain(load_setting(self.spec), range(max(1, self.seeds)))

    @contextlib.contextmanager
    def engine(self) -> Iterator[None]:
        """Where the command's work is done and kept."""
        with contextlib.ExitStack() as stack:
            executor = stack.enter_context(Processes(self.workers)) if self.workers else None
            stack.enter_context(engine(executor, None if self.bank is None else Bank(self.bank)))
            yield

    def report(self, parts: Mapping[str, Any]) -> str:
        """Save the parts of an answer and write them as tables or JSON; a part that is None was not asked for."""
        there = {name: part for name, part in parts.items() if part is not None}

        def fill(folder: Folder) -> None:
            for name, part in there.items():
                if isinstance(part, Fills):
                    part.fill(folder)
                else:
                    folder.write(f"{name}.json", {"value": folder.encode(part)})

        if self.out is not None:
            write_folder(self.out, fill, self.overwrite)
            say(f"Saved in {self.out}.")
        if self.as_json:
            return json.dumps(plain(parts), indent=2, allow_nan=False)
        return "\n\n".join(text_of(name, part) for name, part in there.items())


@runtime_checkable
class Fills(Protocol):
    """A part of an answer that writes its own files."""

    def fill(self, folder: Folder) -> None:
        """Write into a folder that is being filled."""


@dataclass(frozen=True)
class TaskOptions(Options):
    """What every task understands."""

    solver: Annotated[str | None, typer.Option(help="Which solver, see `recipe list`.")] = None
    solver_assignments: Annotated[
        list[str], typer.Option("--solver-set", metavar="KEY=VALUE", help="Of the solver: steps=100.")
    ] = field(default_factory=list)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the user can mend ends with its message and exit code 2; the rest is a bug and keeps its traceback."""
    try:
        yield
    except USER_ERRORS as error:
        say(f"Error: {error}")
        raise typer.Exit(2) from None


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Register `run(options, own...) -> text` with the app: its options are its own and those that `options` has."""

    def register(run: Callable[..., str]) -> Callable[..., str]:
        first, *own = inspect.signature(run).parameters.values()
        spec, *shared = _parameters(first.annotation)

        @functools.wraps(run)
        def cli(**values: Any) -> None:
            options = first.annotation(**{p.name: values.pop(p.name) for p in (spec, *shared)})
            with user_errors():
                # What the user's code prints goes to stderr. A command announces the whole of its work by itself.
                with contextlib.redirect_stdout(sys.stderr), unannounced(), warnings.catch_warnings(), options.engine():
                    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch itself raises it
                    text = run(options, **values)
                typer.echo(text)

        ordered = [p.replace(kind=p.KEYWORD_ONLY) for p in (spec, *own, *shared)]
        cli.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        app.command(name)(cli)
        return run

    return register


def _parameters(options: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters, their annotations kept."""
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=hints[f.name])
        for f in fields(options)
    ]


def _default(f: "Field[Any]") -> Any:
    if f.default_factory is not MISSING:
        return f.default_factory()
    return inspect.Parameter.empty if f.default is MISSING else f.default


# ---- words -----------------------------------------------------------------------------------------------------------
def say(text: str) -> None:
    """Tell the user something that is no result."""
    typer.echo(text, err=True)


def text_of(name: str, part: Any) -> str:
    """A part of an answer as text; a list of points in one line."""
    if isinstance(part, list):
        more = f", ... ({len(part)} in all)" if len(part) > SHOWN else ""
        return f"{name}: {', '.join(map(str, part[:SHOWN])) or 'none'}{more}"
    return str(part)


def plain(value: Any) -> Any:
    """JSON for anything; NaN and infinity become null."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else repr(value)
