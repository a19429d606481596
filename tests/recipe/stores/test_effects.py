"""Effects on disk: the same numbers as in memory, nothing complete computed again, nothing foreign or damaged read."""

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from applications.data_selection import DataSelection
from estimators.adjoint_influence import AdjointInfluence
from estimators.banzhaf import Banzhaf
from estimators.data_shapley import DataShapley
from estimators.ekfac import EKFAC
from estimators.ekfac_cg import EKFACCG
from estimators.empirical_influence import EmpiricalInfluence
from estimators.exact_shapley import ExactShapley
from estimators.influence import Influence
from estimators.kernel_regression import KernelRegression
from estimators.knn import KNN
from estimators.knn_shapley import KNNShapley
from estimators.less import LESS
from estimators.magic import MAGIC
from estimators.newton_step import NewtonStep
from estimators.regression import Lasso, Regression, Ridge
from estimators.simfluence import Simfluence
from estimators.similarity import Similarity
from estimators.tangent_kernel import TangentKernel
from estimators.tracin import GradDot
from recipe import (
    Bank,
    Calibrated,
    DamagedError,
    Effects,
    Ensembling,
    Greedy,
    LinearDatamodel,
    Logits,
    Loss,
    Minimize,
    Newton,
    Problem,
    Scaling,
    SizeCorrected,
    SizeCorrecting,
    Stored,
    Subset,
    TopK,
    calculus,
    engine,
    retrain,
    solve,
)
from recipe import batch as batches
from recipe.stores import effects as module
from tests.worlds import ESTIMATORS, logistic, small_mlp

