"""Debugging: which training digits make the model say this, and does it change its mind without them?

    python examples/blame_a_prediction.py

Takes the prediction that the model is least sure of, finds the training points that hold it up, removes more and more
of them and really retrains. Takes about half a minute.
"""

import torch

from applications.debugging import as_predicted, blame, smallest_flip
from estimators.influence import Influence
from recipe import Retrain, Setting, TopMargin
from recipe.digits import LOGISTIC_SGD, load_digits, logistic

sizes = (1, 2, 4, 8, 16, 32)  # how many points to remove
seeds = range(5)  # of the retrainings

digits = load_digits()
setting = Setting(logistic, digits.train, digits.targets, LOGISTIC_SGD)
f = Retrain(setting, seeds)
f = f.on(as_predicted(f), TopMargin())  # margins of what the model predicts: below zero it has changed its mind
margins = f(torch.ones(setting.n))
target = int(margins.where(margins > 0, torch.inf).argmin())

found = blame(Influence().fit(f.setting), target, k=sizes[-1])
flip = smallest_flip(found.helpful, f, target, sizes)
print(f"target {target}: predicted {int(f.setting.probe[1][target])}, margin {flip.before:.2f}")
print(f"held up most by training digits {found.helpful[:5].tolist()}")
print(f"without {flip.size} of them, retrained: margin {flip.after:.2f}")
