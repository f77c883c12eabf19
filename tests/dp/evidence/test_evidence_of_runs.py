"""What is recorded of a run's losses, told while it trains, and certified."""

import copy
import json
import pickle
import warnings
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import EvidenceWarning, LedgerError, SampleMixingError, compose, verify
from dp.certificate import _json
from dp.certificate._evidence import evidence_lines
from dp.evidence import Evidence, Watch, callers_level, checked_on, looking, num_due
from dp.evidence._comparison import differ_throughout, same_losses
from dp.evidence._schedule import EVERY, FIRST, is_due, picks_call
from dp.evidence._surprise import Surprises, spread_of
from dp.ledger import Ledger

from .conftest import every_step_is_due, evidence_of, out_of_reach
from .losses import cross_entropy


def batch_of(size=6):
    return torch.randn(size, 4), torch.randint(0, 3, (size,))


@pytest.fixture
def model():
    return nn.Linear(4, 3)


def losses_of(model):
    return lambda batch: cross_entropy(model(batch[0]), batch[1])


def train(optimizer, model, steps, *, finished=False):
    function = losses_of(model)
    for _ in range(steps):
        batch = batch_of()
        if finished:
            optimizer.backward(function(batch))
        else:
            optimizer.backward(function, batch)
        optimizer.step()


# When to look.


def test_the_first_steps_are_due_and_then_one_in_fifty():
    """Of 100 000 steps, 2000 are: within five standard deviations."""
    number = num_due("a" * 32, 100_000)

    assert all(is_due("any", step) for step in range(FIRST))
    assert abs(number - 100_000 / EVERY) < 5 * (100_000 / EVERY) ** 0.5


def test_steps_follow_from_the_id_of_the_process():
    """Ranks that share it look together, and other processes at other steps."""
    steps = [[s for s in range(3000) if is_due(key, s)] for key in ("a", "a", "b")]

    assert steps[0] == steps[1] != steps[2]


def test_of_many_parts_each_has_its_chance():
    """The j-th with probability 1 / j; in the first steps all of them."""
    counts = [
        sum(picks_call("a", step, call) for step in range(FIRST, 3000 + FIRST))
        for call in (1, 2, 8)
    ]

    assert counts[0] == 3000
    assert abs(counts[1] - 1500) < 5 * 28
    assert abs(counts[2] - 375) < 5 * 19
    assert picks_call("a", FIRST - 1, 8)


@pytest.mark.parametrize("size", [4, 600])
def test_a_spread_is_the_largest_over_the_mean_of_the_others(size):
    """Of few losses and of many, and of any shape."""
    losses = torch.ones(size)
    losses[1] = -8.0

    assert spread_of(losses) == pytest.approx(8.0)
    assert spread_of(losses.view(2, -1).bfloat16()) == pytest.approx(8.0)
    losses[2] = torch.nan
    assert spread_of(losses) == float("inf")
    assert spread_of(torch.zeros(size)) == spread_of(torch.ones(1)) == 0.0


def test_surprises_are_capped():
    """Three at first, and one more in 100 steps."""
    surprises = Surprises()
    admitted = [surprises.admits(3.0**k, step=0) for k in range(6)]

    assert admitted == [True, True, True, False, False, False]
    assert not surprises.admits(3.0**5, step=1000)
    assert surprises.admits(3.0**7, step=100)


def test_the_first_losses_are_no_surprise(make_optimizer, model):
    """Looks at the first steps know of them; few later ones break the record."""
    optimizer = make_optimizer(model)
    num_calls, counter = [0], out_of_reach(calls=0)

    class Function:
        def __call__(self, batch):
            counter.calls += 1
            return losses_of(model)(batch)

    for _ in range(FIRST):
        optimizer.backward(Function(), batch_of())
        optimizer.step()
    before = counter.calls
    train(optimizer, model, 1)
    num_calls[0] = counter.calls - before

    assert num_calls == [0]


# What is recorded.


