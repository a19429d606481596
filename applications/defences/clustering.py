"""Activation clustering: a class whose representations fall into two clusters, one of them small.

Each class's representations are reduced to a few principal components and split by 2-means; what lies in the smaller
cluster is suspicious, the more so the smaller it is and the better the clusters are apart.

Reference: Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", 2018,
arXiv:1811.03728. Deviations: principal instead of independent components; a score instead of a yes or no: how much
closer a point is to the small cluster's centre than to the large one's, times how uneven the clusters are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from applications.defences._features import Activations, Features
from applications.defences._geometry import labels_of
from recipe.setting import Setting


@dataclass(frozen=True)
class ActivationClustering:
    """How much a point belongs to the smaller of two clusters of its class.

    Args:
        features: of an example; default what enters the model's last layer.
        components: principal ones that are kept.
        seed: of 2-means.
    """

    features: Features = Activations()
    components: int = 10
    seed: int = 0

    def scores(self, setting: Setting) -> Tensor:
        """See `Defence.scores`."""
        from sklearn.cluster import KMeans  # slow to import

        h, y = self.features.of(setting), labels_of(setting.pool)
        scores = h.new_zeros(len(h))
        for c in y.unique():
            part = h[y == c] - h[y == c].mean(0)
            if len(part) < 2:
                continue
            v = torch.linalg.svd(part, full_matrices=False).Vh[: self.components]
            reduced = (part @ v.T).double().cpu()
            found = KMeans(2, n_init=10, random_state=self.seed).fit(reduced.numpy())
            counts = torch.bincount(torch.from_numpy(found.labels_).long(), minlength=2)
            small, large = (torch.from_numpy(found.cluster_centers_)[i] for i in counts.argsort())
            nearer = (reduced - large).norm(dim=1) - (reduced - small).norm(dim=1)
            apart = (small - large).norm().clamp_min(1e-12)
            uneven = 1 - counts.min() / counts.max()
            scores[y == c] = (uneven * nearer / apart).to(h)
        return scores
