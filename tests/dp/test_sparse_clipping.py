"""Which rows of tables an example touched, how they count, and what is refused.

Shapes: ``B`` examples, ``V`` rows, ``D`` dimensions of a row.
"""

import copy
import math
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import TensorDataset

import dp
from dp._mechanism.row_map import RowMap
from dp.accounting._counted import NoiseBesideCount
from dp.exceptions import UnsupportedOperationError
from dp.per_sample import Engine


sys.path.insert(0, str(Path(__file__).parent))
from sparse_runs import Clicks, D, V, clicks, counts_of, make_run, rule_of


def test_counts_that_take_a_twentieth_cost_gradients_2_6_percent():
    """The anchor: sigma = 1, and 1 / sqrt(1 - 0.05) = 1.025978."""
    stddev = dp.SparseClipping(max_grad_norm=1.0, tables=(0, 1)).count_stddev_of(1.0)

    noises = NoiseBesideCount.of(1.0, stddev, rows_per_example=2)

    assert stddev == pytest.approx(6.324555, abs=1e-6)
    assert noises.gradients == pytest.approx(1.025978, abs=1e-6)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 0.999), st.integers(1, 10_000))
def test_the_two_never_have_less_noise_together_than_is_charged(sigma, share, rows):
    """Rounding included; and an example moves the pair by 1 / sigma, and a hair less."""
    rule = dp.SparseClipping(
        max_grad_norm=1.0, tables=(0,), counts_share=share, rows_per_example=rows
    )

    stddev = rule.count_stddev_of(sigma)
    noises = NoiseBesideCount.of(sigma, stddev, rows_per_example=rows)

    assert sigma <= noises.joint <= sigma * (1 + 1e-10)
    moved = noises.sensitivity / noises.gradients
    assert moved == pytest.approx(1 / sigma, rel=1e-9)
    assert moved <= 1 / sigma * (1 + 1e-14)


def test_counts_with_too_little_noise_are_refused():
    """They would cost more than the release they belong to."""
    with pytest.raises(
        ValueError, match=r"above 3 times of noise_multiplier=1.0, got 3"
    ):
        NoiseBesideCount.of(1.0, 3.0, rows_per_example=9)


@given(st.integers(1, 1000), st.integers(1, 100_000))
def test_one_example_moves_the_counts_by_the_root_of_its_rows_at_most(most, touched):
    """In exact arithmetic, of the floating-point numbers that are added."""
    rule = dp.SparseClipping(max_grad_norm=1.0, tables=(0,), rows_per_example=most)

    (weight,) = rule.weights(torch.tensor([touched], dtype=torch.float64)).tolist()

    assert Fraction(weight) ** 2 * touched <= most
    assert weight == pytest.approx(min(1.0, math.sqrt(most / touched)))


def test_an_example_counts_once_in_each_row_that_it_touched():
    """A row that is looked up twice counts once, and padding never."""
    model = Clicks()
    batch = (
        torch.tensor([7, 7, 2]),
        torch.tensor([[3, 3, 0], [3, 4, 5], [0, 0, 0]]),
        torch.tensor([1.0, 1.0, 1.0]),
    )

    counts_V = counts_of(model, batch)

    expected = torch.zeros(2, V, dtype=torch.float64)
    expected[0, 7], expected[0, 2] = 2, 1
    expected[1, 3], expected[1, 4], expected[1, 5] = 2, 1, 1
    torch.testing.assert_close(counts_V.view(2, V), expected)


def test_a_row_whose_gradients_cancel_is_touched():
    """Whether they do so exactly may be a matter of rounding, and so of the batch."""
    batch = torch.tensor([7]), torch.tensor([[3, 4, 0]]), torch.tensor([0.5])
    model = Clicks()
    nn.init.zeros_(model.last.weight)  # By which the tables' gradients are zero.

    counts_V = counts_of(model, batch)

    assert counts_V.nonzero().flatten().tolist() == [7, V + 3, V + 4]


@pytest.mark.parametrize(
    ("paddings", "touched"),
    [((2, 2), [1, 4]), ((2, 4), [1, 2, 4]), ((2, None), [1, 2, 4])],
    ids=["of both uses", "of each its own", "of one use"],
)
def test_padding_of_a_table_that_is_used_twice_is_that_of_both(paddings, touched):
    """What only one use takes for padding is a row like others."""
    table = nn.Parameter(torch.randn(V, 2))
    first, second = (
        nn.functional.embedding(torch.tensor([rows]), table, padding_idx=padding)
        for rows, padding in zip([[1, 2], [2, 4]], paddings, strict=True)
    )
    gradients = Engine().gradients((first + 2 * second).sum((1, 2)), [table])
    rule = dp.SparseClipping(max_grad_norm=1.0, tables=(0,), rows_per_example=4)

    counts_V = RowMap(rule).of(gradients, [table], torch.ones(1, 1))

    assert counts_V.nonzero().flatten().tolist() == touched


