"""Poisons on disk: the examples as `.npz`, a grid of pictures for images, the threat in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from recipe import batch as batches
from recipe.batch import Batch
from recipe.record import Folder

SHOWN = 64  # poisons of a grid


@dataclass(frozen=True, eq=False)
class Poisons:
    """What an attack adds, beside what it started from.

    Args:
        added: the poisons.
        start: where they started.
        entry: of the inputs in a batch.
        threat: what the attacker was allowed, in plain words and numbers.
    """

    added: Batch
    start: Batch
    entry: int | str
    threat: Mapping[str, Any]

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self.threat.items())
        return f"{batches.size(self.added)} poisons: {said}"

    def fill(self, folder: Folder) -> None:
        """Write `poisons.npz` (inputs, labels, start), `threat_model.json`, and `poisons.png` for images."""
        inputs, start = self.added[self.entry], self.start[self.entry]  # type: ignore[index]
        y = batches.labels(self.added)
        arrays = {"inputs": inputs, "labels": y, "start": start}
        np.savez(folder.path / "poisons.npz", **{k: t.detach().cpu().numpy() for k, t in arrays.items()})  # type: ignore
        folder.write("threat_model.json", dict(self.threat))
        pictures = as_pictures(inputs)
        if pictures is not None:
            save_grid(folder.path / "poisons.png", pictures, y)


def as_pictures(inputs: Tensor) -> np.ndarray | None:
    """Inputs as grey or colour pictures `(b, h, w)` or `(b, h, w, 3)`; None where they are none.

    Flat inputs of a square number of entries, at least 8 x 8, are taken for grey pictures.
    """
    x = inputs.detach().cpu().float()
    if x.ndim == 2 and math.isqrt(x.shape[1]) ** 2 == x.shape[1] >= 64:
        side = math.isqrt(x.shape[1])
        return x.reshape(-1, side, side).numpy()
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return x.movedim(1, -1).squeeze(-1).numpy()
    return None


def save_grid(path: Any, pictures: np.ndarray, y: Tensor) -> None:
    """The first poisons in a grid, each under its label."""
    from matplotlib.figure import Figure  # slow to import

    shown = pictures[:SHOWN]
    columns = min(8, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(1.2 * columns, 1.4 * rows))
    low, high = float(shown.min()), float(shown.max())
    for k, picture in enumerate(shown):
        axes = figure.add_subplot(rows, columns, k + 1)
        scaled = (picture - low) / (high - low) if high > low else picture * 0
        axes.imshow(scaled, cmap="gray", vmin=0, vmax=1)
        axes.set_title(str(int(y[k])), fontsize=8)
        axes.axis("off")
    figure.savefig(path, dpi=90, bbox_inches="tight", metadata={"Software": None})
