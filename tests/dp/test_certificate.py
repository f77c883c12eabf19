"""That a certificate says what was done, and that a false one is found out."""

import copy
import dataclasses
import json
import math
from importlib.metadata import version

import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

from dp import (
    GaussianNoise,
    LedgerError,
    PoissonSampling,
    PrivacyError,
    Schedule,
    Unamplified,
    compose,
)
from dp._reports import bound
from dp.accounting import (
    ReferenceAccountant,
    Release,
    _accountant,
    _agreement,
    _own_losses,
    _widths,
    epsilon,
    group_epsilon,
    to_dp_event,
)
from dp.accounting._group_losses import group_losses
from dp.certificate import Certificate, _json, verify
from dp.ledger import Ledger
from dp.plan import PrivacyPlan


CHARGE = {"sampling_probability": 0.25, "noise_multiplier": 8.0, "max_grad_norm": 1.0}

LOUD = {**CHARGE, "noise_multiplier": 20.0}


def plan(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.25),
        "noise_multiplier": 8.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 10.0,
        "steps": 20,
        "target_delta": 1e-5,
        "unit_of_privacy": "one patient",
    }
    return PrivacyPlan(**{**numbers, **changes})


def charged(count, *, ledger=None, charge=CHARGE, **changes):
    ledger = Ledger(plan(**changes)) if ledger is None else ledger
    for _ in range(count):
        ledger.reserve(**charge)
    return ledger


def quickly(certificate):
    """Verify it as most tests do; a handful asks dp_accounting, which takes longer."""
    return verify(certificate, quick=True)


def certificate(ledger, **about):
    about = {"noise": GaussianNoise(), "num_parameters": 1000, **about}
    return Certificate.of(ledger, **about)


@pytest.fixture(scope="module")
def one():
    """A run with a target, of which 12 steps in two segments were taken."""
    ledger = charged(8, target_epsilon=3.0)
    resumed = copy.deepcopy(ledger)
    return certificate(
        charged(4, ledger=resumed),
        private_data_touches=["The learning rate was chosen on the same patients."],
        assumptions=["Patients agreed."],
    )


@pytest.mark.slow
def test_it_states_what_the_ledger_was_charged(one):
    """Every number is the accountant's, of the releases that were charged."""
    releases = (Release(sampling_probability=0.25, noise_multiplier=8.0, count=20),)
    spent = epsilon(releases, delta=1e-5, neighboring_relation="add_or_remove_one")

    assert (one.epsilon, one.delta) == (spent.epsilon, 1e-5)
    assert one.epsilon_pld == spent.epsilon_pld
    assert one.epsilon_rdp == spent.epsilon_rdp
    assert one.epsilon_unamplified > one.epsilon
    assert (one.steps, one.key_epochs) == (12, 2)
    assert one.is_private
    assert [charge.count for charge in one.charges] == [8, 4]
    assert one.delta_error == GaussianNoise().delta_error(20_000, epsilon=one.epsilon)
    assert one.epsilon_of_steps_taken < one.epsilon


def test_text_has_the_words_that_a_reader_needs(one):
    """The relation, the unit, groups, segments, touches, and what is not covered."""
    text = one.to_text()

    for words in (
        f"epsilon = {bound(one.epsilon)} at delta = 1e-05 (PLD)",
        "add_or_remove_one",
        "one patient",
        f"{bound(one.epsilon_of_groups[2], 2)} (2)",
        "without amplification",
        "added to delta",
        "key epochs              2",
        "20 steps, target epsilon 3",
        "8 x q = 0.25, sigma = 8, C = 1",
        "The learning rate was chosen on the same patients.",
        "Patients agreed.",
        "AES-256",
        "sha256",
        "does not cover",
    ):
        assert words in text


def test_what_nobody_said_is_not_taken_for_nothing():
    """Silence about other looks at the data is printed as silence."""
    ledger = charged(1)

    assert "not stated: whether hyper-parameters" in certificate(ledger).to_text()
    assert "by nothing" in certificate(ledger, private_data_touches=()).to_text()


