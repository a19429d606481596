"""Two-class linear models, whatever their parameters are called: one slope and one bias decide.

    z_1 - z_0 = <slope, x> + bias,      slope, bias linear in theta.

Losses of two classes depend on that difference alone, so that the optimum of a penalised loss is one in slope and bias:

    min_theta  mean l + l2/2 |theta|^2   =   min  mean l + l2/2 (|slope|^2 / a + bias^2 / c),

with `a` and `c` the squared lengths of the gradients of a slope's entry and of the bias in theta: 2 for `Linear(d, 2)`,
1 for a single logit. Convex programs over poisons are written in these d + 1 numbers instead of theta.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.poisoning._inputs import replaced
from applications.poisoning.sanitation import linear_margin
from recipe import batch as batches
from recipe.setting import Measure, Parameters, Setting


@dataclass(frozen=True, eq=False)
class Line:
    """A decision function.

    Args:
        slope: `(d,)`, in float64.
        bias: a number.
    """

    slope: Tensor
    bias: float

    def __call__(self, x: Tensor) -> Tensor:
        """`z_1 - z_0` of inputs `(b, d)`, `(b,)`."""
        return x.double() @ self.slope + self.bias

    def stretched(self, factor: float) -> "Line":
        """The same decisions with all margins times a factor."""
        return Line(self.slope * factor, self.bias * factor)


@dataclass(frozen=True)
class LinearView:
    """What a setting's penalty is in slope and bias.

    Args:
        a: of the slope.
        c: of the bias, 0 where the model has none.
        entry: of the inputs in a batch.

    Example:
        >>> from recipe import LBFGS
        >>> data = (torch.eye(2), torch.arange(2))
        >>> LinearView.of(Setting(lambda: torch.nn.Linear(2, 2), data, data, LBFGS(l2=0.1)))
        LinearView(a=2.0, c=2.0, entry=0)
    """

    a: float
    c: float
    entry: int | str = 0

    @classmethod
    def of(cls, setting: Setting, entry: int | str = 0) -> "LinearView":
        """Of a setting.

        Raises:
            ValueError: not two classes, or a model that is not linear in inputs and parameters.
        """
        one = batches.take(setting.pool, slice(0, 1))
        shape = one[entry].shape  # type: ignore[index]
        generator = torch.Generator().manual_seed(0)
        x, other = (torch.randn(shape, generator=generator, dtype=setting.dtype) for _ in range(2))
        theta = setting.initial(0)
        linear_margin(setting, theta, tuple(shape[1:]), entry)  # raises where it is not linear in the inputs

        def by_theta(at: Parameters, inputs: Tensor) -> Tensor:  # the gradient of z_1 - z_0, (p,)
            def margin(vector: Tensor) -> Tensor:
                z = setting.predict(setting.unflat(vector, at), replaced(one, entry, inputs.to(setting.device)))
                return z[0, 1] - z[0, 0]

            return torch.func.grad(margin)(setting.flat(at)).double()

        rest = by_theta(theta, torch.zeros_like(x))
        first, second = by_theta(theta, x) - rest, by_theta(theta, other) - rest
        a = float(first @ first) / float(x.double().square().sum())
        elsewhere = by_theta({name: 2 * t + 1 for name, t in theta.items()}, x) - rest
        same = torch.allclose(elsewhere, first, rtol=1e-4, atol=1e-5)
        alike = abs(float(second @ second) - a * float(other.double().square().sum())) <= 1e-3 * float(second @ second)
        apart = abs(float(first @ rest)) <= 1e-3 * float(first.norm() * rest.norm())
        if not (same and alike and apart):
            raise ValueError(
                "Expected a model that is linear in its inputs and in its parameters, one layer, whose penalty counts "
                f"every input alike; {type(setting.module(theta)).__name__} is none. Attack it by GradientAscent."
            )
        return cls(round(a, 4), round(float(rest @ rest), 4), entry)

    def line(self, setting: Setting, theta: Parameters) -> Line:
        """Slope and bias of trained parameters."""
        shape = setting.pool[self.entry].shape[1:]  # type: ignore[index]
        slope, bias = linear_margin(setting, theta, tuple(shape), self.entry)
        return Line(slope.detach().double(), float(bias.detach()))

    def penalty_slopes(self, line: Line) -> tuple[Tensor, float]:
        """The gradient of `(|slope|^2 / a + bias^2 / c) / 2` in slope and bias."""
        return line.slope / self.a, line.bias / self.c if self.c else 0.0

    def norm(self, slope: Tensor, bias: float) -> float:
        """The length in theta of a gradient that is `(slope, bias)` in these."""
        return float((self.a * slope.square().sum() + self.c * bias**2) ** 0.5)


def loss_slopes(loss: Measure, margins: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and their derivatives in `z_1 - z_0`, `(b,)` each, for labels 0 and 1.

    Raises:
        ValueError: a loss that depends on more than the difference of the two logits.

    Example:
        >>> from recipe import Hinge
        >>> loss_slopes(Hinge(), torch.tensor([0.5, 3.0]).double(), torch.tensor([1, 1]))[1].tolist()
        [-1.0, 0.0]
    """
    d = margins.detach().double()
    z = torch.stack([-d / 2, d / 2], 1).requires_grad_()
    with torch.enable_grad():
        values = loss(z, (z.detach(), y))
    (gradient,) = torch.autograd.grad(values.sum(), z)
    if not torch.allclose(gradient[:, 0], -gradient[:, 1], rtol=1e-6, atol=1e-9):
        raise ValueError(f"Expected a loss of the difference of two logits, such as CrossEntropy or Hinge; got {loss}.")
    return values.detach(), gradient[:, 1]
