"""Defences against poisoning: `scores(setting) -> (n,)`, larger is more suspicious; a file each."""

from applications.defences._features import Activations, Features, Inputs
from applications.defences.centroid_distance import CentroidDistance
from applications.defences.clustering import ActivationClustering
from applications.defences.copies import Copies
from applications.defences.defence import Caught, Defence, caught, inspect, most_suspicious, poisoned
from applications.defences.neighbours import Neighbours
from applications.defences.selection import Selection
from applications.defences.self_influence import SelfInfluence
from applications.defences.slab import Slab
from applications.defences.spectral import SpectralResidual, SpectralSignatures
from applications.defences.training_loss import TrainingLoss

__all__ = [
    "ActivationClustering",
    "Activations",
    "Caught",
    "CentroidDistance",
    "Copies",
    "Defence",
    "Features",
    "Inputs",
    "Neighbours",
    "Selection",
    "SelfInfluence",
    "Slab",
    "SpectralResidual",
    "SpectralSignatures",
    "TrainingLoss",
    "caught",
    "inspect",
    "most_suspicious",
    "poisoned",
]
