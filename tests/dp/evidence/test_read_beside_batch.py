"""What a loss function reads that is not in the batch that looks exchange.

A training loop that computes a mean of its batch, and a function that names it: nothing
in the function shows of what the mean was made, and no exchange changes it.
"""

import collections
import functools
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import EvidenceWarning, SampleMixingError
from dp.evidence._program_state import ProgramState

from .conftest import evidence_of
from .losses import Net, cross_entropy


@pytest.fixture
def make_run(make_plan):
    """Build a model, its optimizer, and the loader of its batches."""

    def make():
        model = Net()
        plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.5))
        x, y = torch.randn(64, 4) + 1, torch.randint(0, 3, (64,))
        loader = plan.loader(TensorDataset(x, y))
        parameters = [*model.a.parameters(), *model.b.parameters()]
        inner = torch.optim.SGD(parameters, lr=0.1)
        return model, dp.DPOptimizer(inner, plan=plan, loader=loader), loader

    return make


def named_in_a_variable(m, x, _y):
    centre = x.mean(0)
    return lambda b: cross_entropy(m(b[0] - centre), b[1])


def named_in_a_default(m, x, _y):
    return lambda b, centre=x.mean(0): cross_entropy(m(b[0] - centre), b[1])  # noqa: B008 -- as programs do


def named_in_a_keyword(m, x, _y):
    return lambda b, *, centre=x.mean(0): cross_entropy(m(b[0] - centre), b[1])  # noqa: B008


def named_in_a_partial(m, x, _y):
    def losses(batch, centre):
        return cross_entropy(m(batch[0] - centre), batch[1])

    return functools.partial(losses, centre=x.mean(0))


def named_in_a_dictionary(m, x, _y):
    statistics = {"of": [x.mean(0)]}
    return lambda b: cross_entropy(m(b[0] - statistics["of"][0]), b[1])


def named_in_a_partial_by_place(m, x, _y):
    def losses(model, centre, batch):
        return cross_entropy(model(batch[0] - centre), batch[1])

    return functools.partial(functools.partial(losses, m), x.mean(0))


def named_in_a_tuple(m, x, _y):
    statistics = x.mean(0), (x.std(0), 1e-6)
    return lambda b: cross_entropy(
        m((b[0] - statistics[0]) / (statistics[1][0] + statistics[1][1])), b[1]
    )


Statistics = collections.namedtuple("Statistics", "centre deviation")  # noqa: PYI024


def named_in_a_named_tuple(m, x, _y):
    of = Statistics(x.mean(0), x.std(0).numpy())
    return lambda b: cross_entropy(
        m((b[0] - of.centre) / torch.from_numpy(of.deviation)), b[1]
    )


def named_in_a_distribution(m, x, _y):
    of = torch.distributions.Normal(x.mean(0), x.std(0))
    return lambda b: cross_entropy(m((b[0] - of.loc) / of.scale), b[1])


def named_in_an_array(m, x, _y):
    centre = x.mean(0).numpy()
    return lambda b: cross_entropy(m(b[0] - torch.from_numpy(centre)), b[1])


class Losses:
    def __init__(self, model, centre):
        self.model, self.centre = model, centre

    def __call__(self, batch):
        return cross_entropy(self.model(batch[0] - self.centre), batch[1])


def named_in_an_attribute(m, x, _y):
    return Losses(m, x.mean(0))


def named_in_an_attribute_of_the_model(m, x, _y):
    m.middle = x.mean(0)
    return lambda b: cross_entropy(m(b[0] - m.middle), b[1])


def mixed_up_before(m, x, y):
    order = torch.randperm(len(x))
    others, their_labels = x[order], y[order]
    return lambda b: (
        cross_entropy(m(b[0] + others), b[1])
        + cross_entropy(m(b[0] + others), their_labels)
    )


def finished_before(m, x, y):
    losses = cross_entropy(m(x - x.mean(0)), y)
    return lambda _: losses


TOLD = [
    named_in_a_variable,
    named_in_a_default,
    named_in_a_keyword,
    named_in_a_partial,
    named_in_a_partial_by_place,
    named_in_a_tuple,
    named_in_a_named_tuple,
    named_in_a_distribution,
    named_in_a_dictionary,
    named_in_an_array,
    named_in_an_attribute,
    named_in_an_attribute_of_the_model,
    mixed_up_before,
    finished_before,
]


