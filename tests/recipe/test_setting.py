"""What a setting is made of, and what bad input gets before any long work."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from recipe import SGD, Checkpoint, CrossEntropy, Loss, Margin, Newton, Retrain, Setting, SquaredError
from recipe import batch as batches
from tests.worlds import DOUBLE, blobs, logistic, value

UNIVERSE, TARGETS = blobs()
RULE = SGD(epochs=1, batch_size=4, lr=0.1)


def linear():
    return nn.Linear(2, 3).double()


def make(**changes):
    return Setting(**{"model": linear, "universe": UNIVERSE, "targets": TARGETS, "algorithm": RULE, **changes})


def with_labels(data, i, label):
    y = data[1].clone()
    y[i] = label
    return data[0], y


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"universe": (UNIVERSE[0][:0], UNIVERSE[1][:0])}, "universe is empty; pass at least one"),
        ({"targets": (TARGETS[0][:0], TARGETS[1][:0])}, "targets is empty"),
        ({"universe": (UNIVERSE[0], UNIVERSE[1][:-1])}, r"one row an example; their lengths are \[39, 40\]"),
        ({"universe": with_labels(UNIVERSE, 7, 3)}, r"universe must lie in 0\.\.2.*example 7 has 3"),
        ({"targets": with_labels(TARGETS, 2, -1)}, r"targets must lie in 0\.\.2.*example 2 has -1"),
        ({"universe": (UNIVERSE[0], UNIVERSE[1].double())}, "Targets must look like the universe"),
        (
            {"universe": (UNIVERSE[0], UNIVERSE[1].double()), "targets": (TARGETS[0], TARGETS[1].double())},
            r"must be integers for a cross-entropy; got torch.float64. Use `.long\(\)`",
        ),
        ({"targets": (TARGETS[0][:, :1], TARGETS[1])}, "Targets must look like the universe"),
        ({"model": lambda: nn.Linear(5, 3).double()}, "model cannot be called on a target .*\n.*`forward=`"),
        ({"model": lambda: linear().requires_grad_(False)}, "no parameter with requires_grad"),
        ({"output": lambda z, batch: z.sum()}, "one value, or one row, for every example"),
        ({"loss": lambda z, batch: z.mean()}, "A loss must return one number for every example, unaveraged"),
        ({"loss": SquaredError()}, r"needs a label for every entry of the prediction \(1, 3\); got labels .* \(1,\)"),
        ({"universe": object()}, "map-style data set with a length; got object"),
        ({"universe": [{"a": "text"}]}, "collate to a tuple or mapping of tensors"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(39), r"Expected weights of shape \(..., 40\).* got \(39,\)"),
        (torch.tensor(1.0), "Expected weights"),
        (torch.cat([torch.ones(39), -torch.ones(1)]), "must not be negative; the smallest is -1"),
        (torch.cat([torch.ones(39), torch.tensor([torch.nan])]), "must be finite"),
        (torch.zeros(40), "needs a point with positive weight"),
        (torch.stack([torch.ones(40), torch.zeros(40)]), "needs a point with positive weight"),
    ],
)
def test_bad_weights_are_refused_before_training(weights, message):
    with pytest.raises(ValueError, match=message):
        Retrain(make())(weights)


def test_added_examples_must_look_like_the_universe():
    f = Retrain(make())
    with pytest.raises(ValueError, match="must look like the universe"):
        f(torch.ones(40), (torch.ones(1, 3, dtype=DOUBLE), torch.tensor([0])))
    with pytest.raises(ValueError, match=r"added examples must lie in 0\.\.2"):
        f(torch.ones(40), (torch.ones(1, 2, dtype=DOUBLE), torch.tensor([5])))


class Rows(Dataset):
    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return {"x": UNIVERSE[0][i] + self.noise * torch.randn(2), "labels": UNIVERSE[1][i]}


def test_every_kind_of_data_gives_the_same_outputs():
    def forward(model, batch):
        return model(batch["x"] if isinstance(batch, dict) else batch[0])

    mapping = {"x": TARGETS[0], "labels": TARGETS[1]}
    tensors = make(forward=forward)
    torch_dataset = make(forward=forward, universe=TensorDataset(*UNIVERSE), targets=TensorDataset(*TARGETS))
    mappings = make(forward=forward, universe=Rows(), targets=mapping)
    expected = Retrain(tensors)(torch.ones(40))
    for setting in (torch_dataset, mappings):
        torch.testing.assert_close(Retrain(setting)(torch.ones(40)), expected)


def test_arrays_are_tensors_and_the_order_of_a_mapping_does_not_matter():
    arrays = tuple(t.numpy() for t in UNIVERSE)
    assert torch.equal(make(universe=arrays).pool[0], UNIVERSE[0])
    universe = {"x": UNIVERSE[0], "labels": UNIVERSE[1]}
    targets = {"labels": TARGETS[1], "x": TARGETS[0]}
    assert make(universe=universe, targets=targets, forward=lambda model, batch: model(batch["x"])).m == 6


def test_on_reads_no_data_again():
    rows = Rows()
    rows.reads = 0

    def counted(i):
        rows.reads += 1
        return Rows.__getitem__(rows, i)

    class Counted(Rows):
        def __getitem__(self, i):
            return counted(i)

    setting = make(universe=Counted(), targets={"x": TARGETS[0], "labels": TARGETS[1]}, forward=lambda m, b: m(b["x"]))
    before = rows.reads
    assert before >= 40
    assert setting.on(output=Loss()).on({"x": TARGETS[0][:2], "labels": TARGETS[1][:2]}).m == 2
    assert rows.reads == before
    assert setting.m == 6


def test_data_that_change_between_reads_are_refused():
    with pytest.raises(ValueError, match="same index is read twice"):
        make(universe=Rows(noise=1.0), targets={"x": TARGETS[0], "labels": TARGETS[1]})


def test_huggingface_datasets():
    datasets = pytest.importorskip("datasets", reason="the `text` extra is not installed")
    rows = datasets.Dataset.from_dict({"input": UNIVERSE[0].float().tolist(), "labels": UNIVERSE[1].tolist()})
    rows = rows.with_format("torch")
    setting = Setting(lambda: nn.Linear(2, 3), rows, rows, RULE)
    torch.testing.assert_close(setting.pool["input"], UNIVERSE[0].float())
    assert Retrain(setting)(torch.ones(40)).shape == (40,)


def test_loss_output_is_the_settings_own_loss():
    assert make(output=Loss()).output == Loss(CrossEntropy())
    universe = (UNIVERSE[0], UNIVERSE[0][:, :1])
    setting = make(
        model=lambda: nn.Linear(2, 1).double(), universe=universe, targets=universe, loss=SquaredError(), output=Loss()
    )
    theta = setting.initial(0)
    torch.testing.assert_close(setting.outputs(theta), setting.losses(theta, setting.probe))
    assert setting.on(output=value).on(output=Loss()).output == Loss(SquaredError())


def test_flat_and_back():
    setting = make()
    theta = setting.initial(3)
    vector = setting.flat(theta)
    assert vector.shape == (setting.p,) == (9,)
    for name, t in setting.unflat(vector, theta).items():
        assert torch.equal(t, theta[name])
    torch.testing.assert_close(setting.module(theta)(TARGETS[0]), setting.predict(theta, TARGETS))


def test_seed_decides_the_start_of_a_factory_and_leaves_the_generator_alone():
    setting = make()
    state = torch.get_rng_state()
    assert not torch.equal(setting.initial(1)["weight"], setting.initial(2)["weight"])
    assert torch.equal(setting.initial(1)["weight"], setting.initial(1)["weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_content_hash_sees_every_value_and_no_memory_layout():
    x = torch.arange(6.0).view(2, 3)
    base = batches.content_hash((x, torch.tensor([0, 1])))
    assert base == batches.content_hash((x.T.contiguous().T, torch.tensor([0, 1])))
    changed = x.clone()
    changed[1, 2] += 1e-6
    assert (
        len(
            {
                base,
                batches.content_hash((changed, torch.tensor([0, 1]))),
                batches.content_hash((x, torch.tensor([1, 0]))),
            }
        )
        == 3
    )


def test_checkpoints_replace_training():
    from estimators.influence import Influence

    setting = logistic()
    theta = setting.algorithm.train(setting, torch.ones(40), 0)

    class Refuses(Newton):
        def train_many(self, *args):
            raise AssertionError("trained although there is a checkpoint")

    resting = Setting(
        linear, UNIVERSE, TARGETS, Refuses(l2=0.05), output=Margin(), checkpoints=(Checkpoint(theta, step=1),)
    )
    torch.testing.assert_close(Influence().fit(resting).effects, Influence().fit(setting).effects)
    wrong = Setting(linear, UNIVERSE, TARGETS, RULE, checkpoints=(Checkpoint({"bias": theta["bias"]}),))
    with pytest.raises(ValueError, match=r"missing \['weight'\]"):
        Influence().fit(wrong)
