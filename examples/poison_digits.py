"""Poisoning, to test one's own system: what could 20 points among 1 000 do, and would a defence have seen them?

    python examples/poison_digits.py

Adds points in the valid pixel range to handwritten digits, found by ascent through a datamodel that is fitted anew on
the way, retrains the victim, and asks the defences. Takes about a minute.
"""

import torch

from applications.defences import CentroidDistance, SelfInfluence, TrainingLoss, inspect, poisoned
from applications.poisoning import ThreatModel, evaluate
from estimators.adjoint_influence import AdjointInfluence
from estimators.influence import Influence
from recipe import LBFGS, GradientAscent, Loss, Setting, solve
from recipe.digits import load_digits, logistic

budget = 20  # poisons
steps = 20  # of the ascent, with a new datamodel at each
l2 = 1e-2

torch.manual_seed(0)
digits = load_digits()
setting = Setting(logistic, digits.train, digits.targets, LBFGS(l2=l2), output=Loss())
threat = ThreatModel(budget)  # any input between the universe's least and largest value, labels flipped
task = threat.task(setting)
estimator = AdjointInfluence()
ascent = GradientAscent(lr=0.1, steps=steps, refit=steps - 1, measured=True, decay=True)
solution = solve(task, estimator.fit(setting), ascent, estimator, setting)

defences = {"l2": CentroidDistance(), "loss": TrainingLoss(), "self-influence": SelfInfluence(Influence())}
print(evaluate(setting, task, solution.decision, digits.test, seeds=[0], defences=defences))

mixed, poison = poisoned(setting, task.batch(solution.decision))
found = inspect(SelfInfluence(Influence()), mixed, poison, share=0.1, per_class=False)
print(f"self-influence finds {100 * found.poison:.0f} % of the poison in 10 % of the data")
