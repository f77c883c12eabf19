"""Batches of a largest size: what is drawn, what it costs, and that both are stated."""

import copy
import itertools
import math
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest
import torch
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from scipy import stats
from torch.utils.data import TensorDataset

import dp
from dp import (
    DPOptimizer,
    PoissonLoader,
    PoissonSampling,
    PrivacyPlan,
    TruncatedPoissonSampling,
)
from dp.accounting import (
    Release,
    Truncation,
    epsilon,
    group_epsilon,
    risk,
    to_dp_event,
)
from dp.exceptions import (
    BudgetExhaustedError,
    SamplingMismatchError,
    UnsupportedOperationError,
)
from dp.ledger import Ledger
from dp.sampling._draws import random_subset


TRUNCATED = TruncatedPoissonSampling(
    sampling_probability=0.5, max_batch_size=12, dataset_size=20
)


@pytest.fixture
def make_truncated(make_run):
    """Build a run whose batches are truncated."""

    def make(**changes):
        settings = {"sampling": TRUNCATED, "neighboring_relation": "zero_out"}
        return make_run(**{**settings, **changes})

    return make


def release(n, q, largest, sigma, count=1):
    truncation = Truncation(max_batch_size=largest, dataset_size=n)
    return Release(
        sampling_probability=q,
        noise_multiplier=sigma,
        count=count,
        truncation=truncation,
    )


def mixture(gradients, q, largest):
    """Return the sums of every batch that can be drawn, and how likely each is."""
    weights = Counter()
    n = len(gradients)
    for coins in itertools.product((0, 1), repeat=n):
        drawn = [i for i in range(n) if coins[i]]
        likely = q ** len(drawn) * (1 - q) ** (n - len(drawn))
        parts = list(itertools.combinations(drawn, min(largest, len(drawn))))
        for part in parts:
            weights[sum(gradients[i] for i in part)] += likely / len(parts)
    return weights


def hockey_stick(left, right, sigma, spent):
    """Return the delta at an epsilon, by quadrature over what can be released."""
    x, step = np.linspace(-10 * sigma - 4, 10 * sigma + 4, 4001, retstep=True)
    p, q = (
        sum(w * np.exp(-((x - s) ** 2) / (2 * sigma**2)) for s, w in some.items())
        for some in (left, right)
    )
    scale = step / (sigma * math.sqrt(2 * math.pi))
    return float(np.maximum(p - math.exp(spent) * q, 0).sum() * scale)


@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
@pytest.mark.parametrize(
    ("q", "largest", "sigma"),
    [(0.3, 1, 1.0), (0.7, 2, 1.5), (1.0, 1, 0.7)],
)
def test_no_neighbours_are_told_apart_more_surely(relation, q, largest, sigma):
    """Of three examples, whatever their gradients are: every batch is enumerated."""
    spent = {
        delta: epsilon(
            [release(3, q, largest, sigma)],
            delta=delta,
            neighboring_relation=relation,
        ).epsilon
        for delta in (1e-2, 1e-4)
    }
    replaced = (0.0,) if relation == "zero_out" else (-1.0, 0.0)
    for others in itertools.product((-1.0, 0.0, 1.0), repeat=2):
        for other in replaced:
            pair = [mixture([first, *others], q, largest) for first in (1.0, other)]
            for delta, bound in spent.items():
                assert hockey_stick(*pair, sigma, bound) <= delta * (1 + 1e-3)
                assert hockey_stick(*pair[::-1], sigma, bound) <= delta * (1 + 1e-3)


def test_poissons_price_would_not_cover_small_batches():
    """The twin: at the price of untruncated batches, neighbours are told apart."""
    q, sigma, delta = 0.2, 0.6, 1e-4
    plain = Release(sampling_probability=q, noise_multiplier=sigma, count=1)
    spent = epsilon([plain], delta=delta, neighboring_relation="zero_out").epsilon
    pair = [mixture([first, -1.0, -1.0], q, 1) for first in (1.0, 0.0)]

    assert hockey_stick(*pair, sigma, spent) > delta


