"""The bank: nothing that was trained is trained again, and nothing foreign or damaged is taken for it."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import zarr

from recipe import (
    SGD,
    Bank,
    Custom,
    DamagedError,
    Logits,
    Loss,
    Newton,
    Objective,
    Processes,
    Retrain,
    Setting,
    random_subsets,
)
from recipe import batch as batches
from recipe.stores import inspection, segments
from recipe.stores.segments import Segments
from tests.worlds import blobs, logistic, small_mlp


@dataclass(frozen=True)
class Counting(Newton):
    """Newton that counts its runs."""

    runs: list = field(default_factory=list, compare=False)

    def train_many(self, setting, weights, seeds, added=None):
        self.runs.extend(seeds)
        return super().train_many(setting, weights, seeds, added)


def counted(**changes):
    rule = Counting(l2=0.05)
    return replace(logistic(), algorithm=rule, **changes), rule.runs


W = random_subsets(40, r=5, alpha=0.5, seed=0)


def damaged(path, column):
    """Cut the last byte of every chunk of a column."""
    chunks = [p for p in path.glob(f"segments/*/{column}/**/c/**/*") if p.is_file()]
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[:-1])
    return chunks


def test_what_is_banked_is_not_trained_again(tmp_path):
    setting, runs = counted()
    first = Retrain(setting, seeds=(0, 1), bank=Bank(tmp_path / "bank"))
    outputs = first.per_seed(W)
    assert len(runs) == 10
    again = Retrain(setting, seeds=(1, 0), bank=Bank(tmp_path / "bank"))
    assert torch.equal(again.per_seed(W), outputs.flip(0))
    assert torch.equal(again(W[:1]), first(W[:1]))
    assert len(runs) == 10
    again(torch.ones(40))
    assert len(runs) == 12


def test_weights_seeds_and_added_examples_tell_runs_apart(tmp_path):
    setting, runs = counted()
    f = Retrain(setting, bank=Bank(tmp_path / "bank"))
    ones, added = torch.ones(40), batches.take(setting.probe, slice(0, 2))
    for arguments in ((ones,), (ones * 0.5,), (ones, added), (ones, batches.take(added, slice(0, 1)))):
        before = len(runs)
        f(*arguments), Retrain(setting, bank=Bank(tmp_path / "bank"))(*arguments)
        assert len(runs) == before + 1
    Retrain(setting, seeds=(7,), bank=Bank(tmp_path / "bank"))(ones)
    assert runs[-1] == 7


def test_kept_parameters_measure_new_targets_without_training(tmp_path):
    setting, runs = counted()
    Retrain(setting, bank=Bank(tmp_path / "bank", parameters=True))(W)
    other = setting.on(batches.take(setting.probe, slice(0, 3)), Logits())
    expected = Retrain(other)(W)
    runs.clear()
    f = Retrain(other, bank=Bank(tmp_path / "bank", parameters=True))
    torch.testing.assert_close(f(W), expected)
    theta = f.parameters(W[2])
    torch.testing.assert_close(other.outputs({k: t[0] for k, t in theta.items()}), expected[2])
    assert not runs
    Retrain(other, bank=Bank(tmp_path / "bank"))(W)  # measured later, and banked
    assert not runs


def test_without_parameters_new_targets_train_once(tmp_path):
    setting, runs = counted()
    for _ in range(2):
        Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
        Retrain(setting.on(output=Loss()), bank=Bank(tmp_path / "bank"))(W)
    assert len(runs) == 10


def test_a_shuffled_or_extended_universe_finds_its_runs(tmp_path):
    setting, runs = counted()
    outputs, bank = Retrain(setting, bank=Bank(tmp_path / "bank"))(W), Bank(tmp_path / "bank")
    order = torch.randperm(40)
    shuffled = replace(setting, universe=batches.take(setting.pool, order))
    assert torch.equal(Retrain(shuffled, bank=bank)(W[:, order]), outputs)
    longer = replace(setting, universe=batches.concatenate(setting.pool, blobs(5, 1, seed=9)[0]))
    assert torch.equal(Retrain(longer, bank=bank)(torch.cat([W, torch.zeros(5, 5)], 1)), outputs)
    assert len(runs) == 5
    Retrain(longer, bank=bank)(torch.ones(45))
    assert len(runs) == 6


def test_with_replay_the_whole_universe_counts(tmp_path):
    setting = replace(small_mlp(), algorithm=SGD(epochs=2, batch_size=8, lr=0.1, replay=True))
    bank, order = Bank(tmp_path / "bank"), torch.arange(39, -1, -1)
    Retrain(setting, bank=bank)(W)
    shuffled = replace(setting, universe=batches.take(setting.pool, order))
    torch.testing.assert_close(Retrain(shuffled, bank=bank)(W[:, order]), Retrain(shuffled)(W[:, order]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": Newton(l2=0.06)}, r"Algorithm: the bank has Newton\(l2=0.05.*this setting Newton\(l2=0.06"),
        ({"model": lambda: torch.nn.Linear(2, 3, bias=False).double()}, "Model: .* 9 parameters.* 6 parameters"),
        ({"loss": lambda z, batch: z.square().sum(1)}, r"Loss: the bank has CrossEntropy.*lambda"),
        ({"forward": lambda model, batch: 2 * model(batch[0])}, r"Forward: the bank has Forward\(\)"),
        ({"universe": (2 * blobs()[0][0], blobs()[0][1])}, "of 40 examples in the bank, 40 are not"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_setting_is_refused_with_the_difference_named(tmp_path, changes, message):
    setting = replace(logistic(), algorithm=Newton(l2=0.05))
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        Retrain(replace(setting, **changes), bank=Bank(tmp_path / "bank"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_changed_example_is_refused(tmp_path):
    setting = logistic()
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    inputs, labels = setting.pool
    changed = replace(setting, universe=(inputs.index_fill(0, torch.tensor([7]), 0.0), labels))
    with pytest.raises(ValueError, match="1 are not in this setting, which has 1 others, the first at index 7"):
        Retrain(changed, bank=Bank(tmp_path / "bank"))


def test_a_custom_loop_is_known_by_its_name(tmp_path):
    def loop(name):
        return Custom(lambda model, dataset, seed: model, Objective(), name)

    setting = replace(small_mlp(), algorithm=loop("mine"))
    outputs = Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    same = replace(setting, algorithm=loop("mine"))
    assert torch.equal(Retrain(same, bank=Bank(tmp_path / "bank"))(W), outputs)
    with pytest.raises(ValueError, match="Algorithm: .*name='mine'.*name='yours'"):
        Retrain(replace(setting, algorithm=loop("yours")), bank=Bank(tmp_path / "bank"))


@pytest.mark.parametrize("address", ["{tmp}/bank", "memory://founders/{tmp}"])
def test_of_two_that_found_a_bank_at_once_the_second_is_told(tmp_path, monkeypatch, address):
    path, setting, _ = address.format(tmp=tmp_path), *counted()
    head = Segments.head

    def late(store):  # another process founds it between our look and our own founding
        monkeypatch.setattr(Segments, "head", head)
        assert head(store) is None
        Retrain(setting, bank=Bank(path))

    monkeypatch.setattr(Segments, "head", late)
    with pytest.raises(ValueError, match=r"belongs to another setting\. Model: the bank has Linear with 9"):
        Retrain(small_mlp(), bank=Bank(path))
    assert len(Retrain(setting, bank=Bank(path))(W)) == 5


def test_a_newer_format_is_left_untouched(tmp_path):
    setting, path = logistic(), tmp_path / "bank"
    Retrain(setting, bank=Bank(path))(W)
    head = json.loads((path / "zarr.json").read_text())
    head["attributes"]["recipe"]["format"] = 2
    (path / "zarr.json").write_text(json.dumps(head))
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    with pytest.raises(ValueError, match="written in format 2, which is newer than 1.*left untouched; upgrade"):
        Retrain(setting, bank=Bank(path))(W)
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a bank"):
        Retrain(logistic(), bank=Bank(tmp_path))


@pytest.mark.parametrize("column", ["outputs", "key"])
def test_damage_is_named(tmp_path, column):
    setting, path = logistic(), tmp_path / "bank"
    Retrain(setting, bank=Bank(path))(W)
    (chunk,) = damaged(path, column)
    name = str(chunk.relative_to(path))
    with pytest.raises(DamagedError, match=f"{name} is missing or was damaged.*check --repair"):
        Retrain(setting, bank=Bank(path))(W)


def test_a_bank_that_lost_its_document_takes_no_other_setting(tmp_path):
    setting, _ = counted()
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    document = tmp_path / "bank" / "zarr.json"
    whole = document.read_bytes()
    document.write_bytes(whole[:20])
    with pytest.raises(DamagedError, match="zarr.json, which says to what setting 2 segments belong, is damaged"):
        Retrain(setting, bank=Bank(tmp_path / "bank"))
    document.unlink()
    with pytest.raises(DamagedError, match="is missing. Copy it there again"):
        Retrain(setting, bank=Bank(tmp_path / "bank"))


def test_models_are_known_by_what_they_compute_and_train(tmp_path):
    class Bent(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh()

    class Kinked(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    Kinked.__qualname__ = Bent.__qualname__ = Kinked.__name__ = Bent.__name__ = "Layer"
    setting = logistic()
    Retrain(replace(setting, model=lambda: Bent(2, 3).double()), bank=Bank(tmp_path / "bank"))
    with pytest.raises(ValueError, match="Model: the bank has"):
        Retrain(replace(setting, model=lambda: Kinked(2, 3).double()), bank=Bank(tmp_path / "bank"))


def test_an_interrupted_segment_does_not_count(tmp_path):
    setting, runs = counted()
    f = Retrain(setting, bank=Bank(tmp_path / "bank"))
    f(W)
    (segment,) = [p.parent for p in tmp_path.glob("bank/segments/*/seed")]
    (segment / "zarr.json").unlink()  # it is written last
    outputs = Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    assert len(runs) == 10
    torch.testing.assert_close(outputs, f(W))


def test_any_zarr_reader_opens_it(tmp_path):
    setting = logistic()
    outputs = Retrain(setting, seeds=(3,), bank=Bank(tmp_path / "bank", parameters=True))(W)
    group = zarr.open_group(tmp_path / "bank", mode="r")
    (segment,) = [s for _, s in group["segments"].groups() if "seed" in s]
    assert segment["seed"][:].tolist() == [3] * 5
    np.testing.assert_array_equal(np.unpackbits(segment["weights"][:], axis=1, count=40), W.numpy())
    ((_, banked),) = segment["outputs"].arrays()
    np.testing.assert_array_equal(banked[:], outputs.numpy())
    assert segment["parameters/weight"].shape == (5, 3, 2)


def test_functions_share_the_bank(tmp_path):
    setting, runs = counted()
    f = Retrain(setting, seeds=(0, 1), bank=Bank(tmp_path / "bank"))
    f.on(output=Loss())(W), f.with_seeds([1])(W), f.paired(W, [0] * 5)
    assert len(runs) == 10
    Retrain(Setting(setting.model, setting.universe, setting.targets, setting.algorithm), (0, 1), f.bank)(W)
    assert len(runs) == 10


def test_a_bank_without_parameters_holds_no_run_twice(tmp_path):
    setting, runs = counted()
    f = Retrain(setting, bank=Bank(tmp_path / "bank"))
    f(W)
    again = Retrain(setting, seeds=(0, 1), bank=Bank(tmp_path / "bank"))
    again.parameters(W[0])  # trains both, since parameters are not kept
    Retrain(setting, bank=Bank(tmp_path / "bank")).on(output=Loss())(W)  # trains all, for other outputs
    group = zarr.open_group(tmp_path / "bank", mode="r")
    assert sum(s["seed"].shape[0] for _, s in group["segments"].groups() if "seed" in s) == 6
    trained = len(runs)
    Retrain(setting, bank=Bank(tmp_path / "bank")).on(output=Loss())(W), again(W[:1])
    assert len(runs) == trained


@pytest.mark.parametrize("workers", [0, 1])
def test_models_in_bfloat16(tmp_path, workers):
    data = (torch.randn(12, 2).bfloat16(), torch.arange(12) % 3)
    rule = SGD(epochs=2, batch_size=4, lr=0.1)
    setting = Setting(lambda: torch.nn.Linear(2, 3).bfloat16(), data, data, rule)
    weights, bank = torch.ones(2, 12), Bank(tmp_path / "bank", parameters=True)
    with Processes(workers) if workers else nullcontext() as executor:
        first = Retrain(setting, bank=bank, executor=executor)(weights)
    again = Retrain(setting, bank=bank)
    assert first.dtype == torch.bfloat16
    assert torch.equal(again(weights), first)
    assert torch.equal(again.on(data)(weights), first)
    inspection.export(tmp_path / "bank", tmp_path / "runs.npz")
    (values,) = [a for name, a in np.load(tmp_path / "runs.npz").items() if name.startswith("outputs/")]
    torch.testing.assert_close(torch.from_numpy(values[0]).bfloat16(), first[0])


def test_what_another_process_completed_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    setting, _ = counted()
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    store, put = Segments(str(tmp_path / "bank"), "bank"), segments.put
    whole = len([name for name in store.names() if store.document(name)])
    monkeypatch.setattr(segments, "put", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    store.write({"example": setting.examples}, {"kind": "universe", "universe": setting.contents, "n": setting.n})
    with pytest.raises(OSError, match="No space left on device while writing"):
        store.write({"example": setting.examples}, {"kind": "universe", "universe": "another", "n": setting.n})
    monkeypatch.setattr(segments, "put", put)
    fresh = Segments(str(tmp_path / "bank"), "bank")
    assert len([name for name in fresh.names() if fresh.document(name)]) == whole


def test_export_says_what_a_repair_took_out_and_how_it_comes_back(tmp_path):
    setting, _ = counted()
    added = batches.take(setting.probe, slice(0, 2))
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W)
    Retrain(setting, bank=Bank(tmp_path / "bank"))(W[:1], added)
    damaged(tmp_path / "bank", "example")
    inspection.check(tmp_path / "bank", repair=True)
    with pytest.raises(ValueError, match="lacks the list of examples .* Open the bank with its setting"):
        inspection.export(tmp_path / "bank", tmp_path / "runs.npz")
    Retrain(setting, bank=Bank(tmp_path / "bank"))
    assert inspection.export(tmp_path / "bank", tmp_path / "runs.npz") == 6
    assert sorted(np.load(tmp_path / "runs.npz")["added"]) == [""] * 5 + [batches.content_hash(added)]
