"""The linear datamodeling score on the two digits recipes: margins, 50 % subsets, 100 subsets x 5 seeds."""

import torch

from benchmarks.tables import Clock, table
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.influence import Influence
from estimators.random import Random
from estimators.regression import Regression
from estimators.similarity import Similarity
from estimators.tangent_kernel import TangentKernel
from recipe import CG, Retrain, Setting, SizeCorrected, random_subsets
from recipe.digits import LOGISTIC_SGD, MLP_SGD, load_digits, logistic, mlp
from recipe.lds import score

RECIPES = {"logistic": (logistic, LOGISTIC_SGD), "MLP": (mlp, MLP_SGD)}
ESTIMATORS = {
    "logistic": [Influence(), EKFAC(), Regression(subsets=500), Regression(subsets=2000), Similarity(), Random()],
    "MLP": [
        Influence(inverse=CG(tolerance=1e-2)),
        Influence(inverse=CG(tolerance=1e-2), models=5),
        EKFAC(models=5),
        EKFACCG(models=5),
        TangentKernel(),
        TangentKernel(models=5),
        Regression(subsets=500),
        Regression(subsets=2000),
        Regression(subsets=500, prior=EKFAC(models=5)),
        Similarity(models=5),
        Random(),
    ],
}


def main() -> None:
    """Score every estimator on both recipes."""
    digits = load_digits()
    for name, (model, algorithm) in RECIPES.items():
        setting = Setting(model, digits.train, digits.targets, algorithm)
        subsets = random_subsets(setting.n, r=100, alpha=0.5, seed=10_000)
        clock = Clock()
        actual = Retrain(setting, seeds=range(5)).per_seed(subsets).double()
        truth, rows, ceiling = clock(), [], float("nan")
        for estimator in ESTIMATORS[name]:
            clock = Clock()
            f_hat = estimator.fit(setting)
            seconds = clock()
            with torch.no_grad():
                plain, corrected = (score(g(subsets).double(), actual) for g in (f_hat, SizeCorrected(f_hat)))
            ceiling = plain.ceiling
            low, high = plain.ci
            rows.append(
                (
                    f"`{estimator}`",
                    f"{plain.mean:.3f} [{low:.3f}, {high:.3f}]",
                    f"{plain.slope:.2f}",
                    f"{corrected.mean:.3f}",
                    f"{corrected.slope:.2f}",
                    f"{seconds:.0f}",
                )
            )
        header = ("estimator", "LDS [95 %]", "slope", "LDS, `SizeCorrected`", "slope", "seconds to fit")
        table(f"Digits {name}, ceiling {ceiling:.3f}, 500 true retrainings in {truth:.0f} s", header, rows)
