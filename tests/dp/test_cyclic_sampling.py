"""Cyclic Poisson sampling: groups by a coin, and draws from them in turn."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import TensorDataset

from dp import (
    CyclicPoisson,
    CyclicPoissonLoader,
    DPOptimizer,
    PoissonSampling,
)
from dp._keystream import replayed_keys
from dp.exceptions import SamplingMismatchError


def cyclic(dataset, *, q=0.2, bands=4, steps=40, **arguments):
    return CyclicPoissonLoader(
        dataset, sampling_probability=q, bands=bands, steps=steps, **arguments
    )


def steps_of(loader):
    """Return the steps that each example was in, in one iteration."""
    steps = {}
    for step, batch in enumerate(loader):
        for row in batch.tolist():
            steps.setdefault(row, []).append(step)
    return steps


def test_an_example_is_in_steps_of_one_group():
    """They are a multiple of the bands apart; and each group has its turn."""
    loader = cyclic(range(100))

    steps = steps_of(loader)

    for of_one in steps.values():
        assert len({step % 4 for step in of_one}) == 1
        assert min(np.diff(of_one), default=4) >= 4
    assert {of_one[0] % 4 for of_one in steps.values()} == {0, 1, 2, 3}
    assert len(loader) == 40
    assert loader.sampling == CyclicPoisson(sampling_probability=0.2, bands=4)
    assert loader.sampling_probability == 0.2
    assert loader.sampling.coin_probability == pytest.approx(0.8)


def test_at_the_largest_probability_an_example_is_in_every_turn():
    """Its coin always wins; products that are 1 but for rounding are 1."""
    steps = steps_of(cyclic(range(30), q=0.1, bands=10, steps=20))

    assert all(len(of_one) == 2 for of_one in steps.values())
    above = (1 + 1e-15) / 3
    assert above * 3 > 1
    assert CyclicPoisson(sampling_probability=above, bands=3).coin_probability == 1.0


def test_tickets_know_their_round_and_position():
    """Rounds have numbers of their own; positions count through a chain."""
    loader = cyclic(range(10), steps=8)

    places = [loader.ticket.draw.in_pass for _ in loader]
    again = [loader.ticket.draw.in_pass for _ in loader]

    assert [p.position for p in places] == list(range(8))
    assert [p.step for p in places] == [0, 1, 2, 3] * 2
    assert {p.num_steps for p in places} == {4}
    assert len({p.chain for p in places}) == len({p.chain for p in again}) == 1
    assert len({p.number for p in (*places, *again)}) == 4
    assert places[0].chain != again[0].chain


def test_every_iteration_has_groups_of_its_own():
    """So what an earlier run tells of them says nothing of a later one."""
    loader = cyclic(range(100), q=0.25, steps=4)

    first, second = steps_of(loader), steps_of(loader)

    assert first != second


def test_a_debugging_seed_repeats_groups_and_draws():
    """As it repeats every draw; such runs are not private."""
    seen = []
    for seed in (1, 1, 2):
        loader = cyclic(range(50))
        loader.use_debugging_seed(seed)
        seen.append(steps_of(loader))

    assert seen[0] == seen[1] != seen[2]


def test_no_seed_has_an_effect():
    """Coins are the operating system's."""
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 -- as scripts do
        seen.append(steps_of(cyclic(range(50))))

    assert seen[0] != seen[1]


def test_another_example_moves_nobody_else():
    """Under the same keys, each one's group and coins are its own."""
    with replayed_keys():
        before = steps_of(cyclic(range(100)))
    with replayed_keys():
        after = steps_of(cyclic(range(101)))

    after.pop(100, None)
    assert after == before