@pytest.mark.parametrize("largest", [100, 130, 1000])
def test_what_is_claimed_is_the_accountants_own_number(largest):
    """By ``dp_accounting``'s accountant, from the event that it defines."""
    releases = [release(1000, 0.1, largest, 1.0, count=20)]
    spent = epsilon(releases, delta=1e-5, neighboring_relation="zero_out")
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, spent.interval)
    accountant.compose(to_dp_event(releases))

    assert spent.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert spent.accountant == "PLD"
    assert spent.epsilon_rdp is None


@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
@pytest.mark.parametrize("largest", [10, 60, 99])
def test_each_step_counts_where_every_example_is_drawn(relation, largest):
    """At probability 1, as just below it: truncated, they are not one Gaussian."""
    about = {"delta": 1e-5, "neighboring_relation": relation}
    numbers = {}
    for q in (1 - 1e-6, 1.0):
        releases = [release(100, q, largest, 8.0, count=25)]
        numbers[q] = [
            epsilon(releases, **about).epsilon,
            *astuple(risk(releases, neighboring_relation=relation)),
        ]

    assert numbers[1.0] == pytest.approx(numbers[1 - 1e-6], rel=1e-3)
    one = epsilon([release(100, 1.0, largest, 8.0)], **about).epsilon
    assert numbers[1.0][0] > 2 * one


@pytest.mark.slow
def test_a_plan_that_draws_everyone_pays_for_each_step():
    """By ``dp_accounting``'s accountant: batches of one size, of all examples."""
    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        sampling_probability=1.0,
        steps=100,
        max_batch_size=10,
        dataset_size=100,
        neighboring_relation="zero_out",
        expected_batch_size=10,
        max_grad_norm=1.0,
    )
    claimed = plan.guarantee()
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, claimed.interval)
    accountant.compose(to_dp_event(plan.releases(100)))

    assert claimed.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)


@pytest.mark.slow
def test_smaller_batches_cost_more_and_a_wide_margin_nothing():
    """Truncation is paid for by how often it happens."""
    spent = [
        epsilon(
            [release(1000, 0.1, largest, 1.0, count=20)],
            delta=1e-5,
            neighboring_relation="zero_out",
        ).epsilon
        for largest in (100, 120, 160)
    ]
    plain = epsilon(
        [Release(sampling_probability=0.1, noise_multiplier=1.0, count=20)],
        delta=1e-5,
        neighboring_relation="zero_out",
    ).epsilon

    assert spent[0] > spent[1] > spent[2]
    assert spent[2] == pytest.approx(plain, rel=1e-6)


def test_a_group_costs_what_its_members_cost_in_turn():
    """Above the members' sum, and infinite where it would say nothing."""
    releases = (release(100, 0.1, 20, 4.0, count=2),)
    about = {"delta": 1e-5, "neighboring_relation": "zero_out"}
    one = epsilon(releases, **about).epsilon
    single, pair = (
        group_epsilon(releases, group_size=size, **about) for size in (1, 2)
    )

    assert single == pytest.approx(one, rel=1e-3)
    assert pair > 2 * one
    loud = (release(100, 0.9, 20, 0.3, count=50),)
    assert group_epsilon(loud, group_size=10, **about) == math.inf


@pytest.mark.parametrize("cost", [epsilon, group_epsilon])
def test_a_relation_that_hides_the_number_of_examples_is_refused(cost):
    """The price is computed from the number."""
    size = {"group_size": 2} if cost is group_epsilon else {}
    with pytest.raises(ValueError, match="'zero_out' or 'replace_one'"):
        cost(
            (release(100, 0.1, 20, 1.0),),
            delta=1e-5,
            neighboring_relation="add_or_remove_one",
            **size,
        )


def test_a_plan_of_such_a_relation_is_refused(make_plan):
    """Before anything is drawn."""
    with pytest.raises(
        ValueError, match=r"truncated \(TruncatedPoissonSampling\): their cost"
    ):
        make_plan(sampling=TRUNCATED)


@pytest.mark.parametrize("field", ["max_batch_size", "dataset_size"])
def test_numbers_out_of_range_are_refused(field):
    """By name."""
    numbers = {"sampling_probability": 0.5, "max_batch_size": 3, "dataset_size": 9}
    with pytest.raises(ValueError, match=f"{field} must be a whole number"):
        TruncatedPoissonSampling(**{**numbers, field: 0})


