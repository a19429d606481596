"""What every estimator says that it will cost, against what its fit then does."""

import pytest

from estimators.data_shapley import DataShapley
from estimators.kernel_regression import KernelRegression
from estimators.regression import Regression
from estimators.representer_points import RepresenterPoints
from estimators.simfluence import Simfluence
from estimators.tangent_kernel import TangentKernel
from recipe import CG, SGD, Arnoldi, LiSSA, Nystroem, Woodbury, cost_of, work
from recipe.cost import metered
from tests.estimators.test_conformance import suited
from tests.worlds import ESTIMATORS, SETTINGS, small_mlp

# What they do follows from the trained model or from their own results, so that it can only be guessed before.
GUESSED = (DataShapley, RepresenterPoints, Regression, KernelRegression, Simfluence, TangentKernel)
SOLVERS = (CG, LiSSA, Arnoldi, Nystroem, Woodbury)  # with a factorisation, or as many products as it takes
ONE_OF_A_KIND = {(type(e), type(getattr(e, "inverse", None))): e for e in ESTIMATORS}.values()


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    """Pieces are measured below the sizes of this world, and counted only: seconds are for benchmarks."""
    for name, sizes in {"EXAMPLES": (4, 16), "TARGETS": (2, 4), "VECTORS": (1, 4), "STEPS": (1, 3)}.items():
        monkeypatch.setattr(work, name, sizes)
    monkeypatch.setattr(work, "measured", metered)


@pytest.mark.parametrize("estimator", ONE_OF_A_KIND, ids=lambda e: type(e).__name__)
def test_operations_are_as_expected(estimator):
    setting = small_mlp(algorithm=SGD(epochs=2, batch_size=8, lr=0.2, momentum=0.9, weight_decay=1e-1))
    estimator = suited(estimator, SETTINGS["mlp"])
    said, done = cost_of(estimator, setting), metered(lambda: estimator.fit(setting))
    assert said.flops >= done.flops / 3
    if not isinstance(estimator, Simfluence):  # factorisations are said, and not counted
        assert said.flops <= 3 * done.flops
    assert done.bytes / 3 <= said.bytes <= 5 * done.bytes  # a world of kibibytes
    if not isinstance(estimator, GUESSED) and not isinstance(getattr(estimator, "inverse", None), SOLVERS):
        assert said.flops == pytest.approx(done.flops, rel=0.15)
