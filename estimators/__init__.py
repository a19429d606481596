"""Estimators: each fits a datamodel, predicted outputs as a function of the training set. One estimator a file."""

from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.random import Random
from estimators.regression import Lasso, Regression, Ridge
from estimators.similarity import Similarity

__all__ = ["Influence", "Lasso", "NewtonStep", "Random", "Regression", "Ridge", "Similarity"]