def test_every_step_is_counted_by_its_kind(make_optimizer, model):
    """And its looks as the id of the process picks them."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 70)
    segment = optimizer.ledger.segment

    record = evidence_of(optimizer)
    assert (record.steps, record.evaluated) == (70, 70)
    assert record.looks == num_due(segment, 70)
    assert record.other_sizes
    train(optimizer, model, 2, finished=True)
    assert evidence_of(optimizer).evaluated == 70
    assert evidence_of(optimizer).steps == 72


def test_a_step_with_finished_losses_in_one_part_is_one_of_them(make_optimizer, model):
    """Nobody saw all of it."""
    optimizer = make_optimizer(model, sampling=dp.Unamplified(backwards_per_step=2))
    optimizer.backward(losses_of(model), batch_of())
    optimizer.backward(losses_of(model)(batch_of()))
    optimizer.step()

    assert evidence_of(optimizer).evaluated == 0


def test_that_a_draw_was_empty_is_not_recorded(make_plan):
    """Steps without losses count as the others do, the first as well."""
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=0.5), steps=8)
    for finished in (False, True):
        model = nn.Linear(4, 3)
        loader = plan.loader(TensorDataset(torch.randn(2, 4), torch.zeros(2).long()))
        optimizer = dp.DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
        )
        for x, y in loader:
            if len(x) and finished:
                optimizer.backward(losses_of(model)((x, y)))
            elif len(x):
                optimizer.backward(losses_of(model), (x, y))
            optimizer.step()
        record = evidence_of(optimizer)
        assert record.steps == 8
        assert record.evaluated == (0 if finished else 8)
        assert record.looks == (0 if finished else num_due(optimizer.ledger.segment, 8))


@pytest.mark.parametrize("trainers", [False, True])
def test_a_draw_of_no_examples_does_not_reach_the_model(make_plan, trainers):
    """Many a model cannot take it: an error would show that the draw was empty."""
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=1e-9), steps=3)
    model = nn.Linear(4, 3)
    loader = plan.loader(TensorDataset(torch.randn(2, 4), torch.zeros(2).long()))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)

    def loss_fn(batch):
        raise AssertionError(batch)

    for batch in loader:
        if trainers:
            optimizer.private_loss(loss_fn, batch).backward()
        else:
            optimizer.backward(loss_fn, batch)
        optimizer.step()
    assert optimizer.ledger.steps == 3


def test_examples_beside_an_empty_draw_are_still_refused(make_plan):
    """Of another batch, or of one that the caller added to."""
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=1e-9), steps=3)
    model = nn.Linear(4, 3)
    loader = plan.loader(TensorDataset(torch.randn(2, 4), torch.zeros(2).long()))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    next(iter(loader))

    with pytest.raises(dp.SamplingMismatchError, match="more losses than"):
        optimizer.backward(losses_of(model), batch_of())


def test_a_run_without_losses_states_none(make_plan, model):
    """Noise alone, and nothing seen."""
    plan = make_plan(sampling=dp.PoissonSampling(sampling_probability=1e-9), steps=2)
    loader = plan.loader(TensorDataset(torch.randn(2, 4), torch.zeros(2).long()))
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
    )
    for _ in loader:
        optimizer.step()

    assert evidence_of(optimizer) == Evidence(steps=2)


@pytest.mark.usefixtures("always")
def test_an_example_alone_is_no_evidence(make_optimizer, model):
    """Nobody can take its place; it is counted as due all the same."""
    optimizer = make_optimizer(model)
    optimizer.backward(losses_of(model), batch_of(1))
    optimizer.step()
    optimizer.backward(losses_of(model), batch_of(0))
    optimizer.step()

    assert evidence_of(optimizer).looks == 2
    assert not evidence_of(optimizer).other_sizes


def test_a_checkpoint_carries_the_evidence(make_optimizer, model):
    """A process that goes on from it has a record of its own."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 5)
    resumed = make_optimizer(model)
    resumed.load_state_dict(optimizer.state_dict())
    train(resumed, model, 4)
    resumed.load_state_dict(optimizer.state_dict())  # Knows less than it does.

    records = resumed.mechanism.watch.records
    assert sorted(record.steps for record in records.values()) == [4, 5]
    assert sum(record.looks for record in records.values()) >= 2 * FIRST
    assert (
        resumed.certificate().runs[0].evidence.keys()
        == resumed.ledger.segments().keys()
    )


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- made here


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_knows_what_was_seen(make_optimizer, model, copied):
    """As its ledger does."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 4)

    assert (
        copied(optimizer).mechanism.watch.records == optimizer.mechanism.watch.records
    )


def test_a_state_of_an_earlier_version_has_no_evidence(make_optimizer, model):
    """It loads; of its steps nothing was seen."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 4)
    state = optimizer.state_dict()
    ledger = json.loads(state["param_groups"][0]["dp_ledger"])
    del ledger["evidence"]
    state["param_groups"][0]["dp_ledger"] = json.dumps(ledger)
    resumed = make_optimizer(model)
    resumed.load_state_dict(state)

    (record,) = resumed.certificate().runs[0].evidence.values()
    assert record == Evidence(steps=4)


