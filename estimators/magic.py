"""MAGIC: the exact derivative of the outputs in the weights, through every step of a training run.

A run with the batches of the full universe at one seed (`replay=True`) is a function of the weights. A step follows the
gradient `g(theta, w) = sum_B w_i grad l_i(theta) / sum_B w_i` of its batch B. Backwards through the steps, with `a` the
adjoint of `g`, one row for each of the m outputs, which the optimiser's own recursion gives (`_adjoints.py`), each adds

    d <a, g> / d theta = H_B a                                      to the adjoint of the parameters,
    d <a, g> / d w_i   = <a, grad l_i - g> / sum_B w                to effects[:, i], for the points of the batch:

the mixed second derivative of the batch's loss, in one product for all outputs. No damping, and no optimum is assumed.

References: Ilyas & Engstrom, "MAGIC: Near-Optimal Data Attribution for Deep Learning", 2025, arXiv:2504.16430; Engstrom
et al., "Optimizing ML Training with Metagradient Descent", 2025, arXiv:2503.13751.

Cost of one model: a training run, then for every pass back another one and m products with the Hessian of a batch at
every step (three training runs in all for one output and 13 for 40, on the MLP for digits); one more run for the check
of smoothness. Memory: `2 sqrt(T)` states of T steps and, where they fit, the graphs of `sqrt(T)` of them (where not,
half a run more); 3 to 5 vectors `(p,)` for every output, in blocks of outputs.

What it is a derivative of: the replay of the run, with the same batches whatever the weights. Where the setting's
algorithm has `replay=False`, the replay of that algorithm is differentiated; at full weights it is the same run, but
other weights retrain on other batches, and subsets take fewer steps at the same epochs. Half of the points are then a
shorter training, and `alpha=0.5` follows a run as short (digits MLP, smooth: LDS .97 and slope 1.0 instead of .82 and
1.2, against fresh seeds). The setting's checkpoints are not used.
Deviations: the mean over an ensemble is offered (`models`); `sqrt(T)` states are kept instead of `log T`, which saves
all but one of the repeated runs. Added examples have no effect: one that joins the universe changes every batch, so
there is no derivative. Put candidates into the universe and linearise where their weight is zero.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from estimators._adjoints import adjoint
from estimators._replay import GRAPH_BYTES, Replay, Run
from estimators._smoothness import Probe, Smoothness, SmoothnessCheck
from recipe import batch as batches
from recipe import calculus
from recipe.algorithms import SGD, AdamW
from recipe.batch import Batch
from recipe.cost import Cost, along, measured
from recipe.datamodel import LinearDatamodel, product, records_origin
from recipe.problem import Arguments
from recipe.setting import Measure, Setting
from recipe.stores import collected_by_outputs
from recipe.training import progress_bar
from recipe.work import STEPS, Work

BLOCK_BYTES = 2**28  # of adjoints and products that go back through a run together


@dataclass(frozen=True)
class MAGIC:
    """The datamodel tangent to the replay of a training run by `SGD` or `AdamW`.

    Args:
        alpha: the share of the points that the subsets to be predicted hold, where that is known. The run then takes
            as many steps as they do and is linearised at their mean, the weights `alpha`; no `SizeCorrected` on top.
        models: an ensemble of as many seeds; effects and bias are averaged.
        seed: of the first model.
        check: whether the run is smooth enough to trust its derivative, looked at on the first model; None does not.

    Example:
        The effect of a point equals a finite difference of the replay:

        >>> from recipe import SGD, Retrain, Setting
        >>> _ = torch.manual_seed(0)
        >>> data = (torch.randn(30, 2).double(), torch.arange(30) % 2)
        >>> algorithm = SGD(epochs=3, batch_size=8, lr=0.2, momentum=0.9, replay=True)
        >>> setting = Setting(lambda: torch.nn.Linear(2, 2).double(), data, data, algorithm)
        >>> f, f_hat, w = Retrain(setting), MAGIC().fit(setting), torch.ones(30, dtype=torch.float64)
        >>> step = 1e-4 * torch.eye(30, dtype=torch.float64)[7]
        >>> torch.allclose((f(w + step) - f(w - step)) / 2e-4, f_hat.effects[:, 7], atol=1e-7)
        True
        >>> f_hat.smoothness.agreement > 0.9
        True
    """

    alpha: float = 1.0
    models: int = 1
    seed: int = 0
    check: SmoothnessCheck | None = SmoothnessCheck()

    def __post_init__(self) -> None:
        if self.models < 1:
            raise ValueError(f"An ensemble needs at least one model; got models={self.models}.")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is a share of the points, above 0 and at most 1; got {self.alpha}.")

    def cost(self, setting: Setting) -> Cost:
        """See `Estimator.cost`."""
        work, algorithm = Work(setting), _minibatch(setting)
        plan = algorithm.plan(torch.arange(setting.n) < self.alpha * setting.n)
        weights = torch.full((setting.n,), self.alpha, dtype=setting.dtype, device=setting.device)

        def run(steps: int) -> Run:
            return Run(setting, replace(algorithm, replay=True), weights, self.seed, steps)

        def there(steps: int) -> Cost:
            return measured(lambda: Replay.of(run(steps), lambda _: None))

        def back(steps: int) -> Cost:
            replay = Replay.of(run(steps), lambda _: None)
            return measured(lambda: list(_effects(setting, replay, lambda _: None)))

        runs = self.models + (0 if self.check is None else self.check.replays)
        total = plan.total
        found = runs * along(there, total, *STEPS) + self.models * along(back, total, *STEPS)
        state = 3 * setting.p * work.number  # parameters, and what an optimiser remembers of them
        graphs = min(GRAPH_BYTES, total**0.5 * run(1).graph_bytes)
        vectors = min(6 * setting.m * setting.p * work.number, 2 * BLOCK_BYTES)
        held = self.models * total**0.5 * state + total**0.5 * state + graphs + vectors
        return replace(found, bytes=held + 2 * setting.m * setting.n * work.number)

    @records_origin
    def fit(self, setting: Setting, at: Arguments | None = None) -> "MAGICDatamodel":
        """Train by replay, then go back through the run.

        Args:
            setting: what to attribute.
            at: `(weights, None)` where to linearise; default all points at weight `alpha`.

        Returns:
            A datamodel with `on`, which goes back through the same run once more, and with `smoothness`.

        Raises:
            NotImplementedError: an algorithm other than `SGD` and `AdamW`, added examples, dropout or batch norm.
            ValueError: outputs without a gradient.
            DivergedError: a run that is no longer finite.

        Warns:
            UserWarning: the run is not smooth.
        """
        weights, added = at or (torch.full((setting.n,), self.alpha, dtype=setting.dtype), None)
        w = setting.check_weights(weights).detach().to(setting.dtype)
        _check_added(added)
        algorithm = _minibatch(setting)
        steps = algorithm.plan(torch.arange(setting.n) < self.alpha * setting.n).total  # those of such a subset
        replay = replace(algorithm, replay=True)
        runs = [Run(setting, replay, w, seed, steps) for seed in range(self.seed, self.seed + self.models)]
        runs[0].check()
        calculus.output_gradients(setting, runs[0].start)  # raises before the long work
        with progress_bar(steps * self.models, "replay", unit="step") as bar:
            replays = [Replay.of(run, bar.update) for run in runs]
        probe = self.check.probe(runs[0], replays[0].end) if self.check is not None else None
        return _datamodel(setting, replays, probe)


class MAGICDatamodel(LinearDatamodel):
    """What `MAGIC` fits: linear, and `smoothness` says how far to trust it (None: not checked)."""

    smoothness: Smoothness | None = None


def _minibatch(setting: Setting) -> SGD | AdamW:
    if isinstance(setting.algorithm, (SGD, AdamW)):
        return setting.algorithm
    raise NotImplementedError(
        f"MAGIC goes back through the steps of SGD or AdamW; this setting trains by {setting.algorithm}. Use "
        "Influence, which looks at the trained model only, or train by SGD."
    )


def _check_added(added: Batch | None) -> None:
    if added is not None and batches.size(added):
        raise NotImplementedError(
            "An added example changes every batch of a replay, so there is no derivative in it. Put the candidates "
            "into the universe and linearise where their weight is zero: fit(setting, at=(weights, None))."
        )


def _datamodel(setting: Setting, replays: list[Replay], probe: Probe | None) -> MAGICDatamodel:
    width = setting.m // setting.output_shape[0]
    foreseen: list[Tensor] = []  # changes of the outputs, by the first of several runs

    with progress_bar(sum(replay.run.steps for replay in replays), "reverse pass", unit="step") as bar:

        def effects(some: slice) -> Tensor:
            part = setting.on(batches.take(setting.probe, slice(some.start // width, some.stop // width)))

            def advance(steps: float) -> None:
                bar.update(steps * part.m / setting.m)

            parts = [torch.cat(list(_effects(part, replay, advance))) for replay in replays]  # (k, n) each
            if probe is not None and len(parts) > 1:
                foreseen.append(probe.moves @ parts[0].T)
            return torch.stack(parts).mean(0)

        collected = collected_by_outputs(effects, setting.output_shape, setting.n)
        if probe is not None and len(replays) == 1:
            foreseen = [product(collected, probe.moves)]
        elif probe is not None and sum(t.shape[1] for t in foreseen) < setting.m:  # a store had the effects already
            foreseen = [probe.moves @ block.T for block in _effects(setting, replays[0], bar.update)]
    with torch.no_grad():
        outputs = torch.stack([setting.outputs(replay.end) for replay in replays]).mean(0)

    def on(targets: Any, output: Measure | None) -> MAGICDatamodel:
        return _datamodel(setting.on(targets, output), replays, probe)

    weights = replays[0].run.weights  # the tangent touches there; weight 0 is an extrapolation
    f_hat = MAGICDatamodel(outputs, collected, at=weights, output_shape=setting.output_shape, on=on)
    f_hat.smoothness = None if probe is None else probe.compare(setting, torch.cat(foreseen, 1))
    return f_hat


def _effects(setting: Setting, replay: Replay, advance: Callable[[float], Any]) -> Iterator[Tensor]:
    """Back through one run, `(k, n)` a time, as many outputs at once as `BLOCK_BYTES` holds."""
    gradients = calculus.output_gradients(setting, replay.end)
    blocks = gradients.split(max(1, BLOCK_BYTES // (5 * gradients[0].nbytes)))
    for block in blocks:
        yield _back(replay, block, lambda steps: advance(steps / len(blocks)))


def _back(replay: Replay, gradients: Tensor, advance: Callable[[int], Any]) -> Tensor:
    """Effects `(m, n)` on m outputs with these gradients `(m, p)` in the last parameters."""
    run = replay.run
    adjoints, effects = adjoint(run.algorithm, gradients), gradients.new_zeros(len(gradients), run.setting.n)
    for link in replay.backwards(advance):
        vectors = adjoints.back(link, run.rate(link.step))
        if run.empty[link.step]:
            continue
        chunks = (t.split(run.chunk) for t in (vectors, adjoints.theta, effects))
        for v, to_theta, to_weights in zip(*chunks, strict=True):
            curved, mixed = link.products(v)
            to_theta += curved
            to_weights.index_add_(1, run.index[link.step], mixed)
    return effects
