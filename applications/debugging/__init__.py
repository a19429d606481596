"""Debugging: which training data made the model say this, and is that so?

One question a file, each one call on a fitted datamodel, whose answer is a frozen dataclass with `to_pandas()` and
`finding(...)`, a section of a report:

    blame            the training points that help and harm a prediction, or a group of them
    brittleness      how few removals flip a prediction, verified by retraining
    label_errors     which labels look wrong, with plain loss and confident learning beside
    leakage          targets that are in the training data as well, and duplicates
    subpopulations   directions and clusters in which the effects vary
    compare          what two algorithms learn differently from the same data
    group_effects    which groups or sources help or hurt the targets
    try_out          a hypothesis: remove, relabel or edit points, or transform targets; predicted against actual

An answer is a hypothesis until it was tested: `brittleness`, `group_effects(f=...)` and `try_out` retrain.
"""

from applications.debugging.blame import Blame, blame, blame_each, removal_orders
from applications.debugging.brittleness import Brittleness, Flip, brittleness, smallest_flip
from applications.debugging.comparison import Comparison, compare
from applications.debugging.groups import GroupEffects, group_effects
from applications.debugging.hypotheses import Edit, Relabel, Remove, Transform, Trial, try_out
from applications.debugging.label_errors import LabelErrors, confident_learning, label_errors
from applications.debugging.leakage import Leakage, leakage
from applications.debugging.overview import Checked, overview
from applications.debugging.subpopulations import Subpopulations, subpopulations
from applications.debugging.task import Debugging, as_predicted

__all__ = [
    "Blame",
    "Brittleness",
    "Checked",
    "Comparison",
    "Debugging",
    "Edit",
    "Flip",
    "GroupEffects",
    "LabelErrors",
    "Leakage",
    "Relabel",
    "Remove",
    "Subpopulations",
    "Transform",
    "Trial",
    "as_predicted",
    "blame",
    "blame_each",
    "brittleness",
    "compare",
    "confident_learning",
    "group_effects",
    "label_errors",
    "leakage",
    "overview",
    "removal_orders",
    "smallest_flip",
    "subpopulations",
    "try_out",
]
