"""The demo: four questions about training data, asked of handwritten digits, answered, and checked by retraining.

Every task is solved on predicted outputs and verified on true ones, with several seeds where a seed matters. What
people care about is measured on digits that neither the pool nor the targets contain.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recipe import batch as batches
from recipe import plugins, report
from recipe.datamodel import OutputFunction
from recipe.digits import LOGISTIC_SGD, MLP_SGD, SIDE, Digits, Images, flip_labels, load_digits, logistic, mlp
from recipe.inverses import CG
from recipe.newton import Newton
from recipe.outputs import Correct, Loss, TopMargin
from recipe.problem import Arguments
from recipe.record import Folder, check_free, write_folder
from recipe.report import Gallery, Picture, Row, Section, Table
from recipe.retrain import Retrain
from recipe.run import Measured, solve, verify
from recipe.setting import Setting
from recipe.solvers import Convex, GradientAscent, Greedy, TopK

SHOWN = 24  # thumbnails at most in a row
INTRODUCTION = (
    "Training data decides what a model says. Each section writes a question about it as an optimisation problem over "
    "model outputs, plugs in a datamodel that predicts those outputs without training, solves the problem, and then "
    "really retrains to see whether the answer holds. The data are scikit-learn's handwritten digits: a pool to train "
    "on, targets to optimise for, and held-out digits that neither contains."
)


@dataclass(frozen=True)
class Sizes:
    """How large the demo's problems are.

    Args:
        train: points of the pool.
        targets: target digits.
        flipped: the share of the pool that is mislabelled where data are selected.
        choose: how many points are selected.
        stages: of the greedy selection, each with a new datamodel.
        forget: how many points are unlearned.
        forget_sets: how many random ones the unlearning error is averaged over.
        poisons: how many points are added.
        steps: of gradient ascent on their pixels.
        refits: of the datamodel on the way.
        suspects: how many predictions are debugged, those of lowest margin.
        removals: how many blamed points are removed until a prediction flips.
        models: of the ensembles that select and blame.
    """

    train: int = 1000
    targets: int = 200
    flipped: float = 0.3
    choose: int = 300
    stages: int = 4
    forget: int = 50
    forget_sets: int = 5
    poisons: int = 20
    steps: int = 60
    refits: int = 6
    suspects: int = 5
    removals: tuple[int, ...] = (2, 5, 10, 20, 40)
    models: int = 5


def run(
    out: Path = Path("runs/demo"), overwrite: bool = False, seeds: int = 5, sizes: Sizes | None = None
) -> dict[str, Section]:
    """Solve and verify the four tasks, print them, and write the solutions and `report.html`.

    Args:
        out: a new folder, or with `overwrite` any; it is there whole or not at all.
        overwrite: replace what the folder holds.
        seeds: how many seeds to retrain with.
        sizes: of the problems.

    Returns:
        The sections of the report by task: `select`, `unlearn`, `poison`, `debug`.

    Raises:
        FileExistsError: the folder holds something already and `overwrite` is not set.
        ValueError: fewer than one seed.
    """
    check_free(out, overwrite)
    if seeds < 1:
        raise ValueError(f"The demo retrains with at least one seed; got seeds={seeds}.")
    started, sizes = time.perf_counter(), sizes or Sizes()
    digits = _first(load_digits(), sizes)
    print(f"Four tasks on {sizes.train} handwritten digits; this takes about a minute.\n")
    sections = {}
    for name, task in (("select", selection), ("unlearn", unlearning), ("poison", poisoning), ("debug", debugging)):
        sections[name] = task(digits, range(seeds), sizes)
        print(f"{sections[name]}\n", flush=True)
    write_folder(out, lambda folder: _fill(folder, sections), overwrite)
    print(f"{time.perf_counter() - started:.0f} seconds. Solutions and pictures: {Path(out) / 'report.html'}")
    return sections


# ---- the four tasks ------------------------------------------------------------------------------------------------
def selection(digits: Digits, seeds: Sequence[int], sizes: Sizes) -> Section:
    """Which points to train on, where many labels are wrong? Choose for low loss on the targets."""
    train, flipped = flip_labels(digits.train, sizes.flipped, seed=0)
    setting = Setting(mlp, train, digits.targets, MLP_SGD)
    task = _task("select")(size=sizes.choose)
    f_hat = _estimator("ekfac-cg")(models=sizes.models, lazy=True).fit(setting)
    solution = solve(task, f_hat, Greedy(refit=sizes.stages))
    f, chosen = Retrain(setting, seeds), solution.decision
    verification = verify(solution, f)
    baselines = task.problem(f).baselines
    decisions = {
        "full pool": [torch.ones(setting.n)],
        f"{sizes.choose} chosen": [chosen],
        f"{sizes.choose} random": baselines["random"],
        f"{sizes.choose} of lowest loss": [baselines["lowest loss"](f)],
        f"{sizes.choose} random, all labels right": _random_subsets(~flipped, sizes.choose),
    }
    linear = Retrain(Setting(logistic, train, digits.targets, LOGISTIC_SGD), seeds)
    others = {name: decisions[name] for name in list(decisions)[:3]}
    wrong = int((chosen.bool() & flipped).sum())
    return Section(
        "Data selection",
        f"Which {sizes.choose} of {setting.n} digits should a model train on, when {sizes.flipped:.0%} of the labels "
        "are wrong and nobody knows which?",
        f"minimise over w:  mean loss of {setting.m} targets after training on w,   "
        f"w ∈ {{0, 1}}ⁿ,  Σᵢ wᵢ = {sizes.choose}",
        solution,
        verification,
        "mean target loss, lower is better",
        [
            Table(_held_out(digits, "share of correct digits"), _accuracies(f, digits, decisions)),
            Table(
                _held_out(digits, "the same points, another model: share correct of logistic regression"),
                _accuracies(linear, digits, others),
            ),
        ],
        [
            Gallery(
                f"Some of the chosen digits with their labels. {wrong} of the {sizes.choose} are mislabelled; in the "
                f"pool {int(flipped.sum())} of {setting.n} are.",
                _pictures(digits.train, chosen.nonzero().squeeze(1)[:SHOWN], train),
            ),
            Gallery(
                "Some of the mislabelled digits that were left out.",
                _pictures(digits.train, ((chosen == 0) & flipped).nonzero().squeeze(1)[:SHOWN], train),
            ),
        ],
        output="margin",
    )


def unlearning(digits: Digits, seeds: Sequence[int], sizes: Sizes) -> Section:
    """What would the model say had it never seen some points? `seeds` do not matter to an exactly trained model."""
    setting = Setting(logistic, digits.train, digits.targets, Newton(l2=1e-2))
    f = Retrain(setting)
    everything = torch.ones(setting.n)
    deployed = f(everything)
    kind = _task("unlearn")
    tasks = [kind(forget, deployed) for forget in _draws(setting.n, sizes.forget, sizes.forget_sets)]
    step = _estimator("newton-step")().fit(setting)
    solution = solve(tasks[0], step, Convex())

    def error(unlearned: Any) -> Measured:
        return Measured.of([float((unlearned(task) - task.wanted(f)).abs().mean()) for task in tasks])

    influence = _estimator("influence")().fit(setting)
    rows = [
        Row("do nothing", error(lambda task: deployed)),
        Row("unlearned by a Newton step", error(lambda task: task.wanted(step)), "ours"),
        Row("unlearned by influence", error(lambda task: task.wanted(influence))),
    ]
    sets = f"{sizes.forget_sets} random forget sets"
    return Section(
        "Unlearning",
        f"What would the deployed model say had it never seen {sizes.forget} of its {setting.n} training digits?",
        "minimise over u:  mean (u - wanted)²,   wanted = outputs(deployed) + f(w) - f(1),   "
        "w = 0 on the forget set, else 1",
        solution,
        verify(solution, f),
        "mean squared distance of margins from those of the retrained model, lower is better",
        [Table(f"mean absolute error of margins against retraining, in nats, over {sets}; lower is better", rows)],
        [
            Gallery(
                "The first forget set: digits that the model should not have seen.",
                _pictures(digits.train, tasks[0].forget[:SHOWN]),
            )
        ],
        before=deployed,
        output="margin",
    )


def poisoning(digits: Digits, seeds: Sequence[int], sizes: Sizes) -> Section:
    """What could a few malicious points do? Change their pixels so that the targets' losses rise."""
    setting = Setting(logistic, digits.train, digits.targets, LOGISTIC_SGD, output=Loss())
    kind = _task("poison")
    flips = [_beside("poison", "random_label_flips")(setting, sizes.poisons, seed) for seed in range(3)]
    task = kind(flips[0])
    solution = solve(
        task, _estimator("influence")().fit(setting), GradientAscent(lr=0.05, steps=sizes.steps, refit=sizes.refits)
    )
    f, everything = Retrain(setting, seeds), torch.ones(setting.n)
    poisons = task.batch(solution.decision)
    attacks: dict[str, list[Arguments]] = {
        "no poison": [(everything, None)],
        f"{sizes.poisons} random label flips": [(everything, batch) for batch in flips],
        f"{sizes.poisons} poisons": [(everything, poisons)],
    }

    def rows(measure: Retrain) -> list[Row]:
        values = {name: _measured(measure, arguments) for name, arguments in attacks.items()}
        return [Row(name, value, "ours" * name.endswith("poisons")) for name, value in values.items()]

    as_before = [f"as {y}" for y in batches.labels(poisons).tolist()]
    return Section(
        "Poisoning",
        f"How far can {sizes.poisons} malicious digits, {sizes.poisons / setting.n:.0%} of the data, spoil a model?",
        "maximise over x:  mean target loss after training on the pool and the poisons (x, y),   x ∈ [0, 1] in every "
        "pixel,  y fixed",
        solution,
        verify(solution, f),
        "mean target loss, higher is a stronger attack",
        [
            Table(_held_out(digits, "mean loss", "higher is a stronger attack"), rows(f.on(digits.test, Loss()))),
            Table(
                _held_out(digits, "share of correct digits", "lower is a stronger attack"),
                rows(f.on(digits.test, Correct())),
            ),
        ],
        [
            Gallery(
                "Before: random digits of the pool, each with a random wrong label.", _labelled(flips[0][0], as_before)
            ),
            Gallery("After: the same, with the pixels that raise the loss.", _labelled(solution.decision, as_before)),
        ],
        before=f(everything),
        output="loss",
    )