@pytest.mark.slow
def test_without_noise_it_says_not_private(tmp_path):
    """Epsilon is infinite, in words, in JSON and in the picture."""
    noiseless = {**CHARGE, "noise_multiplier": 0.0}
    statement = certificate(charged(2, charge=noiseless, noise_multiplier=0.0))
    statement.write(tmp_path)

    assert statement.epsilon == math.inf
    assert not statement.is_private
    assert "NOT PRIVATE" in statement.to_text()
    assert json.loads(statement.to_json())["epsilon"] == "inf"
    assert quickly(tmp_path / "certificate.json").ok


def test_a_fast_generator_has_no_bound_on_delta():
    """It is named, and so is what is not known of it."""
    statement = certificate(charged(1), noise=GaussianNoise(rng="fast"))

    assert statement.delta_error == math.inf
    assert "NOT cryptographic" in statement.to_text()
    assert "no bound is known" in statement.to_text()
    assert quickly(statement).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "charge", "words"),
    [
        (
            {"sampling": Unamplified(), "neighboring_relation": "replace_one"},
            {**CHARGE, "sampling_probability": 1.0},
            "none for this relation",
        ),
        (
            {"noise_multiplier": Schedule([(1, 8.0), (9, 9.0)])},
            CHARGE,
            "a schedule of 2 phases, from 8",
        ),
    ],
    ids=["unamplified", "schedule"],
)
def test_other_plans_are_stated_and_verify(tmp_path, changes, charge, words):
    """Whatever the plan is, it survives the way through JSON."""
    statement = certificate(charged(1, charge=charge, **changes))
    statement.write(tmp_path)

    assert words in statement.to_text()
    assert Certificate.from_json(statement.to_json()) == statement
    assert quickly(tmp_path / "certificate.json").ok


def test_before_the_first_step_it_costs_nothing():
    """Nothing was released, by no accountant."""
    statement = certificate(charged(0))

    assert statement.epsilon == statement.delta_error == statement.steps == 0
    assert statement.accountant == "none"
    assert quickly(statement).ok


@pytest.mark.slow
def test_it_is_written_as_json_text_and_picture(one, tmp_path):
    """And the JSON alone is enough to check it."""
    one.write(tmp_path / "report")
    folder = tmp_path / "report"
    verification = quickly(folder / "certificate.json")

    assert (folder / "certificate.txt").read_text() == one.to_text()
    assert (folder / "certificate.png").read_bytes().startswith(b"\x89PNG")
    assert Certificate.from_json((folder / "certificate.json").read_text()) == one
    assert verification.ok
    assert {finding.claim for finding in verification.findings} > {
        *("document", "epsilon", "epsilon_pld", "epsilon_rdp", "epsilon_unamplified"),
        *("epsilon of 2 units", "epsilon of 5 units", "epsilon of 10 units"),
        *("delta_error", "steps", "key_epochs", "accountant", "run 1: plan"),
        *("run 1: target epsilon", "run 1: planned steps", "run 1: sampling"),
    }


def leaves(body, path=()):
    """The path of every number in a JSON document."""
    if isinstance(body, dict | list):
        items = body.items() if isinstance(body, dict) else enumerate(body)
        return [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    is_number = isinstance(body, int | float) and not isinstance(body, bool)
    return [path] if is_number else []


def altered(body, path, change):
    body = copy.deepcopy(body)
    *parents, last = path
    holder = body
    for key in parents:
        holder = holder[key]
    holder[last] = change(holder[last])
    return body


def claims_that_fail(body, path):
    path.write_text(json.dumps(body))
    try:
        return {f.claim for f in quickly(path).findings if not f.holds}
    except LedgerError:
        return {"not a certificate"}


def test_every_altered_number_is_found(one, tmp_path):
    """Whichever number a hand changes, the document says no."""
    body = json.loads(one.to_json())
    paths = leaves(body)

    assert len(paths) > 20
    assert _json.checksum_holds(json.dumps(body))
    for path in paths:
        wrong = altered(body, path, lambda number: number * 2 or 1)
        assert not _json.checksum_holds(json.dumps(wrong)), path
    assert "document" in claims_that_fail(wrong, tmp_path / "c.json")


def checksummed(body):
    body = {key: item for key, item in body.items() if key != "checksum"}
    return {**body, "checksum": _json.sha256(body)}


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        (("epsilon",), "epsilon"),
        (("epsilon_pld",), "epsilon_pld"),
        (("epsilon_rdp",), "epsilon_rdp"),
        (("epsilon_unamplified",), "epsilon_unamplified"),
        (("epsilon_of_groups", "5"), "epsilon of 5 units"),
        (("delta",), "run 1: delta"),
        (("delta_error",), "delta_error"),
        (("steps",), "steps"),
        (("key_epochs",), "key_epochs"),
        (("runs", 0, "num_parameters"), "delta_error"),
        (("runs", 0, "plan", "steps"), "run 1: plan"),
        (("runs", 0, "plan", "expected_batch_size"), "run 1: plan"),
        (("runs", 0, "plan", "max_grad_norm"), "run 1: plan"),
        (("runs", 0, "plan", "target_epsilon"), "run 1: plan"),
        (("runs", 0, "plan", "sampling", "sampling_probability"), "run 1: sampling"),
    ],
    ids=str,
)
def test_a_number_that_was_altered_with_its_checksum_is_found(
    one, tmp_path, path, claim
):
    """Its own line says no: the checksum is not what the truth rests on."""
    body = altered(
        json.loads(one.to_json()),
        path,
        lambda number: number // 2 if isinstance(number, int) else number / 2,
    )

    assert claim in claims_that_fail(checksummed(body), tmp_path / "c.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampling_probability", "noise_multiplier", "count"])