def test_an_example_of_many_rows_counts_less_in_each():
    """Of four rows where two may be touched: the root of a half, in all of them."""
    batch = torch.tensor([7]), torch.tensor([[3, 4, 5]]), torch.ones(1)

    counts_V = counts_of(Clicks(), batch, rows_per_example=2)

    assert counts_V.sum().item() == pytest.approx(4 * math.sqrt(1 / 2))
    assert counts_V.norm().item() <= math.sqrt(2)


NUMBERS = {"finite": 1.0, "NaN": math.nan, "infinite": math.inf, "large": 1e30}


@pytest.mark.parametrize("others", NUMBERS)
@pytest.mark.parametrize("last", NUMBERS)
def test_one_example_moves_the_map_by_no_more(last, others):
    """Left out, whether its gradient and those of all others are numbers or not."""
    model, data = Clicks(), clicks()
    batch = data[:]
    batch[2][:-1] = NUMBERS[others]
    batch[2][-1] = NUMBERS[last]

    moved = counts_of(model, batch) - counts_of(
        model, [column[:-1] for column in batch]
    )

    assert moved.norm().item() <= 2
    assert moved.min().item() == 0
    assert bool(moved.any()) == (last == "finite")


@pytest.mark.parametrize("others", NUMBERS)
@pytest.mark.parametrize("last", NUMBERS)
@pytest.mark.parametrize("rule", ["sparse", "quantile"])
def test_one_example_moves_sums_and_counts_by_what_is_charged(
    make_plan, rule, last, others
):
    """Weighted counts included: both rules count, and neither gradients that it drops."""
    plan = make_plan(
        sampling=dp.PoissonSampling(sampling_probability=1.0), expected_batch_size=20.0
    )
    columns = clicks()[:]
    columns[2][:-1] = NUMBERS[others]
    columns[2][-1] = NUMBERS[last]
    whole, found = Clicks(), []
    for rows in (slice(None), slice(-1)):
        model = copy.deepcopy(whole)
        loader = plan.loader(TensorDataset(*(column[rows] for column in columns)))
        clipping = (
            rule_of(model)
            if rule == "sparse"
            else dp.QuantileClipping(max_grad_norm=1.0, quantile=0.5)
        )
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=clipping)
        optimizer.backward(model, next(iter(loader)))
        mechanism = optimizer.mechanism
        noises = mechanism.count.noises(1.0, 20.0) or mechanism.row_map.noises(
            1.0, [*model.parameters()]
        )
        batch = mechanism.pending
        counts = mechanism.count.as_sums(batch, noises) or mechanism.row_map.as_sums(
            batch, noises
        )
        sums = [*batch.sums.of_parameters(), *counts]
        found.append(torch.cat([total.double().flatten() for total in sums]))

    moved = (found[0] - found[1]).norm().item()
    assert moved <= noises.sensitivity * (1 + 1e-5)


def test_a_table_that_a_loss_does_not_use_is_touched_by_nobody():
    """Its rows may be kept all the same, as those of any other."""
    model = Clicks()
    parameters = list(model.parameters())
    losses_B = model.items(torch.tensor([1, 2])).sum(1)

    gradients = Engine().gradients(losses_B, parameters)

    norms_GB = gradients.squared_norms([0] * len(parameters)).sqrt()
    counts_V = RowMap(rule_of(model)).of(gradients, parameters, norms_GB)
    assert counts_V.nonzero().flatten().tolist() == [1, 2]


def test_a_unit_counts_once_whatever_its_rows_are(make_plan):
    """Two rows of one user touch an item once, and clip as one."""
    model = nn.Sequential(nn.Embedding(V, 1), nn.Flatten(0))
    items = torch.tensor([4, 4, 4, 9])
    plan = make_plan(
        sampling=dp.PoissonSampling(sampling_probability=1.0),
        unit_of_privacy="one value of user",
    )
    loader = plan.loader(TensorDataset(items), units=[0, 0, 1, 1])
    rule = dp.SparseClipping(max_grad_norm=1.0, tables=(0,), rows_per_example=2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)

    (items,) = next(iter(loader))
    optimizer.backward(model(items))

    counts_V = optimizer.mechanism.pending.num_touched
    expected = torch.zeros(V, dtype=torch.float64)
    expected[4], expected[9] = 2, 1
    torch.testing.assert_close(counts_V, expected)


def test_parts_of_a_batch_are_counted_together(make_plan):
    """Split or whole, the map is the same."""
    model, loader, optimizer = make_run(make_plan)
    batch = next(iter(loader))

    for part in (slice(0, 5), slice(5, None)):
        optimizer.backward(model([column[part] for column in batch]))

    assert torch.equal(optimizer.mechanism.pending.num_touched, counts_of(model, batch))


