"""A clipping norm that follows a quantile, and the count it is found by.

Shapes: ``B`` examples, ``G`` groups.
"""

import copy
import io
import json
import math
import pickle
from unittest import mock

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp._mechanism.batch import PendingBatch
from dp._mechanism.current_values import CurrentValues
from dp._mechanism.norm_count import NormCount
from dp._mechanism.sums import Sums
from dp.accounting._counted import NoiseBesideCount
from dp.clipping import FlatClipping
from dp.exceptions import LedgerError
from dp.ledger import Charge, Ledger
from dp.ledger._norm_range import NormRange


def make_run(make_plan, *, clipping=None, num_examples=40, **changes):
    """A linear model on examples whose gradients have norms from 0.1 to 10."""
    numbers = {"expected_batch_size": 20.0, **changes}
    plan = make_plan(**numbers)
    model = nn.Linear(3, 1)
    data = TensorDataset(torch.randn(num_examples, 3), torch.randn(num_examples))
    loader = plan.loader(data)
    rule = dp.QuantileClipping(max_grad_norm=1.0) if clipping is None else clipping
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    return model, loader, dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=rule)


def train(model, loader, optimizer, num_steps=None):
    norms = []
    for index, (x, y) in enumerate(loader):
        if index == num_steps:
            break
        norms.append(optimizer.max_grad_norm)
        optimizer.backward((model(x).squeeze(1) - y).square())
        optimizer.step()
    return norms


def test_a_count_costs_gradients_half_a_percent_of_noise():
    """The anchor: sigma = 1 and a count with noise 5."""
    assert NoiseBesideCount.of(1.0, 5.0).gradients == pytest.approx(1.005038, abs=5e-7)


@given(st.floats(1e-3, 1e3), st.floats(1.0001, 1e6))
def test_the_two_never_have_less_noise_together_than_is_charged(sigma, ratio):
    """Rounding included; and no more than a hair above."""
    stddev = ratio * sigma / 2

    joint = NoiseBesideCount.of(sigma, stddev).joint

    assert sigma <= joint <= sigma * (1 + 1e-11)


@given(st.floats(1e-3, 1e3), st.floats(1.0001, 1e6))
def test_an_example_moves_the_pair_by_one_over_sigma(sigma, ratio):
    """As weighted, sum and count have one noise, of g C, and sensitivity g C / sigma."""
    noises = NoiseBesideCount.of(sigma, ratio * sigma / 2)

    moved = noises.sensitivity / noises.gradients

    assert moved == pytest.approx(1 / sigma, rel=1e-9)
    assert moved <= 1 / sigma * (1 + 1e-14)


@pytest.mark.parametrize("stddev", [0.5, 0.499])
def test_a_count_with_too_little_noise_is_refused(stddev):
    """It would cost more than the release it belongs to."""
    with pytest.raises(ValueError, match=r"above half of noise_multiplier=1.0"):
        NoiseBesideCount.of(1.0, stddev)


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, math.inf, math.nan]), max_size=20),
    st.integers(0, 20),
)
def test_one_example_moves_the_count_by_a_half(norms, place):
    """Whatever its norm is: within C, beyond it, infinite or no number."""
    without = torch.tensor([norms])
    count = NormCount(dp.QuantileClipping(max_grad_norm=1.0))
    place = min(place, len(norms))
    for norm in (0.5, 1.0, 2.0, math.inf, math.nan):
        with_it = torch.tensor([[*norms[:place], norm, *norms[place:]]])

        moved = count.of(with_it, 1.0) - count.of(without, 1.0)

        assert moved.item() == (0.5 if norm <= 1.0 else -0.5)


def test_the_norm_moves_towards_the_quantile():
    """Andrew et al., Algorithm 1: C exp(-eta (share - quantile))."""
    clipping = dp.QuantileClipping(max_grad_norm=1.0, quantile=0.7, learning_rate=0.3)

    assert clipping.adapted(2.0, share_within=1.0) == 2 * math.exp(-0.3 * 0.3)
    assert clipping.adapted(2.0, share_within=0.0) == 2 * math.exp(0.3 * 0.7)
    assert clipping.adapted(2.0, share_within=0.7) == 2.0


def test_the_norm_stays_one_that_gradients_can_be_clipped_to():
    """However far noise throws the share."""
    clipping = dp.QuantileClipping(max_grad_norm=1.0)

    assert clipping.adapted(1e17, share_within=-1e9) == 1e18
    assert clipping.adapted(1e-17, share_within=1e9) == 1e-18