def test_an_altered_charge_is_found(one, tmp_path, name):
    """Less sampling, more noise or fewer steps than happened: another epsilon."""
    body = json.loads(one.to_json())
    (segment, *_) = body["runs"][0]["segments"].values()
    segment[0][name] *= 2

    assert "epsilon" in claims_that_fail(checksummed(body), tmp_path / "c.json")


def without(body, path):
    *holders, last = path
    for place in holders:
        body = body[place]
    del body[last]


@pytest.mark.parametrize(
    ("path", "claim"),
    [
        (("runs", 0, "plan", "neighboring_relation"), "fields"),
        (("runs", 0, "plan", "unit_of_privacy"), "fields"),
        (("runs", 0, "failure"), "fields"),
        (("runs", 0, "num_advisories"), "fields"),
        (("runs", 0, "public_end"), "fields"),
    ],
    ids=str,
)
def test_what_is_left_out_or_cannot_be_is_found(one, tmp_path, path, claim):
    """A reader would take what is read in its place for what was stated."""
    body = json.loads(one.to_json())
    without(body, path)

    assert claim in claims_that_fail(checksummed(body), tmp_path / "c.json")


@pytest.mark.parametrize("norm", [-1.0, 0.0, math.inf])
def test_a_charge_of_an_impossible_norm_is_found(one, tmp_path, norm):
    body = json.loads(one.to_json())
    (segment, *_) = body["runs"][0]["segments"].values()
    segment[0]["max_grad_norm"] = "inf" if norm == math.inf else norm

    failing = claims_that_fail(checksummed(body), tmp_path / "c.json")
    assert failing & {"run 1: charges", "not a certificate"}


@pytest.mark.slow
def test_a_charge_accounted_at_less_than_it_cost_is_found(one):
    """Whatever the epsilons say."""
    (run,) = one.runs
    key, (charge, *_) = next(iter(run.segments.items()))
    less = dataclasses.replace(
        charge, planned_noise_multiplier=2 * charge.noise_multiplier
    )
    segments = {**run.segments, key: (less,)}
    wrong = dataclasses.replace(
        one, runs=(dataclasses.replace(run, segments=segments),)
    )

    assert "run 1: charges" in {f.claim for f in quickly(wrong).findings if not f.holds}


def test_a_release_that_knows_more_faults_is_told(one):
    """Faults that only a newer release knows cannot be looked up here."""
    (run,) = one.runs
    newer = dataclasses.replace(run, num_advisories=run.num_advisories + 1)
    wrong = dataclasses.replace(one, runs=(newer,))

    assert {f.claim for f in quickly(wrong).findings if not f.holds} == {
        "run 1: release"
    }


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"accountant": "RDP"}, "accountant"),
        ({"neighboring_relation": "zero_out"}, "run 1: relation"),
        ({"unit_of_privacy": "one hospital"}, "run 1: unit"),
        ({"epsilon_rdp": None}, "epsilon_rdp"),
        ({"epsilon_of_groups": {2: 0.1}}, "epsilon of 10 units"),
        ({"delta": 2.0}, "charges"),
    ],
    ids=str,
)
def test_altered_words_are_found(one, change, claim):
    """What the numbers are about is compared with the plan's words."""
    wrong = dataclasses.replace(one, **change)

    assert claim in {f.claim for f in quickly(wrong).findings if not f.holds}


