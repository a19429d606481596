"""Subpopulations: do planted groups come out as a leading component of the effects?

Two plants in the digits: the sevens of one half turned by 90 degrees (in training and targets), and a bright corner
mark on 20 % of the ones. Precision is the share of the group among as many targets at the end of a component.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from applications.debugging import subpopulations
from applications.debugging.subpopulations import precision
from benchmarks.tables import table
from estimators.ekfac import EKFAC
from estimators.logra import LoGra
from estimators.similarity import Similarity
from recipe import Margin, Setting
from recipe.digits import MLP_SGD, SIDE, load_digits, mlp

COMPONENTS = 20  # twice as many as classes, which are the first of them
METHODS = {
    "`LoGra(models=5)`": LoGra(models=5),
    "`EKFAC(models=5)`": EKFAC(models=5),
    "`Similarity(models=5)`": Similarity(models=5),
}


def turned(x: Tensor) -> Tensor:
    """Turned by 90 degrees."""
    return x.view(-1, SIDE, SIDE).rot90(1, (1, 2)).flatten(1)


def marked(x: Tensor) -> Tensor:
    """With a bright corner of 2 x 2 pixels."""
    x = x.clone().view(-1, SIDE, SIDE)
    x[:, :2, :2] = 1.0
    return x.flatten(1)


def plant(
    images: tuple[Tensor, Tensor], digit: int, share: float, change: Callable[[Tensor], Tensor], seed: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The images with a share of a digit's changed, and which."""
    x, y = images
    own = (y == digit).nonzero().squeeze(1)
    chosen = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))[: round(share * len(own))]]
    members = torch.zeros(len(y), dtype=torch.bool).index_fill(0, chosen, True)
    return (torch.where(members[:, None], change(x), x), y), members


def main() -> None:
    """A row a plant and an estimator."""
    digits = load_digits()
    whole = (torch.cat([digits.targets[0], digits.test[0]]), torch.cat([digits.targets[1], digits.test[1]]))
    rows = []
    for name, digit, share, change in (
        ("half of the 7s turned", 7, 0.5, turned),
        ("corner mark on 20 % of the 1s", 1, 0.2, marked),
    ):
        train, _ = plant(digits.train, digit, share, change, seed=0)
        targets, members = plant(whole, digit, share, change, seed=1)
        setting = Setting(mlp, train, targets, MLP_SGD, output=Margin())
        size = int(members.sum())
        for method, estimator in METHODS.items():
            found = subpopulations(estimator.fit(setting), COMPONENTS, clusters=10)
            each = [(precision(end, members, size), c) for c in range(COMPONENTS) for end in found.ends(c, size)]
            best, component = max(each)
            rows.append(
                (name, method, str(size), f"{best:.2f}", str(component + 1), f"{float(found.explained[component]):.3f}")
            )
    header = (
        "planted",
        "estimator",
        "members",
        "precision at the group's size",
        f"component (of {COMPONENTS})",
        "its variance",
    )
    table("Subpopulations: planted groups among the components of the effects of 797 targets", header, rows)


if __name__ == "__main__":
    main()
