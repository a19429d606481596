"""Random effects: what a task achieves without knowing anything about the data. Every estimator has to beat it.

    effects[j, i] ~ Normal(0, 1) / n,        bias[j] = -sum_i effects[j, i] w0_i.

So nothing is predicted to change where the datamodel was fitted (`f_hat(w0) = 0`, `w0` all points at weight 1), and
effects have the size that single points have for outputs of order one. A baseline without a paper to cite or to deviate
from: every table of attributions wants it (Hammoudeh & Lowd, "Training Data Influence Analysis and Estimation: A
Survey", 2022, arXiv:2212.04612).
Cost: `m n` random numbers.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recipe.cost import Cost
from recipe.datamodel import LinearDatamodel, records_origin
from recipe.problem import Arguments
from recipe.setting import Setting
from recipe.stores import collected
from recipe.work import Work

BLOCK = 2**10  # points that are drawn together


@dataclass(frozen=True)
class Random:
    """Effects drawn from a normal distribution: they depend on the seed and on the sizes m and n alone.

    Nothing is trained. The level of the outputs is unknown to it and put at 0: read its predictions as changes. It has
    no `effect`: a noise that depends on an example's position, not on its content, cannot value new examples.

    Args:
        seed: decides the draw.

    Example:
        >>> from recipe import SGD, Setting
        >>> data = (torch.randn(20, 3), torch.arange(20) % 2)
        >>> setting = Setting(lambda: torch.nn.Linear(3, 2), data, data, SGD(epochs=1, batch_size=5, lr=0.1))
        >>> f_hat = Random(seed=1).fit(setting)
        >>> f_hat.effects.shape, bool(f_hat(torch.ones(20)).abs().max() < 1e-6)
        (torch.Size([20, 20]), True)
    """

    seed: int = 0

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        return Work(setting).fitted(self)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> LinearDatamodel:
        """Draw effects.

        Args:
            setting: what to attribute; only its sizes count.
            at: `(weights, added)` where the predicted outputs are 0; default all points at weight 1.

        Returns:
            A datamodel `(n,) -> (m,)` with `on`, which draws again for other outputs.

        Raises:
            ValueError: weights that do not fit the setting.
        """
        weights, _ = at or (torch.ones(setting.n), None)
        w = setting.check_weights(weights).detach().to(setting.dtype)
        # Drawn on the CPU, so that the device changes nothing, point by point in blocks.
        starts = range(0, setting.n, BLOCK)
        sizes = [min(BLOCK, setting.n - start) for start in starts]
        effects = collected(partial(self._drawn, setting.m, setting.n, w), list(zip(starts, sizes, strict=True)), sizes)
        return LinearDatamodel(
            torch.zeros_like(w[:1]).expand(setting.m),
            effects,
            at=w,
            output_shape=setting.output_shape,
            on=lambda targets, output: self.fit(setting.on(targets, output), at),
        )

    def _drawn(self, m: int, n: int, like: Tensor, block: tuple[int, int]) -> Tensor:
        start, size = block
        # Of both numbers: torch's generator looks at 32 bits of a seed alone.
        seed = int(np.random.SeedSequence([self.seed % 2**32, start]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(m, size, generator=generator, dtype=like.dtype).to(like) / n
