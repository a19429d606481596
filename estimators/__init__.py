"""Estimators: each fits a datamodel, predicted outputs as a function of the training set. One estimator a file."""

from estimators.adjoint_influence import AdjointInfluence
from estimators.banzhaf import Banzhaf
from estimators.bm25 import BM25
from estimators.data_shapley import DataShapley
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.empirical_influence import EmpiricalInfluence
from estimators.exact_shapley import ExactShapley
from estimators.gas import GAS
from estimators.gradient_matching import GradientMatching
from estimators.influence import Influence
from estimators.kernel_regression import KernelRegression
from estimators.knn import KNN
from estimators.knn_shapley import KNNShapley
from estimators.last_layer import LastLayer
from estimators.less import LESS
from estimators.logra import LoGra
from estimators.magic import MAGIC
from estimators.newton_step import NewtonStep
from estimators.random import Random
from estimators.regression import Lasso, Regression, Ridge
from estimators.representer_points import RepresenterPoints
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.source import SOURCE
from estimators.tangent_kernel import TangentKernel
from estimators.tracin import GradCos, GradDot, TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from estimators.unrolled import Unrolled

__all__ = [
    "BM25",
    "EKFAC",
    "EKFACCG",
    "GAS",
    "KNN",
    "LESS",
    "MAGIC",
    "SOURCE",
    "TRAK",
    "AdjointInfluence",
    "Banzhaf",
    "DataShapley",
    "EmpiricalInfluence",
    "ExactShapley",
    "GradCos",
    "GradDot",
    "GradientMatching",
    "Influence",
    "KNNShapley",
    "KernelRegression",
    "Lasso",
    "LastLayer",
    "LoGra",
    "NewtonStep",
    "Random",
    "Regression",
    "RepresenterPoints",
    "Ridge",
    "Simfluence",
    "Similarity",
    "TangentKernel",
    "TracIn",
    "TrainLoss",
    "Unrolled",
]
