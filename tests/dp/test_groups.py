"""Plans that protect a group of units at once, as all examples of one person."""

import dataclasses
import json
import math

import pytest

import dp
from dp import BudgetExhaustedError, GaussianNoise, PoissonSampling, PrivacyPlan
from dp.accounting import Release, epsilon, epsilon_curve, group_epsilon
from dp.certificate import Certificate
from dp.ledger import Ledger


SIZE = 3
CHARGE = {"sampling_probability": 0.25, "noise_multiplier": 8.0, "max_grad_norm": 1.0}


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 8.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
        "group_size": SIZE,
    }
    return PrivacyPlan(**{**numbers, **changes})


def charged(count, **changes):
    ledger = Ledger(plan(**changes))
    for _ in range(count):
        ledger.reserve(**CHARGE)
    return ledger


def cost_of_group(count, *, relation="add_or_remove_one", size=SIZE):
    release = Release(sampling_probability=0.25, noise_multiplier=8.0, count=count)
    return group_epsilon(
        [release],
        delta=1e-5,
        neighboring_relation=relation,
        group_size=size,
        tolerance=1e-3,
    )


def certificate(ledger):
    return Certificate.of(ledger, noise=GaussianNoise(), num_parameters=100)


def fails(statement):
    findings = dp.verify(statement, quick=True).findings
    return {finding.claim for finding in findings if not finding.holds}


@pytest.mark.slow
def test_a_certificate_cannot_take_one_groups_epsilon_for_anothers():
    """Neither the size nor the epsilon of another size holds."""
    statement = certificate(charged(12, steps=12))
    of_one = certificate(charged(12, steps=12, group_size=1))

    assert fails(statement) == set()
    assert {"epsilon", "run 1: group size"} <= fails(
        dataclasses.replace(statement, group_size=5)
    )
    assert {"epsilon", "epsilon_pld"} <= fails(
        dataclasses.replace(
            statement, epsilon=of_one.epsilon, epsilon_pld=of_one.epsilon_pld
        )
    )
    assert "any" not in of_one.to_text().split("unit of privacy")[1].split("\n")[0]


@pytest.mark.parametrize("relation", ["add_or_remove_one", "replace_one"])
def test_a_guarantee_is_of_the_whole_group(relation):
    """Plan and ledger state what that many units cost together, by PLD alone."""
    ledger = charged(20, neighboring_relation=relation)
    spent = ledger.spent()

    assert spent == ledger.plan.guarantee()
    assert spent.epsilon == spent.epsilon_pld == cost_of_group(20, relation=relation)
    assert (spent.epsilon_rdp, spent.accountant) == (None, "PLD")
    assert spent.group_size == SIZE
    assert spent.epsilon > SIZE * plan(group_size=1).guarantee().epsilon


@pytest.mark.slow
@pytest.mark.parametrize(
    "numbers",
    [
        {"steps": 50, "sampling_probability": 0.05},
        {"noise_multiplier": 4.0, "sampling_probability": 0.05},
        {"noise_multiplier": 4.0, "steps": 50, "sampling_probability": "largest"},
        {"steps": 50, "sampling_probability": None},
        {
            "steps": 50,
            "sampling_probability": 0.05,
            "max_batch_size": 30,
            "dataset_size": 200,
            "neighboring_relation": "zero_out",
        },
    ],
    ids=["noise", "steps", "probability", "unamplified", "truncated"],
)
def test_a_plan_for_a_group_keeps_the_target_for_all_of_it(numbers):
    """Whichever number is found, and without wasting a hundredth of the target."""
    planned = dp.plan_for(
        target_epsilon=5.0,
        target_delta=1e-6,
        max_grad_norm=1.0,
        expected_batch_size=10.0,
        group_size=4,
        **numbers,
    )
    of_group = group_epsilon(
        planned.releases(planned.steps),
        delta=1e-6,
        neighboring_relation=planned.neighboring_relation,
        group_size=4,
    )

    assert planned.group_size == 4
    assert 4.95 < planned.guarantee().epsilon <= 5.0
    assert of_group <= 5.0 * (1 + 1e-3)
    assert PrivacyPlan.from_dict(planned.to_dict()) == planned


