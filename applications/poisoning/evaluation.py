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
from applications.poisoning.label_flips import flipped_points, random_label_flips
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
        reached: the share of the attacker's targets that are as it wants, wrong or (`towards`) of the wanted label.
    """

    loss: Measured
    accuracy: Measured
    reached: Measured


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
        towards: whether the attacker wants a label for its targets, so that `reached` is what it is after.
    """

    victims: Mapping[str, Damage]
    defences: Mapping[str, Defended]
    already_wrong: int
    targets: int
    towards: bool = False

    @property
    def best_defence(self) -> str | None:
        """The defence after which the victim is most accurate; None where there is none.

        Where the attacker wants a label for its targets, the one after which the fewest carry it, then accuracy.
        """

        def rank(name: str) -> tuple[float, float]:
            left = self.defences[name].damage
            return (-left.reached.mean if self.towards else 0.0, left.accuracy.mean)

        return max(self.defences, key=rank, default=None)

    def __str__(self) -> str:
        def row(name: str, *figures: object) -> str:  # what is reached only where it is not the accuracy's complement
            shown = figures if self.towards else figures[:2]
            return " ".join([f"{name:<28}", *(f"{figure!s:<18}" for figure in shown)])

        header = ("test loss", "test accuracy", "targets reached")
        rows = [row("victim", *header)]
        rows += [row(name, d.loss, d.accuracy, d.reached) for name, d in self.victims.items()]
        if self.defences:
            rows += ["", f"{row('after the defence', *header)} poison, clean removed"]
        for name, d in self.defences.items():
            figures = row(name, d.damage.loss, d.damage.accuracy, d.damage.reached)
            rows += [f"{figures} {100 * d.poison:.0f} %, {100 * d.clean:.1f} %"]
        if self.best_defence is not None:
            rows += [f"the defender's best: {self.best_defence}"]
        if self.already_wrong:
            side = "as the attacker wants" if self.towards else "wrong"
            rows += [f"{self.already_wrong} of {self.targets} targets were {side} before the attack"]
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
        setting: the victim; its targets are the attacker's, for a goal other than all of them `goal.aim(setting)`.
        task: whose poisons these are.
        inputs: the poison inputs, a solution's decision.
        test: `(inputs, labels)` that neither training nor attack has seen.
        seeds: of the retrainings; fresh ones, which the attacker has not seen.
        defences: by name.
        others: victims of another architecture or algorithm, by name, with the same universe; the targets are
            `setting`'s.
        removed: the share of each class that a defence throws away.
    """
    added, n = task.batch(inputs), setting.n
    flips, unflipped = random_label_flips(setting, batches.size(added)), torch.ones(n)
    if task.replaces:  # then so do the flips
        unflipped[flipped_points(setting, batches.size(added))] = 0
    kept, ones = task.weights(n), torch.ones(n)

    def damage(victim: Setting, weights: Tensor, poisons: Batch | None) -> Damage:
        return _damage(victim.on(setting.probe), test, weights, poisons, seeds, task.towards)

    victims = {
        "clean": damage(setting, ones, None),
        "random flips": damage(setting, unflipped, flips),
        "poison": damage(setting, kept, added),
    }
    for name, other in (others or {}).items():
        victims[f"clean, {name}"] = damage(other, ones, None)
        victims[f"poison, {name}"] = damage(other, kept, added)
    mixed, poison = poisoned(setting, added, task.replaces)
    results = {}
    for name, defence in (defences or {}).items():
        found = inspect(defence, mixed, poison, removed)
        left = (~found.inspected).to(ones)
        results[name] = Defended(found.poison, found.clean, damage(mixed, left, None))
    wrong = already_wrong(setting, task.towards, seeds)
    return Evaluation(victims, results, wrong, batches.size(setting.probe), task.towards)


def already_wrong(setting: Setting, towards: bool = False, seeds: Sequence[int] = (0,)) -> int:
    """How many targets most clean victims get as the attacker wants: wrong, or (`towards`) as the wanted label."""
    right = Retrain(setting.on(output=Correct()), seeds)(torch.ones(setting.n)) > 0.5
    return int((right if towards else ~right).sum())


def _damage(
    setting: Setting, test: Batch, weights: Tensor, added: Batch | None, seeds: Sequence[int], towards: bool
) -> Damage:
    f = Retrain(setting.on(test, Loss()), seeds)
    losses = f.per_seed(weights, added).mean(1)
    accuracies = f.on(test, Correct()).per_seed(weights, added).mean(1)
    right = f.on(setting.probe, Correct()).per_seed(weights, added).mean(1)
    reached = right if towards else 1 - right
    return Damage(*(Measured.of(values.tolist()) for values in (losses, accuracies, reached)))