def test_other_rules_count_nothing():
    """Their releases are what they were."""
    rows = RowMap(dp.FlatClipping(max_grad_norm=1.0))

    assert rows.noises(1.0, []) is None
    assert rows.of(None, [], torch.zeros(1, 0)) == 0.0
    assert rows.as_sums(None, NoiseBesideCount.of(1.0, 5.0)) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"counts_share": 1.0}, "counts_share"),
        ({"threshold": 0.0}, "threshold"),
        ({"rows_per_example": 0}, "rows_per_example"),
        ({"tables": ()}, "tables must be a tuple"),
        ({"tables": [0]}, "tables must be a tuple"),
        ({"tables": (0, 0)}, "tables must be a tuple"),
        ({"tables": (-1,)}, "tables must be a tuple"),
        ({"tables": (True,)}, "tables must be a tuple"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong, named):
    """By name, where the rule is made."""
    with pytest.raises(ValueError, match=named):
        dp.SparseClipping(**{"max_grad_norm": 1.0, "tables": (0,), **wrong})


@pytest.mark.parametrize(
    ("tables", "found"), [((0, 3), r"at 3 is \(1,\)"), ((9,), "at 9 is no parameter")]
)
def test_positions_of_no_tables_are_refused(make_plan, tables, found):
    """Where the optimizer is made."""
    rule = dp.SparseClipping(max_grad_norm=1.0, tables=tables)

    with pytest.raises(ValueError, match=found):
        make_run(make_plan, rule=rule)


def test_tables_that_were_frozen_meanwhile_are_refused_before_a_charge(make_plan):
    """The positions are of others then; the batch at hand is empty, and charges nothing."""
    model, loader, optimizer = make_run(
        make_plan, sampling=dp.PoissonSampling(sampling_probability=1e-9)
    )
    next(iter(loader))
    for parameter in (model.items.weight, model.tags.weight, model.last.bias):
        parameter.requires_grad_(requires_grad=False)

    with pytest.raises(ValueError, match="at 1 is no parameter"):
        optimizer.step()

    assert optimizer.ledger.steps == 0


class Tied(nn.Module):
    """A language model of one token, whose table is also its output layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, D)

    def forward(self, batch):
        (token_B,) = batch
        logits_BV = self.table(token_B) @ self.table.weight.T
        return F.cross_entropy(logits_BV, token_B, reduction="none")


class Dense(nn.Module):
    """A table that is multiplied as a whole."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, D)

    def forward(self, batch):
        (token_B,) = batch
        one_hot_BV = F.one_hot(token_B, V).float()
        return (one_hot_BV @ self.table.weight).square().sum(1)


@pytest.mark.parametrize("kind", [Tied, Dense])
def test_a_table_that_is_not_only_looked_up_is_refused(make_plan, kind):
    """Every example touches every row of it. Nothing of the batch is kept."""
    data = TensorDataset(torch.arange(V))
    model, loader, optimizer = make_run(make_plan, model=kind(), data=data)
    batch = next(iter(loader))

    with pytest.raises(
        UnsupportedOperationError, match="the table at 0 of the trainable"
    ):
        optimizer.backward(model, batch)

    assert optimizer.mechanism.pending is None


def test_gradients_of_other_libraries_are_refused(make_plan):
    """They are whole tables an example, of which nobody knows the lookups."""
    model, loader, optimizer = make_run(make_plan)
    size = len(next(iter(loader))[0])
    for parameter in model.parameters():
        parameter.grad_sample = torch.ones(size, *parameter.shape)

    with pytest.raises(UnsupportedOperationError, match="leave it out of clipping"):
        optimizer.step()

    assert optimizer.ledger.steps == 0


def test_shards_are_refused():
    """Rows of whole tables are selected."""
    shard = torch.zeros(3, 2)
    shard.placements = ()

    with pytest.raises(UnsupportedOperationError, match=r"shape \(3, 2\), is sharded"):
        dp.SparseClipping(max_grad_norm=1.0, tables=(0,)).tables_among([shard])


def test_correlated_noise_is_refused(make_plan):
    """Noise of rows that are not kept could not be taken back."""
    with pytest.raises(ValueError, match="plan correlates the noise of 2 steps"):
        make_run(
            make_plan,
            sampling=dp.CyclicPoisson(sampling_probability=0.25, bands=2),
            correlation=dp.BandedNoise(coefficients=(1.0, 0.5)),
        )


def test_corrected_moments_are_refused(make_plan):
    """The correction would take noise from rows that had none."""
    model = Clicks()
    plan = make_plan()
    with pytest.raises(UnsupportedOperationError, match="clipping=SparseClipping has"):
        dp.DPOptimizer(
            torch.optim.Adam(model.parameters()),
            plan=plan,
            loader=plan.loader(clicks()),
            clipping=rule_of(model),
            bias_correction=dp.AdamBiasCorrection(floor=1e-5),
        )


def test_tables_are_found_among_what_is_trained():
    """In the order of the parameters, once each, and none that is frozen."""
    model = nn.ModuleList([nn.Linear(2, 2), nn.Embedding(5, 2), nn.EmbeddingBag(5, 2)])
    assert dp.SparseClipping.tables_of(model) == (2, 3)

    model[0].weight.requires_grad_(requires_grad=False)
    assert dp.SparseClipping.tables_of(model) == (1, 2)

    model[1].weight.requires_grad_(requires_grad=False)
    assert dp.SparseClipping.tables_of(model) == (1,)
