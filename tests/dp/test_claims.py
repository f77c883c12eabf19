"""That an epsilon is claimed only where a theorem covers how its numbers came about."""

import copy
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dp
from dp import (
    BudgetExhaustedError,
    DPOptimizer,
    LedgerError,
    PoissonSampling,
    PrivacyError,
    PrivacyPlan,
    Schedule,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.accounting import Release, epsilon, risk
from dp.accounting._renyi import best_order, epsilon_of_order, renyi_cost
from dp.ledger import Ledger
from dp.ledger._advisories import ADVISORIES


PLANNED = {"sampling_probability": 0.25, "noise_multiplier": 2.0, "max_grad_norm": 1.0}
ADD = "add_or_remove_one"


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 2.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


def charged(count, *, ledger=None, charge=PLANNED, **changes):
    ledger = Ledger(plan(**changes)) if ledger is None else ledger
    for _ in range(count):
        ledger.reserve(**charge)
    return ledger


def composed(*counted, q=0.25):
    """Epsilon of so many releases at so much noise each."""
    releases = [
        Release(sampling_probability=q, noise_multiplier=sigma, count=count)
        for count, sigma in counted
    ]
    return epsilon(releases, delta=1e-5, neighboring_relation=ADD).epsilon


@pytest.mark.parametrize("taken", [1, 10, 19, 20])
def test_a_run_that_ends_early_costs_what_its_plan_costs(taken):
    """The end may have been chosen from what was released."""
    ledger = charged(taken)

    assert ledger.guarantee().epsilon == composed((20, 2.0))
    assert ledger.spent().epsilon == composed((taken, 2.0))
    assert ledger.guarantee().condition == ""
    assert bool(ledger.spent().condition) == (taken < 20)


def test_before_the_first_release_nothing_is_claimed():
    """There was nothing that could have decided the end."""
    assert Ledger(plan()).guarantee().epsilon == 0


def test_noise_above_the_plans_costs_what_was_planned():
    """It may have been raised because of a release, so the surplus buys nothing."""
    ledger = charged(10)
    charged(10, ledger=ledger, charge={**PLANNED, "noise_multiplier": 5.0})

    assert ledger.guarantee().epsilon == composed((20, 2.0))
    assert [c.noise_multiplier for c in ledger.charges()] == [2.0, 5.0]
    assert [c.planned_noise_multiplier for c in ledger.charges()] == [None, 2.0]
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**{**PLANNED, "noise_multiplier": 5.0})


def test_a_smaller_sample_costs_what_was_planned():
    """At a smaller rate a release is a mixture with one of nothing."""
    ledger = charged(20, charge={**PLANNED, "sampling_probability": 0.125})

    assert ledger.guarantee().epsilon == composed((20, 2.0))
    assert ledger.charges()[0].planned_sampling_probability == 0.25


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"noise_multiplier": 1.9}, r"noise_multiplier=1\.9 is below the plan's 2\.0"),
        ({"noise_multiplier": 0.0}, "renyi_order='best'"),
        ({"sampling_probability": 0.5}, "sample as planned"),
        (
            {"truncation": dp.accounting.Truncation(max_batch_size=3, dataset_size=9)},
            "sample as planned",
        ),
    ],
)
def test_what_costs_more_than_planned_is_refused(change, told):
    """No epsilon by privacy loss distributions covers numbers chosen from releases."""
    ledger = charged(3)
    before = ledger.state_dict()

    with pytest.raises(PrivacyError, match=told):
        ledger.reserve(**{**PLANNED, **change})
    assert ledger.state_dict() == before


def test_less_sampling_of_truncated_batches_is_refused():
    """That it costs less is proved of whole batches alone."""
    truncated = TruncatedPoissonSampling(
        sampling_probability=0.25, max_batch_size=9, dataset_size=30
    )
    of_plan = plan(sampling=truncated, neighboring_relation="zero_out")
    charge = {**PLANNED, "truncation": of_plan.truncation}
    ledger = Ledger(of_plan)
    ledger.reserve(**{**charge, "noise_multiplier": 3.0})

    with pytest.raises(PrivacyError, match="sample as planned"):
        ledger.reserve(**{**charge, "sampling_probability": 0.125})
    assert ledger.steps == 1


