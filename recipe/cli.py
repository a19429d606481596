"""The command line: `recipe demo`, `recipe list`, and the four tasks and the LDS on a setting of yours.

SPEC says where the setting is: `file.py:name` or `module:name`, a `Setting` or a function without arguments that
returns one. Estimators, solvers and tasks are found by entry point (`recipe.plugins`).
"""

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from recipe import bank_commands, plugins
from recipe import batch as batches
from recipe.announcement import models_of
from recipe.arguments import read_entry, read_numbers, read_points, read_quota, read_range, read_size
from recipe.cost import cost_of
from recipe.exports import check_path
from recipe.feasible import Box
from recipe.job import DEFAULTS, INFLUENCE, Job, announce, name_of, training_sets
from recipe.lds import lds as score
from recipe.options import Options, TaskOptions, command, say, text_of, user_errors
from recipe.outputs import Correct, Loss, TopMargin
from recipe.random_subsets import random_subsets
from recipe.retrain import Retrain

app = typer.Typer(
    help="Write a task over model outputs, plug in a data attribution estimate, solve, verify by really retraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(bank_commands.app, name="bank")


@command(app, "select")
def select(
    options: TaskOptions,
    size: Annotated[str, typer.Option(metavar="K", help="How many points: 300, 0.3 of all, or fewest:most.")],
    groups: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="The group of each point, .npy of integers; 'labels': its label. Repeat it for several groupings.",
        ),
    ] = [],  # noqa: B006
    quotas: Annotated[
        list[str],
        typer.Option(
            "--quota",
            metavar="G=K",
            help="How many of a group: 3=20 or 3=10:30; of several groupings source:3=20, for source.npy. Repeat it.",
        ),
    ] = [],  # noqa: B006
    costs: Annotated[str | None, typer.Option(metavar="FILE", help="What each point costs, .npy.")] = None,
    budget: Annotated[float | None, typer.Option(help="What the chosen points may cost together.")] = None,
    include: Annotated[str | None, typer.Option(metavar="POINTS", help="Points that must be chosen.")] = None,
    exclude: Annotated[str | None, typer.Option(metavar="POINTS", help="Points that must not be.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often a point may be chosen.")] = 1,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table with scores (.csv, .parquet) or indices (.npy, .txt).")
    ] = None,
) -> str:
    """Choose the training points that make the targets' losses small."""
    job = Job.of("select", options, Loss())
    if write is not None:
        check_path(write)
    limits = _quotas(quotas, _groupings(groups, job.f), job, read_size(size, job.f.n), exclude, repeats)
    task = job.kind(
        size=read_size(size, job.f.n),
        **limits,
        costs=None if costs is None else read_numbers(costs),
        budget=budget,
        include=None if include is None else read_points(include),
        exclude=None if exclude is None else read_points(exclude),
        repeats=repeats,
    )
    job.announce(training_sets(task, job.f))
    _, solution, parts = job.answer(task)
    if write is not None:
        solution.write(write)
        say(f"Written to {write}.")
    return options.report({**parts, "chosen": solution.indices.tolist()})


def _groupings(texts: Sequence[str], f: Retrain) -> dict[str, Tensor]:
    """Groupings by name: that of the file, or "labels"."""
    found = {Path(text).stem: _groups(text, f) for text in texts}
    if len(found) < len(texts):
        raise ValueError(f"Expected groupings of different names; got {', '.join(texts)}. Rename a file.")
    return found


def _groups(text: str, f: Retrain) -> Tensor:
    return batches.labels(f.setting.pool) if text == "labels" else read_numbers(text)


def _quotas(
    texts: Sequence[str],
    groupings: Mapping[str, Tensor],
    job: Job,
    size: int | tuple[int, int],
    exclude: str | None,
    repeats: int,
) -> dict[str, Any]:
    """Groups and quotas; a grouping without quotas gets as many of each group as can be."""
    asked: dict[str, dict[int, Any]] = {}
    for name, group, limit in map(read_quota, texts):
        name = next(iter(groupings)) if not name and len(groupings) == 1 else name
        asked.setdefault(name, {})[group] = limit
    if not groupings:
        return {"quotas": next(iter(asked.values()), None)}
    if unknown := [name for name in asked if name not in groupings]:
        raise ValueError(
            f"There is a quota of the grouping {unknown[0]!r}; groupings: {', '.join(groupings)}. Write "
            f"{next(iter(groupings))}:3=20, say."
        )
    most = size[1] if isinstance(size, tuple) else size
    out = None if exclude is None else read_points(exclude)
    groups = tuple(groupings.values())
    quotas = tuple(asked.get(name) or job.helpers.balanced(groupings[name], most, out, repeats) for name in groupings)
    return {"groups": groups, "quotas": quotas} if len(groups) > 1 else {"groups": groups[0], "quotas": quotas[0]}


