"""The plug-in recipe: write a task over model outputs, plug in a datamodel, solve, verify by really retraining.

Alphabet, everywhere: n training points, m outputs, p parameters, r retrainings, b examples of a batch, w weights.
Signs and scale: `effects[j, i]` is the change of output j, in its own unit, as the weight of point i goes from 0 to 1.
"""

from recipe.algorithms import SGD, AdamW, Algorithm, Custom, Objective
from recipe.batch import Batch
from recipe.calculus import GaussNewton, Hessian
from recipe.calibration import Calibrated, calibrated
from recipe.checks import Checks, check, fragility, leave_out, mixed_data
from recipe.columns import Columns
from recipe.composition import Ensemble, Ensembling, Scaled, Scaling, effects_of
from recipe.contrastive import Contrastive, ImageText
from recipe.cost import Cost, cost_of
from recipe.datamodel import Estimator, LinearDatamodel, OutputFunction, records_origin
from recipe.diversity import Alike, FacilityLocation
from recipe.engine import engine
from recipe.example_sets import Balls, Integers, Intersection, Slabs
from recipe.executors import Processes, WorkerDiedError
from recipe.feasible import Ball, Box, Free, Subset
from recipe.inverses import CG, Arnoldi, DataInf, Dense, LiSSA, Nystroem, Woodbury
from recipe.lbfgs import LBFGS
from recipe.lds import LDS, lds
from recipe.losses import CrossEntropy, Hinge, SquaredError
from recipe.newton import Newton
from recipe.outputs import Correct, Logits, Loss, Margin, SoftError, TopMargin
from recipe.precision import MixedPrecision
from recipe.problem import Feasible, Maximize, Minimize, Problem, Solver, Task
from recipe.random_subsets import random_subsets
from recipe.retrain import Retrain
from recipe.run import Solution, Verification, solve, verify
from recipe.scores import Convention, from_scores
from recipe.selection_path import SelectionPath, selection_path
from recipe.setting import Checkpoint, Forward, Setting
from recipe.size_correction import SizeCorrected, SizeCorrecting
from recipe.solvers import Convex, GradientAscent, Greedy, GumbelTopK, Metagradient, Restarts, Rounded, TopK
from recipe.stores import Bank, DamagedError, Effects, Stored
from recipe.training import DivergedError
from recipe.work import Work

__all__ = [
    "CG",
    "LBFGS",
    "LDS",
    "SGD",
    "AdamW",
    "Algorithm",
    "Alike",
    "Arnoldi",
    "Ball",
    "Balls",
    "Bank",
    "Batch",
    "Box",
    "Calibrated",
    "Checkpoint",
    "Checks",
    "Columns",
    "Contrastive",
    "Convention",
    "Convex",
    "Correct",
    "Cost",
    "CrossEntropy",
    "Custom",
    "DamagedError",
    "DataInf",
    "Dense",
    "DivergedError",
    "Effects",
    "Ensemble",
    "Ensembling",
    "Estimator",
    "FacilityLocation",
    "Feasible",
    "Forward",
    "Free",
    "GaussNewton",
    "GradientAscent",
    "Greedy",
    "GumbelTopK",
    "Hessian",
    "Hinge",
    "ImageText",
    "Integers",
    "Intersection",
    "LiSSA",
    "LinearDatamodel",
    "Logits",
    "Loss",
    "Margin",
    "Maximize",
    "Metagradient",
    "Minimize",
    "MixedPrecision",
    "Newton",
    "Nystroem",
    "Objective",
    "OutputFunction",
    "Problem",
    "Processes",
    "Restarts",
    "Retrain",
    "Rounded",
    "Scaled",
    "Scaling",
    "SelectionPath",
    "Setting",
    "SizeCorrected",
    "SizeCorrecting",
    "Slabs",
    "SoftError",
    "Solution",
    "Solver",
    "SquaredError",
    "Stored",
    "Subset",
    "Task",
    "TopK",
    "TopMargin",
    "Verification",
    "Woodbury",
    "Work",
    "WorkerDiedError",
    "calibrated",
    "check",
    "cost_of",
    "effects_of",
    "engine",
    "fragility",
    "from_scores",
    "lds",
    "leave_out",
    "mixed_data",
    "random_subsets",
    "records_origin",
    "selection_path",
    "solve",
    "verify",
]
