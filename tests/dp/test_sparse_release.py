"""What is released of tables whose rows are kept by noisy counts, and what it is charged as.

Shapes: ``V`` rows, ``D`` dimensions of a row.
"""

import copy
import io
import json
import math
import pickle
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp._mechanism.row_map import KeptRows, RowMap
from dp.accounting._counted import NoiseBesideCount
from dp.exceptions import LedgerError
from dp.ledger import Charge, Ledger


sys.path.insert(0, str(Path(__file__).parent))
from sparse_runs import Clicks, D, V, clicks, make_run, rule_of, train


def test_without_noise_it_is_the_ordinary_run(make_plan):
    """Rows that anyone touched are kept, and the others have no gradient."""
    changes = {
        "noise_multiplier": 0.0,
        "sampling": dp.PoissonSampling(sampling_probability=1.0),
    }
    model = Clicks()
    twin = copy.deepcopy(model)
    flat = dp.FlatClipping(max_grad_norm=1.0)

    train(*make_run(make_plan, model=model, **changes), 5)
    train(*make_run(make_plan, model=twin, rule=flat, **changes), 5)

    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_noise_of_counts_and_of_kept_rows_is_what_was_charged(make_plan, decisions):
    """Of 200 000 untouched rows, 16 % are beyond one standard deviation, once rounded.

    Nothing but noise: the batch is empty. The share has a standard error of 0.5 %, the
    noise of 32 000 rows one of 0.4 %, so false alarms are below 1e-15 each. Were counts to
    have half their noise, 2.3 % of rows would be kept, and with the plan's noise on
    gradients they would have 0.71 of it: neither is ever missed.
    """
    model = nn.Sequential(nn.Embedding(200_000, 1), nn.Flatten(0))
    rule = dp.SparseClipping(
        max_grad_norm=2.0, tables=(0,), counts_share=0.5, threshold=1.0
    )
    _, loader, optimizer = make_run(
        make_plan,
        model=model,
        data=TensorDataset(torch.arange(5)),
        rule=rule,
        max_grad_norm=2.0,
        noise_multiplier=3.0,
        sampling=dp.PoissonSampling(sampling_probability=1e-9),
    )
    drawn = []
    right = dp.GaussianNoise.add_

    def add_(noise, sums, *, stddev):
        drawn.extend(map(torch.numel, sums))
        return right(noise, sums, stddev=stddev)

    (items,) = next(iter(loader))
    optimizer.backward(model(items))
    with mock.patch.object(dp.GaussianNoise, "add_", add_):
        optimizer.step()

    gradient_V = model[0].weight.grad[:, 0] * 20.0
    num_counts, num_kept = drawn  # Noise was drawn for no other row.
    assert num_counts == 200_000
    stddev = 3.0 * math.sqrt(2) * 2.0
    step = dp.GaussianNoise().granularity(stddev=stddev) / stddev
    least = (math.floor(1 / step) + 1 / 2) * step  # What is rounded to beyond 1.
    share = math.erfc(least / math.sqrt(2)) / 2
    assert not decisions.differs("kept", num_kept / 200_000, share, rel=0.05)
    assert (gradient_V != 0).sum() <= num_kept
    squares = gradient_V.double().square().sum().item() / num_kept
    assert not decisions.differs("noise", math.sqrt(squares), stddev, rel=0.04)


def test_rows_that_many_touched_are_kept_with_their_gradients(make_plan):
    """All 40 examples touch row 3, 10 standard deviations above the threshold."""
    model = nn.Sequential(nn.Embedding(V, D), nn.Flatten(0))

    def losses(batch):
        return model[0](batch[0])[:, 0] * 1e6

    _, loader, optimizer = make_run(
        make_plan,
        model=model,
        data=TensorDataset(torch.full((40,), 3)),
        rule=dp.SparseClipping(
            max_grad_norm=1.0, tables=(0,), counts_share=0.5, threshold=10.0
        ),
        sampling=dp.PoissonSampling(sampling_probability=1.0),
        noise_multiplier=1.0,
    )
    optimizer.backward(losses, next(iter(loader)))
    optimizer.step()

    gradient = model[0].weight.grad * 20.0
    assert gradient.any(1).nonzero().flatten().tolist() == [3]
    assert gradient[3, 0].item() == pytest.approx(40.0, abs=15.0)  # Ten times sqrt(2).