@pytest.mark.slow
def test_a_number_declared_public_is_composed_as_it_is():
    """To the end of the plan, which was fixed with it."""
    public = {**PLANNED, "noise_multiplier": 1.5, "public": "halved at noon"}
    ledger = charged(4, target_epsilon=5.0)
    charged(3, ledger=ledger, charge=public)

    assert ledger.spent().epsilon == composed((4, 2.0), (3, 1.5))
    assert ledger.guarantee().epsilon == composed((4, 2.0), (16, 1.5))
    ledger.reserve(**PLANNED)
    assert ledger.guarantee().epsilon == composed((17, 2.0), (3, 1.5))


@pytest.mark.slow
def test_steps_that_the_target_forbids_are_not_claimed():
    """A run at its numbers could not have taken them."""
    target = composed((12, 2.0)) * (1 + 1e-9)
    ledger = charged(5, target_epsilon=target)

    assert ledger.guarantee().epsilon == composed((12, 2.0)) <= target
    charged(7, ledger=ledger)
    assert ledger.guarantee().epsilon == composed((12, 2.0))
    assert ledger.is_exhausted


@pytest.mark.slow
def test_the_rest_of_a_schedule_is_what_was_planned_for_it():
    """Whichever phase the run ends in."""
    noise = Schedule([(4, 3.0), (10, 2.0)])
    charge = {**PLANNED, "noise_multiplier": 3.0}
    ledger = charged(2, charge=charge, noise_multiplier=noise)

    assert ledger.guarantee().epsilon == composed((4, 3.0), (16, 2.0))
    charged(2, ledger=ledger, charge=charge)
    charged(3, ledger=ledger)
    assert ledger.guarantee().epsilon == composed((4, 3.0), (16, 2.0))


def test_a_failed_run_guarantees_nothing():
    """Neither of its steps nor of its plan."""
    ledger = charged(1)
    ledger.fail("examples were mixed")

    assert ledger.guarantee().epsilon == math.inf


@pytest.mark.slow
def test_what_an_earlier_release_charged_is_stated_as_undeclared():
    """It did not ask why numbers were off the plan."""
    rows = [{**PLANNED, "count": 3}, {**PLANNED, "noise_multiplier": 1.0, "count": 1}]
    state = {"version": 1, "segments": {"a": rows}}
    ledger = Ledger(plan())
    ledger.load_state_dict(state)

    assert [charge.public for charge in ledger.charges()] == [
        None,
        "not stated: charged by an earlier release of dp",
    ]
    assert ledger.guarantee().epsilon == composed((3, 2.0), (17, 1.0))
    filtered = Ledger(plan(renyi_order=4.0))
    filtered.load_state_dict(state)
    assert [charge.public for charge in filtered.charges()] == [None, None]


FILTERED = {"renyi_order": 6.0, "target_epsilon": 3.0}


def cost(*counted, order=6.0):
    releases = [
        Release(sampling_probability=0.25, noise_multiplier=sigma, count=count)
        for count, sigma in counted
    ]
    return epsilon_of_order(renyi_cost(releases, order, ADD), order, 1e-5)


def test_a_filter_admits_any_noise_until_its_epsilon_is_spent():
    """The order is the plan's; what is claimed is what the filter keeps."""
    ledger = Ledger(plan(**FILTERED, steps=10_000))
    counts = {2.0: 0, 1.6: 0, 4.0: 0}
    for sigma in (2.0, 1.6, 4.0, 1.6, 1.6):
        ledger.reserve(**{**PLANNED, "noise_multiplier": sigma})
        counts[sigma] += 1
    while not ledger.is_exhausted:
        ledger.reserve(**PLANNED)
        counts[2.0] += 1
    taken = [(count, sigma) for sigma, count in counts.items()]

    assert counts[2.0] > 2
    assert cost(*taken) <= 3.0 < cost(*taken, (1, 2.0))
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**PLANNED)
    assert ledger.spent().epsilon == cost(*taken)
    assert ledger.guarantee().epsilon == 3.0
    assert ledger.guarantee().accountant == "Renyi filter of order 6"
    assert ledger.guarantee().epsilon_pld == math.inf
    assert charged(2, **FILTERED).guarantee().epsilon == 3.0
    assert Ledger(plan(**FILTERED)).guarantee().epsilon == 0


def test_a_filter_without_a_target_keeps_what_the_plan_costs():
    """Planned steps fit, and not one of them with less noise."""
    ledger = charged(19, renyi_order=6.0)

    assert ledger.guarantee().epsilon == pytest.approx(cost((20, 2.0)), rel=1e-12)
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**{**PLANNED, "noise_multiplier": 1.0})
    ledger.reserve(**PLANNED)


