"""Disjoint batches: what is drawn, what a pass costs, and that both are stated."""

import copy
import io
import json
import math

import pytest
import torch
from torch.utils.data import TensorDataset

import dp
from dp import (
    AllocationLoader,
    DisjointBatches,
    DisjointLoader,
    DPOptimizer,
    PrivacyPlan,
    Schedule,
)
from dp._keystream import replayed_keys
from dp.accounting import Release, epsilon, group_epsilon, to_dp_event
from dp.accounting._disjoint import one_a_pass
from dp.accounting._lower_bounds import lower_bound
from dp.accounting._renyi import renyi_cost
from dp.audit import canaries, conformance, replay, training
from dp.exceptions import LedgerError, PrivacyError, UnsupportedOperationError
from dp.ledger import Ledger
from dp.sampling._draws import deal_at_random


BY_COIN = DisjointBatches(steps_per_pass=5)
BY_POSITION = DisjointBatches(steps_per_pass=5, assigned_by="position")


@pytest.fixture
def make_disjoint(make_run):
    """Build a run of 4 passes of 5 disjoint batches, by coins."""

    def make(**changes):
        return make_run(**{"sampling": BY_COIN, **changes})

    return make


class Regression(torch.nn.Module):
    """A linear model that returns the losses of its batch."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, batch):
        x_B3, y_B1 = batch
        return (self.linear(x_B3) - y_B1).square().squeeze(1)


def passes_of(loader):
    """Return the rows of every batch of one iteration, pass by pass."""
    steps = loader.sampling.steps_per_pass
    rows = [list(loader.ticket.draw.rows) for _ in loader]
    return [rows[i : i + steps] for i in range(0, len(rows), steps)]


def unsampled(count, sigma=2.0):
    return Release(sampling_probability=1.0, noise_multiplier=sigma, count=count)


def disjoint(count, steps_per_pass=5, by="coin", sigma=2.0):
    return Release(
        sampling_probability=1.0,
        noise_multiplier=sigma,
        count=count,
        steps_per_pass=steps_per_pass,
        disjoint=by,
    )


# What a pass costs


@pytest.mark.parametrize("relation", ["add_or_remove_one", "zero_out", "replace_one"])
@pytest.mark.parametrize(("count", "passes"), [(5, 1), (7, 2), (20, 4)])
def test_a_pass_costs_one_release_on_all_data(relation, count, passes):
    """A part of a pass as much as all of it, under every relation."""
    about = {"delta": 1e-5, "neighboring_relation": relation}

    assert epsilon([disjoint(count)], **about) == epsilon([unsampled(passes)], **about)


def test_five_batches_of_an_epoch_cost_what_one_does():
    """The published example: 1.99 at a noise multiplier of 2, where 4.98 was claimed."""
    about = {"delta": 1e-5, "neighboring_relation": "zero_out"}

    assert epsilon([disjoint(5)], **about).epsilon == pytest.approx(1.993087, rel=1e-4)
    assert epsilon([unsampled(5)], **about).epsilon == pytest.approx(4.98, rel=1e-3)


def test_a_group_is_at_worst_in_one_step():
    """So its epsilon is that of as many releases on all data."""
    for by, relation in (("coin", "add_or_remove_one"), ("position", "zero_out")):
        about = {"delta": 1e-5, "neighboring_relation": relation, "group_size": 3}

        grouped = group_epsilon([disjoint(10, by=by)], **about)

        assert grouped == group_epsilon([unsampled(2)], **about)


def test_batches_cut_by_position_are_refused_where_examples_come_and_go():
    """By name: one example more would move all others to other batches."""
    told = "by position.*assigned_by='coin'"
    releases = [disjoint(5, by="position")]
    about = {"delta": 1e-5, "neighboring_relation": "add_or_remove_one"}
    with pytest.raises(ValueError, match=told):
        epsilon(releases, **about)
    with pytest.raises(ValueError, match=told):
        group_epsilon(releases, **about, group_size=2)
    with pytest.raises(ValueError, match=told):
        PrivacyPlan(
            sampling=BY_POSITION,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=4,
            steps=5,
            target_delta=1e-5,
        )


def test_every_accountant_sees_one_release_a_pass():
    """Also beside other releases, and those that only bound from below."""
    mixed = (disjoint(10), unsampled(1), disjoint(3, steps_per_pass=4))

    assert one_a_pass(mixed) == (unsampled(4),)
    assert to_dp_event(mixed) == to_dp_event([unsampled(4)])
    assert renyi_cost(mixed, 8.0, "zero_out") == pytest.approx(8.0 * 4 / 2 / 2**2)
    assert lower_bound((disjoint(10),), 1e-5) == lower_bound((unsampled(2),), 1e-5)
    allocated = Release(
        sampling_probability=0.2, noise_multiplier=2.0, count=5, steps_per_pass=5
    )
    both = epsilon(
        [allocated, disjoint(5)], delta=1e-5, neighboring_relation="zero_out"
    )
    assert both.epsilon > 1.993


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"disjoint": "order"}, "must be 'coin', 'position' or None"),
        ({"steps_per_pass": None}, "needs steps_per_pass"),
        ({"sampling_probability": 0.2}, "must be 1 / 1"),
        ({"disjoint": None}, "must be 1 / 5"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(change, told):
    """Amplification is claimed of none of them."""
    numbers = {
        "sampling_probability": 1.0,
        "noise_multiplier": 2.0,
        "count": 5,
        "steps_per_pass": 5,
        "disjoint": "coin",
    }
    with pytest.raises(ValueError, match=told):
        Release(**{**numbers, **change})


# What is drawn


@pytest.mark.parametrize("by", ["coin", "position"])
def test_every_example_is_in_one_batch_of_each_pass(by):
    """By position, batches are of equal size, up to one example."""
    loader = DisjointLoader(range(52), steps_per_pass=7, passes=3, assigned_by=by)

    passes = passes_of(loader)

    assert len(loader) == 21
    for one_pass in passes:
        assert sorted(row for rows in one_pass for row in rows) == list(range(52))
    if by == "position":
        assert {tuple(map(len, one)) for one in passes} == {(8, 8, 8, 7, 7, 7, 7)}
    assert passes[0] != passes[1] != passes[2]
    assert loader.sampling == DisjointBatches(steps_per_pass=7, assigned_by=by)


def test_the_order_depends_on_no_data_and_no_seed():
    """Under the same keys of the operating system it is the same, else another."""
    dealt = []
    for _ in range(2):
        torch.manual_seed(0)
        with replayed_keys():
            dealt.append([s.tolist() for s in deal_at_random(40, num_steps=4)])
    torch.manual_seed(0)
    other = [s.tolist() for s in deal_at_random(40, num_steps=4)]

    assert dealt[0] == dealt[1] != other


def test_few_examples_leave_batches_empty():
    """Which are released all the same."""
    assert [len(s) for s in deal_at_random(2, num_steps=4)] == [1, 1, 0, 0]
    assert [len(s) for s in deal_at_random(0, num_steps=2)] == [0, 0]


def test_units_are_dealt_with_all_their_rows():
    """A unit is in one batch of a pass, with every row."""
    units = [row % 6 for row in range(18)]
    loader = DisjointLoader(
        range(18), steps_per_pass=3, assigned_by="position", units=units
    )
    for rows in passes_of(loader)[0]:
        assert len(rows) == 6
        assert len({units[row] for row in rows}) == 2


def test_ranks_share_a_pass(monkeypatch):
    """Together they have each example in one batch of a pass."""
    seen = []
    for rank in range(2):
        monkeypatch.setattr(
            "dp.sampling._loader.rank_and_size", lambda rank=rank: (rank, 2)
        )
        loader = DisjointLoader(range(21), steps_per_pass=4, assigned_by="position")
        seen.extend(row for rows in passes_of(loader)[0] for row in rows)

    assert sorted(seen) == list(range(21))


@pytest.mark.parametrize("by", ["coin", "position"])
def test_one_example_changes_one_step_of_a_pass(make_run, by):
    """By at most C: what the claim needs, on what is released."""
    x, y = torch.randn(20, 3), 50 * torch.randn(20)
    plan = {
        "sampling": DisjointBatches(steps_per_pass=5, assigned_by=by),
        "neighboring_relation": "zero_out",
    }
    sums = []
    for present in (True, False):
        run = make_run(**plan, lr=0.0)
        kept = (torch.arange(20) != 11) | present
        with replayed_keys():
            loader = run.optimizer.plan.loader(
                TensorDataset(x.clone(), y.clone(), kept.float())
            )
            run.model.load_state_dict(
                {"weight": torch.zeros(1, 3), "bias": torch.zeros(1)}
            )
            run.optimizer.attach(loader)
            released = []
            for a, b, keep in loader:
                losses = keep * (run.model(a).squeeze(1) - b).square()
                run.optimizer.backward(losses)
                pending = run.optimizer.mechanism.pending.sums.buffers
                released.append(torch.cat([p.flatten() for p in pending]).clone())
                run.optimizer.step()
        sums.append(torch.stack(released))

    distances = (sums[0] - sums[1]).norm(dim=1).reshape(4, 5)
    assert ((distances > 1e-4).sum(dim=1) == 1).all()
    assert float(distances.max()) <= 1 + 1e-5


# Plans


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 21}, "multiple of steps_per_pass=5.*plan for 25"),
        ({"renyi_order": 8.0}, "renyi_order must be None with disjoint batches"),
        (
            {"noise_multiplier": Schedule([(10, 2.0), (10, 1.0)])},
            "noise_multiplier must be a number with disjoint batches",
        ),
    ],
)
def test_a_plan_that_is_no_passes_is_refused(make_plan, change, told):
    """As with random allocation."""
    with pytest.raises(ValueError, match=told):
        make_plan(sampling=BY_COIN, **change)


def test_a_scheme_that_is_unknown_is_refused():
    """Nothing else decides a batch."""
    with pytest.raises(ValueError, match="assigned_by must be 'coin' or 'position'"):
        DisjointBatches(steps_per_pass=5, assigned_by="hash")


@pytest.mark.parametrize(
    ("relation", "by"),
    [
        ("add_or_remove_one", "coin"),
        ("zero_out", "position"),
        ("replace_one", "position"),
    ],
)
def test_a_plan_is_found_for_disjoint_batches(relation, by):
    """The least noise, by position wherever the relation permits that."""
    plan = dp.plan_for(
        target_epsilon=2.0,
        target_delta=1e-5,
        max_grad_norm=1.0,
        expected_batch_size=4,
        sampling_probability=0.2,
        steps=10,
        neighboring_relation=relation,
        mechanism="disjoint",
    )

    assert plan.sampling == DisjointBatches(steps_per_pass=5, assigned_by=by)
    assert 1.999 <= plan.guarantee().epsilon <= 2.0
    assert plan.sampling_probability == 1.0
    assert PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_steps_are_found_in_whole_passes():
    """As many as the target allows."""
    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        max_grad_norm=1.0,
        expected_batch_size=4,
        sampling_probability=0.2,
        noise_multiplier=3.0,
        mechanism="disjoint",
    )

    assert plan.steps % 5 == 0
    assert (
        epsilon(
            [disjoint(plan.steps + 5, sigma=3.0)],
            delta=1e-5,
            neighboring_relation="add_or_remove_one",
        ).epsilon
        > 3.0
        >= plan.guarantee().epsilon
    )


def test_disjoint_batches_leave_no_probability_to_find():
    """They claim no amplification."""
    with pytest.raises(ValueError, match="fixes the sampling probability"):
        dp.calibration.calibrate_sampling_probability(
            target_epsilon=1.0,
            target_delta=1e-5,
            noise_multiplier=1.0,
            steps=5,
            neighboring_relation="zero_out",
            disjoint="coin",
        )


def test_a_mechanism_of_passes_says_why_it_is_not_possible():
    """And that it is disjoint batches which are not."""
    with pytest.raises(ValueError, match="mechanism='disjoint' is not possible"):
        dp.plan_for(
            target_epsilon=1.0,
            target_delta=1e-5,
            max_grad_norm=1.0,
            expected_batch_size=4,
            sampling_probability=0.3,
            steps=5,
            mechanism="disjoint",
        )


def test_delta_is_compared_with_the_number_of_examples(make_plan):
    """Which is that of all batches of a pass together."""
    with pytest.warns(UserWarning, match="one over the 50 examples"):
        make_plan(sampling=BY_COIN, target_delta=0.02)


# Charges


def test_a_pass_is_charged_whole_before_its_first_release(make_disjoint):
    """And once, for all of its steps."""
    run = make_disjoint()
    charged = []
    for batch in run.loader:
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        charged.append(run.optimizer.ledger.steps)

    assert charged == [5] * 5 + [10] * 5 + [15] * 5 + [20] * 5
    (charge,) = run.optimizer.ledger.charges()
    assert (charge.count, charge.steps_per_pass, charge.disjoint) == (20, 5, "coin")
    assert run.optimizer.ledger.is_exhausted
    assert run.optimizer.spent() == run.optimizer.plan.guarantee()
    about = {"delta": 1e-5, "neighboring_relation": "add_or_remove_one"}
    assert run.optimizer.spent() == epsilon([unsampled(4, sigma=1.0)], **about)


def test_a_pass_that_is_broken_off_stays_charged(make_disjoint):
    """Another one may hold the same example again."""
    run, resumed = make_disjoint(), make_disjoint()
    run.train(2)
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    resumed.optimizer.load_state_dict(torch.load(file))
    resumed.train(1)

    assert resumed.optimizer.ledger.steps == 10
    assert copy.deepcopy(resumed.optimizer.ledger).charges() == (
        resumed.optimizer.ledger.charges()
    )


def test_less_noise_in_a_pass_is_refused(make_disjoint):
    """Its charge is at the plan's."""
    run = make_disjoint()
    with pytest.raises(PrivacyError, match="less noise in some step of a pass"):
        run.optimizer.noise_multiplier = 0.5