@pytest.mark.parametrize("num_within", [0, 25, 50, 100])
def test_a_count_becomes_the_share_of_the_expected_batch(make_plan, num_within):
    """Of 100 examples; without noise the next norm follows exactly."""
    rule = dp.QuantileClipping(max_grad_norm=2.0)
    count = NormCount(rule)
    noises = count.noises(1.0, 100.0)
    norms_GB = torch.tensor([[2.0] * num_within + [2.001] * (100 - num_within)])
    batch = PendingBatch((), Sums([]), None, 2.0, num_within=count.of(norms_GB, 2.0))
    plan = make_plan(max_grad_norm=2.0)
    values = CurrentValues(plan=plan, ledger=Ledger(plan))

    (weighted,) = count.as_sums(batch, noises)
    count.adapt(values, [weighted / 100], noises)

    expected = rule.adapted(2.0, share_within=num_within / 100)
    assert values.max_grad_norm == pytest.approx(expected, rel=1e-12)


def test_other_rules_count_nothing():
    """Their releases are what they were."""
    count = NormCount(FlatClipping(max_grad_norm=1.0))

    assert count.noises(1.0, 100.0) is None
    assert count.of(torch.ones(1, 5), 1.0) == 0.0
    assert count.as_sums(PendingBatch((), Sums([]), None, 1.0), None) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"quantile": 1.0}, "quantile"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"count_stddev": 0.0}, "count_stddev"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, named):
    """By name, where the rule is made."""
    with pytest.raises(ValueError, match=named):
        dp.QuantileClipping(**{"max_grad_norm": 1.0, **wrong})


@pytest.mark.slow
def test_without_noise_the_norm_finds_the_median(make_plan):
    """In 100 steps on all examples; the first norm was far from it."""
    model, loader, optimizer = make_run(
        make_plan,
        clipping=dp.QuantileClipping(max_grad_norm=0.01),
        noise_multiplier=0.0,
        max_grad_norm=0.01,
        steps=100,
        sampling=dp.PoissonSampling(sampling_probability=1.0),
        expected_batch_size=40.0,
    )
    train(model, loader, optimizer)

    x, y = loader.dataset.tensors
    x1 = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    errors = (model(x).squeeze(1) - y).detach()
    norms = (2 * errors[:, None] * x1).norm(dim=1)
    share = (norms <= optimizer.max_grad_norm).float().mean().item()
    assert 0.3 < share < 0.7
    assert (norms <= 0.01).float().mean() < 0.1


def test_the_charge_states_both_noises(make_plan):
    """One release a step at the plan's sigma; the norm of each step beside it."""
    model, loader, optimizer = make_run(
        make_plan, clipping=dp.QuantileClipping(max_grad_norm=1.0, count_stddev=5.0)
    )

    norms = train(model, loader, optimizer, 4)

    (charge,) = optimizer.ledger.charges()
    assert charge.max_grad_norm == norms[-1]
    assert len({*norms}) > 1  # A noisy count of 0 leaves the norm as it is.
    assert charge.norms == NormRange(least=min(norms), largest=max(norms))
    assert charge.noise_multiplier == 1.0
    assert charge.noise_beside_count == NoiseBesideCount.of(1.0, 5.0)
    assert optimizer.guarantee() == optimizer.plan.guarantee()


def counted(ledger, *norms, stddev=5.0):
    """Charge a release with a count at each of the norms."""
    for norm in norms:
        ledger.reserve(
            sampling_probability=0.5,
            noise_multiplier=1.0,
            max_grad_norm=norm,
            noise_beside_count=NoiseBesideCount.of(1.0, stddev),
        )


def test_the_ledger_does_not_grow_with_norms_that_move(make_plan):
    """Ranks compare all of it at every step. Norms that someone assigns stay apart."""
    ledger = Ledger(make_plan(steps=9))

    counted(ledger, 1.0, 1.0, 0.5, 2.0, 1.5)
    counted(ledger, 1.5, stddev=6.0)
    for norm in (1.0, 0.5):
        ledger.reserve(
            sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=norm
        )

    charges = ledger.charges()
    assert [charge.count for charge in charges] == [5, 1, 1, 1]
    assert charges[0].norms == NormRange(least=0.5, largest=2.0)
    assert [charge.max_grad_norm for charge in charges] == [1.5, 1.5, 1.0, 0.5]
    assert ledger.steps == 8
    assert json.loads(json.dumps(ledger.state_dict())) == ledger.state_dict()
    loaded = Ledger(make_plan(steps=9))
    loaded.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert loaded.charges() == charges