def test_forks_that_met_claim_at_least_what_they_spent():
    """Each kept the filter by itself, and together they did not."""
    ledger = charged(20, renyi_order=6.0)
    fork = copy.deepcopy(charged(20, renyi_order=6.0))
    ledger.load_state_dict(fork.state_dict())

    assert ledger.guarantee().epsilon == cost((40, 2.0))


@pytest.mark.slow
def test_the_cost_at_an_order_is_the_studys():
    """Against figures that were derived by other code; orders on a grid of a half."""
    table = [
        (0.01, 1.0, 1000, 1e-5, 2.1078, 8),
        (0.004, 1.1, 3000, 1e-5, 1.1389, 12),
        (0.1, 2.0, 1000, 1e-6, 9.8587, 4),
        (0.01, 0.7, 500, 1e-6, 5.1535, 4),
    ]
    for q, sigma, steps, delta, expected, expected_order in table:
        kind = [Release(sampling_probability=q, noise_multiplier=sigma, count=steps)]
        order = best_order(kind, delta=delta, relation=ADD)
        spent = epsilon_of_order(renyi_cost(kind, order, ADD), order, delta)

        assert (order, round(spent, 4)) == (expected_order, expected)


def test_no_noise_costs_everything_at_any_order():
    """And a release on all data is alpha / (2 sigma^2)."""
    bare = Release(sampling_probability=0.5, noise_multiplier=0.0, count=1)
    whole = Release(sampling_probability=1.0, noise_multiplier=2.0, count=3)

    assert renyi_cost([bare], 4.0, ADD) == math.inf
    assert renyi_cost([whole], 4.0, ADD) == pytest.approx(3 * 4 / 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("find", "around"),
    [
        ({"steps": 20, "sampling_probability": 0.25}, "noise_multiplier"),
        ({"noise_multiplier": 2.0, "sampling_probability": 0.25}, "steps"),
        (
            {"noise_multiplier": 2.0, "steps": 20, "sampling_probability": "largest"},
            "sampling_probability",
        ),
        ({"steps": 20, "noise_multiplier": Schedule([(10, 2.0), (9, 1.0)])}, "shape"),
    ],
)
def test_a_plan_finds_its_number_under_a_filter(find, around):
    """It keeps the target at the order that is fixed, and wastes little of it."""
    found = dp.plan_for(
        target_epsilon=3.0,
        target_delta=1e-5,
        max_grad_norm=1.0,
        expected_batch_size=10.0,
        renyi_order="best",
        **find,
    )
    releases = found.releases(found.steps)
    spent = epsilon_of_order(
        renyi_cost(releases, found.renyi_order, ADD), found.renyi_order, 1e-5
    )

    assert 2.7 < spent <= 3.0, around
    assert found.guarantee().epsilon == 3.0
    assert found.renyi_order == best_order(releases, delta=1e-5, relation=ADD)


def test_an_order_that_was_chosen_is_kept():
    """A larger one than the best costs more noise."""
    about = {"target_epsilon": 3.0, "target_delta": 1e-5, "max_grad_norm": 1.0}
    numbers = {"expected_batch_size": 10.0, "steps": 20, "sampling_probability": 0.25}
    best = dp.plan_for(**about, **numbers, renyi_order="best")
    other = dp.plan_for(**about, **numbers, renyi_order=40.0)

    assert other.renyi_order == 40.0
    assert other.noise_multiplier > best.noise_multiplier


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"renyi_order": 1.0}, "renyi_order must be > 1"),
        ({"renyi_order": math.inf}, "renyi_order must be > 0 and finite"),
        ({"renyi_order": "largest"}, "renyi_order must be > 0 and finite"),
        ({"renyi_order": 4.0, "neighboring_relation": "replace_one"}, "'replace_one'"),
        (
            {
                "renyi_order": 4.0,
                "neighboring_relation": "zero_out",
                "sampling": TruncatedPoissonSampling(
                    sampling_probability=0.25, max_batch_size=9, dataset_size=30
                ),
            },
            "truncated batches",
        ),
    ],
)
def test_an_order_without_a_bound_is_refused(changes, told):
    """When the plan is made."""
    with pytest.raises(ValueError, match=told):
        plan(**changes)