Pair = collections.namedtuple("Pair", "x y")  # noqa: PYI024


def assumed(run):
    return run[1].mechanism.watch.assumed()


def step_on(run, make, number):
    model, optimizer, loader = run
    batches = iter(loader)
    for _ in range(number):
        x, y = next(batches)
        optimizer.backward(make(model, x, y), (x, y))
        optimizer.step()


@pytest.mark.parametrize("make", TOLD)
def test_what_changes_beside_the_batch_is_told(make_run, make):
    """At the second step, and once."""
    run = make_run()
    step_on(run, make, 1)
    with pytest.warns(EvidenceWarning, match="beside its batch: ") as told:
        step_on(run, make, 2)

    assert len(told) == 1
    assert evidence_of(run[1]).inconclusive
    assert assumed(run)


def test_an_average_that_the_loop_keeps_is_told(make_run):
    """Also if it is written in place."""
    model, optimizer, loader = make_run()
    centre = torch.zeros(4)

    def losses(batch):
        return cross_entropy(model(batch[0] - centre), batch[1])

    def train():
        for (x, y), _ in zip(loader, range(2), strict=False):
            optimizer.backward(losses, (x, y))
            optimizer.step()
            centre.lerp_(x.mean(0), 0.1)

    with pytest.warns(EvidenceWarning, match=r"losses\(\).centre"):
        train()


def test_a_function_that_reads_the_batch_by_other_names_is_looked_at(make_run):
    """These names stand for the exchanged batch as well: mixing is seen in them."""

    def around_its_argument(m, x, y):
        return lambda _: cross_entropy(m(x), y)

    def mixing(m, x, y):
        return lambda _: cross_entropy(m(x - x.mean(0)), y)

    def around_a_pair(m, x, y):
        pair = Pair(x, y)
        return lambda _: cross_entropy(m(pair.x), pair.y)

    def mixing_a_pair(m, x, y):
        pair = x, y
        return lambda _: cross_entropy(m(pair[0] - pair[0].mean(0)), pair[1])

    for honest in (around_its_argument, around_a_pair):
        run = make_run()
        step_on(run, honest, 4)
        assert not evidence_of(run[1]).inconclusive
    for mixed in (mixing, mixing_a_pair):
        with pytest.raises(SampleMixingError, match="of an example"):
            step_on(make_run(), mixed, 1)


def test_a_pair_of_numbers_is_stated_and_not_warned_of(make_run):
    """As the betas of a schedule, which a step sets anew."""
    run = make_run()
    numbers = iter([0.1, 0.2, 0.3, 0.4])

    def annealed(m, x, _y):
        pair, shape = (next(numbers), (1, True)), x.shape
        return lambda b: cross_entropy(m(b[0]), b[1]) * pair[0] + 0 * len(shape)

    step_on(run, annealed, 4)

    assert not evidence_of(run[1]).inconclusive
    assert assumed(run)


def test_a_function_that_names_its_batch_costs_no_further_evaluation(make_run):
    """That the name stands for other examples meanwhile is no state that it carries."""

    def by_its_argument(m, _x, _y):
        return lambda b: (next(calls), cross_entropy(m(b[0]), b[1]))[1]

    def by_its_names(m, x, y):
        return lambda _: (next(calls), cross_entropy(m(x), y))[1]

    counts = []
    for make in (by_its_argument, by_its_names):
        calls = itertools.count()
        step_on(make_run(), make, 3)  # Of later ones chance decides.
        counts.append(next(calls))

    assert counts[0] == counts[1] > 3


@pytest.mark.slow
def test_a_schedule_is_stated_and_not_warned_of(make_run):
    """Whether a number follows a schedule or the data, nobody can tell."""
    run = make_run()
    weights = iter([0.1, 0.2, 0.3, 0.4])

    def annealed(m, _x, _y):
        weight = next(weights)
        return lambda b: cross_entropy(m(b[0]), b[1]) * weight

    step_on(run, annealed, 4)

    assert not evidence_of(run[1]).inconclusive
    (stated,) = assumed(run)
    assert "read beside its batch" in stated
    assert stated in run[1].certificate().assumptions


