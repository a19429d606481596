"""The condition that poisons are to meet: parameters of a linear model are optimal where the gradient is zero.

    sum_i w_i l'_i x_i  +  N l2 theta  +  sum_y e_y l'_y x_y  =  0,

in the slope of the decision and its bias (`linear_view.py`): a clean part, which a line decides, and the poisons' part.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from applications.defences._geometry import inputs_of
from applications.poisoning.linear_view import Line, LinearView, loss_slopes
from recipe import batch as batches
from recipe.setting import Setting

FAR = 36.0  # a margin beyond which no loss has a derivative that a double can tell from zero
CORNER = 1e-6  # kept from the margin where a loss ends


@dataclass(frozen=True, eq=False)
class Stationarity:
    """The gradient of a training objective with poisons, one point a label.

    Args:
        setting: the attacker's.
        view: of its model.
        y: `(k,)`, the labels that have poisons.
        copies: `(k,)`, how many poisons carry each.
        weights: `(n,)` of the clean points.
    """

    setting: Setting
    view: LinearView
    y: Tensor
    copies: Tensor
    weights: Tensor

    @cached_property
    def clean(self) -> tuple[Tensor, Tensor]:
        """Inputs `(n, d)` and labels of the clean data."""
        return inputs_of(self.setting.pool, self.view.entry).double(), batches.labels(self.setting.pool)

    @property
    def sign(self) -> Tensor:
        """-1 for label 0, 1 for label 1, `(k,)`."""
        return 2.0 * self.y.double() - 1

    @property
    def decay(self) -> float:
        """What the penalty's gradient is multiplied with beside a sum of losses: `N l2`."""
        return self.setting.algorithm.objective.l2 * self.count

    @property
    def count(self) -> float:
        """What the sum of losses is divided by."""
        goal = self.setting.algorithm.objective
        return float(self.weights.sum() + self.copies.sum()) if goal.mean else 1.0

    @cached_property
    def corner(self) -> float:
        """The largest margin with a loss that still falls: 1 for the hinge, `FAR` for losses that never end."""
        low, high = -FAR, FAR
        one = torch.ones(1, dtype=torch.long)
        if float(loss_slopes(self.setting.loss, torch.tensor([high]), one)[1]) < 0:
            return FAR
        while high - low > CORNER / 2:
            middle = (low + high) / 2
            falls = float(loss_slopes(self.setting.loss, torch.tensor([middle]).double(), one)[1]) < 0
            low, high = (middle, high) if falls else (low, middle)
        return low

    def slopes(self, margins: Tensor) -> Tensor:
        """Derivatives of the poisons' losses in `z_1 - z_0`, `(k,)`; at a corner those before it."""
        inner = margins.clamp(max=self.corner - CORNER)
        return loss_slopes(self.setting.loss, self.sign * inner, self.y)[1]

    def clean_gradient(self, line: Line) -> tuple[Tensor, float]:
        """Of the clean losses' sum and the penalty, in slope `(d,)` and bias."""
        x, y = self.clean
        slopes = self.weights * loss_slopes(self.setting.loss, line(x), y)[1]
        slope, bias = self.view.penalty_slopes(line)
        return slopes @ x + self.decay * slope, float(slopes.sum()) + self.decay * bias

    def residual(self, line: Line, points: Tensor, margins: Tensor) -> float:
        """What is left of the gradient with poisons at points `(k, d)` of these margins, as a length in theta."""
        slope, bias = self.clean_gradient(line)
        pull = self.copies * self.slopes(margins)
        return self.view.norm(slope + pull @ points.double(), bias + float(pull.sum())) / self.count