@pytest.mark.parametrize(
    "change",
    [
        {"looks": 9},
        {"steps": True},
        {"other_sizes": 1},
        {"checked": 3},
        {"evaluated": -1},
    ],
)
def test_damaged_evidence_is_refused(change):
    """With the reason."""
    row = {**Evidence(steps=5, evaluated=4, looks=3).to_dict(), **change}

    with pytest.raises(LedgerError, match="is damaged"):
        Evidence.from_dict(row)
    with pytest.raises(LedgerError, match="is damaged"):
        Evidence.from_dict({"steps": 1})


# What is told.


def test_finished_losses_are_warned_of_once(make_optimizer, model):
    """With the remedy, at the caller's line."""
    optimizer = make_optimizer(model)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(optimizer, model, 3, finished=True)

    (warning,) = told
    assert warning.category is EvidenceWarning
    assert "backward(loss_fn, batch)" in str(warning.message)
    assert "dp.check" in str(warning.message)
    assert warning.filename == __file__


def test_a_passed_check_of_the_model_counts(make_optimizer, model):
    """And its day stands in the certificate."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dp.check(model, lambda m, b: losses_of(m)(b), batch_of()).ok
        optimizer = make_optimizer(model)
        train(optimizer, model, 2, finished=True)
    certificate = optimizer.certificate()

    day = evidence_of(optimizer).checked
    assert day == checked_on(model.parameters())
    assert f"dp.check found nothing in this model on {day}" in certificate.to_text()
    assert verify(certificate, quick=True).ok


def test_a_failed_check_or_one_of_another_model_does_not(make_optimizer, model):
    """A layer that was not checked is trained as well."""
    other = nn.Linear(4, 3)
    dp.check(other, lambda m, b: losses_of(m)(b), batch_of())
    report = dp.check(model, lambda m, b: losses_of(m)(b) / len(b[0]), batch_of())

    assert not report.ok
    assert checked_on(model.parameters()) is None
    assert checked_on([]) is None
    with pytest.warns(EvidenceWarning, match="came finished"):
        train(make_optimizer(model, other), model, 1, finished=True)


def test_a_buffer_that_holds_private_data_is_told(make_optimizer):
    """It is saved with the model; the losses do not depend on it."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            self.mean = x.detach().mean(0)
            return self.layer(x)

    model = Remembering()
    with pytest.warns(EvidenceWarning, match=r"into Remembering.mean: they"):
        train(make_optimizer(model), model, 2)


def test_a_batch_that_cannot_be_exchanged_is_told(make_optimizer, model):
    """No part of it has an axis of the examples, and no loader knows them."""
    optimizer = make_optimizer(model)
    graph = torch.randn(9, 4)
    owner = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])

    def pooled(batch):
        nodes, owner = batch
        return (
            model(nodes)
            .new_zeros(3, 3)
            .index_add(0, owner, model(nodes))
            .square()
            .sum(1)
        )

    with pytest.warns(
        EvidenceWarning, match="has an axis as long as its losses"
    ) as told:
        optimizer.backward(pooled, (graph, owner))
    optimizer.step()
    optimizer.backward(pooled, (graph, owner))
    assert len(told) == 1
    assert evidence_of(optimizer).inconclusive
    assert "a look could not tell" in optimizer.certificate().to_text()


def test_a_batch_that_cannot_be_copied_is_told(make_optimizer, model):
    """It may have been written to since."""

    class Stream(dict):
        def __copy__(self):
            raise TypeError("a stream")

    batch = Stream(enumerate(batch_of()))
    with pytest.warns(EvidenceWarning, match="has an axis"):
        make_optimizer(model).backward(losses_of(model), batch)