@command(app, "unlearn")
def unlearn(
    options: TaskOptions,
    forget: Annotated[str, typer.Option(metavar="POINTS", help="What to forget: 0-9,17 or a .npy file of indices.")],
) -> str:
    """Predict the outputs of the model of seed 0, had it never seen some points."""
    job = Job.of("unlearn", options)
    points = read_points(forget)
    job.kind(points, torch.empty(0)).retained(job.f.n)  # refuses a bad forget set before anything is trained
    job.announce(sets=3, before=1)  # everything, without the forget set, without as many random points
    deployed = job.f.with_seeds([0])(torch.ones(job.f.n))
    return options.report(job.answer(job.kind(points, deployed))[2])


@command(app, "poison")
def poison(
    options: TaskOptions,
    count: Annotated[int, typer.Option(help="How many poisons; they start as random training points, relabelled.")],
    seed: Annotated[int, typer.Option(help="Of the points and labels to start from.")] = 0,
    allowed: Annotated[
        str | None, typer.Option("--range", metavar="LO:HI", help="Of the inputs; default what the universe spans.")
    ] = None,
    entry: Annotated[str, typer.Option(help="Which inputs: a position in the batch, or a name.")] = "0",
    near: Annotated[
        float | None, typer.Option(min=0, help="How far an entry may move from its start; default anywhere in range.")
    ] = None,
    passes: Annotated[
        float | None,
        typer.Option(metavar="PERCENTILE", help="Stay within this percentile of the clean data's sphere and slab."),
    ] = None,
) -> str:
    """Test a system of yours: find training points to add that make the targets' losses large."""
    job = Job.of("poison", options, Loss())
    start = job.helpers.random_label_flips(job.f.setting, count, seed)
    key: Any = read_entry(entry, start)
    universe: Any = job.f.setting.pool
    low, high = read_range(allowed) if allowed else (float(universe[key].min()), float(universe[key].max()))
    box = Box.between(torch.full_like(start[key], low), torch.full_like(start[key], high))
    if near is not None:
        box = box.intersect(Box(start[key], near))
    threat = {"budget": count, "low": low, "high": high, "near": near, "passes percentile": passes, "seed": seed}
    passing = box if passes is None else job.helpers.let_through(job.f.setting, start, box, key, passes)
    task = job.kind(start, passing, key)
    job.announce(training_sets(task, job.f))
    _, solution, parts = job.answer(task)
    if options.seeds:
        before = job.f.on(output=Correct())(torch.ones(job.f.n)) > 0.5
        say(f"{int((~before).sum())} of {len(before)} targets were wrong before the attack.")
    poisons = job.helpers.Poisons(task.batch(solution.decision), start, key, threat)
    return options.report({**parts, "poisons": poisons if options.out is not None else None})


@command(app, "debug")
def debug(
    options: TaskOptions,
    target: Annotated[int, typer.Option(help="Which target's prediction.")],
    remove: Annotated[int, typer.Option(help="How many training points may be removed at most.")],
    show: Annotated[int, typer.Option(min=1, help="How many helpful and harmful points to show.")] = 5,
) -> str:
    """Find the training points that hold a prediction up, and see whether it flips without them."""
    job = Job.of("debug", options, TopMargin())
    if not 0 <= target < job.f.output_shape[0]:
        raise ValueError(f"Expected a target from 0 to {job.f.output_shape[0] - 1}; got {target}.")
    task = job.kind(target, remove)
    job.announce(training_sets(task, job.f), before=len(job.f.seeds))
    predicted = job.helpers.as_predicted(job.f)
    job = replace(job, f=job.f.on(predicted, TopMargin()))
    f_hat, solution, parts = job.answer(task)
    blame = job.helpers.blame(f_hat, target, show)
    finding = Finding(
        predicted=int(batches.labels(predicted)[target]),
        helpful={i: float(blame.effects[i]) for i in blame.helpful.tolist()},
        harmful={i: float(blame.effects[i]) for i in blame.harmful.tolist()},
        removed=_where(solution.decision == 0),
        flipped=parts["verification"].actual.mean < 0 if options.seeds else None,
    )
    return options.report({**parts, "finding": finding})