def test_charges_by_position_are_none_under_another_relation(make_run, make_plan):
    """A state that is loaded does not make them what they are not."""
    run = make_run(sampling=BY_POSITION, neighboring_relation="zero_out")
    run.train(5)
    ledger = Ledger(make_plan())
    ledger.load_state_dict(run.optimizer.ledger.state_dict())

    with pytest.raises(ValueError, match="cut by position"):
        ledger.spent()


def test_a_charge_that_was_altered_is_damaged(make_disjoint):
    """As one of random allocation, which costs less."""
    run = make_disjoint()
    run.train(5)
    state = run.optimizer.ledger.state_dict()
    for segment in state["segments"].values():
        del segment[0]["disjoint"]

    with pytest.raises(LedgerError, match="damaged"):
        Ledger(run.optimizer.plan).load_state_dict(state)


def test_a_loader_of_another_scheme_is_refused(make_plan):
    """Also one that only cuts batches otherwise."""
    data = TensorDataset(torch.randn(8, 3), torch.randn(8))
    sgd = torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1)
    for loader in (
        AllocationLoader(data, steps_per_pass=5),
        DisjointLoader(data, steps_per_pass=4),
        DisjointLoader(data, steps_per_pass=5, assigned_by="position"),
    ):
        with pytest.raises(ValueError, match="the loader draws by"):
            DPOptimizer(sgd, plan=make_plan(sampling=BY_COIN), loader=loader)