def test_an_older_state_of_moving_norms_adds_nothing(make_plan):
    """Whichever of the two is loaded into the other."""
    ledger = Ledger(make_plan(steps=9))
    counted(ledger, 1.0)
    first = ledger.state_dict()
    counted(ledger, 0.5, 2.0)
    older = ledger.state_dict()
    counted(ledger, 1.5)

    for state in (first, older, ledger.state_dict()):
        ledger.load_state_dict(state)
        later = Ledger(make_plan(steps=9))
        later.load_state_dict(state)
        later.load_state_dict(ledger.state_dict())
        assert later.charges() == ledger.charges()

    assert ledger.steps == 4


@pytest.mark.parametrize(
    "altered",
    [
        {"norms": {"least": 0.5, "largest": 1.2}},
        {"norms": {"least": 0.9, "largest": 2.0}},
        {"norms": None},
        {"max_grad_norm": 0.7},
        {"count": 2, "norms": {"least": 0.4, "largest": 1.0}},
        {"count": 2, "norms": None, "max_grad_norm": 2.1},
    ],
    ids=str,
)
def test_a_state_that_contradicts_moving_norms_is_refused(make_plan, altered):
    """The later state has norms from 0.5 to 2 in three releases, the last at 1."""
    ledger = Ledger(make_plan(steps=9))
    counted(ledger, 0.5, 2.0, 1.0)
    state = ledger.state_dict()
    (row,) = state["segments"][ledger.segment]
    row.update(altered)
    if row["norms"] is None:
        del row["norms"]

    with pytest.raises(LedgerError, match="contradicts"):
        ledger.load_state_dict(state)

    assert ledger.steps == 3


@pytest.mark.parametrize(
    "norms",
    [
        {"least": 1.1, "largest": 2.0},
        {"least": 0.1, "largest": 0.9},
        {"least": 0.0, "largest": 2.0},
        {"least": 0.5, "largest": math.inf},
        {"least": 0.5},
        [0.5, 2.0],
    ],
    ids=str,
)
def test_norms_that_cannot_be_are_damage(make_plan, norms):
    """The last of the releases, at 1, is one of them."""
    ledger = Ledger(make_plan(steps=9))
    counted(ledger, 0.5, 1.0)
    state = ledger.state_dict()
    state["segments"][ledger.segment][0]["norms"] = norms

    with pytest.raises(LedgerError, match="damaged charge"):
        Ledger(make_plan(steps=9)).load_state_dict(state)


@pytest.mark.slow
def test_noise_of_gradients_and_count_is_what_was_charged(make_plan, decisions):
    """20 000 coordinates have a standard error of 0.5 %, 400 counts one of 3.5 %.

    Nothing but noise: every example's gradient is zero on the wide parameter. False
    alarms: 6e-16 of the gradients, 2e-11 of counts; half of either is never missed.
    """
    clipping = dp.QuantileClipping(
        max_grad_norm=1.0, count_stddev=0.6, learning_rate=1e-6
    )
    model, loader, optimizer = make_run(make_plan, clipping=clipping, steps=400)
    wide = nn.Parameter(torch.zeros(20_000))
    optimizer.add_param_group({"params": [wide]})
    shares = []
    for x, y in loader:
        norm = optimizer.max_grad_norm
        losses = (model(x).squeeze(1) - y).square() * 1e6  # Each norm is beyond C.
        optimizer.backward(losses)
        optimizer.step()
        moved = math.log(optimizer.max_grad_norm / norm) / clipping.learning_rate
        shares.append((0.5 - moved) - (0.5 - len(x) / 2 / 20.0))

    gradients = wide.grad.std().item() * 20.0 / norm
    sigma = NoiseBesideCount.of(1.0, 0.6).gradients
    assert sigma == pytest.approx(1.8091, abs=1e-4)  # Far from the plan's.
    assert not decisions.differs("gradients", gradients, sigma, rel=0.04)
    counts = torch.tensor(shares, dtype=torch.float64).std().item() * 20.0
    assert not decisions.differs("counts", counts, 0.6, rel=0.25)


def test_an_empty_batch_counts_nothing_and_is_noised(make_plan):
    """A step of noise alone moves the norm as any other does: by noise, here none."""
    clipping = dp.QuantileClipping(max_grad_norm=1.0)
    model, loader, optimizer = make_run(
        make_plan,
        clipping=clipping,
        noise_multiplier=0.0,
        sampling=dp.PoissonSampling(sampling_probability=1e-9),
    )

    for x, y in loader:
        assert len(x) == 0
        optimizer.backward((model(x).squeeze(1) - y).square())
        optimizer.step()
        break

    assert optimizer.max_grad_norm == 1.0  # A share of 1/2, which is the quantile.


