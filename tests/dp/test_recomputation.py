"""That a certificate's epsilon is held against the charges by ``dp_accounting`` alone."""

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest

from dp import (
    DisjointBatches,
    GaussianNoise,
    PoissonSampling,
    PrivacyError,
    Query,
    RandomAllocation,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp._typing import NeighboringRelation
from dp.accounting import _accountant, merge_equal_releases, to_dp_event
from dp.certificate import Certificate, _recomputation
from dp.ledger import Charge, Ledger
from dp.plan import PrivacyPlan


SAMPLED = PoissonSampling(sampling_probability=0.25)
TRUNCATED = TruncatedPoissonSampling(
    sampling_probability=0.25, max_batch_size=80, dataset_size=200
)


def certified(*, sigma=8.0, num_steps=12, **changes):
    """The certificate of 12 steps of 20, by a plan of noise multiplier 8."""
    numbers = {
        "sampling": SAMPLED,
        "noise_multiplier": 8.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
    }
    plan = PrivacyPlan(**{**numbers, **changes})
    ledger = Ledger(plan)
    for _ in range(num_steps):
        ledger.reserve(
            sampling_probability=plan.sampling_probability,
            noise_multiplier=sigma,
            max_grad_norm=1.0,
            truncation=plan.truncation,
        )
    return Certificate.of(ledger, noise=GaussianNoise(), num_parameters=1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "relation"),
    [
        *product([SAMPLED, Unamplified()], get_args(NeighboringRelation)),
        (TRUNCATED, "replace_one"),
        (TRUNCATED, "zero_out"),
    ],
    ids=str,
)
def test_what_is_stated_is_what_the_charges_compose_to(monkeypatch, sampling, relation):
    """Also if a millionth would be too much to differ by: the buckets are the same."""
    monkeypatch.setattr(_recomputation, "TOLERANCE", 1e-9)

    assert certified(sampling=sampling, neighboring_relation=relation).epsilon > 0.1


def test_where_divergences_are_smaller_they_count():
    """Losses in buckets of width 1 bound epsilon worse than Renyi divergences do."""
    releases = (((0.25, 4.5, None), 160),)

    by_divergences, tight = (
        _recomputation._composed(releases, 1e-5, "add_or_remove_one", interval)
        for interval in (1.0, 1e-3)
    )

    assert tight < by_divergences < 1.2 * tight


def test_nothing_and_no_noise_cost_what_they_cost():
    """0 and infinity, of which no accountant is asked."""
    assert certified(num_steps=0).epsilon == 0
    assert certified(sigma=0.0, noise_multiplier=0.0).epsilon == math.inf
    without = (((0.25, 0.0, None), 12),)
    assert _recomputation._composed(without, 1e-5, "zero_out", None) == math.inf


@pytest.mark.slow
def test_planned_queries_are_recomputed_too(monkeypatch):
    """They are part of every epsilon, whether they were asked or not."""
    monkeypatch.setattr(_recomputation, "TOLERANCE", 1e-9)
    query = Query(name="adults", noise_multiplier=2.0)

    assert certified(queries=(query,)).epsilon > certified().epsilon


def loses_a_release(monkeypatch):
    """Equal releases are counted together, and one is lost."""

    def merged(releases):
        first, *rest = merge_equal_releases(releases)
        return (replace(first, count=max(1, first.count - 1)), *rest)

    monkeypatch.setattr("dp.certificate._run.merge_equal_releases", merged)


def takes_surplus_noise_for_granted(monkeypatch):
    """Charges are accounted at the noise that was used, not at the planned one."""
    planned = Charge.to_release
    monkeypatch.setattr(
        Charge,
        "to_release",
        lambda charge: planned(replace(charge, planned_noise_multiplier=None)),
    )


def takes_releases_for_smaller_ones(monkeypatch):
    """What is composed is fewer releases than there are."""
    monkeypatch.setattr(
        _accountant,
        "affordable",
        lambda releases, *_: tuple(replace(r, count=r.count - 1) for r in releases),
    )


def composes_too_little(monkeypatch):
    """Composition errs by a hundred-thousandth."""
    right = _accountant.epsilon_by_delta

    def too_small(*releases, **about):
        at = right(*releases, **about)
        return lambda delta: at(delta) * (1 - 1e-5)

    monkeypatch.setattr(_accountant, "epsilon_by_delta", too_small)


def passes_on_an_event_of_more_noise(monkeypatch):
    """Divergences are of twice the noise, and are the smaller bound by that."""
    monkeypatch.setattr(
        _accountant,
        "to_dp_event",
        lambda releases: to_dp_event(
            replace(r, noise_multiplier=2 * r.noise_multiplier) for r in releases
        ),
    )


def states_the_larger_delta(monkeypatch):
    """Epsilon is read at a delta twice as large as the one that is stated."""
    right = _accountant.epsilon
    monkeypatch.setattr(
        "dp.certificate._numbers.epsilon",
        lambda releases, delta, **about: right(releases, delta=2 * delta, **about),
    )


@pytest.fixture
def without_memory():
    """Bounds that were found before are found anew, and none of a defect is kept."""
    caches = (
        _accountant.bound_by_pld,
        _accountant._by_own_rdp,
        _accountant._divergences,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize(
    "defect",
    [
        loses_a_release,
        takes_surplus_noise_for_granted,
        takes_releases_for_smaller_ones,
        composes_too_little,
        passes_on_an_event_of_more_noise,
        states_the_larger_delta,
    ],
)
def test_a_defect_of_the_accounting_is_noticed(monkeypatch, defect):
    """On the way from a charge to epsilon, before a certificate is stated."""
    defect(monkeypatch)

    with pytest.raises(PrivacyError, match="nothing is certified"):
        certified(sigma=16.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": RandomAllocation(steps_per_pass=4)},
        {
            "sampling": DisjointBatches(steps_per_pass=4),
            "neighboring_relation": "zero_out",
        },
        {"renyi_order": 8.0, "target_epsilon": 2.0},
        {"group_size": 3},
    ],
    ids=str,
)
def test_what_dp_accounting_does_not_know_is_left_to_theorems(changes):
    """Passes, groups and filters, which are compared in other ways."""
    stated = certified(num_steps=0, **changes)

    assert stated.epsilon == 0
    assert not _recomputation.is_recomputed(
        [replace(run, remaining=run.plan.releases(20)) for run in stated.runs],
        stated.group_size,
    )
