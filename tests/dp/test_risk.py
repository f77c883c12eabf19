"""That what an attacker can reach is never stated too low, and not far too high."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from dp_accounting.pld.pld_pmf import DensePLDPmf
from scipy import stats

import dp
from dp import GaussianNoise, PoissonSampling, RiskTarget, UnsupportedOperationError
from dp.accounting import (
    ReferenceAccountant,
    Release,
    Risk,
    Truncation,
    risk,
    risk_curve,
)
from dp.accounting._buckets import read_deltas
from dp.accounting._deltas import _deltas, deltas_by_epsilon
from dp.accounting._risk import NO_BOUND, NO_RISK, risk_of_order
from dp.accounting._trade_off import Pairs
from dp.calibration import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
)
from dp.certificate import Certificate, verify
from dp.ledger import Ledger
from dp.plan import PrivacyPlan, plan_for


NUMBERS = tuple(field.name for field in dataclasses.fields(Risk))
RELATIONS = ("add_or_remove_one", "zero_out", "replace_one")
RUN = {"target_delta": 1e-5, "expected_batch_size": 10.0, "max_grad_norm": 1.0}


def release(q=1.0, sigma=1.0, count=1, **about):
    return Release(sampling_probability=q, noise_multiplier=sigma, count=count, **about)


def found(*releases, relation="add_or_remove_one", **about):
    return risk(releases, neighboring_relation=relation, **about)


def pairs(*releases, relation="add_or_remove_one", interval=1e-3):
    """The pairs of epsilon and delta of some releases."""
    return Pairs(
        deltas_by_epsilon(
            releases, relation=relation, group_size=1, interval=interval, library=None
        )
    )


# Computed by hand or by another program, with dp_accounting's losses.
ANCHORS = (
    (release(sigma=1.0), 0.382925, 0.092362, 0.018298),
    (release(0.01, 1.0, 1000), 0.1610, 0.0291, 0.00407),
    (release(0.1, 4.5, 160), 0.1127, 0.0208, 0.00256),
)


@pytest.mark.parametrize(
    ("released", "advantage", "in_100", "in_1000"),
    ANCHORS,
    ids=["gaussian", "long", "short"],
)
def test_risk_is_what_was_computed_elsewhere(released, advantage, in_100, in_1000):
    """One Gaussian, a long run on small samples, and a short one on large samples."""
    its = found(released)

    assert its.advantage == pytest.approx(advantage, abs=5e-5)
    assert its.tpr_at_1_in_100 == pytest.approx(in_100, abs=5e-5)
    assert its.tpr_at_1_in_1000 == pytest.approx(in_1000, abs=5e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 50.0])
def test_risk_of_a_gaussian_is_the_exact_one_rounded_up(sigma):
    """The best test of two Gaussians is a threshold, whose rates are known.

    Their advantage is ``2 Phi(1 / 2 sigma) - 1``, and the logarithm of the ratio of
    likelihoods is a Gaussian itself, of which 1 in 1000 is above a known quantile.
    """
    its, mu = found(release(sigma=sigma)), 1 / sigma
    exact = {
        "advantage": 2 * stats.norm.cdf(mu / 2) - 1,
        "tpr_at_1_in_100": stats.norm.sf(stats.norm.isf(0.01) - mu),
        "tpr_at_1_in_1000": stats.norm.sf(stats.norm.isf(0.001) - mu),
    }
    odds = mu**2 / 2 + mu * stats.norm.isf(0.001)

    for name, least in exact.items():
        assert least * (1 - 1e-9) <= getattr(its, name) <= least * (1 + 1e-4), name
    assert odds <= math.log(its.odds_factor) <= 1.2 * odds


@pytest.mark.parametrize("fpr", [1e-3, 0.01, 0.3])
@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.5), (0.2, 1.0), (0.7, 3.0)])
def test_no_test_of_a_sampled_release_is_better_than_stated(q, sigma, fpr):
    """Neither that of who asks whether a unit was in, nor of who asks if it was not.

    The likelihood ratio rises with the outcome, so that thresholds are the best tests
    (Neyman and Pearson). The better one of the two is reached, but for a chord between
    the directions.
    """
    bound = pairs(release(q, sigma)).true_positive_rate(fpr)

    def with_unit(x):
        return (1 - q) * stats.norm.sf(x / sigma) + q * stats.norm.sf((x - 1) / sigma)

    named = with_unit(sigma * stats.norm.isf(fpr))
    grid = np.linspace(-12 * sigma, 12 * sigma + 1, 400_001)
    cut = grid[np.searchsorted(1 - with_unit(grid), fpr) - 1]
    spared = stats.norm.cdf(cut / sigma)

    assert max(named, spared) <= bound * (1 + 1e-9)
    assert bound <= max(named, spared) * 1.05


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 0.5), (0.2, 1.0), (0.7, 3.0)])
def test_the_advantage_of_one_sampled_release_is_that_of_its_part(q, sigma):
    """The total variation distance of a mixture is q times that of the Gaussians."""
    exact = q * (2 * stats.norm.cdf(1 / (2 * sigma)) - 1)

    assert (
        exact * (1 - 1e-9) <= found(release(q, sigma)).advantage <= exact * (1 + 1e-4)
    )


def test_odds_exceed_the_factor_in_no_more_runs_than_stated():
    """In 200 000 runs of 3 sampled steps, at most 1 in 1000, with and without the unit.

    False alarms: the number above is binomial of a mean of at most 200, and is allowed
    260, which is 4.2 deviations: once in 70 000 tests. Power: a factor that were 10 %
    too small in its logarithm would be exceeded 400 times.
    """
    q, sigma, steps, runs = 0.3, 1.0, 3, 200_000
    factor = found(release(q, sigma, steps)).odds_factor
    generator = np.random.default_rng(0)
    noise = sigma * generator.standard_normal((runs, steps))
    member = noise + (generator.random((runs, steps)) < q)

    def log_odds(x):
        in_step = np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
        return in_step.sum(1)

    for exceeded, most in ((log_odds(member), 260), (-log_odds(noise), 260)):
        assert (exceeded > math.log(factor)).sum() <= most
    assert (log_odds(member) > 0.7 * math.log(factor)).sum() > 260


def test_the_curve_of_attacks_is_the_exact_one_rounded_up():
    """Of a Gaussian; from no false alarms to naming everyone."""
    sigma, relation = 1.0, "add_or_remove_one"
    curve = risk_curve([release(sigma=sigma)], neighboring_relation=relation)
    exact = [stats.norm.sf(stats.norm.isf(rate) - 1 / sigma) for rate, _ in curve]

    assert [curve[0][0], *curve[-1]] == [0.0, 1.0, 1.0]
    for (_, found_at_most), least in zip(curve, exact, strict=True):
        assert least * (1 - 1e-9) <= found_at_most <= least * (1 + 1e-3) + 1e-9
    assert all(x == y for x, y in risk_curve([], neighboring_relation=relation))
    silent = risk_curve([release(sigma=0.0)], neighboring_relation=relation)
    assert all(y == 1 for _, y in silent)


@pytest.mark.parametrize("relation", RELATIONS)
def test_nothing_released_is_guessing_and_no_noise_is_certainty(relation):
    """The two ends, under each relation and for groups."""
    for size in (1, 3):
        assert found(relation=relation, group_size=size) == NO_RISK
        silent = found(release(0.1, 0.0), relation=relation, group_size=size)
        assert silent == NO_BOUND


@pytest.mark.parametrize("q", [1.0, 0.2])
def test_a_stronger_relation_and_more_units_are_at_more_risk(q):
    """Replacing is more than adding, and two units are more than one."""
    one = found(release(q, 2.0, 5))
    replaced = found(release(q, 2.0, 5), relation="replace_one")
    two = found(release(q, 2.0, 5), group_size=2)
    replaced_two = found(release(q, 2.0, 5), relation="replace_one", group_size=2)

    for name in NUMBERS:
        assert getattr(one, name) < getattr(two, name)
        assert getattr(one, name) < getattr(replaced, name)
        assert getattr(two, name) <= getattr(replaced_two, name)


def test_two_units_of_a_gaussian_are_one_of_half_the_noise():
    """They are twice as far apart."""
    two, loud = found(release(sigma=2.0), group_size=2), found(release(sigma=1.0))

    for name in NUMBERS:
        assert getattr(two, name) == pytest.approx(getattr(loud, name), rel=1e-4)


def test_a_chain_of_changes_bounds_a_group_that_is_replaced():
    """Two Gaussians of distance 4: removing two units, and adding two others.

    The chain's bounds are valid, and far above.
    """
    exact = 2 * stats.norm.cdf(4 / (2 * 8.0)) - 1
    stated = found(release(sigma=8.0), relation="replace_one", group_size=2).advantage

    assert exact <= stated <= 1.1 * exact


def test_truncated_batches_are_at_more_risk_and_so_are_their_groups():
    """An example may displace another; a group is a chain of examples."""
    smaller = Truncation(max_batch_size=60, dataset_size=100)
    truncated = release(0.5, 6.0, 3, truncation=smaller)
    one = found(truncated, relation="replace_one")
    three = found(truncated, relation="replace_one", group_size=3)

    assert found(release(0.5, 6.0, 3)).advantage < one.advantage
    assert 2.9 * one.advantage < three.advantage <= 3.1 * one.advantage


@pytest.mark.slow
def test_random_allocation_has_a_risk_but_not_for_groups():
    """Its losses are composed like any others; nothing is proven of groups."""
    one_pass = release(0.01, 1.0, 100, steps_per_pass=100)

    assert 0 < found(one_pass).advantage < found(release(sigma=1.0)).advantage
    with pytest.raises(UnsupportedOperationError, match="group_size=2: no bound"):
        found(one_pass, group_size=2)


def test_batches_by_position_have_a_risk_where_they_have_an_epsilon():
    """One example more would move others, so that adding one is refused."""
    cut = release(1.0, 2.0, 10, steps_per_pass=5, disjoint="position")
    twice = found(release(sigma=2.0, count=2), relation="zero_out")

    assert found(cut, relation="zero_out") == twice
    with pytest.raises(ValueError, match="are cut by position"):
        found(cut)


def test_a_round_is_at_the_risk_of_the_sample_that_it_holds():
    """By cyclic Poisson sampling an example has a coin in one step of every round."""
    rounds = release(0.05, 1.0, 40, bands=4)

    assert found(rounds) == found(release(0.2, 1.0, 10))
    with pytest.raises(UnsupportedOperationError, match="group_size=2: no bound"):
        found(rounds, group_size=2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_dp_accountings_accountants_find_the_same(size):
    """In the same buckets, to ten digits: ``verify`` asks them."""
    released = release(0.05, 1.2, 40)
    theirs = found(released, group_size=size, library=ReferenceAccountant())

    for name, ours in dataclasses.asdict(found(released, group_size=size)).items():
        assert getattr(theirs, name) == pytest.approx(ours, rel=1e-9)


def test_deltas_are_those_that_dp_accounting_reads():
    """Of any masses, also where some of the mass is of infinite losses."""
    generator = np.random.default_rng(0)
    masses = generator.dirichlet(np.ones(60)) * 0.9
    losses = DensePLDPmf(0.1, -20, masses, 0.1, pessimistic_estimate=True)
    epsilons = np.linspace(0, 5, 300)

    ours, theirs = read_deltas(losses, epsilons), losses.get_delta_for_epsilon(epsilons)
    assert ours == pytest.approx(theirs, abs=1e-14)


def test_the_direction_that_reveals_more_counts():
    """Whichever it is: of samples it is removing, of other losses it may be adding."""
    calm, loud = (
        DensePLDPmf(1.0, at, np.array([0.5, 0.5]), 0.0, pessimistic_estimate=True)
        for at in (0, 3)
    )
    epsilons = np.array([0.0, 1.0, 2.0])
    most = read_deltas(loud, epsilons)

    for remove, add in ((calm, loud), (loud, calm)):
        losses = SimpleNamespace(_pmf_remove=remove, _pmf_add=add)
        assert (_deltas(losses, epsilons) == most).all()
    assert (read_deltas(calm, epsilons) < most).all()


@pytest.mark.parametrize("order", [2.0, 8.0, 32.0])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 10.0])
def test_a_renyi_divergence_bounds_what_has_it(order, sigma):
    """One Gaussian has the divergence ``order / (2 sigma ** 2)``; its risk is below."""
    stated = risk_of_order(order / (2 * sigma**2), order)
    exact = found(release(sigma=sigma))

    for name in NUMBERS:
        assert getattr(exact, name) <= getattr(stated, name)
    assert sigma < 1 or stated.advantage < 1


def test_an_infinite_divergence_bounds_nothing():
    """As of releases without noise under a Renyi filter."""
    assert risk_of_order(math.inf, 8.0) == NO_BOUND


def test_deltas_that_never_get_small_bound_no_odds():
    """With a delta above 1 in 1000 at every epsilon, there may be no doubt so often."""
    assert Pairs(lambda eps_E: np.full_like(eps_E, 0.002)).odds_factor(1e-3) == math.inf


def test_odds_become_a_belief():
    """Even odds that grow four times are 4 to 1; a certain attacker believes all."""
    its = dataclasses.replace(NO_RISK, odds_factor=4.0)

    assert its.belief(0.5) == pytest.approx(0.8)
    assert its.belief(0.2) == pytest.approx(0.5)
    assert NO_RISK.belief(0.3) == pytest.approx(0.3)
    assert NO_BOUND.belief(0.3) == 1
    with pytest.raises(ValueError, match="prior must be strictly between 0 and 1"):
        its.belief(1.0)


def test_risk_is_told_in_words_and_rounded_up():
    """Three digits, none of which states less than the number."""
    its = Risk(
        advantage=0.160001,
        tpr_at_1_in_100=0.02911,
        tpr_at_1_in_1000=0.0040611,
        odds_factor=5.0,
    )

    guess, in_100, in_1000, belief = its.sentences()
    assert guess == (
        "A guess at even odds whether one unit was in the data is right at most 58.1 %"
        " of the time (a coin: 50 %)."
    )
    assert "1 false alarm in 100 finds at most 2.92 in 100 of the units" in in_100
    assert "1 false alarm in 1000 finds at most 4.07 in 1000 of the units" in in_1000
    assert "at most 35.8 %, and one of 50 % to 83.4 %, except in 1 run" in belief


@pytest.mark.parametrize(
    ("relation", "size", "told"),
    [
        ("zero_out", 1, "whether one unit was in the data"),
        ("add_or_remove_one", 3, "whether any 3 units were in the data"),
        ("replace_one", 1, "which of two units was in the data"),
        ("replace_one", 3, "which of two groups of 3 units was in the data"),
    ],
)
def test_words_ask_what_the_relation_is_about(relation, size, told):
    """Of one unit or of several, added or replaced; also where nothing is bounded."""
    for its in (NO_RISK, NO_BOUND):
        assert told in its.sentences(relation, group_size=size)[0]
    assert "Nothing bounds" in NO_BOUND.sentences(relation)[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"delta": 0.0}, "delta must be strictly between 0 and 1"),
        ({"group_size": 0}, "group_size must be a whole number >= 1"),
        ({"relation": "near"}, "neighboring_relation must be one of"),
        ({"interval": 0.0}, "interval must be between"),
    ],
)
def test_numbers_out_of_range_are_refused(change, told):
    """As everywhere: the name, the value, and what there may be."""
    with pytest.raises(ValueError, match=told):
        found(release(), **change)


TARGETS = (
    RiskTarget(advantage=0.1),
    RiskTarget(tpr_at_1_in_100=0.05),
    RiskTarget(tpr_at_1_in_1000=0.9),
    RiskTarget(odds_factor=3.0),
    RiskTarget(advantage=0.3, tpr_at_1_in_1000=0.003),
)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_least_noise_keeps_a_risk_and_wastes_little(target):
    """Every number that is given is kept; a percent less noise would not keep one."""
    about = {"sampling_probability": 0.05, "steps": 100}
    plan = plan_for(target_risk=target, **about, **RUN)
    less = dataclasses.replace(plan, noise_multiplier=0.99 * plan.noise_multiplier)

    assert target.is_kept_by(plan.risk())
    assert not target.is_kept_by(less.risk())
    assert plan.target_epsilon is None


@pytest.mark.slow
def test_steps_and_probabilities_are_found_for_a_risk():
    """As for an epsilon: whatever is left out."""
    target = RiskTarget(advantage=0.1)
    steps = plan_for(
        target_risk=target, sampling_probability=0.05, noise_multiplier=2.0, **RUN
    )
    largest = plan_for(
        target_risk=target,
        sampling_probability="largest",
        steps=50,
        noise_multiplier=2.0,
        **RUN,
    )

    for plan in (steps, largest):
        assert 0.099 < plan.risk().advantage <= 0.1
    assert not target.is_kept_by(
        dataclasses.replace(steps, steps=steps.steps + 1).risk()
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "RiskTarget needs a number to keep"),
        ({"advantage": 0.0}, "advantage must be strictly between 0, which is guessing"),
        ({"advantage": math.nan}, "advantage must be strictly between"),
        ({"tpr_at_1_in_100": 0.01}, "tpr_at_1_in_100 must be strictly between 0.01"),
        ({"tpr_at_1_in_1000": 1.0}, "between 0.001, which is guessing, and 1, got 1.0"),
        ({"odds_factor": 1.0}, "odds_factor must be strictly between 1"),
    ],
)
def test_a_risk_that_cannot_be_a_target_is_refused(given, told):
    """Guessing keeps it or nothing does."""
    with pytest.raises(ValueError, match=told):
        RiskTarget(**given)


SEARCH = {
    "target_delta": 1e-5,
    "sampling_probability": 0.1,
    "steps": 10,
    "neighboring_relation": "add_or_remove_one",
}


def test_exactly_one_target_is_given():
    """An epsilon or a risk."""
    with pytest.raises(ValueError, match="exactly one of target_epsilon and"):
        plan_for(steps=10, **RUN)
    with pytest.raises(ValueError, match="exactly one of target_epsilon and"):
        plan_for(steps=10, target_epsilon=1.0, target_risk=TARGETS[0], **RUN)


def test_a_renyi_filter_keeps_no_risk():
    """It is kept at one order, of which epsilon is a matter and a risk is not."""
    with pytest.raises(ValueError, match="a Renyi filter keeps an epsilon"):
        calibrate_noise_multiplier(target_risk=TARGETS[0], renyi_order=8.0, **SEARCH)


@pytest.mark.slow
def test_other_releases_count_in_a_risk():
    """More noise is needed beside them, and none is enough if they are all of it."""
    alone = calibrate_noise_multiplier(target_risk=TARGETS[0], **SEARCH)
    beside = calibrate_noise_multiplier(
        target_risk=TARGETS[0], other_releases=[release(sigma=8.0)], **SEARCH
    )

    assert alone < beside
    with pytest.raises(ValueError, match=r"all of RiskTarget.* leaves nothing for"):
        calibrate_noise_multiplier(
            target_risk=TARGETS[0], other_releases=[release(sigma=1.0)], **SEARCH
        )


@pytest.mark.parametrize("search", [calibrate_steps, calibrate_sampling_probability])
def test_every_search_needs_a_target(search):
    """The message names both."""
    left = "sampling_probability" if search is calibrate_steps else "steps"
    with pytest.raises(ValueError, match="exactly one of target_epsilon"):
        search(
            target_delta=1e-5,
            noise_multiplier=1.0,
            neighboring_relation="zero_out",
            **{left: SEARCH[left]},
        )


def ledger(count=10, **changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 8.0,
        "steps": 20,
        **RUN,
    }
    its = Ledger(PrivacyPlan(**{**numbers, **changes}))
    sampling, sigma = its.plan.sampling_probability, its.plan.noise_multiplier
    for _ in range(count):
        its.reserve(
            sampling_probability=sampling, noise_multiplier=sigma, max_grad_norm=1.0
        )
    return its


def certificate(its, **about):
    return Certificate.of(its, noise=GaussianNoise(), num_parameters=9, **about)


@pytest.mark.slow
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_certificate_states_the_risk_of_its_plan_in_words(relation):
    """What is claimed is the whole plan, wherever the run ended; JSON keeps it."""
    its = ledger(neighboring_relation=relation)
    stated = certificate(its)

    assert stated.risk == its.plan.risk()
    assert Certificate.from_json(stated.to_json()) == stated
    for sentence in stated.risk.sentences(relation):
        assert sentence in stated.to_text()


@pytest.mark.parametrize("name", NUMBERS)
def test_an_altered_risk_is_found(name):
    """Each number is computed again."""
    stated = certificate(ledger())
    lower = dataclasses.replace(
        stated.risk, **{name: 0.999 * getattr(stated.risk, name)}
    )
    false = dataclasses.replace(stated, risk=lower)

    assert verify(stated, quick=True).ok
    (refuted,) = (f for f in verify(false, quick=True).findings if not f.holds)
    assert refuted.claim == f"risk: {name}"


@pytest.mark.slow
def test_dp_accounting_verifies_the_risk():
    """Not only the losses of this package find it."""
    verified = verify(certificate(ledger()))

    assert verified.ok
    (line,) = (f for f in verified.findings if f.claim == "risk: advantage")
    assert "by dp_accounting" in line.detail


def test_a_run_under_a_filter_is_at_the_risk_of_its_order():
    """The certificate claims what the filter allowed, as the plan does."""
    its = ledger(renyi_order=8.0, target_epsilon=3.0)
    stated = certificate(its)

    assert stated.risk.advantage == pytest.approx(its.plan.risk().advantage)
    assert 0 < stated.risk.advantage < 1
    assert verify(stated, quick=True).ok


def test_a_run_without_noise_says_that_nothing_is_bounded():
    """In JSON as in words."""
    stated = certificate(ledger(noise_multiplier=0.0))

    assert stated.risk == NO_BOUND
    assert json.loads(stated.to_json())["risk"]["odds_factor"] == "inf"
    assert Certificate.from_json(stated.to_json()).risk == NO_BOUND
    assert "Nothing bounds how surely" in stated.to_text()
    assert dp.verify(stated).ok