def test_a_loss_function_knows_whether_it_is_looked_at(make_optimizer, model):
    """For what it does outside of its modules, such as logging."""
    seen = []

    log = out_of_reach(lines=seen)

    def losses(batch):
        log.lines.append(looking())
        return losses_of(model)(batch)

    make_optimizer(model).backward(losses, batch_of())

    assert seen[0] is False
    assert len(seen) > 1
    assert set(seen[1:]) == {True}
    assert not looking()


def test_casts_of_a_look_are_not_kept(make_optimizer, model):
    """Autocast would keep a weight without its gradient, for a later part of the step."""
    seen = []

    log = out_of_reach(lines=seen)

    def losses(batch):
        log.lines.append((looking(), torch.is_autocast_cache_enabled()))
        return losses_of(model)(batch).float()

    with torch.autocast("cpu", torch.bfloat16):
        make_optimizer(model).backward(losses, batch_of())
        assert torch.is_autocast_cache_enabled()

    assert set(seen) == {(False, True), (True, False)}


def test_a_framework_can_be_silenced_meanwhile(make_optimizer, model):
    """Whose logs are out of reach, too."""
    entered = []

    @contextmanager
    def silence():
        entered.append(None)
        yield

    optimizer = make_optimizer(model)
    optimizer.mechanism.watch.silenced.append(silence)
    optimizer.backward(losses_of(model), batch_of())

    assert len(entered) > 1


# What the form demands.


@pytest.mark.parametrize("verb", ["backward", "private_loss"])
def test_a_function_needs_a_batch_and_losses_have_none(make_optimizer, model, verb):
    """Before anything is evaluated."""
    call = getattr(make_optimizer(model), verb)

    with pytest.raises(TypeError, match="without its batch"):
        call(losses_of(model))
    with pytest.raises(TypeError, match="beside finished losses"):
        call(losses_of(model)(batch_of()), batch_of())
    with pytest.raises(TypeError, match="got a int"):
        call(3)
    with pytest.raises(TypeError, match="tensor with one loss an example, got a float"):
        call(lambda _: 3.0, batch_of())
    with pytest.raises(ValueError, match="one loss an example"):
        call(lambda b: losses_of(model)(b).mean(), batch_of())


def test_a_private_loss_of_a_function_is_that_of_its_losses(make_optimizer, model):
    """Scaled as a gradient scaler does."""
    batch, twin = batch_of(), copy.deepcopy(model)
    gradients = []
    for one, given in (
        (model, (losses_of(model), batch)),
        (twin, (losses_of(twin)(batch),)),
    ):
        optimizer = make_optimizer(one, noise_multiplier=0.0)
        (optimizer.private_loss(*given) * 1024).backward()
        optimizer.step()
        gradients.append(one.weight.grad.clone())

    torch.testing.assert_close(*gradients)
    assert float(gradients[0].norm()) > 0


@pytest.mark.usefixtures("always")
def test_all_views_of_an_image_are_looked_at(make_optimizer, model):
    """Losses of units, which the caller names."""
    units = torch.arange(6).repeat_interleave(2)

    def views(batch):
        x, y = (part.repeat_interleave(2, dim=0) for part in batch)
        return cross_entropy(model(x), y)

    def mixed(batch):
        return views(batch) / views(batch).mean().item()

    optimizer = make_optimizer(model)
    optimizer.backward(views, batch_of(), units=units, reduction="mean")
    optimizer.step()
    assert not evidence_of(optimizer).inconclusive
    with pytest.raises(SampleMixingError):
        optimizer.backward(mixed, batch_of(), units=units, reduction="mean")


def test_micro_batches_of_a_loader_are_looked_at(make_plan, model):
    """Each part of the first steps, whatever its size."""
    plan = make_plan(steps=5)
    loader = plan.loader(TensorDataset(torch.randn(20, 4), torch.zeros(20).long()))
    optimizer = dp.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, loader=loader
    )
    with every_step_is_due():
        for number, part in enumerate(dp.MicroBatches(loader, per_step=3), start=1):
            optimizer.backward(losses_of(model), part)
            if number % 3 == 0:
                optimizer.step()

    assert evidence_of(optimizer).looks == 5
    assert not evidence_of(optimizer).inconclusive


