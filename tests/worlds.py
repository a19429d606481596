"""Tiny settings with exact truth, and the lists of what there is. A new plug-in is one line in a list."""

import torch
from torch import Tensor, nn

from applications.data_selection import DataSelection
from applications.debugging import Debugging
from applications.poisoning import Poisoning
from applications.unlearning import Unlearning
from estimators.adjoint_influence import AdjointInfluence
from estimators.banzhaf import Banzhaf
from estimators.data_shapley import DataShapley
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.empirical_influence import EmpiricalInfluence
from estimators.gas import GAS
from estimators.influence import Influence
from estimators.kernel_regression import KernelRegression, RandomRemovals
from estimators.knn import KNN
from estimators.knn_shapley import KNNShapley
from estimators.last_layer import LastLayer
from estimators.less import LESS
from estimators.logra import LoGra, RandomBasis
from estimators.magic import MAGIC
from estimators.newton_step import NewtonStep
from estimators.random import Random
from estimators.regression import Regression, Ridge
from estimators.representer_points import RepresenterPoints
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.source import SOURCE
from estimators.tangent_kernel import TangentKernel
from estimators.tracin import GradCos, GradDot, TracIn
from estimators.train_loss import TrainLoss
from estimators.trak import TRAK
from recipe import (
    CG,
    SGD,
    Arnoldi,
    Box,
    Calibrated,
    Convex,
    DataInf,
    Ensembling,
    GaussNewton,
    GradientAscent,
    Hessian,
    LiSSA,
    Loss,
    Margin,
    Newton,
    Nystroem,
    Setting,
    SizeCorrecting,
    SquaredError,
    TopK,
    Woodbury,
)

DOUBLE = torch.float64


def blobs(n: int = 40, targets: int = 6, seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Three overlapping classes in the plane: `(universe, targets)`."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n + targets) % 3
    centres = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]], dtype=DOUBLE)
    x = centres[y] + 0.7 * torch.randn(n + targets, 2, generator=generator, dtype=DOUBLE)
    return (x[:n], y[:n]), (x[n:], y[n:])


def line(n: int = 30, targets: int = 5, seed: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A noisy linear function of three inputs: `(universe, targets)`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + targets, 3, generator=generator, dtype=DOUBLE)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=DOUBLE)
    y = y + 0.3 * torch.randn(n + targets, 1, generator=generator, dtype=DOUBLE)
    return (x[:n], y[:n]), (x[n:], y[n:])


def value(prediction: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    """The prediction of a regression."""
    return prediction[:, 0]


def logistic(output=Margin(), l2: float = 0.05, **changes) -> Setting:
    """Multinomial logistic regression, trained exactly."""
    universe, targets = blobs()
    return Setting(lambda: nn.Linear(2, 3).double(), universe, targets, Newton(l2=l2), output=output, **changes)


def ridge() -> Setting:
    """Least squares with a penalty, trained exactly; the objective is quadratic."""
    universe, targets = line()
    model = lambda: nn.Linear(3, 1, bias=False).double()  # noqa: E731
    return Setting(model, universe, targets, Newton(l2=0.1), loss=SquaredError(), output=value)


def small_mlp(algorithm=None, **changes) -> Setting:
    """A small network trained by SGD: not convex, seeds matter."""
    universe, targets = blobs()
    model = lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()  # noqa: E731
    algorithm = algorithm or SGD(epochs=30, batch_size=8, lr=0.2, momentum=0.9, weight_decay=1e-2)
    return Setting(model, universe, targets, algorithm, **changes)


CONVEX_SETTINGS = {"logistic margins": logistic(), "logistic losses": logistic(Loss()), "ridge": ridge()}
SETTINGS = {**CONVEX_SETTINGS, "mlp": small_mlp()}

# Estimators whose gradient in the weights is that of retraining, on convex models.
TANGENT = [
    Influence(curvature=Hessian()),
    Influence(),  # Gauss-Newton is the Hessian where the model is linear in its parameters
    Influence(inverse=CG(tolerance=1e-12)),
    NewtonStep(),
    NewtonStep(steps=2),
    NewtonStep(curvature=GaussNewton(), inverse=CG(tolerance=1e-12)),
    EKFACCG(tolerance=1e-12),
    Influence(lazy=True),
    Influence(inverse=LiSSA(tolerance=1e-12)),
    Influence(inverse=Arnoldi(rank=51)),  # as many as the largest of these models has parameters
    Influence(inverse=Nystroem(rank=51)),
    AdjointInfluence(Hessian(), CG(tolerance=1e-10)),
]
ESTIMATORS = [
    *TANGENT,
    Influence(inverse=DataInf()),
    Influence(inverse=Woodbury()),
    EKFAC(),
    EKFAC(lazy=True),
    EKFAC(corrected=False, coupled=False),
    Regression(subsets=60),
    Regression(subsets=60, penalty=Ridge()),
    Regression(subsets=60, prior=Influence()),
    KernelRegression(RandomRemovals(sets=60, share=0.5)),
    KernelRegression(RandomRemovals(sets=60, share=0.5), prior=Influence()),
    TangentKernel(l2=1e-2, steps=20),
    EmpiricalInfluence(subsets=60),
    Banzhaf(subsets=60),
    DataShapley(permutations=2),
    Similarity(),
    Random(),
    LastLayer(),
    KNN(k=5),
    KNNShapley(k=5),
    RepresenterPoints(),
    TrainLoss(),
    GAS(),
    GAS(layerwise=True),
    Ensembling([Influence(), Influence(damping=0.1)]),
    Calibrated(Influence(), subsets=6),
    SizeCorrecting(Influence()),
    MAGIC(check=None),
    TracIn(checkpoints=3),
    GradDot(),
    GradCos(),
    LESS(checkpoints=2),
    LESS(dimension=5, checkpoints=1),
    SOURCE(segments=2, checkpoints=1),
    Simfluence(subsets=4, penalty=1.0),
    TRAK(dimension=6),
    TRAK(dimension=5, reweighted=False),
    LoGra(),
    LoGra(rank=2, basis=RandomBasis()),
]


def tasks(setting: Setting) -> list:
    """Every task, made for a setting whose outputs are losses; `(task, solver that suits it)`."""
    inputs, labels = setting.pool[0][:3], setting.pool[1][:3]
    deployed = setting.outputs(setting.algorithm.train(setting, torch.ones(setting.n), 0)).detach()
    box = Box(inputs, torch.full_like(inputs, 0.5))
    return [
        (DataSelection(size=setting.n // 2), TopK()),
        (Unlearning(torch.tensor([1, 5, 9]), deployed), Convex()),
        (Poisoning((inputs, (labels + 1) % 3), box), GradientAscent(lr=0.1, steps=20)),
        (Debugging(target=0, remove=4), TopK()),
    ]


class Folder(torch.utils.data.Dataset):
    """Examples that lie in a file."""

    def __init__(self, path):
        self.path = str(path)

    def __len__(self):
        return len(torch.load(self.path)[1])

    def __getitem__(self, i):
        return tuple(t[i] for t in torch.load(self.path))
