"""Unlearning: what would the model say had it never seen some of its data?

    python examples/forget_a_digit.py

Trains logistic regression on handwritten digits, forgets 50 of the 1 000 by one Newton step, and compares the unlearned
margins with those of a model that was really retrained without them. Takes a few seconds.
"""

import torch

from applications.unlearning import Unlearning
from estimators.newton_step import NewtonStep
from recipe import Newton, Retrain, Setting
from recipe.digits import load_digits, logistic

forget_size = 50
l2 = 1e-2  # of the logistic regression; trained exactly, so that the truth has no noise
seed = 0  # decides what is forgotten

digits = load_digits()
setting = Setting(logistic, digits.train, digits.targets, Newton(l2=l2))
deployed = setting.algorithm.train(setting, torch.ones(setting.n), seed=0)  # the model that is in use
margins = setting.outputs(deployed)  # (m,)

forget = torch.randperm(setting.n, generator=torch.Generator().manual_seed(seed))[:forget_size]
task = Unlearning(forget, margins)
unlearned = task.wanted(NewtonStep().fit(setting))  # (m,), without retraining
retrained = Retrain(setting)(task.retained(setting.n))  # (m,), the truth

nothing = float((margins - retrained).abs().mean())
error = float((unlearned - retrained).abs().mean())
print(f"mean margin error, doing nothing: {nothing:.4f}")
print(f"mean margin error, one Newton step: {error:.5f} ({nothing / error:.0f} times smaller)")