def test_an_order_is_checked_before_a_search():
    """So that a search does not end in an error of a library."""
    with pytest.raises(ValueError, match="'replace_one'"):
        dp.plan_for(
            target_epsilon=3.0,
            target_delta=1e-5,
            max_grad_norm=1.0,
            expected_batch_size=10.0,
            steps=3,
            neighboring_relation="replace_one",
            renyi_order="best",
        )


@pytest.fixture
def optimizer():
    def make(**changes):
        weight = torch.nn.Parameter(torch.zeros(3))
        numbers = {"sampling": Unamplified(), "noise_multiplier": 8.0, **changes}
        return DPOptimizer(torch.optim.SGD([weight], lr=0.1), plan=plan(**numbers))

    return make


def step(optimizer):
    (weight,) = optimizer.param_groups[0]["params"]
    optimizer.backward(torch.eye(3) @ weight)
    optimizer.step()


def test_less_noise_is_refused_where_it_is_assigned(optimizer):
    """Before anything changes, and the error says what may be done."""
    run = optimizer()

    with pytest.raises(PrivacyError, match="assign_public"):
        run.noise_multiplier = 4.0
    assert run.noise_multiplier == 8.0
    run.noise_multiplier = 9.0
    assert run.noise_multiplier == 9.0


def test_noise_that_a_schedule_overtakes_is_refused_at_its_step(optimizer):
    """What was more than planned when it was assigned is less now."""
    run = optimizer(noise_multiplier=Schedule([(1, 8.0), (9, 12.0)]))
    run.noise_multiplier = 10.0
    step(run)

    with pytest.raises(PrivacyError, match=r"noise_multiplier=10\.0 is below"):
        step(run)
    assert run.ledger.steps == 1
    del run.noise_multiplier
    run.step()
    assert run.ledger.charges()[-1].noise_multiplier == 12.0


def test_a_declared_number_is_charged_with_its_reason(optimizer):
    """In checkpoints and copies too; assigning or deleting ends it."""
    run = optimizer(target_epsilon=50.0)
    run.assign_public(noise_multiplier=4.0, reason=" the schedule of last year ")
    step(run)
    twins = [optimizer(target_epsilon=50.0) for _ in range(2)]
    twins[0].load_state_dict(run.state_dict())
    twins[1].load_state_dict(json.loads(json.dumps(run.state_dict())))
    for twin in (*twins, copy.deepcopy(run), pickle.loads(pickle.dumps(run))):  # noqa: S301 -- our own
        step(twin)
        charge = twin.ledger.charges()[-1]
        assert charge.public == "the schedule of last year"
        assert charge.noise_multiplier == 4.0
    run.noise_multiplier = 9.0
    step(run)
    assert run.ledger.charges()[-1].public is None
    run.assign_public(noise_multiplier=4.0, reason="as before")
    del run.noise_multiplier
    step(run)
    assert run.ledger.charges()[-1].noise_multiplier == 8.0
    assert run.guarantee() == run.ledger.guarantee()


@pytest.mark.slow
def test_declared_numbers_keep_the_planned_risk():
    """Epsilon at one delta does not see what happens more rarely than that."""
    rare = plan(
        sampling=PoissonSampling(sampling_probability=0.01),
        noise_multiplier=1.0,
        expected_batch_size=0.4,
        target_delta=0.02,
    )
    numbers = {"sampling_probability": 0.01, "max_grad_norm": 1.0, "public": "a table"}
    ledger = Ledger(rare)
    ledger.reserve(noise_multiplier=2.0, **numbers)  # Less risk, and so less epsilon.

    with pytest.raises(BudgetExhaustedError, match="1 of 20 steps"):
        ledger.reserve(noise_multiplier=0.3, **numbers)

    one = Release(sampling_probability=0.01, noise_multiplier=0.3, count=1)
    alone = {"neighboring_relation": ADD, "delta": 0.02}
    assert epsilon([one], **alone).epsilon < rare.guarantee().epsilon
    assert risk([one], **alone).odds_factor > rare.risk().odds_factor > 1
    assert ledger.steps == 1


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_a_declaration_needs_a_reason(optimizer, reason):
    """The certificate prints it."""
    run = optimizer()

    with pytest.raises(ValueError, match="reason must say why"):
        run.assign_public(noise_multiplier=4.0, reason=reason)
    with pytest.raises(ValueError, match="noise_multiplier must be >= 0"):
        run.assign_public(noise_multiplier=-4.0, reason="a table")
    assert run.noise_multiplier == 8.0


