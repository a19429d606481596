"""Stretching a decoy: the same decisions with larger margins, so that poisons need not stand out by their loss.

A cap on the poisons' losses is a floor under their margins. Multiplied with the line, the condition of
`_stationarity.py` is one equation in margins,

    sum_i w_i l'_i m_i + N l2 (|slope|^2 / a + bias^2 / c)  =  - sum_y e_y l'_y m_y,

whose right side has a least value over allowed margins; the least factor on the line is taken at which the left side
reaches it.
"""

import torch
from torch import Tensor

from applications.poisoning._stationarity import CORNER, Stationarity
from applications.poisoning.linear_view import Line, loss_slopes

STRETCHES = 1 + 0.02 * torch.arange(51, dtype=torch.float64)  # 1 to 2


def least_margins(condition: Stationarity, line: Line, loss_cap: float | None) -> Tensor:
    """Those at which a poison's loss is that of the percentile of its class, `(k,)`; without a cap minus infinity."""
    if loss_cap is None:
        return torch.full_like(condition.copies, -torch.inf)
    x, y = condition.clean
    margins, kept = (2 * y - 1) * line(x), condition.weights > 0
    share = 1 - loss_cap / 100
    return torch.stack([torch.quantile(margins[kept & (y == c)], share) for c in condition.y])


def stretch_of(condition: Stationarity, line: Line, loss_cap: float | None) -> float:
    """The least factor at which the condition can hold along the line itself; 1 without a cap, or where none does."""
    if loss_cap is None:
        return 1.0
    x, y = condition.clean
    d, (slope, bias) = line(x), condition.view.penalty_slopes(line)
    penalty = condition.decay * float(slope @ line.slope + bias * line.bias)
    low = least_margins(condition, line, loss_cap)
    for stretch in STRETCHES.tolist():
        slopes = loss_slopes(condition.setting.loss, stretch * d, y)[1]
        clean = condition.weights @ (slopes * stretch * d)
        if float(clean) + stretch**2 * penalty >= _least_pull(condition, stretch * low):
            return stretch
    return 1.0


def _least_pull(condition: Stationarity, low: Tensor) -> float:
    """The least of `-sum_y e_y l'_y m_y` over allowed margins."""
    share = torch.linspace(0, 1, 200, dtype=torch.float64)
    total = 0.0
    for copies, bound in zip(condition.copies.tolist(), low.tolist(), strict=True):
        margins = bound + share * max(0.0, condition.corner - CORNER - bound)
        slopes = loss_slopes(condition.setting.loss, margins, torch.ones(len(margins), dtype=torch.long))[1]
        total += copies * float((-slopes * margins).min())
    return total
