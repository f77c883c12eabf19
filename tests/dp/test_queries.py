"""Questions about the data that a run's plan pays for."""

import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp._mechanism.paid_for import apart
from dp.exceptions import UnsupportedOperationError
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.noise._gaussian import witnessed
from dp.query import Histogram, Queries


ASKED = (
    dp.Query(name="adults", noise_multiplier=2.0),
    dp.Query(name="age", noise_multiplier=3.0),
    dp.Query(name="ages", noise_multiplier=4.0, num_values=3),
)


@pytest.fixture
def ledger(make_plan):
    return Ledger(make_plan(queries=ASKED))


def sums_of(ask, *arguments, **options):
    """The sums that a query adds noise to."""
    found = []

    def look(add, sums):
        found.extend(s.clone() for s in sums)
        return add()

    with witnessed(look):
        ask(*arguments, **options)
    return found[0]


def ask_all(queries, values):
    queries.count("adults", values > 18)
    queries.mean("age", values, low=0, high=100, num_units=50)
    queries.histogram("ages", values, edges=(0, 18, 65, 120))


def reference_epsilon(*releases, delta=1e-5):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for q, sigma, count in releases:
        gaussian = dp_event.GaussianDpEvent(sigma)
        event = gaussian if q == 1 else dp_event.PoissonSampledDpEvent(q, gaussian)
        accountant.compose(event, count)
    return accountant.get_epsilon(delta)


@pytest.mark.slow
def test_queries_are_part_of_every_epsilon(make_plan):
    """Of the plan, of the ledger and of what is spent before the first step."""
    plan = make_plan(queries=ASKED)
    ledger = Ledger(plan)
    asked = [(1, query.noise_multiplier, 1) for query in ASKED]

    whole = reference_epsilon((0.5, 1.0, 20), *asked)
    alone = reference_epsilon(*asked)

    assert plan.guarantee().epsilon == pytest.approx(whole, rel=1e-3)
    assert plan.guarantee().epsilon > make_plan().guarantee().epsilon * 1.005
    assert ledger.guarantee().epsilon == plan.guarantee().epsilon
    assert ledger.spent().epsilon == pytest.approx(alone, rel=1e-3)
    assert ledger.spent().condition is not None


def test_queries_are_part_of_the_risk_of_a_plan(make_plan):
    """An attacker sees the answers, too."""
    plan, alone = make_plan(queries=ASKED), make_plan()
    both = (*alone.releases(alone.steps), *(query.release for query in ASKED))

    whole = dp.accounting.risk(
        both, delta=plan.target_delta, neighboring_relation=plan.neighboring_relation
    )

    assert plan.risk().advantage == pytest.approx(whole.advantage, rel=1e-3)
    assert plan.risk().advantage > alone.risk().advantage * 1.001


@pytest.mark.slow
def test_a_plan_leaves_room_for_its_queries():
    """The least noise that keeps the target, beside them; less than a percent wasted."""
    about = {name: value for name, value in ABOUT.items() if name != "noise_multiplier"}
    plan = dp.plan_for(**about, queries=ASKED)

    assert plan.queries == ASKED
    assert 2.99 < plan.guarantee().epsilon <= 3.0
    assert plan.noise_multiplier > dp.plan_for(**about).noise_multiplier
    best = dp.plan_for(**about, queries=ASKED, mechanism="best")
    assert isinstance(best.sampling, dp.RandomAllocation)
    assert 2.99 < best.guarantee().epsilon <= 3.0
    shaped = dp.plan_for(
        **about, queries=ASKED, noise_multiplier=dp.Schedule(((10, 1.0), (10, 2.0)))
    )
    assert shaped.guarantee().epsilon <= 3.0