def test_parts_of_a_batch_count_once_each(make_plan):
    """Split or whole, the next norm is the same."""
    torch.manual_seed(3)
    model, loader, optimizer = make_run(make_plan, noise_multiplier=0.0)
    twin = copy.deepcopy(model)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.01)
    other = dp.DPOptimizer(
        sgd,
        plan=optimizer.plan,
        loader=optimizer.plan.loader(loader.dataset),
        clipping=optimizer.mechanism.clipping,
        continue_from=optimizer,
    )
    x, y = next(iter(loader))

    optimizer.backward((model(x).squeeze(1) - y).square())
    other.attach(loader)
    for part in (slice(0, 5), slice(5, None)):
        other.backward((twin(x[part]).squeeze(1) - y[part]).square())
    assert other.mechanism.pending.num_within == optimizer.mechanism.pending.num_within


def test_a_checkpoint_goes_on_at_the_norm_that_was_found(make_plan):
    """In a state, in a pickle and in a copy."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)

    _, _, resumed = make_run(make_plan)
    resumed.load_state_dict(torch.load(file))

    assert resumed.max_grad_norm == optimizer.max_grad_norm != 1.0
    assert resumed.ledger.charges() == optimizer.ledger.charges()
    pickled = pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes
    assert pickled.max_grad_norm == optimizer.max_grad_norm
    assert copy.deepcopy(optimizer).max_grad_norm == optimizer.max_grad_norm


def test_an_assigned_norm_is_where_the_search_goes_on(make_plan):
    """And deleting it returns to the plan's."""
    model, loader, optimizer = make_run(make_plan)
    optimizer.max_grad_norm = 7.0

    norms = train(model, loader, optimizer, 2)

    assert norms[0] == 7.0
    assert norms[1] != 1.0
    del optimizer.max_grad_norm
    assert optimizer.max_grad_norm == 1.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"max_grad_norm": dp.Schedule(((5, 1.0), (15, 0.5)))},
            "QuantileClipping finds the norm",
        ),
        (
            {"sampling": dp.RandomAllocation(steps_per_pass=10)},
            "QuantileClipping changes the norm at every step",
        ),
        ({"noise_multiplier": 2.5}, "above half of noise_multiplier=2.5, got 1.0"),
        (
            {"noise_multiplier": dp.Schedule(((5, 1.0), (15, 3.0)))},
            "above half of noise_multiplier=3.0",
        ),
        ({"max_grad_norm": 2.0}, "make them equal"),
    ],
)
def test_plans_that_do_not_fit_are_refused(make_plan, changes, reason):
    """Before anything is drawn."""
    with pytest.raises(ValueError, match=reason):
        make_run(make_plan, **changes)


def test_noise_that_is_assigned_beyond_the_count_is_refused(make_plan):
    """More noise than twice the count's: nothing is charged, and the batch stays."""
    model, loader, optimizer = make_run(make_plan)
    x, y = next(iter(loader))
    optimizer.backward((model(x).squeeze(1) - y).square())
    optimizer.noise_multiplier = 2.5

    with pytest.raises(ValueError, match="count_stddev must be above half"):
        optimizer.step()

    assert optimizer.ledger.steps == 0
    optimizer.noise_multiplier = 1.5
    optimizer.step()
    (charge,) = optimizer.ledger.charges()
    assert charge.noise_multiplier == 1.5
    assert charge.to_release().noise_multiplier == 1.0  # Accounted as planned.
    assert charge.noise_beside_count == NoiseBesideCount.of(1.5, 1.0)


@pytest.mark.parametrize(
    ("changes", "split", "reason"),
    [
        ({}, {"gradients": 1.0}, "less than the 1"),
        ({}, {"gradients": -1.0}, "gradients must be >= 0"),
        ({}, {"gradients": None}, "gradients must be >= 0"),
        ({}, {"gradients": 0.0}, "less than the 1"),
        ({}, {"count_stddev": 4.9}, "less than the 1"),
        ({}, {"count_stddev": 0.0}, "count_stddev must be > 0"),
        ({}, {"other": 0.0}, "other"),
        ({"noise_multiplier": 1.001}, {}, r"less than the 1\.001"),
    ],
)
def test_a_charge_of_less_noise_than_it_says_is_damaged(
    make_plan, changes, split, reason
):
    """A state whose numbers do not fit together is not loaded; the right one is."""
    right = Charge(
        sampling_probability=0.5,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        count=1,
        noise_beside_count=NoiseBesideCount.of(1.0, 5.0),
    )
    ledger = Ledger(make_plan())
    state = ledger.state_dict()
    row = {**right.to_dict(), **changes}
    row["noise_beside_count"] = {**row["noise_beside_count"], **split}

    with pytest.raises(dp.LedgerError, match=reason):
        ledger.load_state_dict({**state, "segments": {"a": [row]}})
    ledger.load_state_dict({**state, "segments": {"a": [right.to_dict()]}})
    assert ledger.charges() == (right,)


