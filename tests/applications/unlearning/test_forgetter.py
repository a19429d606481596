"""The forgetter: any order, idempotent, on the disk before it is acknowledged, the same after a restart."""

import json
from dataclasses import replace

import pytest
import torch

from applications.unlearning import (
    CertifiedRemoval,
    DatamodelMatching,
    Forgetter,
    NothingLeftError,
    ParameterUpdate,
    RetrainFromScratch,
    UnknownPointError,
)
from applications.unlearning.journal import Journal
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.regression import Regression
from recipe import SGD, Checkpoint, Newton, Retrain
from tests.worlds import blobs, logistic, small_mlp

SETTING = logistic()


def flat(forgetter):
    return forgetter.setting.flat(forgetter.parameters)


def test_requests_come_in_any_order_and_twice():
    one, two = (Forgetter(SETTING, NewtonStep(), ParameterUpdate()) for _ in range(2))
    for ids in ([3], [7, 9], [1]):
        one.forget(ids)
    two.forget([9, 1])
    receipt = two.forget([7, 3, 9])
    assert receipt.forgotten == [3, 7]
    assert receipt.already == {"9": two.receipts[0].id}
    assert one.forgotten == two.forgotten == [1, 3, 7, 9]
    torch.testing.assert_close(flat(one), flat(two))
    again = two.forget([7, 3, 9])
    assert again.forgotten == []
    torch.testing.assert_close(flat(one), flat(two))


def test_a_named_request_is_answered_once():
    forgetter = Forgetter(SETTING, None, RetrainFromScratch())
    first = forgetter.forget([4, 2], request="ann")
    assert forgetter.forget([2, 4], request="ann") == first
    assert len(forgetter.receipts) == 1
    with pytest.raises(ValueError, match="'ann' was made before, for other points"):
        forgetter.forget([5], request="ann")


def test_the_model_is_the_unlearned_one_and_its_outputs_are_its_own():
    forgetter = Forgetter(SETTING, NewtonStep(), ParameterUpdate())
    forgetter.forget(torch.tensor([0, 7, 14, 33]))
    truth = Retrain(SETTING)(forgetter.keep)
    now = SETTING.outputs(forgetter.parameters)
    before = SETTING.outputs(forgetter.deployed.parameters)
    assert (now - truth).abs().mean() < 0.2 * (before - truth).abs().mean()
    batch = SETTING.probe
    torch.testing.assert_close(forgetter.outputs(batch), forgetter.model(batch[0]))


def test_many_requests_are_one_update():
    calls = []

    class Counting(RetrainFromScratch):
        def unlearn(self, deployed, keep, seed=0):
            calls.append(int((keep == 0).sum()))
            return super().unlearn(deployed, keep, seed)

    forgetter = Forgetter(SETTING, None, Counting())
    receipts = forgetter.forget_all([([1], None), ([2, 1], None), ([5], "eve"), ([5], "eve")])
    assert calls == [3]
    assert [r.forgotten for r in receipts] == [[1], [2], [5], [5]]
    assert receipts[1].already == {"1": receipts[0].id}


def test_a_receipt_has_hashes_and_no_data():
    forgetter = Forgetter(SETTING, NewtonStep(), ParameterUpdate())
    receipt = forgetter.forget([3, 4])
    text = json.dumps(receipt.json())
    assert set(receipt.hashes) == {"3", "4"}
    assert receipt.hashes["3"] != receipt.hashes["4"]
    assert receipt.method == {"type": "ParameterUpdate"}
    assert receipt.predicted > 0
    assert receipt.measured is None
    for number in SETTING.pool[0][3:5].reshape(-1).tolist():
        assert f"{number:.4f}"[:6] not in text