# The certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "relation", "assumed"),
    [
        ("coin", "add_or_remove_one", "by a coin of its own"),
        ("position", "zero_out", "by its place in an order that no data decided"),
    ],
)
def test_a_certificate_states_passes_and_verifies(make_run, by, relation, assumed):
    """In words and numbers; dp_accounting confirms them, groups included."""
    run = make_run(
        sampling=DisjointBatches(steps_per_pass=5, assigned_by=by),
        neighboring_relation=relation,
    )
    run.train(7)

    certificate = run.optimizer.certificate(private_data_touches=())

    text = certificate.to_text()
    assert f"2 x a pass of 5 disjoint batches by {by}, sigma = 1, C = 1" in text
    assert assumed in " ".join(text.split())
    assert "independent coin flips" not in text
    assert certificate.epsilon_of_groups[2] > certificate.epsilon
    verification = dp.verify(certificate)
    assert verification.ok, verification.to_text()
    assert dp.Certificate.from_json(certificate.to_json()) == certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "claim"),
    [
        ("count", 6, "run 1: passes"),
        ("steps_per_pass", 10, "run 1: sampling"),
        ("disjoint", "position", "run 1: sampling"),
    ],
)
def test_what_was_altered_is_found(make_run, field, value, claim):
    """By the line that it is about."""
    run = make_run(sampling=BY_COIN, neighboring_relation="zero_out")
    run.train(6)
    body = json.loads(run.optimizer.certificate().to_json())
    (segment,) = body["runs"][0]["segments"].values()
    segment[0][field] = value

    verification = dp.verify(dp.Certificate.from_json(json.dumps(body)))

    refuted = {f.claim for f in verification.findings if not f.holds}
    assert claim in refuted, verification.to_text()


