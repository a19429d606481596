"""Examples that stay where they are: the same tensors, without a copy in memory."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from recipe import Bank, Columns, Retrain, columns, executors, random_subsets
from recipe import batch as batches
from tests.worlds import blobs, logistic


@pytest.fixture
def dataset(tmp_path):
    """A `datasets.Dataset` on disk, in two pieces, with a column that no model wants."""
    datasets = pytest.importorskip("datasets")
    inputs, labels = blobs()[0]
    rows = {"point": inputs.tolist(), "name": [f"row {i}" for i in range(40)], "colour": labels.tolist()}
    whole = datasets.Dataset.from_dict(rows)
    datasets.concatenate_datasets([whole.select(range(25)), whole.select(range(25, 40))]).save_to_disk(
        tmp_path / "data"
    )
    return datasets.load_from_disk(str(tmp_path / "data"))


def test_columns_by_name_are_the_tensors(dataset):
    universe = Columns(dataset, inputs=["point"], labels="colour")
    inputs, labels = batches.materialise(universe)
    torch.testing.assert_close(inputs, blobs()[0][0])
    assert torch.equal(labels, blobs()[0][1])
    with pytest.raises(ValueError, match="no column 'pixels'; there are 'point', 'name', 'colour'"):
        Columns(dataset, inputs=["pixels"], labels="colour")


def test_the_bank_knows_examples_wherever_they_lie(dataset, tmp_path):
    setting, w = logistic(), random_subsets(40, r=3, alpha=0.5, seed=0)
    outputs = Retrain(setting, bank=Bank(tmp_path / "bank"))(w)
    there = replace(setting, universe=Columns(dataset, inputs=["point"], labels="colour"))
    Retrain(there, bank=Bank(tmp_path / "bank"))
    order = torch.randperm(40)
    shuffled = replace(there, universe=Columns(dataset.select(order.tolist()), inputs=["point"], labels="colour"))
    assert torch.equal(Retrain(shuffled, bank=Bank(tmp_path / "bank"))(w[:, order]), outputs)


def test_a_data_set_travels_as_its_address(dataset):
    universe = Columns(dataset, inputs=["point"], labels="colour")
    data = executors.dumps(universe, "The universe")
    assert b"row 17" not in data  # nothing of its contents
    for here, there in zip(batches.materialise(universe), batches.materialise(executors.loads(data)), strict=True):
        assert torch.equal(here, there)


def test_files_hold_the_same(monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 7)
    rows = [{"x": torch.full((3,), float(i)), "labels": i % 2} for i in range(40)]
    batch = columns.read_all(rows, default_collate)
    assert torch.equal(batch["x"], torch.arange(40.0)[:, None].expand(40, 3))
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [i % 2 for i in range(40)]


def test_blocks_that_do_not_fit_together_are_refused(monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 2)
    with pytest.raises(ValueError, match="from 2 on are torch.float64, those before them torch.int64"):
        columns.read_all([{"x": 1}, {"x": 1}, {"x": 0.5}, {"x": 0.5}], default_collate)
    with pytest.raises(ValueError, match="made 1 rows of 2 examples"):
        columns.read_all([{"x": 1}] * 4, lambda rows: default_collate(rows[:1]))


def test_a_full_disk_is_said_before_it_is_written(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="find no room in .*No space left.*let RECIPE_CACHE name"):
        columns.read_all([{"x": 1}] * 4, default_collate)


def test_blocks_that_are_padded_apart_are_collated_at_once(monkeypatch):
    monkeypatch.setattr(columns, "ROWS", 2)

    def padded(rows):
        return {"x": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    batch = columns.read_all([torch.ones(k) for k in (1, 2, 3)], padded)
    assert batch["x"].shape == (3, 3)


MEASURED = """
import torch
from recipe import batch as batches
def held(): return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
class Large(torch.utils.data.Dataset):
    def __len__(self): return 20_000
    def __getitem__(self, i): return torch.full((4_000,), float(i)), i % 2
batches.materialise([(torch.zeros(1), 0)])
before = held()
x, y = batches.materialise(Large())
print(x[-1, 0].item(), x.nbytes // 1024, held() - before)
"""


def test_large_data_do_not_live_in_memory():
    """320 MB of examples: what is not backed by a file stays small."""
    out = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True).stdout.split()
    assert float(out[0]) == 19_999
    assert int(out[1]) == 312_500
    assert int(out[2]) < 100_000  # a block of examples on the way, and what allocating leaves


def test_images_and_floats_of_a_data_set_come_as_torch_has_them():
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 3), dtype=np.uint8)
    kinds = {"image": datasets.Image(), "score": datasets.Sequence(datasets.Value("float32"))}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(num_classes=2)})
    rows = {"image": [image.fromarray(p) for p in pixels], "score": [[0.5, 1.5]] * 6, "label": [0, 1] * 3}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    images, scores, labels = batches.materialise(Columns(dataset, ["image", "score"]))
    assert torch.equal(images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert scores.dtype == torch.float32
    assert labels.tolist() == [0, 1] * 3