@pytest.mark.statistical
def test_every_part_is_as_likely(decisions):
    """All sets of 2 of 5, by their counts.

    False alarms: 1e-9. A set that is 1.3 times as likely is missed with probability
    1e-23.
    """
    trials = 40_000
    counts = Counter(tuple(random_subset(range(5), size=2)) for _ in range(trials))
    expected = math.comb(5, 2)
    score = sum((c - trials / expected) ** 2 for c in counts.values())
    score /= trials / expected

    assert set(counts) == set(itertools.combinations(range(5), 2))
    assert not decisions.refutes("counts", stats.chi2.sf(score, expected - 1))


def test_ties_are_drawn_anew(monkeypatch):
    """Equal ranks would prefer who stands first."""
    draws = iter([[7, 7, 1], [3, 1, 2]])

    class Coins:
        def integers(self, _count, dtype):
            return np.array(next(draws), dtype=dtype)

    monkeypatch.setattr("dp.sampling._draws.Keystream", Coins)

    assert random_subset([10, 20, 30], size=2) == [20, 30]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_batch_is_larger_than_stated(workers):
    """Whoever was drawn beyond that; the ticket is for those who are left."""
    loader = PoissonLoader(
        TensorDataset(torch.arange(40)),
        sampling_probability=0.5,
        steps=30,
        max_batch_size=15,
        num_workers=workers,
    )
    sizes = []
    for (batch,) in loader:
        sizes.append(len(batch))
        assert loader.ticket.num_samples == len(batch)
        assert batch.tolist() == sorted(set(batch.tolist()))

    assert max(sizes) == 15


@pytest.mark.statistical
def test_every_example_is_taken_as_often(decisions):
    """Neither the first nor the last of a batch is the one to go.

    False alarms: 1e-8. An example that is taken a quarter more or less often is missed
    with probability 1e-11.
    """
    steps, n = 4000, 10
    loader = PoissonLoader(
        range(n), sampling_probability=0.8, steps=steps, max_batch_size=4
    )
    counts = np.zeros(n, dtype=int)
    for batch in loader:
        counts[batch.numpy()] += 1
    rate = sum(stats.binom.pmf(k, n, 0.8) * min(k, 4) / n for k in range(n + 1))

    for count in counts:
        p = stats.binomtest(int(count), steps, rate).pvalue
        assert not decisions.refutes("inclusions", p)


@pytest.mark.slow
def test_a_run_is_charged_certified_and_verified(make_truncated):
    """The document says the largest size and the number of examples."""
    run = make_truncated(steps=3, noise_multiplier=4.0)
    run.train(3)
    certificate = run.optimizer.certificate()
    text = certificate.to_text()

    assert "at most 12 of 20 examples" in text
    assert "chosen at random" in " ".join(text.split())
    assert certificate.epsilon == run.optimizer.plan.guarantee().epsilon
    assert certificate.epsilon_rdp is None
    again = dp.Certificate.from_json(certificate.to_json())
    assert again == certificate
    assert dp.verify(again, quick=True).ok


def test_a_certificate_of_other_batches_does_not_verify(make_truncated):
    """Charges must be of the plan's kind."""
    run = make_truncated(steps=1, noise_multiplier=4.0)
    run.train(1)
    text = run.optimizer.certificate().to_json()
    altered = dp.Certificate.from_json(
        text.replace('"max_batch_size": 12', '"max_batch_size": 14', 1)
    )
    findings = [f for f in dp.verify(altered, quick=True).findings if not f.holds]

    assert any("truncated otherwise" in finding.detail for finding in findings)


def test_the_ledger_remembers_it(make_truncated):
    """In a checkpoint, in plain types; a plan survives its own, too."""
    run = make_truncated()
    run.train(2)
    state = run.optimizer.ledger.state_dict()
    other = Ledger(run.optimizer.plan)
    other.load_state_dict(copy.deepcopy(state))

    (charge,) = other.charges()
    assert charge.truncation == run.optimizer.plan.truncation
    assert other.spent() == run.optimizer.spent()
    plan = run.optimizer.plan
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan


def test_untruncated_releases_are_not_as_planned(make_truncated):
    """A budget is held against what was released: another kind is asked about."""
    run = make_truncated(steps=2, target_epsilon=1e-3)

    with pytest.raises(BudgetExhaustedError):
        run.train(1)