def test_a_state_with_reasons_for_nothing_is_refused(optimizer):
    """Its numbers were taken out of it."""
    run = optimizer()
    state = run.state_dict()
    ledger = json.loads(state["param_groups"][0]["dp_ledger"])
    ledger["settings"]["public"] = {"noise_multiplier": "a table"}
    state["param_groups"][0]["dp_ledger"] = json.dumps(ledger)

    with pytest.raises(LedgerError, match="gives reasons for numbers"):
        run.load_state_dict(state)


def test_noise_follows_releases_under_a_filter(optimizer):
    """Assigned by what was released, without a declaration."""
    run = optimizer(renyi_order=8.0, target_epsilon=4.0)

    def train():
        while True:
            step(run)
            (weight,) = run.param_groups[0]["params"]
            run.noise_multiplier = 6.0 if weight.grad.sum() > 0 else 4.0

    with pytest.raises(BudgetExhaustedError):
        train()
    assert {c.noise_multiplier for c in run.ledger.charges()} <= {8.0, 6.0, 4.0}
    assert run.guarantee().epsilon == 4.0
    assert run.spent().epsilon <= 4.0


def test_another_order_is_another_plan(optimizer):
    """A filter's order is fixed before the first release, and a change is told."""
    run = optimizer(renyi_order=8.0)
    step(run)
    other = optimizer(renyi_order=4.0)

    with pytest.warns(UserWarning, match=r"renyi_order=8\.0, now 4\.0"):
        other.load_state_dict(run.state_dict())


def certified(ledger, **about):
    return dp.Certificate.of(
        ledger, noise=dp.GaussianNoise(), num_parameters=10, **about
    )


def refuted(certificate):
    findings = dp.verify(certificate, quick=True).findings
    return {finding.claim for finding in findings if not finding.holds}


@pytest.mark.slow
def test_a_certificate_claims_the_plan_and_states_the_steps(tmp_path):
    """An early end is a fact; the epsilon of the steps is not the claim."""
    document = certified(charged(5))
    document.write(tmp_path)

    assert document.epsilon == composed((20, 2.0))
    assert document.epsilon_of_steps_taken == composed((5, 2.0))
    assert document.steps == 5
    assert "after 5 of 20 steps; 15 more are counted" in document.to_text()
    assert "if their number was fixed beforehand" in document.to_text()
    assert dp.verify(tmp_path / "certificate.json", quick=True).ok
    assert dp.Certificate.from_json(document.to_json()) == document


@pytest.mark.slow
def test_a_public_end_makes_the_steps_taken_the_claim(tmp_path):
    """By the caller's word, which is printed."""
    document = certified(charged(5), public_end="The cluster's limit of an hour.")
    document.write(tmp_path)

    assert document.epsilon == document.epsilon_of_steps_taken == composed((5, 2.0))
    assert (
        "after 5 of 20 steps, which is public: The cluster's limit of an hour"
        in document.to_text()
    )
    assert any("The cluster's limit of an hour." in s for s in document.assumptions)
    assert dp.verify(tmp_path / "certificate.json", quick=True).ok
    with pytest.raises(ValueError, match="public_end must say why"):
        certified(charged(5), public_end=" . ")


@pytest.mark.slow
def test_leaving_out_the_rest_of_the_plan_is_found():
    """And so is a declaration that was taken out."""
    document = certified(charged(5))
    (run,) = document.runs
    cut = replace(document, runs=(replace(run, remaining=()),))
    quieter = (replace(run.remaining[0], noise_multiplier=50.0),)
    altered = replace(document, runs=(replace(run, remaining=quieter),))
    public = certified(charged(5), public_end="a limit")
    (run,) = public.runs
    silent = replace(public, runs=(replace(run, public_end=None),))

    assert "run 1: remaining steps" in refuted(cut)
    assert "run 1: remaining steps" in refuted(altered)
    assert "run 1: remaining steps" in refuted(silent)


def cut(document, *places):
    """Leave out what remained of some of its runs."""
    runs = [
        replace(run, remaining=()) if place in places else run
        for place, run in enumerate(document.runs)
    ]
    return replace(document, runs=tuple(runs))


