"""What two algorithms learn differently from the same data (ModelDiff).

With the effects of target x under algorithm A and B, on all its outputs, scaled to length one, the residual

    a_x - <a_x, b_x> b_x

is what A does with the training data that B does not. Directions in which the residuals of all targets vary most are
*distinguishing*: training points that lie far along them matter to A alone. Looking at them suggests a transformation
of targets (add the mark, blur the sky) that should move A's outputs and not B's; `try_out(Transform(...), ...)` on both
tells.

Reference: Shah, Park, Ilyas & Madry, "ModelDiff: A Framework for Comparing Learning Algorithms", 2022,
arXiv:2211.12491.
Deviation: before that, the columns of the effects (a training point, an output) are scaled to length one over the
targets. What an algorithm learns easily, such as a mark, it learns well, and the points that taught it have small
effects in the end; by size alone the directions are those of hard points.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.debugging.subpopulations import SCORE, TINY, _svd, by_output
from recipe.datamodel import OutputFunction, measure_alike
from recipe.findings import Card, Examples, Exhibit, Exhibits, Finding, Grid, Strip, Term
from recipe.findings.examples import check_examples

ROUNDING = 1e-6  # a share of the effects that B does not have, below which there is no difference


@dataclass(frozen=True, eq=False)
class Comparison:
    """Directions in the training data that matter to A and not to B.

    Args:
        directions: `(c, n)`, of length one; over several outputs the length of what a point has in them.
        scores: `(targets, c)`: how strongly each target's residual lies along them.
        explained: `(c, 2)`: the share of A's and of B's effects, of length one each, along each direction.
        alike: `(targets,)` cosines of the effects of A and B.
        names: of A and B.
    """

    directions: Tensor
    scores: Tensor
    explained: Tensor
    alike: Tensor
    names: tuple[str, str] = ("A", "B")

    def points(self, direction: int, k: int) -> Tensor:
        """The k training points that lie furthest along a direction."""
        return self.directions[direction].argsort(descending=True, stable=True)[:k]

    def targets(self, direction: int, k: int) -> Tensor:
        """The k targets whose residual lies furthest along a direction."""
        return self.scores[:, direction].argsort(descending=True, stable=True)[:k]

    def to_pandas(self) -> Any:
        """A row a target: `alike`, and its score on every direction."""
        import pandas as pd

        names = [f"direction {c}" for c in range(self.scores.shape[1])]
        frame = pd.DataFrame(self.scores.cpu().numpy(), columns=names)
        frame.insert(0, "alike", self.alike.cpu().numpy())
        return frame.rename_axis("target")

    def finding(self, points: Examples, targets: Examples, k: int = 10) -> Finding:
        """A section of a report."""
        check_examples(targets, len(self.scores), "targets")
        check_examples(points, self.directions.shape[1], "training points")
        a, b = self.names
        columns = [
            Term("direction", f"A direction in the training data that matters to {a} and not to {b}."),
            Term(f"in {a}", f"The share of {a}'s effects, of length one each, that lies along it."),
            Term(f"in {b}", f"The same share of {b}'s effects; near zero means that {b} does not use it."),
        ]
        rows = [(c, float(x), float(y)) for c, (x, y) in enumerate(self.explained)]
        items = []
        for c in range(len(self.directions)):
            seen = [
                Card(targets[j], f"target {j}", f"{float(self.scores[j, c]):+.2g}") for j in self.targets(c, k).tolist()
            ]
            own = [
                Card(points[i], f"point {i}", f"{float(self.directions[c, i]):+.2g}")
                for i in self.points(c, k).tolist()
            ]
            strips = [Strip("Targets", seen, SCORE), Strip("Training points", own, SCORE)]
            items.append(
                Exhibit(
                    Card(points[int(self.points(c, 1))], f"direction {c}", f"{float(self.explained[c, 0]):.1%}"), strips
                )
            )
        return Finding(
            f"What {a} learns and {b} does not",
            f"Which training data do predictions of {a} rest on that those of {b} do not?",
            f"The effects of {a} and {b} agree with a mean cosine of {float(self.alike.mean()):.2f}. {self._told()}",
            [Exhibits("Distinguishing directions", items, columns[1]), Grid("Shares of the effects", columns, rows)],
            frame=self.to_pandas,
        )

    def _told(self) -> str:
        a, b = self.names
        if float((1 - self.alike.square()).mean()) < ROUNDING:
            return "They are the same up to rounding: nothing tells them apart, and the directions below mean nothing."
        return (
            f"The first residual direction holds {float(self.explained[0, 0]):.1%} of {a}'s effects and "
            f"{float(self.explained[0, 1]):.1%} of {b}'s. What its examples share is a hypothesis: transform targets "
            "accordingly, and test it on both."
        )


def compare(
    a: OutputFunction, b: OutputFunction, components: int = 5, names: tuple[str, str] = ("A", "B"), seed: int = 0
) -> Comparison:
    """Directions that matter to datamodel A and not to B; swap them for the other way round.

    Args:
        a: a datamodel of one algorithm, best of `Logits()`.
        b: of the other, on the same universe, targets and output.
        components: how many directions.
        names: of the two algorithms, to read.
        seed: of the decomposition.

    Raises:
        ValueError: datamodels of different universes, targets or outputs, or more components than targets.
    """
    if (a.n, a.output_shape) != (b.n, b.output_shape):
        raise ValueError(
            "The datamodels must be of the same universe and targets; they have "
            f"{a.n} points and outputs {a.output_shape}, and {b.n} points and outputs {b.output_shape}."
        )
    if a.setting is not None and b.setting is not None and not measure_alike(a.setting, b.setting):
        raise ValueError(
            "The datamodels are of different universes, targets or outputs, so that their effects cannot be compared. "
            "Fit both estimators to settings that differ in the model or the algorithm alone."
        )
    t = a.output_shape[0]
    if not 1 <= components <= min(t, a.n):
        raise ValueError(f"There are 1 to {min(t, a.n)} directions; got components={components}.")
    rows, others = (_rows(by_output(f_hat)) for f_hat in (a, b))
    alike = (rows * others).sum(1)
    residuals = rows - alike[:, None] * others
    _, _, v = _svd(residuals, components, seed)
    scores = residuals @ v.T
    flip = (scores.sum(0) < 0) * -2.0 + 1.0  # most targets lie on the positive side
    along = torch.stack([(x @ v.T).square().mean(0) for x in (rows, others)], 1)
    parts = (v * flip[:, None]).view(components, -1, a.n)  # (c, outputs, n)
    directions = parts[:, 0] if parts.shape[1] == 1 else parts.norm(dim=1)
    return Comparison(directions, scores * flip, along, alike, names)


def _rows(effects: Tensor) -> Tensor:
    """The effects `(t, C, n)` of a target as a row of length one, once every column has length one."""
    return F.normalize(F.normalize(effects, dim=0, eps=TINY).flatten(1), eps=TINY)