def debugging(digits: Digits, seeds: Sequence[int], sizes: Sizes) -> Section:
    """Which data made the model say this? Blame points for shaky predictions, and retrain without them."""
    setting = Setting(mlp, digits.train, digits.targets, MLP_SGD, output=TopMargin())
    kind, everything = _task("debug"), torch.ones(setting.n)
    whole = Retrain(setting, seeds)
    predicted = _beside("debug", "as_predicted")(whole)
    shaky = whole.on(predicted, TopMargin())(everything).argsort()[: 4 * sizes.suspects]
    suspects = batches.take(predicted, shaky)
    f = whole.on(suspects, TopMargin())
    f_hat = _estimator("influence")(inverse=CG(tolerance=0.05), models=sizes.models).fit(f.setting)
    similar = _estimator("similarity")(models=sizes.models).fit(f.setting)
    task = kind(target=0, remove=sizes.removals[len(sizes.removals) // 2])
    solution = solve(task, f_hat, TopK())
    blame = _beside("debug", "blame")(f_hat, 0, sizes.removals[-1])
    said, truth = int(batches.labels(suspects)[0]), int(digits.targets[1][shaky[0]])
    removed = (solution.decision == 0).nonzero().squeeze(1)
    return Section(
        "Debugging",
        f"Which training digits make a neural network call this one a {said}, and how few of them hold the answer up?",
        f"minimise over w:  margin of the predicted label of one target,   w ∈ {{0, 1}}ⁿ,  "
        f"at most {task.remove} wᵢ = 0",
        solution,
        verify(solution, f),
        "margin of the prediction; below zero it has flipped",
        [_flips(f, {"blamed by influence": f_hat, "most similar": similar}, sizes)],
        [
            Gallery(
                f"The digit in question, really a {truth}; the network says {said}.",
                _labelled(digits.targets[0][shaky[:1]], [f"says {said}"]),
            ),
            Gallery(
                f"The {len(removed)} training digits whose removal was tried: those that hold the prediction up most, "
                "with their labels.",
                _pictures(digits.train, blame.helpful[: len(removed)]),
            ),
            Gallery(
                "The training digits that pull it down most.",
                _pictures(digits.train, blame.harmful[: len(removed)]),
            ),
        ],
        before=f(everything),
        output="margin",
    )


def _flips(f: Retrain, blaming: Mapping[str, OutputFunction], sizes: Sizes) -> Table:
    """How many points each way of blaming has to remove until a prediction flips, the median over the suspects."""
    blame, smallest_flip = _beside("debug", "blame"), _beside("debug", "smallest_flip")
    most, targets = sizes.removals[-1], range(sizes.suspects)
    orders = {name: [blame(f_hat, j, most).helpful for j in targets] for name, f_hat in blaming.items()}
    orders["random"] = list(_draws(f.n, most, 1)) * sizes.suspects
    together = [_without(order[:size], f.n) for each in orders.values() for order in each for size in sizes.removals]
    f(torch.stack(together))  # trains all of them at once; what follows finds its runs
    rows = []
    for name, each in orders.items():
        found = [smallest_flip(order, f, j, sizes.removals).size for j, order in zip(targets, each, strict=True)]
        middle = float(torch.tensor([float("inf") if size is None else size for size in found]).median())
        flipped = sum(size is not None for size in found)
        label = f"{name} ({flipped} of {sizes.suspects} flip)"
        rows.append(Row(label, middle, "ours" * (name == "blamed by influence")))
    tried = ", ".join(map(str, sizes.removals))
    return Table(
        f"points to remove until a prediction flips, tried {tried}: the median over the {sizes.suspects} targets of "
        "lowest margin (inf: most never flip); lower is better",
        rows,
    )


# ---- measuring -----------------------------------------------------------------------------------------------------
def _measured(f: Retrain, arguments: Sequence[Arguments]) -> Measured:
    """The mean output over seeds, or over training sets where there are several."""
    each = [f.per_seed(weights, added).mean(-1) for weights, added in arguments]  # (seeds,)
    return Measured.of([float(values.mean()) for values in each] if len(each) > 1 else each[0].tolist())


def _accuracies(f: Retrain, digits: Digits, decisions: Mapping[str, Sequence[Tensor]]) -> list[Row]:
    correct = f.on(digits.test, Correct())
    return [
        Row(name, _measured(correct, [(w, None) for w in each]), "ours" * name.endswith("chosen"))
        for name, each in decisions.items()
    ]


def _held_out(digits: Digits, what: str, verdict: str = "higher is better") -> str:
    return f"{what} on {len(digits.test[1])} held-out digits; {verdict}"


def _draws(n: int, count: int, draws: int) -> list[Tensor]:
    """Indices of random points, a draw for every seed."""
    return [torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count] for seed in range(draws)]


def _random_subsets(allowed: Tensor, count: int, draws: int = 3) -> list[Tensor]:
    points = allowed.nonzero().squeeze(1)
    return [1 - _without(points[draw], len(allowed)) for draw in _draws(len(points), count, draws)]


def _without(points: Tensor, n: int) -> Tensor:
    """Weights `(n,)` without some points."""
    return torch.ones(n).index_fill(0, points, 0.0)


# ---- pictures ------------------------------------------------------------------------------------------------------
def _pictures(data: Images, points: Tensor, labelled: Images | None = None) -> list[Picture]:
    """Thumbnails with labels; where `labelled` has another label than `data`, a mark tells the right one."""
    pixels, truth = data[0][points], data[1][points].tolist()
    labels = truth if labelled is None else labelled[1][points].tolist()
    return [
        Picture(x.view(SIDE, SIDE), f"{y}", "" if y == right else f"really {right}")
        for x, y, right in zip(pixels, labels, truth, strict=True)
    ]


def _labelled(pixels: Tensor, labels: Sequence[str]) -> list[Picture]:
    return [Picture(x.view(SIDE, SIDE), label) for x, label in zip(pixels[:SHOWN], labels, strict=False)]


# ---- the rest ------------------------------------------------------------------------------------------------------
def _first(digits: Digits, sizes: Sizes) -> Digits:
    """The demo's share of the digits."""
    train, targets = (
        (part[0][:count], part[1][:count])
        for part, count in ((digits.train, sizes.train), (digits.targets, sizes.targets))
    )
    return Digits(train, targets, digits.test)


def _estimator(name: str) -> Any:
    return plugins.find(plugins.ESTIMATORS, name)


def _task(name: str) -> Any:
    return plugins.find(plugins.TASKS, name)


def _beside(task: str, name: str) -> Any:
    """A function from the module of a plug-in."""
    return getattr(plugins.module(plugins.TASKS, task), name)


def _fill(folder: Folder, sections: Mapping[str, Section]) -> None:
    for name, section in sections.items():
        (folder.path / name).mkdir()
        inside = Folder(folder.path / name)  # one for both, so that their arrays get different names
        section.solution.fill(inside)
        section.verification.fill(inside)
    page = report.html("The plug-in recipe on handwritten digits", INTRODUCTION, list(sections.values()))
    (folder.path / "report.html").write_text(page, encoding="utf-8")
