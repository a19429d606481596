"""captum 0.9: TracInCP, influence by Arnoldi iteration, and similarity of activations."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from captum.influence import TracInCP
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch import Tensor, nn

from benchmarks.estimators.peers._shared import averaged, blank, examples, of_losses, trajectory
from benchmarks.estimators.settings import Case
from recipe import Setting
from recipe.datamodel import LinearDatamodel
from recipe.scores import CAPTUM_INFLUENCE, CAPTUM_TRACIN


class _Loss(nn.Module):
    """The setting's loss, which the library wants as a module that says how it is reduced."""

    reduction = "sum"

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """The sum over a batch."""
        return self.setting.loss(z, (z, y)).sum()


@dataclass(frozen=True)
class CaptumTracIn:
    """TracInCP along a run."""

    def fit(self, setting: Setting) -> LinearDatamodel:
        """The effects at the checkpoints of the setting."""
        along, rates = trajectory(setting)
        with tempfile.TemporaryDirectory() as folder:
            paths = [_saved(module, folder, k) for k, module in enumerate(along)]
            rate_of = dict(zip(paths, rates, strict=True))

            def load(module: nn.Module, path: str) -> float:
                _load(module, path)
                return rate_of[path]

            work = TracInCP(
                blank(setting), examples(setting.pool), paths, load, batch_size=setting.n,
                loss_fn=_Loss(setting), sample_wise_grads_per_batch=True,
            )  # fmt: skip
            return of_losses(work.influence(setting.probe).detach(), CAPTUM_TRACIN, setting)


@dataclass(frozen=True)
class CaptumArnoldi:
    """Schioppa et al. 2022; by default 50 of 200 Arnoldi vectors, and 1e-3 on the diagonal of the summed Hessian."""

    projection: int = 50
    arnoldi: int = 200
    regularization: float = 1e-3

    def fit(self, setting: Setting) -> LinearDatamodel:
        """The effects at the checkpoints of the setting."""

        def scores(module: nn.Module) -> Tensor:
            with tempfile.TemporaryDirectory() as folder:
                work = ArnoldiInfluenceFunction(
                    module, examples(setting.pool), _saved(module, folder), _load, batch_size=setting.n,
                    loss_fn=nn.CrossEntropyLoss(reduction="sum"), sample_wise_grads_per_batch=True,
                    projection_dim=self.projection, arnoldi_dim=self.arnoldi, hessian_reg=self.regularization,
                )  # fmt: skip
                return work.influence(setting.probe)

        return of_losses(averaged(setting, scores), CAPTUM_INFLUENCE, setting)


def entries(case: Case) -> list[tuple]:
    """The Hessian is that of the sum, and so is the damping."""
    decay = case.setting.n * (case.setting.algorithm.objective.l2 or 1e-2)
    found: list[tuple] = [("TracInCP", CaptumTracIn())]
    if case.name.startswith("digits"):
        found += [("Arnoldi", CaptumArnoldi()), (f"Arnoldi, damping {decay:g}", CaptumArnoldi(regularization=decay))]
    return found


def _saved(module: nn.Module, folder: str, k: int = 0) -> str:
    path = Path(folder) / f"{k}.pt"
    torch.save(module.state_dict(), path)
    return str(path)


def _load(module: nn.Module, path: str) -> float:
    module.load_state_dict(torch.load(path))
    return 1.0