def test_the_ledger_stops_where_the_group_has_spent_the_target():
    """Far before one example has."""
    ledger = charged(8, target_epsilon=cost_of_group(8) * (1 + 1e-9))

    assert ledger.is_exhausted
    with pytest.raises(BudgetExhaustedError):
        ledger.reserve(**CHARGE)
    assert not charged(8, target_epsilon=cost_of_group(8), group_size=1).is_exhausted


@pytest.mark.slow
def test_epsilons_of_a_group_grow_along_the_run():
    """The curve ends where the guarantee is."""
    release = Release(sampling_probability=0.25, noise_multiplier=8.0, count=20)
    curve = epsilon_curve(
        [release], delta=1e-5, neighboring_relation="zero_out", group_size=SIZE
    )

    assert len(curve) == 21
    assert list(curve) == sorted(curve)
    assert curve[-1] == cost_of_group(20)


@pytest.mark.parametrize("sigma", [0.0, 8.0])
def test_what_costs_nothing_or_everything_does_so_for_groups(sigma):
    """No releases cost 0, and a release without noise is not private."""
    releases = [Release(sampling_probability=0.5, noise_multiplier=sigma, count=1)]
    spent = epsilon(
        releases if sigma == 0 else [],
        delta=1e-5,
        neighboring_relation="zero_out",
        group_size=2,
    )

    assert spent.epsilon == (math.inf if sigma == 0 else 0)
    assert (spent.group_size, spent.epsilon_rdp) == (2, None)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_a_group_is_of_a_whole_number_of_units(size):
    """By the name of the number that is wrong."""
    with pytest.raises(ValueError, match="group_size"):
        plan(group_size=size)
    with pytest.raises(ValueError, match="group_size"):
        epsilon([], delta=1e-5, neighboring_relation="zero_out", group_size=size)


@pytest.mark.slow
def test_a_certificate_is_about_the_group_and_verifies(tmp_path):
    """dp_accounting alone finds the epsilon of the group again."""
    statement = certificate(charged(12, steps=12, target_epsilon=9.0))
    statement.write(tmp_path)
    verification = dp.verify(tmp_path / "certificate.json")

    assert statement.epsilon == cost_of_group(12)
    assert statement.group_size == SIZE
    assert statement.epsilon_of_groups[2] < statement.epsilon
    assert statement.epsilon < statement.epsilon_of_groups[5]
    assert statement.epsilon < statement.epsilon_unamplified
    assert "one training example, any 3 of them at once" in statement.to_text()
    assert "none for groups" in statement.to_text()
    assert Certificate.from_json(statement.to_json()) == statement
    assert verification.ok
    assert "run 1: target epsilon" in {f.claim for f in verification.findings}


@pytest.mark.slow
def test_a_run_beyond_its_target_for_the_group_is_found():
    """An example's epsilon below the target does not make up for the group's."""
    statement = certificate(charged(12, steps=12))
    (run,) = statement.runs
    target = 1.5 * plan(group_size=1).guarantee().epsilon
    tighter = dataclasses.replace(run.plan, target_epsilon=target)
    body = json.loads(statement.to_json())["runs"][0]["plan"]
    run = dataclasses.replace(run, plan=tighter)

    assert body["group_size"] == SIZE
    assert "run 1: target epsilon" in fails(dataclasses.replace(statement, runs=(run,)))


@pytest.mark.slow
def test_certificates_of_other_groups_are_not_composed():
    """Their epsilons are about other people."""
    statement = certificate(charged(12, steps=12))

    with pytest.raises(ValueError, match="share their group_size, got 1, 3"):
        dp.compose(statement, dataclasses.replace(statement, group_size=1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: plan(renyi_order=4.0),
        lambda: dp.plan_for(
            target_epsilon=5.0,
            target_delta=1e-6,
            max_grad_norm=1.0,
            expected_batch_size=10.0,
            steps=5,
            renyi_order="best",
            group_size=2,
        ),
    ],
    ids=["given", "best"],
)
def test_a_renyi_filter_is_for_single_units(make):
    """Its divergence is that of one, so a group has no bound by it."""
    with pytest.raises(ValueError, match=r"a Renyi filter bounds .* single units"):
        make()


@pytest.mark.slow
def test_a_run_that_ended_early_claims_the_rest_for_the_group():
    """What could have stopped it was seen by all of the group."""
    statement = certificate(charged(12))

    assert statement.epsilon == cost_of_group(20)
    assert statement.epsilon_of_steps_taken == cost_of_group(12)
    assert fails(statement) == set()
