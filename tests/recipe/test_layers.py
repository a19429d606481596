"""Gradients by layers against autograd, on models that use layers in all the ways that are covered."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recipe import SGD, Setting, calculus
from recipe import batch as batches
from tests.worlds import DOUBLE

IMAGES = (torch.rand(7, 2, 6, 6, dtype=DOUBLE), torch.arange(7) % 3)
TOKENS = (torch.randint(0, 5, (6, 4), generator=torch.Generator().manual_seed(0)), torch.arange(24).view(6, 4) % 5)
TRAINING = SGD(epochs=1, batch_size=2, lr=0.1)


class Conv1D(nn.Module):
    """A linear layer stored as `(in, out)`, as in the `transformers` package."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Text(nn.Module):
    """Embeddings of tokens and of positions that all examples share, a normalisation, a head tied to the embedding."""

    def __init__(self, tied=True):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 3), nn.Embedding(4, 3)
        self.norm, self.mix, self.head = nn.LayerNorm(3), Conv1D(3, 3), nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        return self.head(x + self.mix(self.norm(x)).cumsum(1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 2, padding="same", padding_mode="reflect", dilation=1),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(54, 3),
    ).double()


def twice():
    """One layer used two times, and one whose weight is frozen."""
    layer, last = nn.Linear(72, 72), nn.Linear(72, 3)
    last.weight.requires_grad_(False)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, last).double()


WORLDS = {
    "convolutions": Setting(convolutional, IMAGES, IMAGES, TRAINING),
    "a layer used twice": Setting(twice, IMAGES, IMAGES, TRAINING),
    "text": Setting(lambda: Text().double(), TOKENS, TOKENS, TRAINING),
    "text, head of its own": Setting(lambda: Text(tied=False).double(), TOKENS, TOKENS, TRAINING),
}


def one_by_one(setting, at, batch):
    theta = setting.flat(at).requires_grad_()
    losses = setting.losses(setting.unflat(theta, at), batch)
    return torch.stack([torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in losses])


@pytest.mark.parametrize("setting", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("count", [1, 4, 6], ids=lambda b: f"{b} examples")
def test_gradients_equal_autograd(setting, count):
    """4 examples of 4 positions: what is shared is not taken for what belongs to an example."""
    at, batch = setting.initial(1), batches.take(setting.pool, slice(0, count))
    at = {name: t + 0.1 * torch.rand_like(t) if torch.is_floating_point(t) else t for name, t in at.items()}
    assert setting.layers.covered
    torch.testing.assert_close(calculus.loss_gradients(setting, at, batch), one_by_one(setting, at, batch))


def test_outputs_that_the_model_overwrites_are_copied():
    """And none else: a copy of every output costs a twentieth of a pass."""

    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(72, 5), nn.Linear(5, 3)

        def forward(self, x):
            y = self.first(x.flatten(1))
            y *= 2
            return self.second(y.relu_()).add_(1)

    setting = Setting(lambda: Overwriting().double(), IMAGES, IMAGES, TRAINING)
    at = setting.initial(1)
    assert setting.layers.covered
    assert setting.layers.in_place
    assert not WORLDS["text"].layers.in_place
    torch.testing.assert_close(
        calculus.loss_gradients(setting, at, setting.pool), one_by_one(setting, at, setting.pool)
    )


def test_gradients_can_be_followed_to_the_inputs():
    setting = WORLDS["convolutions"]
    at, (x, y) = setting.initial(0), batches.take(setting.pool, slice(0, 2))
    weights = torch.randn(setting.p, dtype=DOUBLE)

    def total(x):
        return (calculus.loss_gradients(setting, at, (x, y)) @ weights).sum()

    assert torch.autograd.gradcheck(total, x.clone().requires_grad_(), nondet_tol=1e-10)


def test_what_is_not_covered_is_found_out_and_computed_all_the_same():
    class Hidden(nn.Linear):  # a layer that is used behind its own back
        def __init__(self):
            super().__init__(72, 3)

        def forward(self, x):
            return super().forward(x.flatten(1))

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Hidden()

        def forward(self, x):
            return self.layer(x) + F.linear(x.flatten(1).tanh(), self.layer.weight)

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.layer = nn.Parameter(torch.ones(72)), Hidden()

        def forward(self, x):
            return self.layer(x.flatten(1) * self.shift)

    for model, uncovered in ((Behind, ()), (Bare, ("shift (of Bare)",))):
        setting = Setting(lambda model=model: model().double(), IMAGES, IMAGES, TRAINING)
        assert not setting.layers.covered
        assert setting.layers.uncovered == uncovered
        at = setting.initial(0)
        expected = one_by_one(setting, at, setting.pool)
        torch.testing.assert_close(calculus.loss_gradients(setting, at, setting.pool), expected)
