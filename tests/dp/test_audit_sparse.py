"""Audits of runs that keep rows of tables by noisy counts."""

import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch

import dp
from dp.accounting._counted import NoiseBesideCount
from dp.exceptions import UnsupportedOperationError
from dp.ledger import Ledger


sys.path.insert(0, str(Path(__file__).parent))
from sparse_runs import train


NUM_RECORDS = 2000


def training(plan, *, tables=None, **options):
    """The training function that audits call; half of all rows or so are kept."""

    def run(model, dataset):
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        numbers = {
            "max_grad_norm": 1.0,
            "threshold": 0.2,
            "counts_share": 0.5,
            **options,
        }
        found = dp.SparseClipping.tables_of(model) if tables is None else tables
        rule = dp.SparseClipping(tables=found, **numbers)
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)
        train(model, loader, optimizer)

    return run


def audited(make_plan, **changes):
    plan = make_plan(expected_batch_size=500.0, **{"steps": 8, **changes})
    return dp.audit.conformance(training(plan), num_records=NUM_RECORDS)


def failures(report):
    return {finding.claim for finding in report.findings if not finding.holds}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise_multiplier": dp.Schedule(((4, 2.0), (4, 1.0)))},
        {"sampling": dp.RandomAllocation(steps_per_pass=4)},
    ],
    ids=str,
)
def test_a_run_conforms(make_plan, changes):
    """Rows are kept as often as noise on their counts says, and noised as was charged."""
    report = audited(make_plan, **changes)

    assert report.ok, report.to_text()
    claims = [finding.claim for finding in report.findings]
    assert claims[:3] == [
        "rows: kept where no record was drawn",
        "rows: kept where a record was drawn",
        "noise: scale in kept rows",
    ]


@pytest.mark.slow
def test_noise_that_is_not_rounded_conforms(make_plan):
    """As of torch's generator: every value beyond the threshold is kept."""
    with mock.patch.object(dp.DPOptimizer, "__init__", fast(dp.DPOptimizer.__init__)):
        report = audited(make_plan)

    assert report.ok, report.to_text()


def fast(right):
    def init(self, *args, **options):
        right(self, *args, noise=dp.GaussianNoise(rng="fast"), **options)

    return init


@pytest.mark.slow
def test_counts_with_half_their_noise_do_not_conform(make_plan):
    """Of 8000 rows that a record touched, 79 % are kept, where 62 % are due."""
    weight = NoiseBesideCount.weight.fget
    twice = property(lambda noises: 2 * weight(noises))
    with mock.patch.object(NoiseBesideCount, "weight", twice):
        report = audited(make_plan)

    assert failures(report) == {"rows: kept where a record was drawn"}


@pytest.mark.slow
def test_counts_without_noise_do_not_conform(make_plan):
    """Then all rows that a record touched are kept, and no other."""
    right = dp.GaussianNoise.add_

    def add_(noise, sums, *, stddev):
        if sums[0].dtype != torch.float64:
            right(noise, sums, stddev=stddev)
        return stddev

    with mock.patch.object(dp.GaussianNoise, "add_", add_):
        report = audited(make_plan)

    assert failures(report) >= {
        "rows: kept where no record was drawn",
        "rows: kept where a record was drawn",
    }


def test_releases_that_were_not_charged_are_told(make_plan):
    """What they should have had is not known; that they were not charged is."""
    with mock.patch.object(Ledger, "reserve"):
        report = audited(make_plan, steps=2)

    assert "ledger: every release is charged" in failures(report)


@pytest.mark.slow
def test_gradients_with_less_noise_do_not_conform(make_plan):
    """With what the plan has without counts: 0.71 of what was charged."""
    right = dp.GaussianNoise.add_

    def add_(noise, sums, *, stddev):
        of_counts = sums[0].dtype == torch.float64
        right(noise, sums, stddev=stddev if of_counts else stddev / 2**0.5)
        return stddev

    with mock.patch.object(dp.GaussianNoise, "add_", add_):
        report = audited(make_plan)

    assert "noise: scale in kept rows" in failures(report)


def test_nothing_is_said_where_nobody_is(make_plan):
    """Of a batch that nobody is in, and of rows that are never kept."""
    plan = make_plan(
        expected_batch_size=500.0,
        steps=2,
        sampling=dp.PoissonSampling(sampling_probability=1e-9),
    )

    report = dp.audit.conformance(
        training(plan, threshold=1e3), num_records=NUM_RECORDS
    )

    claims = [finding.claim for finding in report.findings]
    assert "rows: kept where no record was drawn" in claims
    assert "rows: kept where a record was drawn" not in claims
    assert "noise: scale in kept rows" not in claims


def test_one_of_both_tables_is_refused(make_plan):
    """The audit's rows are in two."""
    plan = make_plan(expected_batch_size=500.0, steps=2)

    with pytest.raises(
        UnsupportedOperationError, match=r"tables=\(0,\), and the model"
    ):
        dp.audit.conformance(training(plan, tables=(0,)), num_records=NUM_RECORDS)


@pytest.mark.parametrize(
    "audit",
    [
        partial(dp.audit.canaries, num_canaries=1000),
        partial(dp.audit.sequential, num_canaries=1000),
    ],
)
def test_attacks_whose_records_have_rows_of_their_own_are_refused(make_plan, audit):
    """By name, with what to do."""
    plan = make_plan(expected_batch_size=500.0, steps=2)

    with pytest.raises(UnsupportedOperationError, match="which are hardly ever kept"):
        audit(training(plan))
