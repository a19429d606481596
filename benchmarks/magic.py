"""MAGIC from one run of the digits MLP: how well it predicts training again, and what it costs in training runs.

A smooth and a rough run, and one of AdamW, each of one seed. Small drops are compared with the replay of that seed,
since a fresh seed moves the outputs more than a few points do. Half of the points are compared with both; trained anew,
they take 280 steps instead of 600, which `alpha` knows.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.estimators.settings import SETTINGS
from benchmarks.tables import Clock, table
from estimators._replay import Replay, Run
from estimators.magic import MAGIC, MAGICDatamodel, SmoothnessCheck
from recipe import SGD, AdamW, Retrain, Setting, random_subsets
from recipe import batch as batches
from recipe.digits import load_digits
from recipe.lds import score

SMOOTH = SGD(epochs=40, batch_size=64, lr=0.02, momentum=0.9, weight_decay=1e-3, replay=True)
RUNS = {
    "GELU, SGD, lr 0.02": (nn.GELU, SMOOTH),
    "ReLU, SGD, lr 0.1": (nn.ReLU, replace(SMOOTH, lr=0.1)),
    "GELU, AdamW, lr 0.001": (nn.GELU, AdamW(epochs=40, batch_size=64, lr=1e-3, replay=True)),
}
DROPS = (0.01, 0.05, 0.1, 0.5)
SUBSETS, FRESH = 100, range(1, 6)  # MAGIC follows seed 0
TOGETHER, ROUNDS = 40, 3


def setting_of(name: str, targets: int = 200) -> Setting:
    activation, algorithm = RUNS[name]
    digits = load_digits()
    model = lambda: nn.Sequential(nn.Linear(64, 128), activation(), nn.Linear(128, 10))  # noqa: E731
    return Setting(model, digits.train, batches.take(digits.targets, slice(0, targets)), algorithm)


def quality(name: str) -> list[tuple[str, ...]]:
    """A row for every share of dropped points, every truth, every fit."""
    replayed = setting_of(name)
    anew = replace(replayed, algorithm=replace(replayed.algorithm, replay=False))
    clock = Clock()
    whole = MAGIC().fit(replayed)
    first = clock()
    half = MAGIC(alpha=0.5).fit(anew)
    fits = {"`MAGIC()`": (whole, first), "`MAGIC(alpha=0.5)`": (half, clock() - first)}
    f, fresh = Retrain(replayed), Retrain(anew, FRESH)
    rows = [("`MAGIC()`", drop, "replay", f) for drop in DROPS]
    rows += [(fit, 0.5, f"{len(FRESH)} fresh seeds", fresh) for fit in fits]
    return [_row(name, fit, *fits[fit], drop, truth, actual) for fit, drop, truth, actual in rows]


def _row(
    name: str,
    fit: str,
    f_hat: MAGICDatamodel,
    seconds: float,
    drop: float,
    truth: str,
    f: Retrain,
    subsets: int = SUBSETS,
) -> tuple[str, ...]:
    drawn = random_subsets(f.n, r=subsets, alpha=1 - drop, seed=10_000)
    with torch.no_grad():
        found = score(f_hat(drawn).double(), f.per_seed(drawn).double())
    low, high = found.ci
    figures = (f"{found.mean:.3f} [{low:.3f}, {high:.3f}]", f"{found.slope:.2f}")
    return (name, fit, f"{f_hat.smoothness.agreement:.2f}", f"{seconds:.0f}", f"{drop:.0%}", truth, *figures)


def character_gpt(eps: float) -> list[tuple[str, ...]]:
    """A two-layer GPT on characters (needs TOFU in RECIPE_DATA): ten or a hundred of 1 000 answers dropped, replayed.

    AdamW with its usual eps divides the gradients of rare characters by nearly nothing, and no run is smooth then.
    """
    case = SETTINGS["TOFU GPT"]().setting
    algorithm = AdamW(epochs=10, batch_size=50, lr=1e-3, eps=eps, replay=True)
    targets = batches.take(case.probe, slice(0, TOGETHER))
    setting = replace(case, algorithm=algorithm, targets=targets)
    clock = Clock()
    f_hat = MAGIC(check=SmoothnessCheck(replays=3)).fit(setting)
    seconds, f = clock(), Retrain(setting)
    name = f"character GPT, AdamW, lr 0.001, eps {eps:g}"
    return [_row(name, "`MAGIC()`", f_hat, seconds, drop, "replay", f, 20) for drop in (0.01, 0.1)]


def fastest(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of a few rounds: what else runs on the machine only adds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def cost(name: str) -> tuple[str, ...]:
    """Fits in training runs."""
    one, many = setting_of(name, 1), setting_of(name, TOGETHER)
    run = fastest(lambda: one.algorithm.train(one, torch.ones(one.n), 0))
    unchecked = MAGIC(check=None)
    alone, checked = (fastest(lambda m=m: m.fit(one)) / run for m in (unchecked, MAGIC()))
    together = fastest(lambda: unchecked.fit(many)) / run
    return (
        name,
        f"{run:.2f}",
        f"{alone:.1f}",
        f"{checked:.1f}",
        f"{together:.1f}",
        f"{together / TOGETHER / alone:.2f}",
    )


def memory(epochs: int) -> tuple[str, ...]:
    """States that are kept, and held at most, of a run of so many epochs."""
    setting, algorithm = setting_of("GELU, SGD, lr 0.02", 1), replace(SMOOTH, epochs=epochs)
    clock = Clock()
    weights = torch.ones(setting.n)
    replay = Replay.of(Run(setting, algorithm, weights, 0, algorithm.plan(weights).total), lambda _: None)
    return (str(replay.run.steps), str(len(replay.kept)), str(len(replay.kept) + replay.stride), f"{clock():.1f}")


def main() -> None:
    """Quality, cost, memory."""
    warnings.filterwarnings("ignore", message="The run does not look smooth")  # the table says so
    title = f"MAGIC from one run, margins of 200 digits, {SUBSETS} subsets a row"
    header = ("run", "fit", "agreement", "seconds to fit", "dropped", "truth", "LDS [95 %]", "slope")
    table(title, header, [row for name in RUNS for row in quality(name)])
    table("40 targets, 20 subsets", header, [row for eps in (1e-3, 1e-8) for row in character_gpt(eps)])
    header = ("run", "seconds of training", "one target", "with the check", f"{TOGETHER} targets", "of as many passes")
    table(f"Cost in training runs, fastest of {ROUNDS}", header, [cost(name) for name in RUNS])
    header = ("steps T", "states kept", "states held at most", "seconds of the replay")
    table("Memory grows with the root of the steps", header, [memory(epochs) for epochs in (10, 40, 160)])


if __name__ == "__main__":
    main()