@pytest.mark.parametrize(
    ("unit", "assumed"),
    [
        (
            "one training example",
            "Every row of the data is made of one example, which no other row is.",
        ),
        ("one patient", "Each unit that was drawn holds all data of one patient."),
        (
            "one value of patient_id",
            "All rows of one person have the same value of patient_id, and nobody else's have it.",
        ),
    ],
)
def test_what_a_unit_is_taken_for_has_to_be_stated(unit, assumed):
    """A claim about people says what makes rows people's."""
    statement = certificate(charged(1, unit_of_privacy=unit))
    silent = dataclasses.replace(
        statement,
        assumptions=tuple(s for s in statement.assumptions if s != assumed),
    )

    assert assumed in statement.to_text()
    assert quickly(statement).ok
    assert [f.claim for f in quickly(silent).findings if not f.holds] == ["assumptions"]


def test_examples_need_no_such_assumption():
    """That a row is a training example is no claim about anybody."""
    statement = certificate(charged(1, unit_of_privacy="one training example"))

    assert not any("unit" in sentence for sentence in statement.assumptions)


def test_tensors_that_were_declared_public_are_stated():
    """What weights were computed with stands in the document, as a declaration."""
    ledger = charged(1)
    ledger.declare_public(["basis: float32 of shape (8, 3)"])
    statement = certificate(ledger)
    (run,) = statement.runs
    claimed = [s for s in statement.assumptions if "declared public" in s]
    silent = dataclasses.replace(
        statement,
        assumptions=tuple(s for s in statement.assumptions if s not in claimed),
    )

    assert run.declared_public == ("basis: float32 of shape (8, 3)",)
    assert "basis: float32 of shape (8, 3)" in statement.to_text()
    assert len(claimed) == 1
    assert Certificate.from_json(statement.to_json()) == statement
    assert quickly(statement).ok
    assert [f.claim for f in quickly(silent).findings if not f.holds] == ["assumptions"]


def test_a_certificate_without_declarations_mentions_none():
    """The twin of the test above: nothing is said where nothing was declared."""
    assert "declared public" not in certificate(charged(1)).to_text()


def test_a_run_beyond_its_plan_is_found(one):
    """More steps than planned, or more than the target, is no valid run."""
    (run,) = one.runs
    shorter = dataclasses.replace(run.plan, steps=3, target_epsilon=0.1)
    run = dataclasses.replace(
        run, plan=shorter, plan_sha256=_json.sha256(shorter.to_dict())
    )
    wrong = dataclasses.replace(one, runs=(run,))

    assert {f.claim for f in quickly(wrong).findings if not f.holds} == {
        "run 1: planned steps",
        "run 1: remaining steps",
        "run 1: target epsilon",
    }


@pytest.mark.slow
def test_verifying_rests_on_dp_accounting_alone(one, monkeypatch, tmp_path):
    """Nothing of the losses by which it was stated is used; each line says so."""
    one.write(tmp_path)
    monkeypatch.delattr("dp.accounting._own_losses.composed")
    _accountant.bound_by_pld.cache_clear()
    _widths._interval_of.cache_clear()
    seen = []
    found = verify(tmp_path / "certificate.json", progress=lambda *at: seen.append(at))
    lines = {finding.claim: finding.detail for finding in found.findings}

    assert found.ok
    assert found.computed == f"by dp_accounting {version('dp-accounting')} alone"
    assert found.computed in str(found)
    for claim in (
        "epsilon",
        "epsilon_rdp",
        "epsilon_unamplified",
        "epsilon of 5 units",
    ):
        assert lines[claim].endswith(found.computed)
    assert not lines["steps"].endswith("alone")
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.fixture
def erring(monkeypatch):
    """Let the package's own epsilons be too small by a hundred-thousandth."""
    right = _own_losses.epsilon_of
    caches = (_accountant.bound_by_pld, _agreement.check_agreement)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(
        "dp.accounting._own_losses.epsilon_of",
        lambda *about: right(*about) * (1 - 1e-5),
    )
    yield monkeypatch
    for cache in caches:
        cache.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("erring")
