"""Valuation: what is each training point worth, and can training really do without the cheap ones?

    python examples/value_your_data.py

A fifth of 300 digits is labelled wrongly. Points are valued by KNN-Shapley and by influence, training is repeated
without the most and the least valuable, and held-out accuracy decides whose values are good. Takes seconds.
"""

from applications.valuation import valuation, value_points
from estimators.influence import Influence
from estimators.knn_shapley import KNNShapley
from recipe import LBFGS, Correct, Retrain, Setting
from recipe.digits import flip_labels, load_digits, logistic

size = 300  # training points
wrong = 0.2  # share of labels that are flipped
shares = (0.0, 0.1, 0.2, 0.3, 0.5)  # of the points, removed

digits = load_digits()
train, flipped = flip_labels(tuple(t[:size] for t in digits.train), wrong, seed=0)
setting = Setting(logistic, train, digits.targets, LBFGS(l2=0.01))
values = {
    "KNN-Shapley": value_points(KNNShapley(k=5).fit(setting)),
    "influence": value_points(Influence().fit(setting)),
}
found = valuation(values, Retrain(setting).on(digits.test, Correct()), shares)
print(found.to_pandas().pivot(index="share", columns=["values", "removed"], values="measure").round(3))
for name, value in values.items():
    cheapest = value.argsort()[: int(flipped.sum())]
    share = float(flipped[cheapest].double().mean())
    print(
        f"{name}: area {found.score(name):.3f}; {share:.0%} of its {len(cheapest)} cheapest points are labelled wrongly"
    )
