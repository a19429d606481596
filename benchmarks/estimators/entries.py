"""Who takes part in which setting: our estimators, and the peers that are installed.

Exact solvers, of ours and of others, take part on the digits; on the larger models each would run for many minutes.
Peers run with what their documentation gives as the default. Where that does badly, a second line shows the better of
a few values; damping equal to the weight decay is among them, since that is what the model was trained with. Beside our
defaults stands EK-FAC as kronfluence has it: independent layers, no damping beside the weight decay, and nothing but
what linear and convolutional layers learn.
"""

import importlib
from dataclasses import dataclass, field, replace

from torch import nn

from benchmarks.estimators.measure import Entry, Fits
from benchmarks.estimators.settings import Case
from estimators.bm25 import BM25
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.gas import GAS
from estimators.influence import Influence
from estimators.knn_shapley import KNNShapley
from estimators.last_layer import LastLayer
from estimators.logra import LoGra
from estimators.magic import MAGIC
from estimators.random import Random
from estimators.regression import Regression
from estimators.similarity import Similarity
from estimators.source import SOURCE
from estimators.tangent_kernel import TangentKernel
from estimators.tracin import TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from recipe import CG, OutputFunction, Setting

LIBRARIES = ("kronfluence", "traker", "dattri", "captum", "pydvl")
SEVERAL = 5  # models of an ensemble


@dataclass(frozen=True)
class OfMatrices:
    """An estimator that is told of linear and convolutional layers alone."""

    estimator: Fits
    _made: list[tuple[Setting, Setting]] = field(default_factory=list, compare=False)

    def fit(self, setting: Setting) -> OutputFunction:
        """The datamodel of the setting with all else frozen; that is made once, as the settings of all others are."""
        if not self._made or self._made[0][0] is not setting:
            self._made[:] = [(setting, self._frozen(setting))]
        return self.estimator.fit(self._made[0][1])

    def _frozen(self, setting: Setting) -> Setting:
        model = setting.module(setting.initial(0))
        matrices = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        learned = {id(t) for m in matrices for t in m.parameters(recurse=False)}
        for t in model.parameters():
            t.requires_grad_(id(t) in learned)
        return replace(setting, model=model)


AS_KRONFLUENCE = OfMatrices(EKFAC(coupled=False, damping=1e-8))


def ours(case: Case) -> list[Entry]:
    """Our estimators that can take the setting."""
    sequences = case.setting.pool[1].ndim > 1
    found = [
        Entry("EKFAC", EKFAC()),
        Entry("EKFAC", EKFAC(), SEVERAL),
        Entry("EKFAC as in kronfluence", AS_KRONFLUENCE),
        Entry("EKFAC as in kronfluence", AS_KRONFLUENCE, SEVERAL),
        Entry("K-FAC", EKFAC(corrected=False)),
        Entry("TRAK 1024", TRAK(1024)),
        Entry("TRAK 1024", TRAK(1024), SEVERAL),
        Entry("TRAK 256, the paper's kernel", TRAK(256, reweighted=False, damping=0.0)),
        Entry("TRAK 256, the paper's kernel", TRAK(256, reweighted=False, damping=0.0), SEVERAL),
        Entry("LoGra", LoGra()),
        Entry("LoGra", LoGra(), SEVERAL),
        Entry("TracIn", TracIn()),
        Entry("SOURCE", SOURCE()),
        Entry("SOURCE", SOURCE(), SEVERAL),
        Entry("GAS", GAS()),
        Entry("TrainLoss", TrainLoss()),
        Entry("Random", Random()),
    ]
    if sequences:
        found += [Entry("BM25", BM25())]
    else:
        found += [
            Entry("LastLayer", LastLayer()),
            Entry("LastLayer", LastLayer(), SEVERAL),
            Entry("Similarity", Similarity(), SEVERAL),
            Entry("KNNShapley", KNNShapley(k=5)),
        ]
    if case.name == "digits logistic":
        found += [Entry("Influence, dense", Influence())]
    if case.name.startswith(("digits", "CIFAR")):  # gradients of all logits of the others do not fit
        found += [Entry("TangentKernel", TangentKernel()), Entry("TangentKernel", TangentKernel(), SEVERAL)]
    if case.name.startswith("digits"):
        found += [
            Entry("EKFACCG", EKFACCG()),
            Entry("EKFACCG", EKFACCG(), SEVERAL),
            Entry("Influence, CG", Influence(inverse=CG(tolerance=1e-2))),
            Entry("Influence, CG", Influence(inverse=CG(tolerance=1e-2)), SEVERAL),
            Entry("Regression, 500 subsets", Regression(500)),
            Entry("Regression, 500 subsets, prior EKFAC", Regression(500, prior=EKFAC()), SEVERAL),
        ]
    if case.name == "digits MLP":
        found += [Entry("MAGIC", MAGIC(check=None))]
    return found


def peers(case: Case) -> tuple[list[Entry], list[str]]:
    """Those that are installed, and the names of the others."""
    found, missing = [], []
    for library in LIBRARIES:
        try:
            module = importlib.import_module(f"benchmarks.estimators.peers.{library}")
        except ImportError:
            missing.append(library)
            continue
        found += [Entry(*entry, library=library) for entry in module.entries(case)]
    return found, missing
