"""Applications: tasks over model outputs. They receive output functions and never import an estimator."""

from applications.data_selection import DataSelection
from applications.debugging import Debugging
from applications.poisoning import Poisoning
from applications.unlearning import Unlearning

__all__ = ["DataSelection", "Debugging", "Poisoning", "Unlearning"]