ABOUT = {
    "target_epsilon": 3.0,
    "target_delta": 1e-5,
    "sampling_probability": 0.1,
    "steps": 20,
    "noise_multiplier": 1.0,
    "expected_batch_size": 10,
    "max_grad_norm": 1.0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "left_out"),
    [
        ("steps", {"steps": None}),
        ("steps", {"steps": None, "mechanism": "allocation", "noise_multiplier": 3.0}),
        ("sampling_probability", {"sampling_probability": "largest"}),
    ],
    ids=str,
)
def test_whichever_number_is_left_out_is_found_beside_queries(found, left_out):
    """The most that keeps the target with them, and less than without them."""
    plan = dp.plan_for(**{**ABOUT, **left_out}, queries=ASKED)
    alone = dp.plan_for(**{**ABOUT, **left_out})

    assert plan.queries == ASKED
    assert plan.guarantee().epsilon <= 3.0
    assert getattr(plan, found) < getattr(alone, found)
    more = plan.steps_per_pass or 1 if found == "steps" else 0
    q = plan.sampling_probability * (1.002 if found == "sampling_probability" else 1)
    beyond = [
        dataclasses.replace(release, count=release.count + more, sampling_probability=q)
        for release in plan.releases(plan.steps)
    ]
    cost = dp.accounting.epsilon(
        [*beyond, *plan.query_releases],
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    )
    assert cost.epsilon > 3.0


@pytest.mark.parametrize(
    "left_out", [{"steps": None}, {"sampling_probability": "largest"}], ids=str
)
def test_queries_that_cost_the_whole_target_leave_no_number_to_find(left_out):
    """They are to be noised more, whichever number is sought."""
    asked = [dp.Query(name="age", noise_multiplier=0.5)]

    with pytest.raises(ValueError, match="leaves nothing for the steps"):
        dp.plan_for(**{**ABOUT, **left_out}, queries=asked)


def test_with_queries_exactly_one_number_is_left_out():
    """As without them."""
    with pytest.raises(ValueError, match="leave out exactly one number"):
        dp.plan_for(**ABOUT, queries=ASKED)


def test_plans_with_queries_are_written_and_read(make_plan):
    """And those without are written as they were."""
    plan = make_plan(queries=ASKED)

    assert dp.PrivacyPlan.from_dict(plan.to_dict()) == plan
    assert "queries" not in make_plan().to_dict()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"queries": (*ASKED, ASKED[0])}, r"got twice: \['adults'\]"),
        ({"queries": ASKED, "renyi_order": 4.0}, "queries must be empty"),
    ],
)
def test_queries_that_a_plan_cannot_have_are_refused(make_plan, changes, reason):
    """By name."""
    with pytest.raises(ValueError, match=reason):
        make_plan(**changes)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"name": " "}, "name"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"num_values": 0}, "num_values"),
    ],
)
def test_queries_out_of_range_are_refused(wrong, named):
    """Where they are made."""
    with pytest.raises(ValueError, match=named):
        dp.Query(**{"name": "a", "noise_multiplier": 1.0, **wrong})


def test_without_noise_answers_are_exact(ledger, monkeypatch):
    """Counts, means of what is in range, and cells; ends of a cell are its left one's."""
    monkeypatch.setattr(GaussianNoise, "add_", lambda *_, stddev: stddev)
    queries = Queries(ledger, dataset=None)
    ages = torch.tensor([0.0, 17.0, 18.0, 64.5, 65.0, 119.0, 120.0, -1.0])

    adults = queries.count("adults", ages >= 18)
    age = queries.mean("age", ages, low=0.0, high=100.0, num_units=8)
    cells = queries.histogram("ages", ages.numpy(), edges=(0, 18, 65, 120))

    assert adults == dp.query.Answer(name="adults", value=5.0, stddev=2.0)
    assert age.value == pytest.approx((17 + 18 + 64.5 + 65 + 100 + 100) / 8, abs=1e-4)
    assert age.stddev == 50 * 3.0 / 8
    assert cells.counts == (2.0, 2.0, 2.0)
    assert cells.edges == (0.0, 18.0, 65.0, 120.0)


