"""The linear datamodel against its formula, whatever the effects lie in."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from recipe import LinearDatamodel, SizeCorrected, datamodel
from tests.worlds import DOUBLE

BIAS = torch.randn(3, dtype=DOUBLE)
EFFECTS = torch.randn(3, 50, dtype=DOUBLE)
W = torch.rand(4, 2, 50, dtype=DOUBLE)


def memory_map(path):
    effects = np.lib.format.open_memmap(path / "effects.npy", mode="w+", dtype=np.float32, shape=(3, 50))
    effects[:] = EFFECTS.numpy()
    return effects


@pytest.mark.parametrize("block", [1, 1000, 2**26])
def test_blocks_change_nothing_forward_and_backward(block, monkeypatch):
    monkeypatch.setattr(datamodel, "BLOCK_BYTES", block)
    monkeypatch.setattr(datamodel, "READ_BYTES", 3 * block)
    f_hat, w = LinearDatamodel(BIAS, EFFECTS), W.clone().requires_grad_()
    out = f_hat(w)
    torch.testing.assert_close(out, BIAS + W @ EFFECTS.T)
    (gradient,) = torch.autograd.grad((out**2).sum(), w)
    torch.testing.assert_close(gradient, 2 * out.detach() @ EFFECTS)


def test_a_tangent_knows_its_outputs_where_it_touches(tmp_path):
    class Unread:
        shape, ndim, dtype = (3, 50), 2, EFFECTS.dtype

        def __getitem__(self, index):
            raise AssertionError("read")

    at = W[0, 0]
    torch.testing.assert_close(LinearDatamodel(BIAS, Unread(), at=at)(at.clone()), BIAS)
    expanded = torch.ones((), dtype=DOUBLE).expand(50)
    torch.testing.assert_close(LinearDatamodel(BIAS, Unread(), at=expanded)(torch.ones(()).expand(50)), BIAS)
    f_hat, w = LinearDatamodel(BIAS, EFFECTS, at=at), W.clone().requires_grad_()
    torch.testing.assert_close(f_hat(w), BIAS + (W - at) @ EFFECTS.T)
    (gradient,) = torch.autograd.grad(f_hat(w).sum(), w)
    torch.testing.assert_close(gradient, EFFECTS.sum(0).expand(4, 2, -1))
    torch.testing.assert_close(f_hat.bias, f_hat(torch.zeros(50, dtype=DOUBLE)))
    variable = cp.Variable(50, value=W[1, 1].numpy())
    np.testing.assert_allclose(f_hat(variable).value, f_hat(W[1, 1]))
    with pytest.raises(ValueError, match=r"Expected weights \(50,\) where the tangent touches; got \(49,\)"):
        LinearDatamodel(BIAS, EFFECTS, at=at[1:])


def test_memory_maps_arrays_and_half_precision(tmp_path):
    for effects, tolerance in ((memory_map(tmp_path), 1e-5), (EFFECTS.numpy(), 1e-12), (EFFECTS.half(), 1e-1)):
        f_hat, w = LinearDatamodel(BIAS, effects), W[0].clone().requires_grad_()
        torch.testing.assert_close(f_hat(w), BIAS + W[0] @ EFFECTS.T, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(f_hat(w).sum(), w)
        torch.testing.assert_close(gradient, EFFECTS.sum(0).expand(2, -1), rtol=tolerance, atol=tolerance)


def test_boolean_weights():
    chosen = torch.arange(50) % 2 == 0
    torch.testing.assert_close(LinearDatamodel(BIAS, EFFECTS)(chosen), BIAS + EFFECTS[:, chosen].sum(1))


def test_traces_a_cvxpy_variable():
    f_hat, w = LinearDatamodel(BIAS, EFFECTS), cp.Variable(50)
    expression = ((f_hat(w) - BIAS) ** 2).mean()
    w.value = W[0, 0].numpy()
    np.testing.assert_allclose(expression.value, ((EFFECTS @ W[0, 0]) ** 2).mean())


def test_added_examples_are_valued_by_effect():
    f_hat = LinearDatamodel(BIAS, EFFECTS, effect=lambda batch: torch.stack([batch[0][:, 0] * k for k in (1, 2, 3)]))
    x = torch.tensor([[1.0], [4.0]], dtype=DOUBLE, requires_grad=True)
    out = f_hat(W[0, 0], (x, torch.zeros(2)))
    torch.testing.assert_close(out.detach(), BIAS + EFFECTS @ W[0, 0] + 5 * torch.tensor([1.0, 2.0, 3.0]).double())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.full((2, 1), 6.0, dtype=DOUBLE))
    empty = (x[:0], torch.zeros(0))
    torch.testing.assert_close(LinearDatamodel(BIAS, EFFECTS)(W[0, 0], empty), BIAS + EFFECTS @ W[0, 0])


def test_what_a_datamodel_cannot_do_names_the_remedy():
    f_hat = LinearDatamodel(BIAS, EFFECTS)
    with pytest.raises(NotImplementedError, match="no `effect`.*Influence or NewtonStep"):
        f_hat(W, (torch.ones(1), torch.ones(1)))
    with pytest.raises(NotImplementedError, match=r"Fit the estimator to `setting\.on"):
        f_hat.on(output=None)
    with pytest.raises(NotImplementedError, match="use Influence or NewtonStep"):
        f_hat.parameters(W[0, 0])
    with pytest.raises(ValueError, match=r"Expected weights of shape \(\.\.\., 50\); got \(49,\)"):
        f_hat(torch.ones(49))
    for bad, message in ((-1.0, "must not be negative"), (torch.nan, "must be finite")):
        with pytest.raises(ValueError, match=message):
            f_hat(torch.full((50,), bad))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(50, 3\)"):
        LinearDatamodel(BIAS, EFFECTS.T)
    with pytest.raises(ValueError, match="has 4 outputs; the bias has 3"):
        LinearDatamodel(BIAS, EFFECTS, output_shape=(2, 2))


def test_rows_are_target_major():
    f_hat = LinearDatamodel(torch.zeros(6), torch.zeros(6, 2), output_shape=(2, 3))
    assert (f_hat.rows(0), f_hat.rows(1), f_hat.rows(-1)) == (slice(0, 3), slice(3, 6), slice(3, 6))
    with pytest.raises(IndexError, match="There are 2 targets; got target 2"):
        f_hat.rows(2)


def test_size_correction_is_its_formula():
    f_hat = LinearDatamodel(BIAS, EFFECTS, effect=lambda batch: batch[0].expand(3, -1))
    corrected, full = SizeCorrected(f_hat), f_hat(torch.ones(50, dtype=DOUBLE))
    w = W[0]
    torch.testing.assert_close(corrected(w), full + (f_hat(w) - full) * 50 / w.sum(-1, keepdim=True))
    torch.testing.assert_close(corrected(torch.ones(50, dtype=DOUBLE)), full)
    poisons = (torch.tensor([2.0, 3.0], dtype=DOUBLE),)
    torch.testing.assert_close(corrected(torch.ones(50), poisons), full + 5 * 50 / 52)
