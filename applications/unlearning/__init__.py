"""Unlearning: outputs and models as if some training points had never been seen, measured against retrained ones."""

from applications.unlearning.audit import Audit
from applications.unlearning.baselines import SCRUB, FineTune, GradAscent, GradDiff, NoisyDescent
from applications.unlearning.certified import Certified, CertifiedRemoval
from applications.unlearning.deployed import Deployed, Method, Unlearned
from applications.unlearning.evaluation import Distance, Evaluation, compare, evaluate, margins_and_accuracy
from applications.unlearning.forget_sets import (
    neighbours,
    of_class,
    of_group,
    points,
    retained,
    stream,
    subpopulation,
    where,
)
from applications.unlearning.forgetter import Forgetter, NothingLeftError, UnknownPointError
from applications.unlearning.klom import klom, margin_error, wasserstein
from applications.unlearning.matching import DatamodelMatching, OracleMatching, datamodel_matching
from applications.unlearning.membership import Advantage, u_lira
from applications.unlearning.receipt import Receipt
from applications.unlearning.task import Unlearning
from applications.unlearning.updates import DoNothing, ParameterUpdate, RetrainFromScratch

__all__ = [
    "SCRUB",
    "Advantage",
    "Audit",
    "Certified",
    "CertifiedRemoval",
    "DatamodelMatching",
    "Deployed",
    "Distance",
    "DoNothing",
    "Evaluation",
    "FineTune",
    "Forgetter",
    "GradAscent",
    "GradDiff",
    "Method",
    "NoisyDescent",
    "NothingLeftError",
    "OracleMatching",
    "ParameterUpdate",
    "Receipt",
    "RetrainFromScratch",
    "UnknownPointError",
    "Unlearned",
    "Unlearning",
    "compare",
    "datamodel_matching",
    "evaluate",
    "klom",
    "margin_error",
    "margins_and_accuracy",
    "neighbours",
    "of_class",
    "of_group",
    "points",
    "retained",
    "stream",
    "subpopulation",
    "u_lira",
    "wasserstein",
    "where",
]