# What is certified.


def test_a_certificate_states_and_verifies_it(make_optimizer, model):
    """From the JSON alone."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 4)
    train(optimizer, model, 2, finished=True)
    certificate = optimizer.certificate()
    again = dp.Certificate.from_json(certificate.to_json())

    assert again == certificate
    text = certificate.to_text()
    assert "losses                at 4 steps by a function, which was evaluated" in text
    assert "at 2 steps as finished numbers, which the library did not" in text
    assert "also computed alone, and among fewer others" in text
    assert verify(certificate, quick=True).ok


@pytest.mark.slow
def test_steps_without_an_optimizer_have_no_evidence(make_plan):
    """A ledger that was charged by hand."""
    ledger = Ledger(make_plan())
    empty = dp.Certificate.of(ledger, noise=dp.GaussianNoise(), num_parameters=3)
    ledger.reserve(sampling_probability=0.5, noise_multiplier=1.0, max_grad_norm=1.0)
    certificate = dp.Certificate.of(ledger, noise=dp.GaussianNoise(), num_parameters=3)

    (record,) = certificate.runs[0].evidence.values()
    assert record == Evidence(steps=1)
    assert evidence_lines(empty.runs[0]) == ["    losses                at no step"]


def altered(certificate, change):
    body = json.loads(certificate.to_json())
    change(body["runs"][0]["evidence"])
    del body["checksum"]
    return json.dumps({**body, "checksum": _json.sha256(body)})


def set_to(**fields):
    return lambda evidence: next(iter(evidence.values())).update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_to(looks=5), "states 5 looks, and its id picks"),
        (set_to(looks=0, other_sizes=False), "states 0 looks, and its id picks"),
        (set_to(looks=0, evaluated=0), "states a comparison of sizes, and no look"),
        (set_to(steps=9), "states losses of 9 steps, and 6 were charged"),
        (set_to(checked="yesterday"), "which is no day"),
        (set_to(checked="20260131"), "which is no day"),
        (lambda evidence: evidence.clear(), "does not state what was seen"),
        (lambda evidence: evidence.update(b=Evidence().to_dict()), "does not state"),
    ],
    ids=[
        "more looks",
        "fewer looks",
        "no look",
        "more steps",
        "no day",
        "another form",
        "nothing",
        "of another process",
    ],
)
def test_altered_evidence_is_found(make_optimizer, model, tmp_path, change, said):
    """Whatever a hand changes in it, if the checksum was made anew."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 6)
    path = tmp_path / "c.json"
    path.write_text(altered(optimizer.certificate(), change))
    (finding,) = [f for f in verify(path, quick=True).findings if not f.holds]

    assert finding.claim == "run 1: evidence"
    assert said in finding.detail


def test_a_certificate_without_evidence_is_refused(make_optimizer, model, tmp_path):
    """It was made by hand, or by an earlier version."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 3)
    body = json.loads(optimizer.certificate().to_json())
    del body["runs"][0]["evidence"]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(body))

    with pytest.raises(LedgerError, match="not a certificate"):
        verify(path, quick=True)


def test_fewer_looks_are_possible_if_some_steps_had_finished_losses(
    make_optimizer, model
):
    """Which steps they were is not stated."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 2, finished=True)
    train(optimizer, model, 4)
    certificate = optimizer.certificate()

    assert evidence_of(optimizer).looks == num_due(optimizer.ledger.segment, 6) - 2
    assert verify(certificate, quick=True).ok


@pytest.mark.slow
def test_composed_certificates_keep_the_longest_evidence(make_optimizer, model):
    """Of one process that two of them know."""
    optimizer = make_optimizer(model)
    train(optimizer, model, 3)
    early = optimizer.certificate()
    train(optimizer, model, 3)
    late, others = optimizer.certificate(), nn.Linear(4, 3)
    other = make_optimizer(others)
    train(other, others, 2, finished=True)
    both = compose(early, other.certificate(), late)

    assert both.steps == 8
    seen = [record for run in both.runs for record in run.evidence.values()]
    assert sorted((r.steps, r.evaluated) for r in seen) == [(2, 0), (6, 6)]
    assert verify(both, quick=True).ok


