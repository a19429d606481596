"""The digits: the split of the design, taken straight from scikit-learn, and mislabelling."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as original

from recipe import Retrain, Setting
from recipe.digits import LOGISTIC_SGD, MLP_SGD, flip_labels, load_digits, logistic, mlp
from recipe.outputs import Correct


def test_the_split_is_that_of_the_design():
    pixels, labels = original(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    for batch, part in zip(load_digits(), (order[:1000], order[1000:1200], order[1200:]), strict=True):
        assert batch[0].dtype == torch.float32
        assert np.array_equal(batch[0].numpy() * 16, pixels[part].astype(np.float32))
        assert np.array_equal(batch[1].numpy(), labels[part])


def test_parts_are_disjoint_and_complete():
    digits = load_digits()
    assert [len(y) for _, y in digits] == [1000, 200, 597]
    every = torch.cat([x for x, _ in digits])
    assert len(every.unique(dim=0)) == len(every)  # no image is there twice, so none is in two parts
    assert (float(every.min()), float(every.max())) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("model", "algorithm", "p", "least"), [(mlp, MLP_SGD, 9610, 0.95), (logistic, LOGISTIC_SGD, 650, 0.93)]
)
def test_recipes_learn_to_read(model, algorithm, p, least):
    digits = load_digits()
    setting = Setting(model, digits.train, digits.test, algorithm, output=Correct())
    assert setting.p == p
    assert Retrain(setting)(torch.ones(1000)).mean() > least


def test_flipped_labels_are_wrong_and_all_others_right():
    train = load_digits().train
    (x, y), flipped = flip_labels(train, share=0.3, seed=0)
    assert x is train[0]
    assert int(flipped.sum()) == 300
    assert torch.equal(y != train[1], flipped)
    assert set(y.tolist()) <= set(range(10))


def test_other_labels_are_equally_likely():
    batch = (torch.zeros(9000, 1), torch.arange(9000) % 10)
    (_, y), _ = flip_labels(batch, share=1.0, seed=0)
    counts = torch.bincount((y - batch[1]) % 10, minlength=10)
    assert counts[0] == 0
    assert ((counts[1:] - 1000).abs() < 5 * 1000**0.5).all()


def test_one_seed_repeats_and_two_differ():
    train = load_digits().train
    first, again, other = (flip_labels(train, 0.3, seed)[0][1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("labels", "share"), [(torch.zeros(4).long(), 0.5), (torch.arange(4), 1.5), (torch.arange(4), -0.1)]
)
def test_what_cannot_be_flipped_is_refused(labels, share):
    with pytest.raises(ValueError, match="share from 0 to 1 and labels of at least two classes"):
        flip_labels((torch.zeros(4, 1), labels), share, seed=0)