FORK = multiprocessing.get_context("fork")
W = torch.rand(3, 40, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    monkeypatch.setattr(calculus, "_rows", lambda p: 7)
    monkeypatch.setattr(calculus, "CACHE_BYTES", 1)
    monkeypatch.setattr("estimators._representation.BLOCK", 7)


SLOW = (DataShapley, Banzhaf, EmpiricalInfluence, ExactShapley)  # retraining on subsets
NOT_LINEAR = (AdjointInfluence, NewtonStep, KNN, Simfluence, KernelRegression, TangentKernel)
MADE_OF_OTHERS = (Calibrated, Ensembling, Scaling, SizeCorrecting)
FEW = [DataShapley(2), Banzhaf(20), EmpiricalInfluence(20)]
FEW_KINDS = tuple(map(type, FEW))
AT_ONCE = (*SLOW, KNNShapley, MAGIC, Regression)
EACH = {type(e): e for e in ESTIMATORS if not isinstance(e, (*SLOW, *MADE_OF_OTHERS))}
EACH |= {Regression: Regression(subsets=10)}


def world(estimator):
    return logistic() if isinstance(estimator, (Influence, EKFACCG)) else small_mlp()


@pytest.mark.parametrize("estimator", [*EACH.values(), *FEW], ids=lambda e: type(e).__name__)
def test_every_linear_estimator_can_keep_its_effects_on_disk(estimator, tmp_path, monkeypatch):
    """They come in blocks of points, or a few targets at a time: never whole."""
    setting = world(estimator)
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 8 * 40)  # two targets
    asked, collect = [], module._Sink.collect_outputs

    def noted(sink, function, shape, n):
        return collect(sink, lambda some: asked.append(some.stop - some.start) or function(some), shape, n)

    monkeypatch.setattr(module._Sink, "collect_outputs", noted)
    f_hat = estimator.fit(setting)
    if type(estimator) in NOT_LINEAR:
        with pytest.raises(ValueError, match="is not linear in the weights"):
            Stored(estimator, tmp_path / "effects").fit(setting)
        return
    stored = Stored(estimator, tmp_path / "effects").fit(setting)
    assert asked == ([2, 2, 2] if isinstance(estimator, AT_ONCE) else [])
    assert isinstance(stored.effects, Effects)
    assert type(stored) is type(f_hat)
    torch.testing.assert_close(stored(W), f_hat(W), rtol=1e-4, atol=1e-4)
    w = W[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(stored(w).sum(), w)
    torch.testing.assert_close(stored.effects[:].sum(0).double(), gradient, rtol=1e-4, atol=1e-4)
    assert (stored.effect is None) == (f_hat.effect is None)
    if f_hat.effect is not None:
        added = batches.take(setting.pool, slice(0, 2))
        torch.testing.assert_close(stored.effect(added), f_hat.effect(added), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimator", [*EACH.values(), *FEW], ids=lambda e: type(e).__name__)
def test_what_is_complete_computes_no_effect_and_trains_on_no_subset(estimator, tmp_path, monkeypatch):
    if type(estimator) in NOT_LINEAR:
        pytest.skip("is not linear")
    setting, path = world(estimator), tmp_path / "effects"
    stored = Stored(estimator, path).fit(setting)
    monkeypatch.setattr(module.Blocks, "write", None)
    if isinstance(estimator, (*FEW_KINDS, Regression)):
        monkeypatch.setattr(retrain, "train_shards", None)
    again = Stored(estimator, path).fit(setting)
    assert torch.equal(again(W), stored(W))


def test_the_models_of_an_ensemble_are_kept_beside_the_effects(tmp_path, monkeypatch):
    setting, path = small_mlp(), tmp_path / "effects"
    whole = Stored(EKFAC(models=2), path).fit(setting)
    (path / "c/0/2").unlink()
    monkeypatch.setattr(retrain, "train_shards", None)
    monkeypatch.setattr("estimators._ensemble.train_runs", None)
    assert torch.equal(Stored(EKFAC(models=2), path).fit(setting).effects[:], whole.effects[:])
    own = Bank(tmp_path / "bank", parameters=True)
    monkeypatch.undo()
    with engine(bank=own):
        Stored(EKFAC(), tmp_path / "other").fit(setting)
    assert not (tmp_path / "other/runs").exists()
    assert len(list((tmp_path / "bank/segments").iterdir())) > 1


def test_what_is_more_than_effects_is_there_on_disk_too(tmp_path):
    setting = small_mlp()
    sampled = [f(Banzhaf(20)).fit(setting) for f in (lambda e: e, lambda e: Stored(e, tmp_path / "sampled"))]
    torch.testing.assert_close(sampled[1].standard_error, sampled[0].standard_error)
    for models in (1, 2):
        magic, path = MAGIC(models=models), tmp_path / f"magic{models}"
        smooth = [e.fit(setting).smoothness for e in (magic, Stored(magic, path), Stored(magic, path))]
        assert smooth[1].agreement == pytest.approx(smooth[0].agreement)
        assert smooth[2].agreement == pytest.approx(smooth[0].agreement, abs=1e-5)  # all effects were there


@pytest.mark.parametrize("kind", MADE_OF_OTHERS, ids=lambda kind: kind.__name__)
def test_an_estimator_made_of_others_says_to_store_these(kind, tmp_path):
    ways = {Calibrated: lambda e: Calibrated(e, 6), Ensembling: lambda e: Ensembling([e])}
    make = (ways | {Scaling: lambda e: Scaling(e, 2.0)}).get(kind, SizeCorrecting)
    with pytest.raises(ValueError, match=f"{kind.__name__} is made of other estimators: store these"):
        Stored(make(GradDot()), tmp_path / "effects")
    setting = small_mlp()
    stored = make(Stored(GradDot(), tmp_path / "effects")).fit(setting)
    torch.testing.assert_close(stored(W), make(GradDot()).fit(setting)(W), rtol=1e-4, atol=1e-4)


class Plain:
    """An estimator that hands its effects to nobody."""

    def fit(self, setting, at=None):
        return LinearDatamodel(torch.ones(6), torch.arange(240.0).view(6, 40), output_shape=(6,))


def test_effects_of_an_estimator_that_hands_them_to_nobody_are_written_too(tmp_path):
    setting = small_mlp()
    stored = Stored(Plain(), tmp_path / "effects").fit(setting)
    assert isinstance(stored.effects, Effects)
    torch.testing.assert_close(stored(W.float()), Plain().fit(setting)(W.float()))


@pytest.mark.parametrize("penalty", [Lasso(), Ridge()], ids=["lasso", "ridge"])
@pytest.mark.parametrize("kept", [False, True], ids=["prior in memory", "prior on disk"])
def test_regressions_with_a_prior_are_the_same_on_disk(penalty, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 8 * 40)
    setting, estimator = small_mlp(output=Logits()), Regression(subsets=30, penalty=penalty, prior=GradDot())
    prior = Stored(GradDot(), tmp_path / "prior") if kept else GradDot()
    stored = Stored(replace(estimator, prior=prior), tmp_path / "effects").fit(setting)
    torch.testing.assert_close(stored(W), estimator.fit(setting)(W), rtol=1e-3, atol=1e-3)


def test_effects_too_large_for_half_precision_are_named(tmp_path):
    setting = small_mlp(output=lambda z, batch: 1e9 * z[:, 0])
    with pytest.raises(ValueError, match=r"too large for torch.float16: above 65504"):
        Stored(GradDot(), tmp_path / "effects", torch.float16).fit(setting)


def test_the_cost_is_the_estimators_without_its_effects():
    setting = small_mlp()
    whole, stored = GradDot().cost(setting), Stored(GradDot(), "runs/effects").cost(setting)
    assert stored.flops == whole.flops
    assert 0 <= stored.bytes <= whole.bytes


def test_what_is_stored_can_be_calibrated(tmp_path):
    setting = logistic()
    stored = Calibrated(Stored(Influence(), tmp_path / "effects"), subsets=6).fit(setting)
    assert isinstance(stored.f_hat.effects, Effects)
    torch.testing.assert_close(stored(W), Calibrated(Influence(), subsets=6).fit(setting)(W), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "estimator", [EKFAC(), GradDot(), LESS(checkpoints=2), Similarity()], ids=lambda e: type(e).__name__
)
def test_white_box_estimators_write_blocks_of_points(estimator, tmp_path):
    f_hat = Stored(estimator, tmp_path / "effects").fit(small_mlp())
    assert f_hat.effects.chunks[1] < 40
    assert f_hat.effect is not None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
def test_half_precision(dtype, tolerance, tmp_path):
    setting = small_mlp()
    f_hat, stored = EKFAC().fit(setting), Stored(EKFAC(), tmp_path / "effects", dtype).fit(setting)
    assert stored.effects.dtype == dtype
    torch.testing.assert_close(stored.effects[:].double(), f_hat.effects, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(stored(W), f_hat(W), rtol=tolerance, atol=40 * tolerance)


def test_solvers_stream_over_them(tmp_path):
    setting = logistic(Loss())
    f_hat, stored = Influence().fit(setting), Stored(Influence(), tmp_path / "effects").fit(setting)

    def problem(f):
        return Problem(Minimize(lambda w: f(w).mean()), torch.ones(40), Subset(40, size=10), lambda w: (w, None))

    assert torch.equal(TopK().solve(problem(stored)), TopK().solve(problem(f_hat)))
    torch.testing.assert_close(SizeCorrected(stored)(W), SizeCorrected(f_hat)(W), rtol=1e-4, atol=1e-4)


def test_any_zarr_reader_opens_them(tmp_path):
    f_hat = Stored(EKFAC(), tmp_path / "effects").fit(small_mlp())
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "effects", mode="r")[:], f_hat.effects[:].numpy())


def test_what_is_complete_is_not_computed_again(tmp_path, monkeypatch):
    path, setting = tmp_path / "effects", small_mlp()
    whole = Stored(GradDot(), path).fit(setting).effects[:]
    (path / "c/0/2").unlink()
    with pytest.raises(DamagedError, match="lacks 1 of 40 blocks, the first of training point 2"):
        Effects(path)
    before = {p: p.stat().st_mtime_ns for p in path.glob("c/0/*")}
    assert torch.equal(Stored(GradDot(), path).fit(setting).effects[:], whole)
    assert {p: t for p, t in ((p, p.stat().st_mtime_ns) for p in path.glob("c/0/*")) if p in before} == before


def test_damage_is_named_and_redone_on_request(tmp_path):
    path, setting = tmp_path / "effects", small_mlp()
    f_hat = Stored(GradDot(), path).fit(setting)
    whole = f_hat.effects[:]
    chunk = path / "c/0/3"
    for data in (chunk.read_bytes()[:-3], bytes(len(chunk.read_bytes()))):
        chunk.write_bytes(data)
        with pytest.raises(DamagedError, match=r"1 of 40 blocks are damaged: .*/c/0/3.*redo=True"):
            f_hat(W)
        assert torch.equal(Stored(GradDot(), path, redo=True).fit(setting).effects[:], whole)


@pytest.mark.parametrize(
    ("estimator", "changes", "message"),
    [
        (GradDot(models=2), {}, r"Estimator: the store has GradDot\(models=1"),
        (GradDot(), {"algorithm": Newton(l2=0.1)}, "Algorithm: the store has SGD.*this fit Newton"),
        (GradDot(), {"output": Loss()}, "Measure: the store has"),
        (GradDot(), {"universe": small_mlp().probe}, "Universe: the store has"),
    ],
)
def test_effects_of_another_fit_are_refused(estimator, changes, message, tmp_path):
    setting = small_mlp()
    Stored(GradDot(), tmp_path / "effects").fit(setting)
    with pytest.raises(ValueError, match=f"belong to another fit. {message}"):
        Stored(estimator, tmp_path / "effects").fit(replace(setting, **changes))
    with pytest.raises(ValueError, match=r"Dtype: the store has torch\.float32"):
        Stored(GradDot(), tmp_path / "effects", torch.float16).fit(setting)


def test_a_newer_format_and_other_things_are_left_untouched(tmp_path):
    path, setting = tmp_path / "effects", small_mlp()
    Stored(GradDot(), path).fit(setting)
    head = json.loads((path / "zarr.json").read_text())
    head["attributes"]["recipe"]["format"] = 2
    (path / "zarr.json").write_text(json.dumps(head))
    with pytest.raises(ValueError, match="format 2, which is newer than 1.*left untouched"):
        Stored(GradDot(), path).fit(setting)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").touch()
    with pytest.raises(ValueError, match="holds something else than effects"):
        Stored(GradDot(), tmp_path / "notes").fit(setting)
    with pytest.raises(ValueError, match="There are no effects at"):
        Effects(tmp_path / "nothing")
    with pytest.raises(ValueError, match="float32, bfloat16 or float16; got torch.int8"):
        Stored(GradDot(), path, torch.int8)
    with pytest.raises(ValueError, match="KNN is not linear in the weights"):
        Stored(KNN(k=5), tmp_path / "knn").fit(setting)


def test_of_several_fits_the_outermost_is_stored(tmp_path):
    setting = small_mlp()
    estimator = Regression(subsets=20, prior=GradDot())
    torch.testing.assert_close(
        Stored(estimator, tmp_path / "effects").fit(setting)(W), estimator.fit(setting)(W), rtol=1e-4, atol=1e-4
    )


def test_refits_have_a_place_in_the_store(tmp_path):
    setting, path = logistic(Loss()), tmp_path / "effects"
    task = DataSelection(size=10)
    estimators = Influence(), Stored(Influence(), path)
    solutions = [
        solve(task, estimator.fit(setting), Greedy(refit=5), estimator, setting).decision for estimator in estimators
    ]
    assert torch.equal(*solutions)
    assert len(list(path.glob("at-*"))) >= 1
    with pytest.raises(ValueError, match="With lazy=True no effects are ever made"):
        Stored(Influence(lazy=True), path)
