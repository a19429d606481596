"""Linear datamodels whose effects are means over random retrainings, with their standard errors."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from estimators._subset_training import SubsetTraining
from recipe.datamodel import LinearDatamodel, OutputFunction
from recipe.setting import Measure
from recipe.stores import collected_by_outputs


class Estimate(NamedTuple):
    """What a sample of retrainings says: `bias (m,)`, `effects (m, k)` of k points, `standard_error (m, k)`."""

    bias: Tensor
    effects: Tensor
    standard_error: Tensor


class SampledDatamodel(LinearDatamodel):
    """A linear datamodel that knows how sure it is.

    Args:
        training: what was retrained.
        outputs: `(m,)`, known without a look at the effects.
        at: `(k,)`, where: the weights of the points that come and go; the others have the effect 0.
        estimate: of some of the outputs, by the effects `(j, k)` of these points on them.
        on: how to measure something else.
    """

    def __init__(
        self,
        training: SubsetTraining,
        outputs: Tensor,
        at: Tensor,
        estimate: Callable[[slice], Estimate],
        on: Callable[[Any, Measure | None], OutputFunction],
    ) -> None:
        self._training, self._estimate = training, estimate
        shape = training.f.output_shape
        effects = collected_by_outputs(lambda some: training.spread(estimate(some).effects), shape, training.n)
        at = training.spread(at.to(outputs))
        super().__init__(outputs, effects, at=at, output_shape=shape, on=on)

    @property
    def standard_error(self) -> Tensor:
        """Of the effects, `(m, n)`."""
        return self._training.spread(self._estimate(slice(0, self.m)).standard_error)