def test_a_mean_stays_in_its_range(ledger, monkeypatch):
    """Whatever the noise: it is known to be there."""

    def far(_, sums, *, stddev):
        sums[0] += 1e9
        return stddev

    monkeypatch.setattr(GaussianNoise, "add_", far)

    answer = Queries(ledger, dataset=None).mean(
        "age", [1.0], low=0.0, high=5.0, num_units=1
    )

    assert answer.value == 5.0


anything = st.one_of(
    st.floats(), st.sampled_from([0.0, 18.0, 1e308, -1e308, math.nan, math.inf])
)


@pytest.mark.slow
@given(st.lists(anything, max_size=8), anything)
def test_one_unit_moves_an_answer_by_its_sensitivity_at_most(others, one):
    """By 1 in L2 norm, whatever its value is."""
    plan = dp.PrivacyPlan(
        sampling=dp.Unamplified(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1.0,
        steps=1,
        target_delta=1e-5,
        queries=ASKED,
    )
    without = torch.tensor(others, dtype=torch.float64)
    with_it = torch.tensor([*others, one], dtype=torch.float64)

    def moved(ask):
        left, right = (
            sums_of(ask, Queries(Ledger(plan), dataset=None), x)
            for x in (without, with_it)
        )
        return float((left - right).norm())

    assert moved(lambda q, x: q.count("adults", x)) <= 1
    assert moved(lambda q, x: q.mean("age", x, low=3, high=20, num_units=7)) <= 1
    assert moved(lambda q, x: q.histogram("ages", x, edges=(0, 18, 65, 120))) <= 1


@pytest.mark.statistical
def test_noise_has_the_planned_scale(make_plan, decisions):
    """20 000 cells have a standard error of 0.5 %; false alarms: 1e-15."""
    query = dp.Query(name="many", noise_multiplier=7.0, num_values=20_000)
    queries = Queries(Ledger(make_plan(queries=(query,))), dataset=None)

    counts = queries.histogram("many", [], edges=range(20_001)).counts

    assert not decisions.differs("scale", float(np.std(counts)), 7.0, rel=0.04)


def test_a_query_is_asked_once(ledger):
    """By any object, copy or state of the ledger."""
    queries = Queries(ledger, dataset=None)
    queries.count("adults", [True])
    twin = Ledger(ledger.plan)
    twin.load_state_dict(ledger.state_dict())

    for other in (ledger, copy.deepcopy(ledger), twin):
        with pytest.raises(dp.BudgetExhaustedError, match="'adults' was asked already"):
            Queries(other, dataset=None).count("adults", [True])
        Queries(other, dataset=None).histogram("ages", [1.0], edges=(0, 1, 2, 3))
        assert other.asked == ("adults", "ages")


def test_a_query_is_recorded_before_noise_is_drawn(ledger, monkeypatch):
    """A crash in between loses the answer, never the record."""

    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(GaussianNoise, "add_", crash)
    with pytest.raises(KeyboardInterrupt):
        Queries(ledger, dataset=None).count("adults", [True])

    assert ledger.asked == ("adults",)


def test_runs_that_asked_the_same_query_fail_when_they_meet(ledger):
    """It was released twice and planned once: no epsilon holds."""
    fork = copy.deepcopy(ledger)
    Queries(ledger, dataset=None).count("adults", [True])
    Queries(fork, dataset=None).count("adults", [True])

    ledger.load_state_dict(fork.state_dict())

    assert ledger.guarantee().epsilon == math.inf
    assert "asked the same queries: ['adults']" in ledger.failure


def test_what_both_know_from_one_checkpoint_counts_once(ledger):
    """As when a run loads its own state."""
    Queries(ledger, dataset=None).count("adults", [True])
    fork = copy.deepcopy(ledger)
    assert fork.includes(ledger)
    Queries(fork, dataset=None).mean("age", [1.0], low=0, high=2, num_units=1)
    assert not ledger.includes(fork)

    ledger.load_state_dict(fork.state_dict())

    assert ledger.failure is None
    assert {*ledger.asked} == {"adults", "age"}


@pytest.mark.parametrize(
    "rows",
    [
        ["adults"],
        [{"query": {"name": "adults"}, "segment": "a"}],
        [{"query": {"name": "adults", "noise_multiplier": 2.0}}],
        7,
    ],
    ids=["text", "half", "nobody", "number"],
)
def test_a_damaged_record_is_refused(ledger, rows):
    """Nothing is loaded."""
    state = {**ledger.state_dict(), "queries": rows}

    with pytest.raises(dp.LedgerError, match="does not list the queries"):
        ledger.load_state_dict(state)


def test_queries_of_another_plan_have_to_be_paid_for(make_plan, ledger):
    """Or going on by a new plan would forget what they cost."""
    Queries(ledger, dataset=None).count("adults", [True])
    louder = (dp.Query(name="adults", noise_multiplier=20.0), *ASKED[1:])

    for queries in ((), ASKED[1:], louder):
        with pytest.raises(dp.LedgerError, match="does not pay for"):
            Ledger(make_plan(queries=queries)).load_state_dict(ledger.state_dict())

    paid = Ledger(make_plan(queries=ASKED[:1], steps=5))
    paid.load_state_dict(ledger.state_dict())
    assert paid.asked == ("adults",)


@pytest.mark.slow
def test_a_composition_keeps_runs_that_only_answered(make_plan):
    """Also where each says that it is public that no step was taken."""
    plan = make_plan(queries=ASKED, steps=4)

    def answered():
        ledger = Ledger(plan)
        Queries(ledger, dataset=None).count("adults", [True])
        return dp.Certificate.of(
            ledger, noise=GaussianNoise(), num_parameters=4, public_end="a test"
        )

    one, other = answered(), answered()
    both = dp.compose(one, other)

    asked = [(1, query.noise_multiplier, 1) for query in ASKED]
    assert one.epsilon == pytest.approx(reference_epsilon(*asked), rel=1e-3)
    assert both.epsilon == pytest.approx(reference_epsilon(*asked, *asked), rel=1e-3)
    trained_too = trained(plan).certificate()
    whole = reference_epsilon((0.5, 1.0, 4), *asked, *asked)
    assert dp.compose(one, trained_too).epsilon == pytest.approx(whole, rel=1e-3)


@pytest.mark.slow
def test_a_run_that_only_answered_is_no_part_of_another(make_plan):
    """Its answers may have decided that it took no step, so that its plan counts, too."""
    plan = make_plan(queries=ASKED, steps=4)
    ledger = Ledger(plan)
    Queries(ledger, dataset=None).count("adults", [True])
    answered = dp.Certificate.of(ledger, noise=GaussianNoise(), num_parameters=4)
    trained_too = trained(plan).certificate()

    asked = [(1, query.noise_multiplier, 1) for query in ASKED]
    whole = reference_epsilon((0.5, 1.0, 8), *asked, *asked)
    for documents in ((answered, trained_too), (trained_too, answered)):
        assert dp.compose(*documents).epsilon == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda q: q.count("other", [1]), "'other' is not planned; planned are"),
        (lambda q: q.count("ages", [1]), "num_values=3, and the answer has 1"),
        (lambda q: q.histogram("ages", [1], edges=(0, 1)), "the answer has 1"),
        (lambda q: q.count("adults", [[1]]), "must be a vector"),
        (lambda q: q.histogram("ages", [1], edges=(0, 2, 1, 3)), "rising numbers"),
        (lambda q: q.histogram("ages", [1], edges=(0,)), "two rising numbers"),
        (lambda q: q.mean("age", [1], low=1, high=1, num_units=1), "a range of"),
        (lambda q: q.mean("age", [1], low=0, high=math.inf, num_units=1), "a range"),
        (lambda q: q.mean("age", [1], low=0, high=1, num_units=0), "num_units"),
    ],
)
def test_wrong_questions_are_refused_and_stay_unasked(ledger, ask, reason):
    """Before anything is recorded."""
    with pytest.raises(ValueError, match=reason):
        ask(Queries(ledger, dataset=None))

    assert ledger.asked == ()


