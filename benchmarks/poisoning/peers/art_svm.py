"""The adversarial-robustness-toolbox's attack on a support vector machine, in an environment of its own.

    python -m venv .venv-art
    .venv-art/bin/pip install scikit-learn==1.4.2 'numpy<2' adversarial-robustness-toolbox==1.20.1 packaging
    ART_PYTHON=.venv-art/bin/python python -m benchmarks.poisoning.svm

Reads an npz of `x, y, x_val, y_val, start, labels, C, step, steps`, and writes the poisons to another.
"""

import sys

import numpy as np
from art.attacks.poisoning import PoisoningAttackSVM
from art.estimators.classification import SklearnClassifier
from sklearn.svm import SVC


def main(source: str, target: str) -> None:
    """Move the poisons one after the other from where they start."""
    given = np.load(source)
    x, y, x_val, y_val = given["x"], np.eye(2)[given["y"]], given["x_val"], np.eye(2)[given["y_val"]]
    classifier = SklearnClassifier(SVC(kernel="linear", C=float(given["C"])), clip_values=(0, 1))
    classifier.fit(x, y)
    # The attack ends where the sum that it watches rises by eps: never, so that it takes all its steps.
    step, steps = float(given["step"]), int(given["steps"])
    attack = PoisoningAttackSVM(classifier, step, np.inf, x, y, x_val, y_val, max_iter=steps, verbose=False)
    poisons, _ = attack.poison(given["start"], np.eye(2)[given["labels"]])
    np.savez(target, poisons=poisons)


if __name__ == "__main__":
    main(*sys.argv[1:])