def test_a_watch_of_no_batch_is_quiet():
    """The record of what never trained."""
    assert Watch().records == {}


# What several ranks do.


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr("dp.evidence._watch.rank_and_size", lambda: (0, 2))


_counter = out_of_reach(calls=0)


class Counted:
    """A loss function that counts its calls where a look does not see it."""

    def __init__(self, function):
        self.function = function

    def __call__(self, batch):
        _counter.calls += 1
        return self.function(batch)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("first", [True, False])
def test_ranks_evaluate_as_often_whatever_they_drew(model, first):
    """Collectives have to meet: for halves, one alone, what is carried, sizes, gradients."""
    numbers = set()
    for size in (0, 1, 2, 9):
        watch = Watch({} if first else {"a": Evidence(steps=1)})
        _counter.calls = 0
        watch.losses(Counted(losses_of(model)), batch_of(size), segment="a")
        numbers.add(_counter.calls)

    assert numbers == ({25} if first else {9})


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_that_sees_mixing_raises(model):
    """Or tells, if its function does not repeat itself or draws by its data."""
    watch = Watch()
    with pytest.raises(SampleMixingError):
        watch.losses(
            lambda b: losses_of(model)(b) / losses_of(model)(b).mean().item(),
            batch_of(),
            segment="a",
        )
    counter = Counted(lambda b: b[0].sum(1) * _counter.calls)
    with pytest.warns(EvidenceWarning, match="could not be seen"):
        watch.losses(counter, batch_of(), segment="a")


@pytest.mark.usefixtures("two_ranks")
def test_ranks_see_what_is_carried_and_what_depends_on_sizes(model):
    """At the first look, for which all of them make as many evaluations."""
    before = [torch.zeros(())]

    def carries(batch):
        losses = losses_of(model)(batch) + before[0]
        before[0] = losses.detach().mean()
        return losses

    for function, told in (
        (carries, "the batch before it"),
        (lambda b: losses_of(model)(b) / len(b[0]), "when there were fewer"),
    ):
        with pytest.raises(SampleMixingError, match=told):
            Watch().losses(function, batch_of(), segment="a")


@pytest.mark.usefixtures("two_ranks")
def test_ranks_cannot_compare_sizes_where_random_numbers_are_drawn(model):
    """Each may draw another number of them; the evidence does not claim it."""
    watch = Watch()
    watch.losses(
        lambda b: losses_of(model)((b[0] + torch.randn_like(b[0]), b[1])),
        batch_of(),
        segment="a",
    )
    watch.released("a")

    assert not watch.records["a"].other_sizes


@pytest.fixture
def not_due():
    """Return a segment whose steps are not due for a while."""

    def rest(segment):
        return any(is_due(segment, FIRST + step) for step in range(6))

    return next(key for key in map(str, range(999)) if not rest(key))


def gated(model):
    """Losses that are rescaled where one is an outlier."""

    def losses(batch):
        losses = model(batch[0]).square().sum(1)
        is_open = len(losses) > 1 and losses.detach().max() > 100
        return losses / losses.mean().item() if is_open else losses

    return losses


def step_of(watch, function, batch, segment, *, others_ask=False):
    """Take one step of a rank, in whose exchange another rank may ask."""
    watch.losses(function, batch, segment=segment)
    watch.together.answer(asked=watch.together.asks or others_ask)
    watch.released(segment)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("late", [False, True], ids=["host", "accelerator"])
def test_a_surprise_of_one_rank_is_looked_at_by_all(model, not_due, monkeypatch, late):
    """In the next step, or one later where losses are read late."""
    if late:
        monkeypatch.setattr("dp.evidence._together.is_at_hand", lambda _: False)
    watch = Watch({not_due: Evidence(steps=FIRST)})
    function = Counted(gated(model))
    x, y = batch_of()
    outlier = (x.clone(), y)
    outlier[0][0] *= 1e4
    step_of(watch, function, (x, y), not_due)
    step_of(watch, function, outlier, not_due)
    for _ in range(late):
        step_of(watch, function, (x, y), not_due)

    with pytest.raises(SampleMixingError, match="of its batch were replaced"):
        watch.losses(function, (x, y), segment=not_due)


