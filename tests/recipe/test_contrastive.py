"""The contrastive loss: torch's own against the same references, additive over examples, and what bad input gets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.selection.captions import own_effects
from estimators.influence import Influence
from recipe import SGD, Checkpoint, Contrastive, Loss, Woodbury
from tests.worlds import small_mlp

GENERATOR = torch.Generator().manual_seed(0)
U, V = (F.normalize(torch.randn(6, 4, generator=GENERATOR, dtype=torch.double), dim=1) for _ in range(2))


def test_with_the_batch_itself_as_reference_it_is_clips_loss():
    """The own pair is among the references then, and counts twice: take it out of the bank to compare."""
    logits = 7.0 * U @ V.T
    clip = 0.5 * (F.cross_entropy(logits, torch.arange(6), reduction="none")
                  + F.cross_entropy(logits.T, torch.arange(6), reduction="none"))  # fmt: skip
    for i in range(6):
        others = [j for j in range(6) if j != i]
        loss = Contrastive(U[others], V[others], scale=7.0)
        torch.testing.assert_close(loss(torch.cat([U, V], 1)[i : i + 1], ()), clip[i : i + 1])


def test_it_is_additive_over_examples_and_does_not_see_lengths():
    loss, both = Contrastive(U, V), torch.cat([U, V], 1)
    together = loss(both, ())
    torch.testing.assert_close(torch.cat([loss(both[i : i + 1], ()) for i in range(6)]), together)
    torch.testing.assert_close(loss(torch.cat([3 * U, 0.5 * V], 1), ()), together)
    same = Contrastive(U, U)
    assert (same(torch.cat([U, U], 1), ()) < same(torch.cat([U, U.roll(1, 0)], 1), ())).all()


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="one width"):
        Contrastive(U, V[:, :2])
    with pytest.raises(ValueError, match=r"\(b, 8\); got \(6, 4\)"):
        Contrastive(U, V)(U, ())


def test_what_pairs_do_to_themselves_is_the_diagonal_of_the_datamodel():
    """The caption benchmark's short way, on any setting whose targets are its universe."""
    setting = small_mlp(SGD(epochs=2, batch_size=8, lr=0.1))
    setting = setting.on(setting.pool, Loss())
    parameters = setting.algorithm.train(setting, torch.ones(setting.n), 0)
    f_hat = Influence(inverse=Woodbury()).fit(replace(setting, checkpoints=(Checkpoint(parameters),)))
    torch.testing.assert_close(own_effects(setting, parameters), -f_hat.effects.diagonal())