def test_an_audit_measures_and_enters_the_receipts(tmp_path):
    forgetter = Forgetter(SETTING, NewtonStep(), ParameterUpdate(), store=tmp_path)
    forgetter.forget([0, 7, 14, 33])
    audit = forgetter.audit(n=2)
    truth = Retrain(SETTING)(forgetter.keep)
    assert audit.distance["held out"] == pytest.approx(
        float((SETTING.outputs(forgetter.parameters) - truth).abs().mean()), rel=1e-6
    )
    assert audit.distance["forget"] < 0.2 * audit.nothing["forget"]
    assert audit.floor["retain"] == pytest.approx(0, abs=1e-8)  # exact training has no seeds
    assert forgetter.receipts[0].measured["oracles"] == 2
    forgetter.close()
    again = Forgetter(SETTING, NewtonStep(), ParameterUpdate(), store=tmp_path)
    assert again.receipts == forgetter.receipts
    with pytest.raises(ValueError, match="at least two oracles and something forgotten; got n=1"):
        again.audit(n=1)


def test_a_large_audit_has_klom():
    setting = replace(small_mlp(), algorithm=SGD(epochs=5, batch_size=8, lr=0.2))
    forgetter = Forgetter(setting, None, RetrainFromScratch())
    forgetter.forget([1, 2, 3])
    audit = forgetter.audit(n=80)
    assert audit.evaluation.models == (80, 80)
    assert audit.evaluation.splits["forget"].ratio < 2.5
    assert "80 oracles" in str(audit)


METHODS = [
    ParameterUpdate(),
    DatamodelMatching(SGD(epochs=3, batch_size=8, lr=0.05)),
    CertifiedRemoval(noise=0.5),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_restart_has_the_same_model_and_the_same_receipts(method, tmp_path):
    first = Forgetter(SETTING, NewtonStep(), method, store=tmp_path)
    for ids in ([3], [7, 9], [3], [20, 21, 22], [30]):
        first.forget(ids)
    first.close()
    again = Forgetter(SETTING, NewtonStep(), method, store=tmp_path)
    assert again.receipts == first.receipts
    assert again.forgotten == first.forgotten
    assert torch.equal(flat(again), flat(first))
    again.forget([11])
    assert again.forgotten == [3, 7, 9, 11, 20, 21, 22, 30]


def test_a_certificate_stands_in_the_receipt():
    forgetter = Forgetter(SETTING, None, CertifiedRemoval(epsilon=2.0, noise=5.0))
    model = forgetter.forget([3]).model
    assert model["epsilon"] == 2.0
    assert 0 < model["residual_bound"] <= model["budget"]
    assert model["retrainings"] == 0


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_record_is_cut_off(cut, tmp_path):
    """What a crash in the middle of a write leaves was never acknowledged."""
    first = Forgetter(SETTING, None, RetrainFromScratch(), store=tmp_path)
    first.forget([3])
    first.forget([4])
    first.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Forgetter(SETTING, None, RetrainFromScratch(), store=tmp_path)
    assert again.forgotten == [3]
    again.forget([4])
    again.close()
    assert Forgetter(SETTING, None, RetrainFromScratch(), store=tmp_path).forgotten == [3, 4]


def test_a_failed_update_is_not_acknowledged(tmp_path):
    class Failing(RetrainFromScratch):
        def unlearn(self, deployed, keep, seed=0):
            raise ArithmeticError("diverged")

    forgetter = Forgetter(SETTING, None, Failing(), store=tmp_path)
    with pytest.raises(ArithmeticError):
        forgetter.forget([3])
    assert forgetter.forgotten == []
    assert forgetter.receipts == []
    forgetter.close()
    assert len(Journal(tmp_path / "journal.jsonl").records) == 1  # the header


def test_a_damaged_record_is_an_error_and_a_second_process_too(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append([{"a": 1}, {"b": 2}])
    with pytest.raises(BlockingIOError, match="open in another process"):
        Journal(tmp_path / "j")
    journal.close()
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data.replace(b'"a": 1', b'"a": 7'))
    with pytest.raises(ValueError, match="Record 1 .* is damaged"):
        Journal(tmp_path / "j")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([40], UnknownPointError, r"from 0 to 39, at least one; got \[40\], which do not exist"),
        ([-1, 2], UnknownPointError, r"\[-1\]"),
        ([], UnknownPointError, "got none"),
        (range(40), NothingLeftError, "none of the 40 training points"),
    ],
)
def test_requests_that_cannot_be_answered(ids, error, message):
    forgetter = Forgetter(SETTING, None, RetrainFromScratch())
    with pytest.raises(error, match=message):
        forgetter.forget(ids)
    assert forgetter.forgotten == []