def test_the_ledger_refuses_a_release_with_less_noise_than_it_is_told(make_plan):
    """Before anything is charged."""
    ledger = Ledger(make_plan())

    with pytest.raises(ValueError, match="less than the 1"):
        ledger.reserve(
            sampling_probability=0.5,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            noise_beside_count=NoiseBesideCount(gradients=1.0, count_stddev=5.0),
        )

    assert ledger.steps == 0


@pytest.mark.slow
def test_the_certificate_says_what_was_released_and_verifies(make_plan):
    """One line for the whole run, whatever the norms; another split does not hold."""
    model, loader, optimizer = make_run(
        make_plan, clipping=dp.QuantileClipping(max_grad_norm=1.0, count_stddev=5.0)
    )
    norms = train(model, loader, optimizer, 3)

    certificate = optimizer.certificate(private_data_touches=())
    text = certificate.to_text()

    low, high = min(norms), max(norms)
    assert (
        f"3 x q = 0.5, sigma = 1, C = {low:g} to {high:g}, together of gradients"
        " (sigma = 1.00504) and of the count of those within C (noise 5)"
    ) in text
    assert certificate.runs[0].num_parameters == 5  # Four, and the count.
    read = dp.Certificate.from_json(certificate.to_json())
    assert read == certificate
    verification = dp.verify(certificate, quick=True)
    assert verification.ok
    altered = dp.Certificate.from_json(
        certificate.to_json().replace('"count_stddev": 5.0', '"count_stddev": 4.0')
    )
    failed = [f.claim for f in dp.verify(altered, quick=True).findings if not f.holds]
    assert failed == ["run 1: charges"]


def test_one_norm_is_stated_as_one(make_plan):
    """As after a single step."""
    model, loader, optimizer = make_run(make_plan)
    train(model, loader, optimizer, 1)

    text = optimizer.certificate(private_data_touches=()).to_text()

    assert "1 x q = 0.5, sigma = 1, C = 1, together of gradients" in text


def quantile_training(plan, **options):
    """The training function that audits call."""
    clipping = dp.QuantileClipping(max_grad_norm=1.0, **options)

    def run(model, dataset):
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, clipping=clipping)
        for batch in loader:
            optimizer.backward(model, batch)
            optimizer.step()

    return run


@pytest.mark.slow
def test_a_replay_holds(make_plan):
    """One record moves gradients and count by what was charged for both."""
    torch.manual_seed(0)
    data = [torch.randn(4) for _ in range(30)]
    plan = make_plan(expected_batch_size=15.0, steps=6)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))

    report = dp.audit.replay(quantile_training(plan), model, data)

    assert report.ok, report.to_text()


def test_a_run_conforms(make_plan):
    """With noise that is far from the plan's sigma on gradients, and on the count."""
    plan = make_plan(expected_batch_size=500.0, steps=8)

    report = dp.audit.conformance(
        quantile_training(plan, count_stddev=0.6), num_records=1000
    )

    assert report.ok, report.to_text()
    assert "count: noise" in report.to_text()


@pytest.mark.slow
def test_a_count_with_too_little_noise_does_not_conform(make_plan):
    """A weight of ten times what is charged leaves the count a tenth of the noise.

    Missed only if 19 normal terms have a mean square above 4: never.
    """
    plan = make_plan(expected_batch_size=250.0, steps=20)
    weight = NoiseBesideCount.weight.fget
    tenfold = property(lambda noises: 10 * weight(noises))
    with mock.patch.object(NoiseBesideCount, "weight", tenfold):
        report = dp.audit.conformance(
            quantile_training(plan, count_stddev=0.6), num_records=1000
        )

    failed = [finding.claim for finding in report.findings if not finding.holds]
    assert failed == ["count: noise"]


def test_one_release_says_nothing_of_counts(make_plan):
    """The norm that follows it is not charged."""
    plan = make_plan(expected_batch_size=500.0, steps=2)
    sgd = torch.optim.SGD

    def once(model, dataset):
        loader = plan.loader(dataset)
        optimizer = dp.DPOptimizer(
            sgd(model.parameters(), lr=0.01),
            plan=plan,
            loader=loader,
            clipping=dp.QuantileClipping(max_grad_norm=1.0),
        )
        optimizer.backward(model, next(iter(loader)))
        optimizer.step()

    report = dp.audit.conformance(once, num_records=1000)

    assert "count: noise" not in report.to_text()
