"""Outputs without weights: one forget set or many, and targets that come after the fit, against retraining."""

import pytest
import torch

from applications.unlearning import Deployed, Unlearning, neighbours, of_class, of_group, stream, subpopulation, where
from estimators.influence import Influence
from estimators.newton_step import NewtonStep
from estimators.random import Random
from recipe import LinearDatamodel, Logits, Retrain, SizeCorrected, effects_of
from tests.worlds import blobs, logistic

SETTING = logistic()
SETS = [torch.tensor([0, 7, 14, 33]), torch.tensor([5]), torch.tensor([2, 3])]


@pytest.fixture(scope="module")
def deployed():
    return Deployed.trained(SETTING).fitted(NewtonStep())


@pytest.mark.parametrize("estimator", [Influence(), NewtonStep()], ids=repr)
def test_many_sets_are_the_single_ones(estimator):
    f_hat, now = estimator.fit(SETTING), torch.zeros(6, dtype=torch.float64)
    together = Unlearning(SETS, now).wanted(f_hat)
    alone = torch.stack([Unlearning(one, now).wanted(f_hat) for one in SETS])
    torch.testing.assert_close(together, alone)
    masks = torch.stack([torch.isin(torch.arange(40), one) for one in SETS])
    torch.testing.assert_close(Unlearning(masks, now).wanted(f_hat), alone)
    assert Unlearning(SETS, now).retained(40).sum(1).tolist() == [36, 39, 38]


def test_many_sets_make_one_problem():
    task = Unlearning(
        SETS, Deployed.trained(SETTING).setting.outputs(SETTING.algorithm.train(SETTING, torch.ones(40), 0))
    )
    problem, f_hat = task.problem(Retrain(SETTING)), NewtonStep().fit(SETTING)
    assert problem.value(task.wanted(f_hat)) < 0.05 * problem.value(problem.baselines["do nothing"])


def test_unlearned_outputs_of_new_targets_are_those_of_retraining(deployed):
    """Targets and outputs that the datamodel was not fitted to."""
    new = blobs(seed=5)[1]
    predicted = deployed.outputs(SETS, new, Logits())
    truth = Retrain(SETTING.on(new, Logits()))(deployed.kept(SETS))
    now = SETTING.on(new, Logits()).outputs(deployed.parameters)
    assert (predicted - truth).abs().mean() < 0.1 * (now - truth).abs().mean()
    assert deployed.outputs(SETS[0]).shape == (6,)


def test_a_datamodel_that_knows_its_own_targets_only_says_so():
    f_hat = LinearDatamodel(torch.zeros(6), torch.zeros(6, 40))
    with pytest.raises(NotImplementedError, match="only the outputs that it was fitted to"):
        Deployed(SETTING, SETTING.initial(0), f_hat).outputs(SETS[0], blobs(seed=5)[1])
    with pytest.raises(ValueError, match="has no datamodel"):
        Deployed(SETTING, SETTING.initial(0)).outputs(SETS[0])
    with pytest.raises(ValueError, match="universe of 39 points, the deployed model of 40"):
        Deployed(SETTING, SETTING.initial(0), LinearDatamodel(torch.zeros(6), torch.zeros(6, 39)))


def test_corrected_and_random_datamodels_are_taken_too(deployed):
    for f_hat in (SizeCorrected(Influence().fit(SETTING)), Random().fit(SETTING)):
        assert Deployed(SETTING, deployed.parameters, f_hat).outputs(SETS).shape == (3, 6)


def test_forget_sets_by_what_the_points_are():
    labels = SETTING.pool[1]
    assert of_class(SETTING, 2).tolist() == (labels == 2).nonzero().squeeze(1).tolist()
    left = where(SETTING, lambda example: example[0][0] < 0)
    assert left.tolist() == (SETTING.pool[0][:, 0] < 0).nonzero().squeeze(1).tolist()
    assert of_group(labels, 0, 1).tolist() == (labels < 2).nonzero().squeeze(1).tolist()


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return tuple(t[i] for t in blobs()[0])


def test_a_predicate_sees_the_examples_of_a_data_set():
    from dataclasses import replace

    assert (
        where(replace(SETTING, universe=Pairs()), lambda example: int(example[1]) == 1).tolist()
        == of_class(SETTING, 1).tolist()
    )


def test_a_subpopulation_is_one_end_of_a_principal_component():
    """Two groups of points that differ in nothing but the sign of their effects."""
    draw = torch.Generator().manual_seed(0)
    side = torch.where(torch.arange(30) < 10, 1.0, -1.0)
    effects = torch.randn(50, 1, generator=draw) * side + 0.01 * torch.randn(50, 30, generator=draw)
    ends = {tuple(subpopulation(effects, 10, largest=end).tolist()) for end in (True, False)}
    assert tuple(range(10)) in ends
    wide = {tuple(subpopulation(effects[:5], 10, largest=end).tolist()) for end in (True, False)}
    assert tuple(range(10)) in wide
    assert subpopulation(effects_of(Influence().fit(SETTING)), 4, component=1).shape == (4,)


def test_neighbours_and_streams():
    x = torch.tensor([0.0, 1.0, 5.0, 5.5, 9.0])[:, None]
    assert neighbours(x, 2, 3).tolist() == [1, 2, 3] or neighbours(x, 2, 3).tolist() == [2, 3, 4]
    assert neighbours(x, 2, 2).tolist() == [2, 3]
    parts = list(stream(20, 5, (1, 3), seed=1))
    everything = torch.cat(parts)
    assert len(everything.unique()) == len(everything) < 20
    assert [p.tolist() for p in stream(20, 5, (1, 3), seed=1)] == [p.tolist() for p in parts]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of_class(SETTING, 7), "No point has the label 7"),
        (lambda: where(SETTING, lambda example: True), "Every point satisfies"),
        (lambda: of_group(["a", "b"], "c"), "no point of the group 'c'; there are a, b"),
        (lambda: of_group(["a", "b"]), "Name the groups to forget; there are a, b"),
        (lambda: stream(10, 2, (4, 2)), "fewest points first"),
        (lambda: neighbours(torch.zeros(4, 1), 4, 2), "There are 4 points; got point 4"),
        (lambda: neighbours(torch.zeros(4, 1), 0, 4), "between 1 and 3 points; got size 4"),
        (lambda: subpopulation(torch.zeros(3, 9), 2, component=3), "3 principal components; got component 3"),
        (lambda: stream(10, 5, 2), "ask for 10 of 10; one must stay"),
        (lambda: Unlearning([], torch.zeros(6)).retained(40), "at least one forget set"),
        (lambda: Unlearning(torch.tensor([0.5]), torch.zeros(6)).retained(40), "integer indices"),
    ],
)
def test_bad_forget_sets(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_set_is_a_sequence_of_indices_too():
    expected = Unlearning(torch.tensor([3, 17]), torch.zeros(6)).retained(40)
    for forget in ([3, 17], range(3, 18, 14), [i in (3, 17) for i in range(40)]):
        assert torch.equal(Unlearning(forget, torch.zeros(6)).retained(40), expected)
    assert Unlearning([[3, 17], [1]], torch.zeros(6)).retained(40).shape == (2, 40)
