"""What sanitisation lets through, as feasible sets of poison inputs: spheres, slabs and loss caps.

A defender throws away what lies far from its class's centroid (sphere), far out along the line between the centroids
(slab), or has a large loss under a model trained on clean data (loss cap). An attacker who stays within the radii that
hold most of the clean data is not thrown away. All are convex in the input: balls, pairs of planes, and, for models
that are linear in the input, a half-space.

    sphere   |x - mu_y| <= r_y        slab   |<x - mu_y, u>| <= s_y,  u along mu_y - mu_other    loss   l(x, y) <= t_y

Reference: Koh, Steinhardt & Liang, "Stronger Data Poisoning Attacks Break Data Sanitization Defenses", 2022,
arXiv:1811.00741. As there, centroids and radii come from the clean data, and a radius is a percentile of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences._geometry import Centroids, inputs_of, labels_of
from applications.poisoning._inputs import replaced
from recipe import batch as batches
from recipe.batch import Batch
from recipe.example_sets import Balls, Integers, Intersection, Slabs, common_point
from recipe.feasible import Box
from recipe.setting import Parameters, Setting

SLACK = 1e-5  # of a radius, kept between the poisons and the edge of what is let through


@dataclass(frozen=True)
class Sanitation:
    """What the attacker expects to be thrown away.

    Args:
        sphere: whether by the distance to the own centroid.
        slab: whether along the line between the centroids.
        loss_cap: whether by the loss under a linear model trained on the clean data.
        percentile: of the clean examples of a class that each rule keeps.
        entry: of the inputs in a batch.
    """

    sphere: bool = True
    slab: bool = True
    loss_cap: bool = False
    percentile: float = 90.0
    entry: int | str = 0

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise ValueError(f"A percentile lies above 0 and at 100 at most; got {self.percentile}.")

    def allowed(
        self, setting: Setting, y: Tensor, within: Box | Intersection, whole: bool = False
    ) -> Intersection | Integers:
        """The inputs of poisons with labels `y` `(b,)` that pass, inside a set of their shape.

        Args:
            setting: whose universe is the clean data.
            y: the poisons' labels.
            within: what is an input at all: pixel range, counts.
            whole: only whole numbers.

        Raises:
            ValueError: nothing of `within` passes.
        """
        x, own = inputs_of(setting.pool, self.entry), labels_of(setting.pool)
        centroids = Centroids.of(x, own)
        shape = (len(y), *x.shape[1:])
        means = centroids.own(y).reshape(shape)
        sets: list = list(within.sets) if isinstance(within, Intersection) else [within]
        if self.sphere:
            radius = self._quantile(centroids.distances(x, own), own, y)
            sets.append(Balls(means, radius * (1 - SLACK)))
        if self.slab:
            reach = self._quantile(centroids.along(x, own).abs(), own, y) * (1 - SLACK)
            normals = centroids.normals(y)
            middle = (normals * centroids.own(y)).sum(1)
            sets.append(Slabs(normals.reshape(shape), middle - reach, middle + reach))
        if self.loss_cap:
            sets.append(self._capped(setting, y, shape))
        inside = common_point(sets, within.project(means))
        self._check(torch.stack([s.excess(inside) for s in sets]).amax(0), y)
        met = Intersection(tuple(sets), inside)
        return Integers(met) if whole else met

    def _check(self, excess: Tensor, y: Tensor) -> None:
        """Raises `ValueError` for poisons that can be nowhere."""
        stuck = (excess > 0).nonzero().squeeze(1)
        if len(stuck):
            raise ValueError(
                f"{len(stuck)} of {len(y)} poisons cannot pass: no input allowed for poison {int(stuck[0])} (label "
                f"{int(y[stuck[0]])}) is within the percentile {self.percentile:g} of its class. Let poisons move "
                "farther from their start, raise the percentile, or start from points of that class (clean labels)."
            )

    def _quantile(self, scores: Tensor, own: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.quantile(scores[own == c], self.percentile / 100) for c in y.tolist()])

    def _capped(self, setting: Setting, y: Tensor, shape: tuple[int, ...]) -> Slabs:
        """Half-spaces where the margin under the clean model is at least what the percentile of its class has.

        Losses of two-class linear models fall with the margin, so that a cap on one is a floor under the other.
        """
        theta = setting.algorithm.train(setting, torch.ones(setting.n), 0)
        margin = linear_margin(setting, theta, shape[1:], self.entry)
        x, own = inputs_of(setting.pool, self.entry), labels_of(setting.pool)
        slope, bias = margin
        signed = (x.flatten(1) @ slope + bias) * _sign(own)
        floor = -self._quantile(-signed, own, y) + SLACK  # on sign * (slope x + bias)
        sign = _sign(y)
        normals = (sign[:, None] * slope).reshape(shape)
        return Slabs(normals, floor - sign * bias, torch.full_like(floor, torch.inf))


def let_through(
    setting: Setting, start: Batch, within: Box, entry: int | str, percentile: float
) -> Intersection | Integers:
    """What of a box passes spheres and slabs at a percentile of the clean data, for poisons with these labels."""
    return Sanitation(percentile=percentile, entry=entry).allowed(setting, batches.labels(start), within)


def linear_margin(
    setting: Setting, theta: Parameters, shape: tuple[int, ...], entry: int | str = 0
) -> tuple[Tensor, Tensor]:
    """`z_1 - z_0 = <slope, x> + bias` of a two-class model that is linear in its inputs: `(d,)` and a number.

    Raises:
        ValueError: more than two classes, or a model that is not linear in them.
    """
    one = batches.take(setting.pool, slice(0, 1))

    def logits(x: Tensor) -> Tensor:
        batch = replaced(one, entry, x)
        z = setting.predict(theta, batch)
        if z.shape[-1] != 2:
            raise ValueError(f"Loss caps are half-spaces for two classes; this model predicts {z.shape[-1]}.")
        return z[0, 1] - z[0, 0]

    points = [inputs_of(setting.pool, entry)[:1] * scale for scale in (0.0, 1.0)]
    slopes = [torch.func.grad(logits)(x) for x in points]
    if not torch.allclose(slopes[0], slopes[1], rtol=1e-4, atol=1e-6):
        raise ValueError("Loss caps are half-spaces for models that are linear in their inputs; this one is not.")
    return slopes[0].flatten(), logits(points[0]).detach()


def _sign(y: Tensor) -> Tensor:
    return (2 * y - 1).float()