@pytest.mark.parametrize("size", [6, 12])
def test_more_values_than_units_are_refused(ledger, make_plan, size):
    """Some unit would count twice: values of rows, where a unit is a user of several."""
    rows = TensorDataset(torch.zeros(6, 3), torch.zeros(6))
    queries = Queries(ledger, dataset=rows)
    ages = torch.arange(float(size))
    if size > len(rows):
        with pytest.raises(ValueError, match="more than there are units"):
            queries.histogram("ages", ages, edges=(0, 1, 2, 3))
    else:
        queries.histogram("ages", ages, edges=(0, 1, 2, 3))
    assert len(ledger.asked) == (size == len(rows))

    plan = make_plan(queries=ASKED, unit_of_privacy="one value of user_id")
    of_users = TensorDataset(torch.zeros(6, 3), torch.zeros(6))
    loader = plan.loader(of_users, units=[0, 0, 1, 1, 2, 2])
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    with pytest.raises(ValueError, match="more than there are units") as caught:
        Queries(optimizer).count("adults", ages[:6] > 1)
    assert not any(c.isdigit() for c in str(caught.value))  # Sizes are private.
    Queries(optimizer).count("adults", ages[:3] > 1)


def test_rows_of_users_are_no_units_before_training_either(make_plan):
    """A user of four rows would move a sum by four times what is paid for."""
    plan = make_plan(queries=ASKED, unit_of_privacy="one value of user_id")
    rows, ledger = TensorDataset(torch.zeros(8, 3)), Ledger(plan)
    with pytest.raises(ValueError, match="the user_id of every row"):
        Queries(ledger, dataset=rows)
    with pytest.raises(ValueError, match="units must name the unit of each row"):
        Queries(ledger, dataset=rows, units=[0, 1])

    of_users = Queries(ledger, dataset=rows, units=[0, 0, 0, 0, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="more than there are units"):
        of_users.count("adults", [1.0] * 8)
    of_users.count("adults", [1.0] * 2)
    Queries(ledger, dataset=rows, units=range(8)).count("age", [1.0] * 8)
    Queries(ledger, dataset=None).histogram("ages", [1.0] * 9, edges=(0, 1, 2, 3))


def test_ranks_are_refused(ledger, monkeypatch):
    """Each would draw noise of its own."""
    monkeypatch.setattr("dp.query._queries.rank_and_size", lambda: (0, 2))

    with pytest.raises(UnsupportedOperationError, match="one of 2 ranks"):
        Queries(ledger, dataset=None).count("adults", [True])

    assert ledger.asked == ()


def test_a_spent_target_refuses_queries(make_plan):
    """As where another plan's charges were loaded."""
    plan = make_plan(queries=ASKED)
    within = make_plan(queries=ASKED, target_epsilon=plan.guarantee().epsilon)
    other = Ledger(make_plan(noise_multiplier=0.5))
    other.reserve(sampling_probability=0.5, noise_multiplier=0.5, max_grad_norm=1.0)
    ledger = Ledger(within)
    Queries(ledger, dataset=None).count("adults", [True])
    state = other.state_dict()
    (key,) = state["segments"]
    state["segments"][key][0].update(noise_multiplier=0.01)
    ledger.load_state_dict(state)

    with pytest.raises(dp.BudgetExhaustedError, match="'age' was not asked"):
        Queries(ledger, dataset=None).mean("age", [1.0], low=0, high=2, num_units=1)


def test_a_failed_run_answers_nothing(ledger):
    """No epsilon would hold."""
    ledger.fail("a test")

    with pytest.raises(dp.LedgerError):
        Queries(ledger, dataset=None).count("adults", [True])


def trained(plan, ledger=None, steps=None):
    """An optimizer after some steps, which shares the ledger."""
    model = nn.Linear(3, 1)
    data = TensorDataset(torch.randn(20, 3), torch.randn(20))
    loader = plan.loader(data)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with apart():
        optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader, continue_from=ledger)
        for (x, y), _ in zip(loader, range(steps or plan.steps), strict=False):
            optimizer.backward((model(x).squeeze(1) - y).square())
            optimizer.step()
    return optimizer