@dataclass(frozen=True)
class Finding:
    """What debugging found about a prediction.

    Args:
        predicted: the label that the model predicts.
        helpful: the points that hold it up most, with the effect of each on the margin of the prediction.
        harmful: the points that pull it down most.
        removed: the points of the solution.
        flipped: whether retraining without them predicts another label; None where it was not tried.
    """

    predicted: int
    helpful: Mapping[int, float]
    harmful: Mapping[int, float]
    removed: Sequence[int]
    flipped: bool | None

    def __str__(self) -> str:
        outcome = {True: "flips", False: "does not flip", None: "was not tried on"}[self.flipped]
        rows = [f"predicted label {self.predicted}; removing {len(self.removed)} points {outcome} it"]
        for title, points in (("most helpful", self.helpful), ("most harmful", self.harmful)):
            rows += [title, *(f"  point {i:>6}  effect {effect:+.4g}" for i, effect in points.items())]
        return "\n".join([*rows, text_of("removed", self.removed)])


# ---- other commands ------------------------------------------------------------------------------------------------
@command(app, "lds")
def lds(
    options: Options,
    subsets: Annotated[int, typer.Option(min=3, help="How many random subsets to retrain on.")] = 50,
    alpha: Annotated[float, typer.Option(help="The share of the points in a subset.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the subsets.")] = 0,
) -> str:
    """Score an estimator: does it rank subsets as retraining does, and on the right scale?"""
    if not options.seeds:
        raise ValueError("The LDS compares with retraining, so it needs at least one seed; got --seeds 0.")
    estimator, f = options.prepare(INFLUENCE)
    drawn = random_subsets(f.n, subsets, alpha, seed)
    fit = f"to fit {name_of(estimator)}"
    costs = {fit: lambda: cost_of(estimator, f.setting), "to compare with": lambda: f.cost(subsets)}
    announce(f, {fit: models_of(estimator, f.setting), "to compare with": subsets * options.seeds}, costs)
    return options.report({"lds": score(estimator.fit(f.setting), f, drawn)})


@command(app, "serve")
def serve(
    options: Options,
    method: Annotated[str, typer.Option(help="How the model forgets, see `recipe list`.")] = "parameter-update",
    method_assignments: Annotated[
        list[str] | None, typer.Option("--method-set", metavar="KEY=VALUE", help="Of the method: noise=5.")
    ] = None,
    store: Annotated[Path, typer.Option(metavar="DIR", help="What survives a restart.")] = Path("runs/forgetter"),
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 8000,
) -> str:
    """Serve a model that forgets on request, over HTTP; the key is in the environment, RECIPE_API_KEY."""
    key = os.environ.get("RECIPE_API_KEY", "")
    if not key:
        raise ValueError("Set RECIPE_API_KEY to the key that clients must send; nothing is served without one.")
    forgets = plugins.build(plugins.find(plugins.UNLEARNING, method), method_assignments or ())
    estimator, f = options.prepare(DEFAULTS["unlearn"][0])
    service = _service()
    forgetter = service.Forgetter(f.setting, estimator, forgets, f.bank, store=store)
    say(f"Serving {f.setting.n} training points at http://{host}:{port}, {len(forgetter.forgotten)} of them forgotten.")
    service.serve(forgetter, key, host, port)
    return "Stopped."


def _service() -> Any:
    """The module beside the unlearning task: no import points from here to an application."""
    package = plugins.find(plugins.TASKS, "unlearn").__module__.rpartition(".")[0]
    try:
        return importlib.import_module(f"{package}.service")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Serving needs the extra `serve` ({error.name} is missing): pip install -e .[serve]."
        ) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where solutions and report.html go.")] = Path("runs/demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the folder holds.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to retrain with.")] = 5,
) -> None:
    """Run all four tasks on handwritten digits."""
    with user_errors():
        importlib.import_module("recipe.demo").run(out, overwrite, seeds)


@app.command("list")
def installed(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Show the installed estimators, tasks and solvers."""
    found = {f"{noun}s": _described(group) for group, noun in plugins.NOUNS.items()}
    typer.echo(json.dumps(found, indent=2) if as_json else "\n\n".join(_listed(*one) for one in found.items()))


def _described(group: str) -> dict[str, dict[str, str]]:
    return {n: {"class": e.value, "about": _about(group, n)} for n, e in plugins.available(group).items()}


def _about(group: str, name: str) -> str:
    try:
        return plugins.about(plugins.find(group, name))
    except ValueError as error:  # one broken plug-in does not hide the others
        return str(error)


def _listed(title: str, entries: Mapping[str, Mapping[str, str]]) -> str:
    width = max((len(name) for name in entries), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {entry['about']}" for name, entry in entries.items())])


def _where(chosen: Tensor) -> list[int]:
    return [int(i) for i in chosen.nonzero().squeeze(1)]