# Audits


@pytest.mark.statistical
def test_passes_by_coin_conform_and_leak_no_more_than_claimed(make_plan, decisions):
    """As passes by random allocation do. False alarms: some 1e-8, by 1e-9 a line."""
    plan = make_plan(sampling=BY_COIN, expected_batch_size=100.0, steps=40)

    report = conformance(training(plan), num_records=2000)
    attack = canaries(training(plan), num_canaries=2000)

    assert "every record once a pass" in str(report)
    assert not decisions.refutes("conformance", 0.0 if not report.ok else 1.0)
    assert not decisions.refutes("canaries", 0.0 if not attack.ok else 1.0)


@pytest.mark.slow
def test_batches_by_position_are_audited_by_replay(make_plan):
    """One that draws who is in the data would move all others."""
    plan = make_plan(
        sampling=BY_POSITION, neighboring_relation="zero_out", expected_batch_size=4.0
    )
    with pytest.raises(UnsupportedOperationError, match=r"dp\.audit\.replay"):
        conformance(training(plan), num_records=1000)
    data = TensorDataset(torch.randn(40, 3), torch.randn(40, 1))

    report = replay(training(plan), Regression(), data)

    assert report.ok, str(report)
    assert "4 of 20 sums differ" in str(report)


def test_an_infinite_epsilon_is_one_without_noise():
    """Of disjoint batches, too."""
    about = {"delta": 1e-5, "neighboring_relation": "zero_out"}
    assert epsilon([disjoint(5, sigma=0.0)], **about).epsilon == math.inf