def test_losses_that_err_are_not_certified():
    """By a hundred-thousandth only: dp_accounting is asked before anything is stated."""
    with pytest.raises(PrivacyError, match="by the accounting of this package, but"):
        certificate(charged(3, charge=LOUD, noise_multiplier=20.0))
    release = Release(sampling_probability=0.25, noise_multiplier=20.0, count=3)
    with pytest.raises(PrivacyError, match="by the losses of this package, but"):
        _agreement.check_agreement((release,), 1e-5, "zero_out")


@pytest.mark.slow
def test_an_epsilon_that_says_nothing_is_certified_as_it_is():
    """Ten millions: a run without privacy in all but name, as a baseline."""
    plan = PrivacyPlan(
        sampling=PoissonSampling(sampling_probability=0.1),
        noise_multiplier=4e-4,
        max_grad_norm=1.0,
        expected_batch_size=5.0,
        steps=3,
        target_delta=1e-5,
    )

    ledger = Ledger(plan)
    for _ in range(plan.steps):
        ledger.reserve(
            sampling_probability=0.1, noise_multiplier=4e-4, max_grad_norm=1.0
        )
    stated = certificate(ledger)

    assert stated.epsilon == plan.guarantee().epsilon > 1e6
    assert all(e > 1e6 for e in stated.epsilon_of_groups.values())


@pytest.mark.slow
def test_a_closed_form_that_errs_is_found(erring):
    """Were it certified all the same, verifying would find it."""
    for check in ("check_agreement", "check_recomputed"):
        erring.setattr(f"dp.certificate._document.{check}", lambda *_, **__: None)
    wrong = certificate(charged(3, charge=LOUD, noise_multiplier=20.0, steps=3))
    by_itself, by_library = quickly(wrong), verify(wrong)

    assert by_itself.ok
    assert by_itself.computed == "by the closed form of this package"
    assert {f.claim for f in by_library.findings if not f.holds} == {
        "epsilon",
        "epsilon_pld",
        "epsilon_unamplified",
        "epsilon_of_steps_taken",
        "epsilon of 2 units",
        "epsilon of 5 units",
        "epsilon of 10 units",
    }


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
def test_both_ways_cost_a_group_the_same(relation):
    """Whether losses are found by our bisection or by dp_accounting's search."""
    about = {"delta": 1e-5, "neighboring_relation": relation, "group_size": 2}
    ours = group_epsilon(KINDS, **about)

    assert group_epsilon(
        KINDS, **about, library=ReferenceAccountant()
    ) == pytest.approx(ours, rel=1e-7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "forwarding-dp-certificate/1"}',
        '{"format": "forwarding-dp-certificate/5"}',
        '{"format": "forwarding-dp-certificate/5", "checksum": 1, "assumptions": 3}',
    ],
)
def test_a_document_that_is_not_a_certificate_is_refused(tmp_path, text):
    """With the reason, as one kind of error."""
    path = tmp_path / "c.json"
    path.write_text(text)

    with pytest.raises(LedgerError, match="certificate"):
        quickly(path)


@pytest.mark.slow
def test_several_optimizers_on_one_dataset_are_composed(tmp_path):
    """What both released together costs more than either, and verifies."""
    first = certificate(charged(3, steps=3), private_data_touches=["One look."])
    quieter = {**CHARGE, "noise_multiplier": 6.0}
    second = certificate(
        charged(2, charge=quieter, noise_multiplier=6.0, steps=2),
        private_data_touches=[],
    )
    both = compose(first, second)
    both.write(tmp_path)
    together = epsilon(
        [
            Release(sampling_probability=0.25, noise_multiplier=8.0, count=3),
            Release(sampling_probability=0.25, noise_multiplier=6.0, count=2),
        ],
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    )

    assert both.epsilon == together.epsilon > max(first.epsilon, second.epsilon)
    assert (both.steps, both.key_epochs) == (5, 2)
    assert both.private_data_touches == ("One look.",)
    assert "run 2" in both.to_text()
    assert quickly(tmp_path / "certificate.json").ok
    looser = compose(both, delta=1e-3)
    assert looser.epsilon < both.epsilon
    assert quickly(looser).ok