def test_an_optimizer_shares_the_ledger_of_earlier_queries(make_plan):
    """Steps, answers before and answers after have one ledger and one certificate."""
    plan = make_plan(queries=ASKED, steps=4)
    ledger = Ledger(plan)
    Queries(ledger, dataset=None).count("adults", [True] * 5)

    optimizer = trained(plan, ledger)
    Queries(optimizer).mean("age", torch.ones(5), low=0, high=2, num_units=5)

    assert optimizer.ledger is ledger
    assert ledger.steps == 4
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = Ledger(plan)
    state = torch.load(file)["param_groups"][0]["dp_ledger"]
    resumed.load_state_dict(__import__("json").loads(state))
    assert resumed.asked == ("adults", "age")


@pytest.mark.slow
def test_the_certificate_states_queries_and_verifies(make_plan):
    """Their cost, their noise, and what must be true of them."""
    plan = make_plan(queries=ASKED, steps=4)
    optimizer = trained(plan)

    certificate = optimizer.certificate(private_data_touches=())

    text = certificate.to_text()
    assert certificate.epsilon == plan.guarantee().epsilon
    assert "      ages: 3 numbers, sigma = 4" in text
    assert "      age: 1 number, sigma = 3" in text
    assert "Planned queries were asked once each" in text
    assert dp.verify(certificate).ok
    read = dp.Certificate.from_json(certificate.to_json())
    assert read == certificate
    less = certificate.to_json().replace(
        '"noise_multiplier": 2.0', '"noise_multiplier": 9.0'
    )
    failed = {
        f.claim
        for f in dp.verify(dp.Certificate.from_json(less), quick=True).findings
        if not f.holds
    }
    assert {"epsilon", "run 1: plan"} <= failed
    # Four parameters in four steps, and five numbers of answers.
    of_noise = GaussianNoise().delta_error(4 * 4 + 5, epsilon=certificate.epsilon)
    assert certificate.delta_error == of_noise


