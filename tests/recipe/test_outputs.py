"""Outputs and losses against their definitions."""

import pytest
import torch

from recipe import Correct, CrossEntropy, Logits, Loss, Margin, SoftError, SquaredError, TopMargin

Z = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
Y = torch.tensor([0, 3, 1, 1, 2])
BATCH = (torch.zeros(5, 1), Y)


def rest(i):
    return torch.stack([Z[i, c] for c in range(4) if c != Y[i]])


@pytest.mark.parametrize(
    ("output", "definition"),
    [
        (Margin(), lambda i: Z[i, Y[i]] - rest(i).exp().sum().log()),
        (Margin(), lambda i: (p := Z[i].softmax(0)[Y[i]]).log() - (1 - p).log()),
        (TopMargin(), lambda i: Z[i, Y[i]] - rest(i).max()),
        (SoftError(0.5), lambda i: 1 / (1 + (2 * (Z[i, Y[i]] - rest(i).max())).exp())),
        (SoftError(1e-6), lambda i: (Z[i].argmax() != Y[i]).double()),
        (Correct(), lambda i: (Z[i].argmax() == Y[i]).double()),
        (CrossEntropy(), lambda i: -Z[i].softmax(0)[Y[i]].log()),
        (Loss(CrossEntropy()), lambda i: -Z[i].softmax(0)[Y[i]].log()),
    ],
    ids=[
        "margin",
        "margin, by probabilities",
        "top margin",
        "soft error",
        "hard error",
        "correct",
        "cross-entropy",
        "loss",
    ],
)
def test_definitions(output, definition):
    expected = torch.stack([definition(i) for i in range(5)])
    torch.testing.assert_close(output(Z, BATCH), expected)
    torch.testing.assert_close(output(Z, {"x": BATCH[0], "labels": Y}), expected)


def test_top_margin_is_positive_exactly_where_the_prediction_is_right():
    assert torch.equal(TopMargin()(Z, BATCH) > 0, Correct()(Z, BATCH) == 1)


@pytest.mark.parametrize("output", [Margin(), TopMargin(), SoftError(), Correct(), CrossEntropy()], ids=str)
def test_sequences_average_over_positions_that_count(output):
    z, y = torch.stack([Z, Z + 1]), torch.stack([Y, Y])
    each = output(Z, BATCH)
    y[1, 2:] = -100
    out = output(z, (torch.zeros(2, 5), y))
    torch.testing.assert_close(out[0], each.mean())
    torch.testing.assert_close(out[1], each[:2].mean())
    y[:] = -100
    assert output(z, (torch.zeros(2, 5), y)).eq(0).all()


@pytest.mark.parametrize("output", [Margin(), TopMargin(), SoftError(), CrossEntropy()], ids=str)
def test_gradients_are_finite_and_right(output):
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: output(t, BATCH), z)
    assert torch.autograd.gradgradcheck(lambda t: output(t, BATCH), z)


def test_examples_whose_label_does_not_count_measure_nothing():
    y = Y.clone()
    y[2] = -100
    for output in (Margin(), TopMargin(), SoftError(), Correct(), CrossEntropy()):
        out = output(Z, (BATCH[0], y))
        assert out[2] == 0
        torch.testing.assert_close(out[:2], output(Z, BATCH)[:2])


def test_logits_and_squared_error():
    assert torch.equal(Logits()(Z, BATCH), Z)
    target = (torch.zeros(5, 1), torch.zeros(5, 4))
    torch.testing.assert_close(SquaredError()(Z, target), 0.5 * Z.square().sum(1))


def test_a_soft_error_has_a_border():
    with pytest.raises(ValueError, match="positive; got 0"):
        SoftError(0.0)


def test_loss_without_a_setting_says_so():
    with pytest.raises(ValueError, match=r"pass `Loss\(loss\)`"):
        Loss()(Z, BATCH)