@pytest.mark.slow
def test_what_two_certificates_share_counts_once():
    """Two that went on from one checkpoint share the steps before it."""
    ledger = charged(4)
    fork = charged(2, ledger=copy.deepcopy(ledger))
    before, after = certificate(ledger), certificate(fork)

    assert compose(before, after).steps == 6
    assert compose(after, before).steps == 6
    assert compose(before, before).steps == 4
    assert compose(certificate(charged(0)), certificate(charged(0))).steps == 0
    assert compose(before, after).private_data_touches is None


def test_what_either_of_two_certificates_published_is_stated():
    """Of the same charges, which one of the two states: the other is left out."""
    ledger = charged(2)
    one = certificate(ledger, released="the weights")
    other = certificate(ledger, released="the weights, and their mean")

    for documents in ((one, other), (other, one)):
        both = compose(*documents)
        (run,) = both.runs
        for document in documents:
            assert document.released in both.released.split("; ")
        assert run.released == both.released
        assert quickly(both).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"unit_of_privacy": "one visit"},
            "share their unit_of_privacy, got 'one pati",
        ),
        ({"neighboring_relation": "zero_out"}, "share their neighboring_relation"),
        ({"target_delta": 1e-6}, "share their delta, got 1e-05, 1e-06"),
    ],
)
def test_statements_of_different_kinds_cannot_be_composed(changes, told):
    """An epsilon is about one relation, one unit and one delta."""
    with pytest.raises(ValueError, match=told):
        compose(certificate(charged(1)), certificate(charged(1, **changes)))


def test_composing_nothing_is_refused():
    """There is no plan to say what it would be about."""
    with pytest.raises(ValueError, match="compose needs a certificate"):
        compose()


KINDS = (
    Release(sampling_probability=0.25, noise_multiplier=8.0, count=12),
    Release(sampling_probability=1.0, noise_multiplier=9.0, count=2),
)


@pytest.mark.parametrize("kind", KINDS, ids=["poisson", "whole"])
def test_a_group_costs_more_than_its_size_in_proportion(kind):
    """The bound of a group of one is that of one example; larger ones grow faster."""
    about = {"delta": 1e-5, "neighboring_relation": "add_or_remove_one"}
    of_one = epsilon([kind], **about).epsilon_pld
    one, two, five = (
        group_epsilon((kind,), group_size=size, **about) for size in (1, 2, 5)
    )

    assert of_one <= one * (1 + 1e-3) <= of_one * 1.05
    assert 2 * of_one < two < five / 2


def test_losses_of_a_group_are_those_of_dp_accounting():
    """Only the search for where a loss is reached is our own."""
    theirs = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        standard_deviation=3.0,
        sensitivities=[0.0, 1.0, 2.0],
        sampling_probs=[0.5625, 0.375, 0.0625],
        value_discretization_interval=0.02,
    )
    ours = group_losses(
        group_size=2, sampling_probability=0.25, sigma=3.0, interval=0.02
    )

    for spent in (0.01, 0.5, 2.0):
        assert ours.get_delta_for_epsilon(spent) == pytest.approx(
            theirs.get_delta_for_epsilon(spent), rel=1e-9
        )


def test_replacing_a_group_is_removing_and_adding_one():
    """So it costs at least twice, and at least what one replacement costs."""
    about = {"delta": 1e-5, "group_size": 2}
    once = group_epsilon(KINDS, neighboring_relation="zero_out", **about)
    replaced = group_epsilon(KINDS, neighboring_relation="replace_one", **about)
    single = epsilon(KINDS, delta=1e-5, neighboring_relation="replace_one").epsilon

    hopeless = group_epsilon(
        (Release(sampling_probability=1.0, noise_multiplier=0.1, count=1),),
        neighboring_relation="replace_one",
        **about,
    )

    assert 2 * once <= replaced < 4 * once
    assert replaced > single
    assert hopeless == math.inf


def test_groups_of_nothing_and_without_noise():
    """As for one example: 0, and infinity."""
    about = {"delta": 1e-5, "neighboring_relation": "zero_out", "group_size": 2}
    bare = Release(sampling_probability=0.5, noise_multiplier=0.0, count=1)

    assert group_epsilon((), **about) == 0
    assert group_epsilon((bare,), **about) == math.inf


