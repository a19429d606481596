"""Label quality by cleanlab, from out-of-fold probabilities: `python cleanlab_scores.py in.npz out.npz`."""

import sys

import numpy as np
from cleanlab.rank import get_label_quality_scores

METHODS = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")

with np.load(sys.argv[1]) as given:
    p, y = given["p"], given["y"]
adjusted = {True: METHODS[:2], False: METHODS}
np.savez(
    sys.argv[2],
    **{
        f"{method}{', adjusted' * adjust}": get_label_quality_scores(y, p, method=method, adjust_pred_probs=adjust)
        for adjust, methods in adjusted.items()
        for method in methods
    },
)