def test_other_parameters_get_noise_in_every_element(make_plan):
    """Also where the batch is empty and no row is kept."""
    model, loader, optimizer = make_run(
        make_plan,
        options={"threshold": 1e6},
        model=Clicks(num_dims=1000),
        sampling=dp.PoissonSampling(sampling_probability=1e-9),
    )
    train(model, loader, optimizer, 1)

    assert not model.items.weight.grad.any()
    assert not model.tags.weight.grad.any()
    # Noise is 0 in one of 40 elements.
    assert (model.last.weight.grad != 0).sum() > 800


@pytest.mark.slow
def test_the_noise_on_counts_is_the_same_at_every_norm(make_plan):
    """Counts are weighted by the norm of the step, whose noise they take."""
    norms = dp.Schedule(((1, 1.0), (19, 0.25)))
    model, loader, optimizer = make_run(
        make_plan,
        max_grad_norm=norms,
        sampling=dp.PoissonSampling(sampling_probability=1.0),
    )
    of_counts = []
    right = RowMap.release

    def release(self, world, batch, noises, stddev, *others):
        (weighted_V,) = self.as_sums(batch, noises)
        of_counts.append(stddev * (batch.num_touched.sum() / weighted_V.sum()).item())
        return right(self, world, batch, noises, stddev, *others)

    with mock.patch.object(RowMap, "release", release):
        train(model, loader, optimizer, 3)

    in_examples = optimizer.mechanism.clipping.count_stddev_of(1.0)
    assert of_counts == [pytest.approx(in_examples)] * 3
    assert [charge.max_grad_norm for charge in optimizer.ledger.charges()] == [
        1.0,
        0.25,
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": dp.RandomAllocation(steps_per_pass=10)},
        {"sampling": dp.CyclicPoisson(sampling_probability=0.25, bands=2)},
        {"sampling": dp.DisjointBatches(steps_per_pass=5, assigned_by="coin")},
        {
            "sampling": dp.TruncatedPoissonSampling(
                sampling_probability=0.5, max_batch_size=30, dataset_size=40
            ),
            "neighboring_relation": "zero_out",
        },
        {"neighboring_relation": "replace_one"},
        {"noise_multiplier": dp.Schedule(((10, 1.5), (10, 1.0)))},
    ],
    ids=str,
)
def test_epsilon_is_the_plans_however_batches_are_drawn(make_plan, changes):
    """Selecting rows is post-processing of one Gaussian release, whatever amplifies it."""
    model, loader, optimizer = make_run(make_plan, **changes)

    train(model, loader, optimizer)

    assert optimizer.guarantee() == optimizer.plan.guarantee()
    assert all(charge.noise_beside_count for charge in optimizer.ledger.charges())
    assert dp.verify(optimizer.certificate(private_data_touches=()), quick=True).ok


def test_a_checkpoint_goes_on(make_plan):
    """Nothing of the selection outlives a step; states, pickles and copies have the rule."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    model, loader, resumed = make_run(make_plan)
    resumed.load_state_dict(torch.load(file))
    train(model, loader, resumed, 2)

    assert resumed.ledger.steps == 5
    pickled = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes
    for other in (pickled, copy.deepcopy(optimizer)):
        assert other.mechanism.clipping == optimizer.mechanism.clipping


def test_the_charge_states_both_noises(make_plan):
    """One line for the whole run, in the ledger and in its state."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 4)

    (charge,) = optimizer.ledger.charges()

    stddev = math.sqrt(4 / 0.05)
    assert charge.noise_beside_count == NoiseBesideCount.of(
        1.0, stddev, rows_per_example=4
    )
    assert (charge.count, charge.norms, charge.noise_multiplier) == (4, None, 1.0)
    state = json.loads(json.dumps(optimizer.ledger.state_dict()))
    loaded = Ledger(optimizer.plan)
    loaded.load_state_dict(state)
    assert loaded.charges() == (charge,)


def charge_of(noises):
    return Charge(
        sampling_probability=0.5,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        count=1,
        noise_beside_count=noises,
    )


def test_a_count_of_norms_is_written_as_before():
    """Rows of earlier releases of this package say nothing of tables, and read the same."""
    charge = charge_of(NoiseBesideCount.of(1.0, 5.0))

    row = charge.to_dict()

    assert {*row["noise_beside_count"]} == {"gradients", "count_stddev"}
    assert Charge.from_dict(row) == charge