def test_what_is_not_read_is_not_told(make_run):
    """As a log, or what was read at another step, and what the function itself wrote."""
    run = make_run()
    state = {"steps": 0, "last": torch.zeros(4), "calls": 0}

    def losses(m, x, _y):
        state["last"], state["steps"] = x.mean(0), state["steps"] + 1

        def function(batch):
            state["calls"] += 1
            state["seen"] = batch[0].detach().mean(0)
            return cross_entropy(m(batch[0]), batch[1])

        return function

    step_on(run, losses, 4)

    assert not evidence_of(run[1]).inconclusive
    assert not assumed(run)


def test_an_average_of_released_weights_is_not_told(make_run):
    """A teacher follows its student between the steps."""
    model, optimizer, loader = make_run()
    teacher = Net().requires_grad_(requires_grad=False)

    def losses(batch):
        return (model(batch[0]) - teacher(batch[0])).square().sum(1)

    for batch, _ in zip(loader, range(4), strict=False):
        optimizer.backward(losses, batch)
        optimizer.step()
        for mine, its in zip(teacher.parameters(), model.parameters(), strict=True):
            mine.lerp_(its.detach(), 0.5)

    assert not evidence_of(optimizer).inconclusive
    assert not optimizer.mechanism.watch.assumed()


def test_weights_that_a_layer_lists_are_not_told(make_run):
    """Recurrent layers keep theirs in a list, too, and one's own may keep buffers."""
    model, optimizer, loader = make_run()
    inner = nn.LSTM(4, 4, batch_first=True)
    inner.register_buffer("mean", torch.zeros(4))
    inner.known = [inner.weight_ih_l0, inner.mean]

    def losses(batch):
        states, _ = inner(batch[0][:, None])
        return cross_entropy(model(states[:, 0] - inner.known[1]), batch[1])

    optimizer.add_param_group({"params": list(inner.parameters())})
    for batch, _ in zip(loader, range(4), strict=False):
        optimizer.backward(losses, batch)
        optimizer.step()

    assert not evidence_of(optimizer).inconclusive
    assert not optimizer.mechanism.watch.assumed()


def test_what_begins_later_is_told_at_the_step_after_a_look(make_run, monkeypatch):
    """A loop that standardises from some step on, and then at every step."""
    run = make_run()
    constant = torch.zeros(4)

    def honest(m, _x, _y):
        return lambda b: cross_entropy(m(b[0] - constant), b[1])

    step_on(run, honest, 4)
    monkeypatch.setattr("dp.evidence._watch.is_due", lambda _, step: step == 6)
    model, optimizer, loader = run
    model.register_buffer("middle", torch.zeros(4))

    def losses(batch):
        return cross_entropy(model(batch[0] - model.middle), batch[1])

    def train(number):
        for (x, y), _ in zip(loader, range(number), strict=False):
            model.middle.copy_(x.mean(0))
            optimizer.backward(losses, (x, y))
            optimizer.step()

    train(3)
    assert not evidence_of(optimizer).inconclusive
    with pytest.warns(EvidenceWarning, match=r"Net\.middle"):
        train(1)


def test_a_run_that_was_not_looked_at_in_between_says_nothing(make_run, monkeypatch):
    """The function may have changed it by itself."""
    run = make_run()
    constant = torch.zeros(4)

    def honest(m, _x, _y):
        return lambda b, centre=constant: cross_entropy(m(b[0] - centre), b[1])

    step_on(run, honest, 3)
    with monkeypatch.context() as patched:
        patched.setattr("dp.evidence._watch.is_due", lambda *_: False)
        step_on(run, honest, 1)
        step_on(run, named_in_a_default, 1)
    monkeypatch.setattr("dp.evidence._watch.is_due", lambda _, step: step == 5)
    step_on(run, named_in_a_default, 1)

    assert not evidence_of(run[1]).inconclusive


def test_names_stand_for_tensors_of_the_same_memory_only():
    """Another view of it is no part of the batch, nor is a tensor without memory."""
    x, sparse = torch.randn(4, 3), torch.eye(4).to_sparse()
    part, weights, array = x[:2], nn.Parameter(x), np.zeros(3)
    state = ProgramState(lambda _: (x, part, weights, sparse, array))
    state.note_batch([x, sparse])
    with state.excursion():
        state.exchange([x + 1])
        seen = dict(state.reach.places[0].namespace)

    assert torch.equal(seen["x"], x + 1)
    assert seen["part"] is part
    assert seen["weights"] is weights
    assert seen["sparse"] is sparse
    assert {label.name for label, _ in state.named()} == {"part", "array"}