@pytest.mark.usefixtures("two_ranks")
def test_ranks_look_as_often_whoever_was_surprised(model, not_due):
    """At what each kept, also an empty batch, or one of a rank that is not surprised."""
    numbers = set()
    for size, others_ask in ((0, True), (1, True), (9, True), (9, False)):
        watch = Watch({not_due: Evidence(steps=FIRST)})
        function = Counted(lambda b: model(b[0]).square().sum(1))
        batch = batch_of(size)
        for _ in range(2):
            step_of(watch, function, batch, not_due)
        if not others_ask:
            batch[0][0] *= 1e4
        step_of(watch, function, batch, not_due, others_ask=others_ask)
        _counter.calls = 0
        step_of(watch, function, batch_of(size), not_due)
        numbers.add(_counter.calls)

    assert numbers == {1 + 8}


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_that_kept_nothing_has_nothing_to_look_at(model, not_due):
    """As one whose losses came finished."""
    watch = Watch({not_due: Evidence(steps=FIRST)})
    watch.together.answer(asked=True)
    _counter.calls = 0
    watch.losses(Counted(losses_of(model)), batch_of(), segment=not_due)

    assert _counter.calls == 1


# Corners.


@pytest.mark.usefixtures("always")
def test_the_next_step_is_looked_at_if_numpy_was_drawn_from_unexpectedly(model):
    """Its generator's state is put aside only for functions that draw from it."""
    noisy = [False]

    def losses(batch):
        noise = np.random.randn(6, 4) if noisy[0] else np.zeros((6, 4))
        x = batch[0] + torch.as_tensor(noise, dtype=torch.float32)
        return cross_entropy(model(x), batch[1])

    watch, looks = Watch(), []
    with mock.patch.object(Watch, "_look", side_effect=lambda *_: looks.append(None)):
        for draws, expected in ((False, 1), (True, 1), (True, 2), (True, 3)):
            noisy[0] = draws
            watch.losses(losses, batch_of(), segment="a")
            watch.released("a")
            assert len(looks) == expected


def test_late_losses_that_are_no_surprise_are_let_go(
    make_optimizer, model, monkeypatch
):
    """Those of an accelerator, read one step later."""
    monkeypatch.setattr("dp.evidence._watch.is_at_hand", lambda _: False)
    optimizer = make_optimizer(model, lr=0.0)
    batch = batch_of()
    for _ in range(FIRST + 4):
        optimizer.backward(losses_of(model), batch)
        optimizer.step()

    assert evidence_of(optimizer).steps == FIRST + 4


def test_where_nobody_called_a_warning_names_the_first_line(monkeypatch):
    """As in an interpreter that is embedded."""
    monkeypatch.setattr("dp.evidence._callers.inspect.currentframe", lambda: None)

    assert callers_level() == 0


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ([1.0, 2.0], [1.0], False),
        ([1.0, torch.inf], [1.0, 3.0], False),
        ([torch.nan, torch.inf], [torch.nan, torch.inf], True),
        ([1.0, torch.nan], [1.0 + 2e-7, torch.nan], True),
        ([1.0, 2.0], [1.00001, 2.0], False),
        ([1e-9, 2.0, 2.0], [3e-8, 2.0, 2.0], True),
    ],
)
def test_losses_are_compared_up_to_rounding(before, after, same):
    """Finite against not finite is a difference; small ones carry errors of large ones."""
    assert same_losses(torch.tensor(before), torch.tensor(after)) is same


def test_sixteen_bits_are_compared_more_closely():
    """A statistic of the batch moves such losses by few roundings."""
    one = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    steps = [one + k * 2.0**-7 for k in (1, 2, 4)]

    assert [same_losses(one, step) for step in steps] == [True, True, False]


def test_sizes_are_told_by_what_changes_all_losses():
    """Kernels for other sizes round otherwise, which changes some."""
    losses = torch.tensor([1.0, 2.0, torch.nan, 0.0])

    assert not differ_throughout(losses, losses)
    assert not differ_throughout(losses, losses * torch.tensor([2.0, 1.0, 1.0, 1.0]))
    assert differ_throughout(losses[:2], losses[:2] / 4)