def test_norms_that_are_assigned_stay_apart(make_plan):
    """They follow no quantile, and the certificate tells of them."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 2)
    optimizer.max_grad_norm = 0.5
    train(model, loader, optimizer, 1)

    charges = optimizer.ledger.charges()

    assert [(c.count, c.max_grad_norm, c.norms) for c in charges] == [
        (2, 1.0, None),
        (1, 0.5, None),
    ]
    assert optimizer.certificate().runs[0].has_other_norms


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ({"gradients": 1.0}, "less than the 1"),
        ({"rows_per_example": 5}, "less than the 1"),
        ({"rows_per_example": 0}, "rows_per_example must be"),
        ({"rows_per_example": 4.0}, "rows_per_example must be"),
    ],
)
def test_a_charge_of_less_noise_than_it_says_is_damaged(make_plan, split, reason):
    """A state whose numbers do not fit together is not loaded."""
    row = charge_of(NoiseBesideCount.of(1.0, 9.0, rows_per_example=4)).to_dict()
    row["noise_beside_count"] |= split
    ledger = Ledger(make_plan())

    with pytest.raises(LedgerError, match=reason):
        ledger.load_state_dict({**ledger.state_dict(), "segments": {"a": [row]}})


def test_the_certificate_says_what_was_released_and_verifies(make_plan):
    """Another number of rows does not hold; the counts are among what was noised."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 3)

    certificate = optimizer.certificate(private_data_touches=())

    assert (
        "3 x q = 0.5, sigma = 1, C = 1, together of gradients (sigma = 1.02598) and of"
        " counts of touched rows (noise 8.94427, 4 an example)"
    ) in certificate.to_text()
    num_elements = sum(p.numel() for p in model.parameters())
    assert certificate.runs[0].num_parameters == num_elements + 2 * V
    assert dp.Certificate.from_json(certificate.to_json()) == certificate
    assert dp.verify(certificate, quick=True).ok
    altered = certificate.to_json().replace(
        '"rows_per_example": 4', '"rows_per_example": 5'
    )
    verification = dp.verify(dp.Certificate.from_json(altered), quick=True)
    assert [f.claim for f in verification.findings if not f.holds] == ["run 1: charges"]


def training(plan, **options):
    """The training function that audits call."""

    def run(model, dataset):
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        rule = rule_of(model, **options)
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)
        train(model, loader, optimizer)

    return run


def replayed(make_plan, **options):
    plan = make_plan(steps=6, sampling=dp.PoissonSampling(sampling_probability=0.9))
    run = training(plan, **{"threshold": 0.5, **options})
    return dp.audit.replay(run, Clicks(), clicks(30))


def failures(report):
    return [finding.claim for finding in report.findings if not finding.holds]


@pytest.mark.slow
def test_a_replay_holds(make_plan):
    """One record moves map and gradients by what was charged for both."""
    report = replayed(make_plan)

    assert report.ok, report.to_text()


def counts_without_noise(self, _world, batch, noises, stddev, *_others):
    """Select rows by the counts as they are."""
    (counts_V,) = self.as_sums(batch, noises)
    return self.kept(counts_V, batch.parameters, 0.5 * stddev)


@pytest.mark.slow
def test_rows_that_are_selected_without_noise_do_not_replay(make_plan):
    """Which rows are kept tells who is in the data."""
    with mock.patch.object(RowMap, "release", counts_without_noise):
        report = replayed(make_plan)

    assert "public state is equal" in failures(report)


@pytest.mark.slow
def test_counts_that_are_not_clipped_do_not_replay(make_plan):
    """An example of up to four rows, where one is charged, and counts are exact."""

    def ones(_rule, num_rows_B):
        return torch.ones_like(num_rows_B)

    options = {"rows_per_example": 1, "counts_share": 0.9}
    assert not failures(replayed(make_plan, **options))
    with mock.patch.object(dp.SparseClipping, "weights", ones):
        report = replayed(make_plan, **options)

    assert "sums differ by the sensitivity at most" in failures(report)


@pytest.mark.slow
def test_sums_of_unkept_rows_do_not_replay(make_plan):
    """A gradient that is left where no noise was added is one record's alone."""
    of, sums_of = KeptRows.of, {}

    def keep(self, sums, buffers):
        sums_of.update(enumerate(sums))
        return of(self, sums, buffers)

    def spread(self, released, _parameters):
        whole = list(released)
        for index, rows in self.of_table.items():
            whole[index] = sums_of[index].index_copy(0, rows, released[index])
        return whole

    with (
        mock.patch.object(KeptRows, "of", keep),
        mock.patch.object(KeptRows, "spread", spread),
    ):
        report = replayed(make_plan)

    assert "public state is equal" in failures(report)