@pytest.mark.slow
def test_leaving_out_the_rest_of_one_of_several_runs_is_found():
    """Of other plans, of the same plan, and of forks."""
    ledger = charged(5)
    fork = charged(3, ledger=copy.deepcopy(ledger))
    one, other = (
        certified(ledger),
        certified(
            charged(
                3, noise_multiplier=4.0, charge={**PLANNED, "noise_multiplier": 4.0}
            )
        ),
    )
    apart = dp.compose(one, other)
    alike = dp.compose(one, certified(charged(2)))
    forked = dp.compose(one, certified(fork), certified(charged(2, ledger=ledger)))

    for document in (apart, alike, forked):
        assert dp.verify(document, quick=True).ok
        every = range(len(document.runs))
        assert "run 1: remaining steps" in refuted(cut(document, *every))
    assert "run 1: remaining steps" in refuted(cut(apart, 0))
    assert "run 2: remaining steps" in refuted(cut(apart, 1))
    run = alike.runs[0]
    quieter = (replace(run.remaining[0], noise_multiplier=50.0),)
    altered = replace(alike, runs=(replace(run, remaining=quieter), alike.runs[1]))
    assert "run 2: remaining steps" in refuted(altered)


@pytest.mark.slow
def test_a_public_end_in_a_composition_leaves_nothing():
    """By the word of the last certificate of the run, whichever comes first."""
    ledger = charged(5)
    early = certified(ledger)
    late = certified(charged(4, ledger=ledger), public_end="a limit")

    for documents in ((early, late), (late, early)):
        both = dp.compose(*documents)
        assert both.epsilon == composed((9, 2.0))
        assert dp.verify(both, quick=True).ok


@pytest.mark.slow
def test_only_steps_beyond_the_target_may_be_missing(tmp_path):
    """Of a plan whose steps do not all keep it."""
    target = composed((12, 2.0)) * (1 + 1e-4)
    document = certified(charged(5, target_epsilon=target))
    document.write(tmp_path)
    (run,) = document.runs
    shorter = replace(run, remaining=(replace(run.remaining[0], count=6),))

    assert sum(release.count for release in run.remaining) == 7
    assert dp.verify(tmp_path / "certificate.json", quick=True).ok
    assert "run 1: remaining steps" in refuted(replace(document, runs=(shorter,)))


@pytest.mark.slow
def test_a_certificate_tells_which_numbers_were_off_the_plan(tmp_path):
    """On which side, and by whose word."""
    ledger = charged(1, target_epsilon=20.0)
    ledger.reserve(**{**PLANNED, "noise_multiplier": 5.0, "sampling_probability": 0.1})
    ledger.reserve(**{**PLANNED, "noise_multiplier": 1.0, "public": "a table"})
    document = certified(ledger)
    document.write(tmp_path)
    text = document.to_text()

    assert "sigma = 5, C = 1 (counted as the planned q = 0.25 and sigma = 2)" in text
    assert "sigma = 1, C = 1 (declared public: a table)" in text
    assert any(sentence.endswith(": a table.") for sentence in document.assumptions)
    assert document.epsilon == composed((2, 2.0), (18, 1.0))
    assert dp.verify(tmp_path / "certificate.json", quick=True).ok


@pytest.mark.slow
def test_charges_of_another_plan_are_told():
    """Their numbers were fixed elsewhere, which the certificate says."""
    ledger = Ledger(plan(noise_multiplier=4.0))
    ledger.load_state_dict(charged(3).state_dict())
    document = certified(ledger)

    assert document.epsilon == composed((3, 2.0), (17, 4.0))
    assert any("in a plan of their own" in s for s in document.assumptions)


@pytest.mark.slow
def test_a_filtered_run_is_certified_at_its_order(tmp_path):
    """One epsilon, and none for groups or without sampling, which no filter kept."""
    ledger = charged(3, **FILTERED)
    ledger.reserve(**{**PLANNED, "noise_multiplier": 1.5})
    document = certified(ledger)
    document.write(tmp_path)

    assert document.epsilon == pytest.approx(3.0, rel=1e-12)
    assert document.accountant == "Renyi filter of order 6"
    assert document.epsilon_of_steps_taken == cost((3, 2.0), (1, 1.5))
    assert document.epsilon_unamplified == document.epsilon_pld == math.inf
    assert set(document.epsilon_of_groups.values()) == {math.inf}
    assert "Renyi filter of order 6" in document.to_text()
    assert dp.verify(tmp_path / "certificate.json").ok
    assert certified(charged(0, **FILTERED)).epsilon == 0
    beyond = replace(ledger.charges()[0], count=90)
    (run,) = document.runs
    run = replace(run, segments={"a": (beyond,)})
    assert "run 1: target epsilon" in refuted(replace(document, runs=(run,)))


