"""What an attack really does: the victim retrained, beside clean data and random flips, before and after defences.

Loss and accuracy both, since accuracy alone is too coarse for small budgets. Every figure is the mean over the seeds of
a victim that was trained again; another victim, of another architecture say, shows what transfers. For every defence:
the share of the poison and of the clean data that it removes, and what the attack still does to a victim trained on the
rest. The attacker's result is that of the defender's best defence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences import Defence, inspect, poisoned
from applications.poisoning.label_flips import random_label_flips
from applications.poisoning.task import Poisoning
from recipe import batch as batches
from recipe.batch import Batch
from recipe.outputs import Correct, Loss
from recipe.retrain import Retrain
from recipe.run import Measured
from recipe.setting import Setting


@dataclass(frozen=True)
class Damage:
    """What a victim's test data look like after training.

    Args:
        loss: the mean loss.
        accuracy: the share that is right.
    """

    loss: Measured
    accuracy: Measured


@dataclass(frozen=True)
class Defended:
    """What a defence does to an attack.

    Args:
        poison: the share of the poison that it removes.
        clean: the share of the clean data that it removes.
        damage: of a victim trained on what is left.
    """

    poison: float
    clean: float
    damage: Damage


@dataclass(frozen=True)
class Evaluation:
    """An attack, measured.

    Args:
        victims: by name ("clean", "random flips", "poison", and "clean, NAME", "poison, NAME" of other victims).
        defences: by name.
        already_wrong: how many of the targets were on the attacker's side before the attack: success there means
            nothing.
        targets: how many there are.
    """

    victims: Mapping[str, Damage]
    defences: Mapping[str, Defended]
    already_wrong: int
    targets: int

    @property
    def best_defence(self) -> str | None:
        """The defence after which the victim is most accurate; None where there is none."""
        return max(self.defences, key=lambda name: self.defences[name].damage.accuracy.mean, default=None)

    def __str__(self) -> str:
        rows = [f"{'victim':<28} {'test loss':<18} {'test accuracy':<18}"]
        rows += [f"{name:<28} {d.loss!s:<18} {d.accuracy!s:<18}" for name, d in self.victims.items()]
        if self.defences:
            rows += ["", f"{'after the defence':<28} {'test loss':<18} {'test accuracy':<18} poison, clean removed"]
        for name, d in self.defences.items():
            shares = f"{100 * d.poison:.0f} %, {100 * d.clean:.1f} %"
            rows += [f"{name:<28} {d.damage.loss!s:<18} {d.damage.accuracy!s:<18} {shares}"]
        if self.best_defence is not None:
            rows += [f"the defender's best: {self.best_defence}"]
        if self.already_wrong:
            rows += [f"{self.already_wrong} of {self.targets} targets were wrong before the attack"]
        return "\n".join(rows)


def evaluate(
    setting: Setting,
    task: Poisoning,
    inputs: Tensor,
    test: Batch,
    seeds: Sequence[int] = range(8),
    defences: Mapping[str, Defence] | None = None,
    others: Mapping[str, Setting] | None = None,
    removed: float = 0.05,
) -> Evaluation:
    """Retrain victims.

    Args:
        setting: the victim; its targets are the attacker's.
        task: whose poisons these are.
        inputs: the poison inputs, a solution's decision.
        test: `(inputs, labels)` that neither training nor attack has seen.
        seeds: of the retrainings; fresh ones, which the attacker has not seen.
        defences: by name.
        others: victims of another architecture or algorithm, by name, with the same universe.
        removed: the share of each class that a defence throws away.
    """
    added, n = task.batch(inputs), setting.n
    flips = random_label_flips(setting, batches.size(added))
    kept, ones = task.weights(n), torch.ones(n)
    victims = {
        "clean": _damage(setting, test, ones, None, seeds),
        "random flips": _damage(setting, test, ones, flips, seeds),
        "poison": _damage(setting, test, kept, added, seeds),
    }
    for name, other in (others or {}).items():
        victims[f"clean, {name}"] = _damage(other, test, ones, None, seeds)
        victims[f"poison, {name}"] = _damage(other, test, kept, added, seeds)
    mixed, poison = poisoned(setting, added, task.replaces)
    results = {}
    for name, defence in (defences or {}).items():
        found = inspect(defence, mixed, poison, removed)
        left = (~found.inspected).to(ones)
        results[name] = Defended(found.poison, found.clean, _damage(mixed, test, left, None, seeds))
    wrong = already_wrong(setting, task.towards, seeds)
    return Evaluation(victims, results, wrong, batches.size(setting.probe))


def already_wrong(setting: Setting, towards: bool = False, seeds: Sequence[int] = (0,)) -> int:
    """How many targets most clean victims get as the attacker wants: wrong, or (`towards`) as the wanted label."""
    right = Retrain(setting.on(output=Correct()), seeds)(torch.ones(setting.n)) > 0.5
    return int((right if towards else ~right).sum())


def _damage(setting: Setting, test: Batch, weights: Tensor, added: Batch | None, seeds: Sequence[int]) -> Damage:
    f = Retrain(setting.on(test, Loss()), seeds)
    losses = f.per_seed(weights, added).mean(1)
    accuracies = f.on(test, Correct()).per_seed(weights, added).mean(1)
    return Damage(Measured.of(losses.tolist()), Measured.of(accuracies.tolist()))