@pytest.mark.parametrize(
    ("relation", "distance"), [("zero_out", 4), ("replace_one", 2)]
)
def test_a_displaced_example_counts_where_epsilon_is_too_large_to_say_anything(
    relation, distance
):
    """Such releases are composed as ones on all data, which are that far apart."""
    on_all_data = Release(
        sampling_probability=1.0, noise_multiplier=0.02 / distance, count=1
    )
    spent = epsilon(
        [release(10, 0.5, 5, 0.02)], delta=1e-5, neighboring_relation=relation
    )

    assert spent.epsilon == pytest.approx(
        epsilon([on_all_data], delta=1e-5, neighboring_relation=relation).epsilon
    )


@pytest.mark.slow
def test_planning_never_overshoots():
    """The least noise with batches of a largest size."""
    plan = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        steps=20,
        sampling_probability=0.1,
        max_batch_size=130,
        dataset_size=1000,
        expected_batch_size=100,
        max_grad_norm=1.0,
        neighboring_relation="zero_out",
    )

    assert isinstance(plan.sampling, TruncatedPoissonSampling)
    assert 2.9 < plan.guarantee().epsilon <= 3.0


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_batch_size": 5, "sampling_probability": 0.1},
        {"dataset_size": 5, "sampling_probability": 0.1},
        {"max_batch_size": 5, "dataset_size": 9},
    ],
)
def test_half_of_a_truncation_is_refused(numbers):
    """What is missing is named."""
    with pytest.raises(ValueError, match="max_batch_size needs dataset_size"):
        dp.plan_for(
            target_epsilon=3.0,
            target_delta=1e-5,
            steps=2,
            expected_batch_size=1.0,
            max_grad_norm=1.0,
            neighboring_relation="zero_out",
            **numbers,
        )


def test_another_number_of_examples_is_refused(make_plan):
    """When the loader is made, and when the data changed since."""
    plan = make_plan(sampling=TRUNCATED, neighboring_relation="zero_out")
    with pytest.raises(ValueError, match=r"dataset_size=20.*dataset_size=21"):
        plan.loader(range(21))
    rows = list(range(20))
    batches = iter(plan.loader(rows))
    rows.append(20)
    with pytest.raises(SamplingMismatchError, match=r"had 20 examples.*has 21 now"):
        next(batches)


def test_an_untruncated_loader_does_not_fit_the_plan(make_truncated):
    """Nor the other way round."""
    run = make_truncated()
    other = PoissonLoader(range(20), sampling_probability=0.5, steps=2)
    with pytest.raises(ValueError, match="the loader draws by PoissonSampling"):
        run.optimizer.attach(other)
    assert other.sampling == PoissonSampling(sampling_probability=0.5)


def test_several_processes_are_refused(monkeypatch):
    """Each would truncate its own part, which is another distribution."""
    arguments = {"sampling_probability": 0.5, "steps": 2, "max_batch_size": 3}
    with pytest.raises(UnsupportedOperationError, match="train in one process"):
        iter(PoissonLoader(range(20), sharded=True, **arguments))
    monkeypatch.setattr("dp.sampling._loader.rank_and_size", lambda: (0, 2))
    with pytest.raises(UnsupportedOperationError, match="train in one process"):
        iter(PoissonLoader(range(20), **arguments))


@pytest.mark.slow
def test_it_replays_and_cannot_be_attacked(make_plan):
    """Neighbours of one size replay; audits that draw the data refuse by name."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 1))

    def train(model, data, sampling=TRUNCATED):
        plan = make_plan(sampling=sampling, steps=3, neighboring_relation="zero_out")
        loader = plan.loader(data)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
        for batch in loader:
            x = batch[0] if isinstance(batch, list) else batch
            optimizer.backward(model(x).reshape(-1))
            optimizer.step()

    report = dp.audit.replay(train, model, TensorDataset(torch.randn(20, 3)))
    assert report.ok, report

    def train_whoever_is_there(model, data):
        train(
            model,
            data,
            TruncatedPoissonSampling(
                sampling_probability=0.1, max_batch_size=60, dataset_size=len(data)
            ),
        )

    for audit in (dp.audit.canaries, dp.audit.conformance):
        with pytest.raises(UnsupportedOperationError, match=r"dp\.audit\.replay"):
            audit(train_whoever_is_there)