def test_filtered_runs_compose_at_one_order():
    """What each filter allowed adds up; other runs count what they claim."""
    filtered, fixed = certified(charged(3, **FILTERED)), certified(charged(20))
    both = dp.compose(filtered, fixed)

    assert both.epsilon > max(filtered.epsilon, cost((20, 2.0)))
    assert both.epsilon == pytest.approx(
        3.0 + cost((20, 2.0)) - epsilon_of_order(0.0, 6.0, 1e-5), rel=1e-9
    )
    assert dp.verify(both, quick=True).ok
    with pytest.raises(ValueError, match="renyi_order"):
        dp.compose(filtered, certified(charged(3, renyi_order=4.0)))


@pytest.mark.slow
def test_what_remained_of_a_run_is_not_counted_again_in_what_went_on():
    """Composed with its own later certificates, a run costs once."""
    ledger = charged(5)
    early = certified(ledger)
    late = certified(charged(4, ledger=ledger))
    end = certified(charged(11, ledger=ledger))

    for documents in ((early, late), (late, early), (early, late, end), (early, early)):
        both = dp.compose(*documents)
        assert both.epsilon == composed((20, 2.0))
        assert dp.verify(both, quick=True).ok


@pytest.mark.slow
def test_what_remained_of_each_fork_counts():
    """Each of them could have gone on to the end of the plan."""
    ledger = charged(5)
    fork = charged(3, ledger=copy.deepcopy(ledger))
    one = certified(charged(2, ledger=ledger))

    assert dp.compose(one, certified(fork)).epsilon == composed((35, 2.0))


@pytest.mark.slow
def test_a_run_that_an_older_release_charged_has_its_faults(tmp_path):
    """Whatever goes on from its state; a certificate tells of each by name."""
    state = charged(2).state_dict()
    state["advisories"] = 7
    ledger = Ledger(plan())
    ledger.load_state_dict(json.loads(json.dumps(state)))
    document = certified(copy.deepcopy(ledger))
    document.write(tmp_path)
    lines = {
        f.claim: f
        for f in dp.verify(tmp_path / "certificate.json", quick=True).findings
    }
    told = lines.pop("run 1: advisories")

    assert not told.holds
    assert "DP-2026-8" in told.detail
    assert "DP-2026-9" in told.detail
    assert "DP-2026-7" not in told.detail
    assert all(finding.holds for finding in lines.values())
    assert "no fault is known" in str(dp.verify(certified(charged(1)), quick=True))


def test_a_state_of_the_first_version_knew_no_advisory():
    """It was written before there were any."""
    ledger = Ledger(plan())
    rows = [{**PLANNED, "count": 3}]
    ledger.load_state_dict({"version": 1, "segments": {"a": rows}})

    assert ledger.num_advisories == 0


@pytest.mark.parametrize("number", [-1, "9", None])
def test_a_state_with_another_number_of_advisories_is_damaged(number):
    """Nothing of it is loaded."""
    ledger = Ledger(plan())

    with pytest.raises(LedgerError, match="advisories: it is damaged"):
        ledger.load_state_dict({**charged(1).state_dict(), "advisories": number})
    assert ledger.steps == 0


def test_advisories_are_named_by_their_places():
    """A certificate keeps their number, so none may be taken out or moved."""
    names = [advisory.name for advisory in ADVISORIES]
    page = (Path(__file__).parents[2] / "docs/reference/advisories.md").read_text()

    assert names == [f"DP-2026-{n}" for n in range(1, len(names) + 1)]
    for advisory in ADVISORIES:
        row = f"| {advisory.name} | {advisory.fault} | {advisory.affects} |"
        assert row in page


def test_plans_carry_a_version():
    """The first is loaded, a later one is refused by name."""
    row = plan(renyi_order=4.0).to_dict()
    assert PrivacyPlan.from_dict(row) == plan(renyi_order=4.0)
    first = plan().to_dict()
    del first["version"], first["renyi_order"]
    assert PrivacyPlan.from_dict(first) == plan()

    with pytest.raises(ValueError, match="of version 3, and this release of dp reads"):
        PrivacyPlan.from_dict({**row, "version": 3})
