"""Subpopulations: do planted groups come out as a leading component of the effects?

Two plants in the digits: the sevens of one half turned by 90 degrees (in training and targets), and a bright corner
mark on 20 % of the ones. Precision is the share of the group among as many targets at an end of a component. Effects
are decomposed within the class (its own targets and training points), where the *first* component counts, and over all
797 targets, where the classes come first and the best of 20 is shown.

How effects are decomposed, through which outputs, and the rank were chosen on other draws, 50 to 53.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from applications.debugging import subpopulations
from applications.debugging.subpopulations import precision
from benchmarks.tables import mean, table
from estimators.ekfac import EKFAC
from estimators.logra import LoGra
from estimators.random import Random
from estimators.similarity import Similarity
from recipe import Estimator, Logits, Margin, Setting
from recipe.digits import CLASSES, MLP_SGD, SIDE, load_digits, mlp
from recipe.setting import Measure

DRAWS, MODELS, COMPONENTS = range(5), 5, 20
Plant = tuple[str, float, Callable[[Tensor], Tensor]]


def turned(x: Tensor) -> Tensor:
    """Turned by 90 degrees."""
    return x.view(-1, SIDE, SIDE).rot90(1, (1, 2)).flatten(1)


def marked(x: Tensor) -> Tensor:
    """With a bright corner of 2 x 2 pixels."""
    x = x.clone().view(-1, SIDE, SIDE)
    x[:, :2, :2] = 1.0
    return x.flatten(1)


TURNED: Plant = ("half of a class turned", 0.5, turned)
MARKED: Plant = ("a corner mark on 20 % of a class", 0.2, marked)


def plant(
    images: tuple[Tensor, Tensor], digit: int, share: float, change: Callable[[Tensor], Tensor], seed: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The images with a share of a digit's changed, and which."""
    x, y = images
    own = (y == digit).nonzero().squeeze(1)
    chosen = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[: round(share * len(own))]]
    members = torch.zeros(len(y), dtype=torch.bool).index_fill(0, chosen, True)
    return (torch.where(members[:, None], change(x), x), y), members


def world(what: Plant, digit: int, draw: int) -> tuple[Setting, Tensor]:
    """The digits with a planted group, and which targets are its members."""
    digits = load_digits()
    whole = (torch.cat([digits.targets[0], digits.test[0]]), torch.cat([digits.targets[1], digits.test[1]]))
    _, share, change = what
    train, _ = plant(digits.train, digit, share, change, seed=2 * draw)
    targets, members = plant(whole, digit, share, change, seed=2 * draw + 1)
    return Setting(mlp, train, targets, MLP_SGD), members


def precisions(
    estimator: Estimator, output: Measure, setting: Setting, members: Tensor, digit: int | None, components: int
) -> list[float]:
    """The precision of each component, at its better end; within a digit, or over all targets."""
    (_, train), (_, labels) = setting.pool, setting.probe
    if digit is None:
        found = subpopulations(estimator.fit(setting.on(setting.targets, output)), components, clusters=CLASSES)
    else:
        rows = (labels == digit).nonzero().squeeze(1)
        own = setting.on(tuple(t[rows] for t in setting.probe), output)
        members = members[rows]
        found = subpopulations(estimator.fit(own), components, clusters=2, points=(train == digit).nonzero())
    size = int(members.sum())
    return [max(precision(end, members, size) for end in found.ends(c, size)) for c in range(components)]


def methods(draw: int) -> list[tuple[str, Estimator, Measure]]:
    """Estimators with the outputs that are decomposed."""
    seeds = {"models": MODELS, "seed": 1000 * draw}
    return [
        (f"`LoGra(rank=48, models={MODELS})`, logits", LoGra(rank=48, **seeds), Logits()),
        (f"`EKFAC(models={MODELS})`, logits", EKFAC(**seeds), Logits()),
        (f"`LoGra(rank=48, models={MODELS})`, margin", LoGra(rank=48, **seeds), Margin()),
        (f"`Similarity(models={MODELS})`, margin", Similarity(**seeds), Margin()),
        ("`Random()`, margin", Random(seed=draw), Margin()),
    ]


def within() -> None:
    """A row a plant and a method: the first component of the class."""
    rows = []
    for what, named in ((TURNED, 7), (MARKED, 1)):
        found: dict[str, list[list[float]]] = {}
        everywhere: dict[str, list[list[float]]] = {}
        for draw in DRAWS:
            for digit in range(CLASSES):
                setting, members = world(what, digit, draw)
                for name, estimator, output in methods(draw) if digit == named else methods(draw)[:1]:
                    each = precisions(estimator, output, setting, members, digit, 3)
                    everywhere.setdefault(name, []).append(each)
                    if digit == named:
                        found.setdefault(name, []).append(each)
        for name, draws in found.items():
            first, best = ([of(each) for each in draws] for of in (lambda e: e[0], max))
            rows.append((f"{what[0]}: {named}", name, mean(first, 2), mean(best, 2)))
            if len(everywhere[name]) > len(draws):
                first, best = ([of(each) for each in everywhere[name]] for of in (lambda e: e[0], max))
                rows.append((f"{what[0]}: each digit in turn", name, mean(first, 2), mean(best, 2)))
    header = ("planted", "effects of", "first component", "best of three")
    table(f"Subpopulations within their class: precision at the group's size, {len(DRAWS)} draws", header, rows)


def among_all() -> None:
    """A row a plant and a method: the best component of all targets, and which it is."""
    rows = []
    for what, digit in ((TURNED, 7), (MARKED, 1)):
        for k, (name, *_) in enumerate(methods(0)):
            if "margin" not in name:
                continue
            best, places = [], []
            for draw in DRAWS:
                setting, members = world(what, digit, draw)
                _, estimator, output = methods(draw)[k]
                each = precisions(estimator, output, setting, members, None, COMPONENTS)
                best.append(max(each))
                places.append(str(each.index(max(each)) + 1))
            rows.append((f"{what[0]}: {digit}", name, mean(best, 2), ", ".join(places)))
    header = ("planted", "effects of", f"best of {COMPONENTS} components", "which, by draw")
    table(f"The same among all targets, {len(DRAWS)} draws", header, rows)


def main() -> None:
    """Both tables."""
    within()
    among_all()


if __name__ == "__main__":
    main()