@pytest.mark.slow
def test_the_optimizer_certifies_itself(make_run):
    """The number of its parameters, its generator and what the user said."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1.0))
    run.train(2)
    statement = run.optimizer.certificate(private_data_touches=["One look."])

    assert statement.runs[0].num_parameters == 4
    assert statement.runs[0].rng == "os"
    assert statement.private_data_touches == ("One look.",)
    assert statement.steps == 2
    assert quickly(statement).ok
    assert torch.__version__ == statement.software["torch"]
    assert len(statement.software["dp source sha256"]) == 64


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("assumptions", {"assumptions": ()}),
        ("assumptions", {"assumptions": ("The generator cannot be predicted.",)}),
        ("not covered", {"not_covered": ("Nothing.",)}),
        ("released", {"released": "one number"}),
    ],
)
def test_standard_sentences_are_demanded(one, claim, change):
    """An epsilon is worth what is said beside it; more may be said, but not less."""
    wrong = dataclasses.replace(one, **change)

    assert {f.claim for f in quickly(wrong).findings if not f.holds} == {claim}


@pytest.mark.parametrize(
    ("planned", "norm", "is_said"),
    [
        (1.0, 1.5, True),
        (1.0, 1.0, False),
        (Schedule([(1, 1.0), (9, 1.5)]), 1.5, False),
    ],
)
def test_clipping_norms_that_were_assigned_have_to_be_public(planned, norm, is_said):
    """They are printed, and may follow the norms of private gradients."""
    charge = {**CHARGE, "max_grad_norm": norm}
    statement = certificate(charged(2, charge=charge, max_grad_norm=planned))
    said = [a for a in statement.assumptions if a.startswith("Clipping norms other")]

    assert len(said) == is_said
    assert quickly(statement).ok
    if is_said:
        without = dataclasses.replace(
            statement,
            assumptions=tuple(a for a in statement.assumptions if a not in said),
        )
        assert not quickly(without).ok


def test_more_may_be_said(one):
    """What a user adds does not hide the standard sentences."""
    more = dataclasses.replace(
        one, assumptions=(*one.assumptions, "The lab is locked.")
    )

    assert quickly(more).ok


def test_a_document_that_says_a_thing_twice_is_refused(one, tmp_path):
    """A person reads the first of two, and a program the last."""
    path = tmp_path / "c.json"
    text = one.to_json()
    path.write_text(text.replace('"epsilon":', '"epsilon": 0.1,\n  "epsilon":', 1))

    with pytest.raises(LedgerError, match="states 'epsilon' more than once"):
        quickly(path)
    with pytest.raises(LedgerError, match="states 'epsilon' more than once"):
        Certificate.from_json(path.read_text())


def test_a_certificate_of_another_format_is_refused_by_name(tmp_path):
    """The message says which release can read it."""
    path = tmp_path / "c.json"
    path.write_text('{"format": "forwarding-dp-certificate/2"}')

    with pytest.raises(LedgerError, match=r"format 'forwarding-dp-certificate/2', and"):
        quickly(path)


def test_the_widths_of_buckets_are_stated(one):
    """With them dp_accounting finds the same epsilon; one that is none is refused."""
    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, one.intervals["epsilon"]
    )
    accountant.compose(to_dp_event(one.runs[0].claimed))
    wrong = dataclasses.replace(one, intervals={**one.intervals, "epsilon": 1e-12})

    assert accountant.get_epsilon(1e-5) == pytest.approx(one.epsilon_pld, rel=1e-6)
    assert [f.claim for f in quickly(wrong).findings] == ["charges"]
    assert not quickly(wrong).ok


@pytest.mark.slow
def test_a_run_that_goes_on_past_its_plan_exceeds_its_target():
    """What bounds the plan bounds no longer run of the same kind of step."""
    target = epsilon(
        [Release(sampling_probability=0.25, noise_multiplier=8.0, count=3)],
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    ).epsilon
    right = certificate(charged(3, steps=3, target_epsilon=target))
    (run,) = right.runs
    (charge,) = run.charges
    more = {"writer": (dataclasses.replace(charge, count=9),)}
    wrong = dataclasses.replace(right, runs=(dataclasses.replace(run, segments=more),))
    refuted = {f.claim for f in quickly(wrong).findings if not f.holds}

    assert quickly(right).ok
    assert {"run 1: planned steps", "run 1: target epsilon"} <= refuted