@pytest.mark.statistical
def test_draws_are_as_likely_as_stated(decisions):
    """By exact tests of 400 examples in 200 steps, by example and step.

    False alarms: 4e-9. A probability that is off by 5 % is missed with 1e-6.
    """
    steps = steps_of(cyclic(range(400), q=0.2, steps=200))
    total = sum(map(len, steps.values()))
    groups = Counter(of_one[0] % 4 for of_one in steps.values())
    in_order = [steps[row][0] % 4 for row in sorted(steps)]
    alike = sum(a == b for a, b in pairwise(in_order))

    rate = stats.binomtest(total, 400 * 50, 0.8)
    assert not decisions.refutes("rate", rate.pvalue)
    uniform = stats.chisquare([groups[i] for i in range(4)])
    assert not decisions.refutes("groups", uniform.pvalue)
    neighbours = stats.binomtest(alike, len(in_order) - 1, 0.25)
    assert not decisions.refutes("neighbours", neighbours.pvalue)


def test_workers_load_what_was_drawn():
    """Draws are made ahead, and keep their places."""
    loader = cyclic(range(30), steps=8, num_workers=1)

    got = [(loader.ticket.draw, batch.tolist()) for batch in loader]

    assert [batch for _, batch in got] == [list(draw.rows) for draw, _ in got]
    assert [draw.in_pass.position for draw, _ in got] == list(range(8))


def test_units_are_drawn_with_all_their_rows():
    """Each unit has one group, and is one for its ticket."""
    units = [0, 1, 2, 0, 1, 0, 3]
    loader = cyclic(range(7), q=1 / 3, bands=3, steps=3, units=units)

    batches = [(batch.tolist(), loader.ticket) for batch in loader]

    assert sorted(row for batch, _ in batches for row in batch) == list(range(7))
    for batch, ticket in batches:
        whole = {units[row] for row in batch}
        assert sorted(batch) == [r for r in range(7) if units[r] in whole]
        assert ticket.num_samples == len(whole)


def test_ranks_share_a_step(monkeypatch):
    """Each groups every n-th example; together they have each one once a round."""
    rows = []
    for rank in range(3):
        monkeypatch.setattr(
            "dp.sampling._loader.rank_and_size", lambda rank=rank: (rank, 3)
        )
        rows.extend(batch.tolist() for batch in cyclic(range(20), q=0.25, steps=4))

    assert sorted(i for part in rows for i in part) == list(range(20))


def test_data_that_grow_within_an_iteration_are_refused():
    """New examples would have no group."""
    data = list(range(20))
    loader = cyclic(data)
    batches = iter(loader)
    next(batches)
    data.append(20)

    with pytest.raises(SamplingMismatchError, match="had 20 examples when this iter"):
        list(batches)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"max_batch_size": 3}, "batches are truncated"),
        ({"shuffle": True}, "joins it by another"),
        ({"batch_size": 5}, "joins it by another"),
        ({"drop_last": True}, "joins it by another"),
        ({"generator": None}, "cannot be seeded"),
        ({"steps": 6}, "a multiple of bands=4"),
        ({"bands": 0}, "bands must be a whole number"),
        ({"q": 0.26}, "at most 1 / bands"),
        ({"q": 0.0}, "sampling_probability must"),
    ],
)
def test_arguments_that_contradict_the_scheme_are_refused(argument, told):
    """By name, and with the reason."""
    with pytest.raises((TypeError, ValueError), match=told):
        cyclic(range(5), **argument)


def test_a_loader_of_another_scheme_is_refused(make_plan):
    """Poisson batches are no rounds, and rounds of other lengths other ones."""
    scheme = CyclicPoisson(sampling_probability=0.25, bands=4)
    plan = make_plan(sampling=scheme)
    data = TensorDataset(torch.randn(8, 3), torch.randn(8))
    sgd = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1)

    assert plan.loader(data).sampling == scheme
    for loader in (
        make_plan(sampling=PoissonSampling(sampling_probability=0.25)).loader(data),
        cyclic(data, q=0.25, bands=2),
    ):
        with pytest.raises(ValueError, match="the loader draws by"):
            DPOptimizer(sgd, plan=plan, loader=loader)