def test_a_run_that_answers_end_costs_what_its_plan_costs(make_plan):
    """What was answered may have decided that nothing is trained at all."""
    plan = make_plan(queries=ASKED, steps=4)
    ledger = Ledger(plan)
    ask_all(Queries(ledger, dataset=None), torch.ones(5))

    certificate = dp.Certificate.of(ledger, noise=GaussianNoise(), num_parameters=4)

    assert certificate.epsilon == plan.guarantee().epsilon
    assert certificate.steps == 0
    assert dp.verify(certificate, quick=True).ok
    (run,) = certificate.runs
    assert sum(release.count for release in run.remaining) == 4


def test_quantiles_are_read_off_a_histogram():
    """Any number of them, from one release."""
    histogram = Histogram(
        name="h",
        edges=(0.0, 1.0, 2.0, 4.0),
        counts=(25.0, -3.0, 75.0),
        stddev=1.0,
    )

    assert histogram.quantile(0.125) == 0.5
    assert histogram.quantile(0.25) == 1.0
    assert histogram.quantile(0.625) == 3.0
    with pytest.raises(ValueError, match="share"):
        histogram.quantile(0.0)
    nothing = Histogram(name="h", edges=(0.0, 1.0), counts=(-1.0,), stddev=1.0)
    assert nothing.quantile(0.5) == 1.0