@pytest.mark.parametrize(
    ("setting", "method", "what"),
    [
        (replace(SETTING, universe=blobs(seed=3)[0]), RetrainFromScratch(), "universe"),
        (replace(SETTING, algorithm=Newton(l2=0.2)), RetrainFromScratch(), "algorithm"),
        (SETTING, DatamodelMatching(), "method"),
    ],
)
def test_a_store_of_something_else_is_refused(setting, method, what, tmp_path):
    Forgetter(SETTING, None, RetrainFromScratch(), store=tmp_path).close()
    with pytest.raises(ValueError, match=f"requests of another {what}"):
        Forgetter(setting, None, method, store=tmp_path)


def test_methods_that_need_what_is_not_there():
    with pytest.raises(ValueError, match="has no datamodel"):
        Forgetter(SETTING, None, ParameterUpdate()).forget([3])
    with pytest.raises(ValueError, match="linear in their parameters"):
        Forgetter(small_mlp(), None, CertifiedRemoval())


def test_a_model_of_ones_own_is_deployed():
    theta = SETTING.initial(5)
    forgetter = Forgetter(replace(SETTING, checkpoints=(Checkpoint(theta),)), Influence(), ParameterUpdate())
    assert torch.equal(flat(forgetter), SETTING.flat(theta))


@pytest.mark.parametrize("ids", [[True, False, True], torch.tensor([True, False]), [1.7], "12"])
def test_what_is_no_id_forgets_nothing(ids):
    forgetter = Forgetter(SETTING, None, RetrainFromScratch())
    with pytest.raises(UnknownPointError, match="whole numbers"):
        forgetter.forget(ids)
    assert forgetter.forgotten == []


@pytest.mark.parametrize(
    ("estimator", "method", "error", "message"),
    [
        (None, ParameterUpdate(), ValueError, "no datamodel"),
        (None, DatamodelMatching(), ValueError, "no datamodel"),
        (Regression(subsets=20), ParameterUpdate(), NotImplementedError, "parameters"),
    ],
)
def test_a_method_without_what_it_needs_is_refused_before_any_request(estimator, method, error, message):
    with pytest.raises(error, match=message):
        Forgetter(SETTING, estimator, method)


def test_a_checkpoint_of_another_precision_is_the_same_model_after_a_restart(tmp_path):
    theta = SETTING.algorithm.train(SETTING, torch.ones(SETTING.n), 0)
    single = replace(SETTING, checkpoints=(Checkpoint({name: t.float() for name, t in theta.items()}),))
    for _ in range(2):
        Forgetter(single, None, RetrainFromScratch(), store=tmp_path).close()


def test_a_store_of_another_model_is_refused(tmp_path):
    theta = SETTING.algorithm.train(SETTING, torch.ones(SETTING.n), 0)
    other = {name: t + 1 for name, t in theta.items()}
    Forgetter(replace(SETTING, checkpoints=(Checkpoint(theta),)), None, RetrainFromScratch(), store=tmp_path).close()
    with pytest.raises(ValueError, match="another deployed model"):
        Forgetter(replace(SETTING, checkpoints=(Checkpoint(other),)), None, RetrainFromScratch(), store=tmp_path)
    with pytest.raises(ValueError, match="another model"):
        Forgetter(
            replace(SETTING, model=lambda: torch.nn.Linear(2, 5).double()), None, RetrainFromScratch(), store=tmp_path
        )
