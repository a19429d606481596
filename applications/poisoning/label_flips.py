"""Label flips: true inputs with wrong labels, at random, or those that a datamodel expects the most harm of.

Choosing k of the training points, each with one other label, is a linear problem over subsets once a datamodel says
what each flipped copy is worth: `effect` of the copies, then the k best (top-k), or in stages around those chosen.

References: Biggio, Nelson & Laskov, "Support Vector Machines Under Adversarial Label Noise", 2011; Xiao, Xiao &
Eckert, "Adversarial Label Flips Attack on Support Vector Machines", 2012.
"""

import torch
from torch import Tensor

from applications._target_loss import target_loss
from recipe import batch as batches
from recipe.batch import Batch
from recipe.datamodel import Estimator, OutputFunction
from recipe.setting import Setting


def random_label_flips(setting: Setting, count: int, seed: int = 0) -> Batch:
    """`count` random training examples, each with a random other label of the universe: the attack without a thought.

    Raises:
        ValueError: more poisons than training points, or a universe of a single class.
    """
    classes = _classes(setting, count)
    generator = torch.Generator().manual_seed(seed)
    chosen = batches.take(setting.pool, _drawn(setting.n, count, generator))
    rank = torch.searchsorted(classes, batches.labels(chosen))
    shift = torch.randint(1, len(classes), (count,), generator=generator).to(rank)
    flipped = classes[(rank + shift) % len(classes)]
    return batches.relabel(chosen, flipped)


def flipped_points(setting: Setting, count: int, seed: int = 0) -> Tensor:
    """Indices `(count,)` of the points that `random_label_flips` copies."""
    return _drawn(setting.n, count, torch.Generator().manual_seed(seed))


def chosen_label_flips(setting: Setting, count: int, estimator: Estimator, stages: int = 1) -> Batch:
    """The `count` flipped training examples that a datamodel expects to raise the mean target loss most.

    Args:
        setting: whose training points are copied with another label.
        count: how many.
        estimator: of a datamodel that values added data.
        stages: 1 takes the top k of one datamodel; more fit it anew around the flips chosen so far (greedy).

    Raises:
        ValueError: as `random_label_flips`, or more stages than flips.
        NotImplementedError: a datamodel that cannot value added examples.
    """
    classes = _classes(setting, count)
    if not 1 <= stages <= count:
        raise ValueError(f"Expected between 1 and {count} stages, a flip in each at least; got {stages}.")
    candidates = _all_flips(setting, classes)
    source = torch.arange(setting.n, device=setting.device).repeat(len(classes) - 1)
    taken: list[int] = []
    for part in torch.arange(count).tensor_split(stages):
        at = (
            torch.ones(setting.n, dtype=setting.dtype),
            batches.take(candidates, torch.tensor(taken, dtype=torch.long)),
        )
        worth = _worth(estimator.fit(setting, at if taken else None), candidates)
        for _ in part:
            used = torch.isin(source, source[taken])
            taken.append(int(worth.masked_fill(used, -torch.inf).argmax()))
    return batches.take(candidates, torch.tensor(taken))


def _drawn(n: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)[:count]


def _worth(f_hat: OutputFunction, candidates: Batch) -> Tensor:
    """The change of the mean target loss by each candidate, to first order, `(b,)`."""
    if f_hat.effect is None:
        raise NotImplementedError(
            f"{type(f_hat).__name__} cannot value data outside the universe; use an estimator with an `effect`: "
            "Influence, EKFAC, LoGra, TRAK, TracIn."
        )
    setting = f_hat.setting
    assert setting is not None
    at = f_hat.origin.at if f_hat.origin and f_hat.origin.at else (torch.ones(f_hat.n, dtype=setting.dtype), None)
    outputs = f_hat(*at).detach().requires_grad_()
    (slope,) = torch.autograd.grad(target_loss(f_hat)(outputs).mean(), outputs)
    with torch.no_grad():
        parts = [
            f_hat.effect(batches.take(candidates, slice(i, i + 256))) for i in range(0, batches.size(candidates), 256)
        ]
    return slope @ torch.cat(parts, 1)


def _all_flips(setting: Setting, classes: Tensor) -> Batch:
    """Every training point with every other label, `(C - 1) n` examples."""
    rank = torch.searchsorted(classes, batches.labels(setting.pool))
    parts = [batches.relabel(setting.pool, classes[(rank + shift) % len(classes)]) for shift in range(1, len(classes))]
    flips = parts[0]
    for part in parts[1:]:
        flips = batches.concatenate(flips, part)
    return flips


def _classes(setting: Setting, count: int) -> Tensor:
    classes = batches.labels(setting.pool).unique()
    if len(classes) < 2 or not 1 <= count <= setting.n:
        raise ValueError(
            f"Label flips need two classes and between 1 and {setting.n} poisons; got {len(classes)} and {count}."
        )
    return classes
