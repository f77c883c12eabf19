"""What the witness of releases notices of defects between gradients and the update.

A file leaves the page of what must be believed only if a defect in it is noticed here.
Each is planted in the file that the table names; each run is honest without it.
"""

import itertools
import math
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp import DPOptimizer, FlatClipping, PrivacyPlan, WrongReleaseError
from dp._mechanism import witness
from dp._mechanism.batch import PendingBatch
from dp._mechanism.current_values import CurrentValues, ScheduledClipping
from dp._mechanism.mechanism import Mechanism
from dp._mechanism.paid_for import Account
from dp._mechanism.private_run import PrivateRun
from dp._mechanism.sums import Sums
from dp._mechanism.witness import ReleaseWitness
from dp.audit._subject import hooked
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.noise._gaussian import witnessed_release
from dp.optimizer._private_step import PrivateStep
from dp.per_sample import Engine
from dp.sampling import UnamplifiedLoader


C = 0.5  # Gradients of the runs are longer.
PLAN = {
    "noise_multiplier": 1.0,
    "max_grad_norm": C,
    "expected_batch_size": 10.0,
    "steps": 20,
    "target_delta": 1e-5,
}


def make_run(
    *,
    model=None,
    inner=torch.optim.Adam,
    clipping=None,
    noise=None,
    make_loader=None,
    **changes,
):
    """Return a private optimizer of a small model, and its loader."""
    sampling = dp.PoissonSampling(sampling_probability=0.5)
    plan = PrivacyPlan(**{"sampling": sampling, **PLAN, **changes})
    if callable(model) and not isinstance(model, nn.Module):
        model = model()
    if model is None:
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    dtype = next(model.parameters()).dtype
    data = TensorDataset(5 * torch.randn(24, 3, dtype=dtype))
    loader = plan.loader(data) if make_loader is None else make_loader(plan, data)
    optimizer = DPOptimizer(
        inner([*model.parameters()]),
        plan=plan,
        loader=loader,
        clipping=clipping,
        noise=noise,
    )
    return model, optimizer, loader


def losses(model, x):
    return 3 * model(x).squeeze(1).square()


def train(run, *, num_steps=3, num_parts=1):
    """Take steps of a run, each batch in so many parts."""
    model, optimizer, loader = run
    parts = itertools.cycle(range(num_parts))
    batches = dp.MicroBatches(loader, per_step=num_parts)
    for (x,), part in zip(batches, parts, strict=False):
        optimizer.backward(lambda batch: losses(model, batch), x)
        if part == num_parts - 1:
            optimizer.step()
            optimizer.zero_grad()
            num_steps -= 1
        if not num_steps:
            break


def changed(owner, name, change):
    """Patch a method by a function of it."""
    return patch.object(owner, name, change(getattr(owner, name)))


def with_kwargs(**changes):
    """Call the right function, with other keyword arguments."""

    def change(right):
        def wrong(*args, **kwargs):
            return right(*args, **{k: changes.get(k, v) for k, v in kwargs.items()})

        return wrong

    return change


def and_then(do):
    """Do something to what the right function returned."""

    def change(right):
        def wrong(*args, **kwargs):
            result = right(*args, **kwargs)
            replaced = do(args[0], result)
            return result if replaced is None else replaced

        return wrong

    return change


def nothing(_right):
    return lambda *_args, **_kwargs: None


def twice(right):
    def wrong(*args, **kwargs):
        right(*args, **kwargs)
        return right(*args, **kwargs)

    return wrong


def released(do):
    """Let a defect of the step change what was released, before it is applied."""
    return changed(
        PrivateStep,
        "_set_private_gradients",
        and_then(lambda self, _stddev: do(self._trainable())),
    )


def of_yesterday():
    """Apply the gradients of the step before."""
    kept = []

    def change(parameters):
        now = [p.grad.clone() for p in parameters]
        if kept:
            for p, grad in zip(parameters, kept[-1], strict=True):
                p.grad = grad
        kept.append(now)

    return released(change)


def raw(parameters):
    parameters[0].grad = torch.ones_like(parameters[0])


def without_one(parameters):
    parameters[1].grad.zero_()


def scaled(parameters):
    parameters[2].grad.mul_(2)


def exchanged(parameters):
    parameters[1].grad, parameters[0].grad = (
        parameters[0].grad[:, 0].clone(),
        parameters[0].grad.clone(),
    )


def left_out(parameters):
    parameters[1].grad = None


def half_the_noise():
    """The noise follows another sigma than the charge: every second reading is half."""
    calls = itertools.count()
    right = CurrentValues.noise_multiplier.fget
    wrong = property(lambda self: right(self) / (1 + next(calls) % 2))
    return patch.object(CurrentValues, "noise_multiplier", wrong)


def noise_for_one_only(_right):
    return lambda self, share, stddev: self.noise.add_(
        [share[0].view(-1)[:1]], stddev=stddev
    )


def noise_beside(_right):
    return lambda self, share, stddev: self.noise.add_(
        [one.clone() for one in share], stddev=stddev
    )


def noise_before_the_charge(right):
    def wrong(self, batch, noises):
        stddev = self._stddev(batch, noises)
        self.noise.add_(batch.sums.buffers, stddev=stddev)
        return right(self, batch, noises)

    return wrong


def by_the_batch(_right):
    """Divide by how many units the batch has."""
    return lambda self, share: [
        one.div_(1 + self.loader.ticket.num_samples) for one in share
    ]


def views_of_one_memory(right):
    def wrong(self, finished):
        views = right(self, finished)
        return [views[0], views[0].view(-1)[: views[1].numel()], *views[2:]]

    return wrong


def double_one(sums, _none):
    sums.of_parameters()[1].mul_(2)


def double_one_of_batch(batch, _none):
    double_one(batch.sums, None)


def with_another_clipping(self, _none):
    self.effective_clipping = ScheduledClipping(
        self.clipping, replace(self.values, assigned={"max_grad_norm": 2 * C})
    )


def with_another_ledger(self, _none):
    self.ledger = Ledger(self.plan)


# By file: what is wrong, and how.
DEFECTS = {
    "mechanism: no charge": lambda: changed(Ledger, "reserve", nothing),
    "mechanism: two charges": lambda: changed(Ledger, "reserve", twice),
    "mechanism: charged as more noise": lambda: changed(
        Ledger, "reserve", with_kwargs(noise_multiplier=1.5)
    ),
    "mechanism: charged for a smaller norm": lambda: changed(
        Ledger, "reserve", with_kwargs(max_grad_norm=C / 2, noise_multiplier=2.0)
    ),
    "mechanism: less noise": lambda: patch.object(
        Mechanism, "_stddev", lambda _self, _batch, _noises: C / 2
    ),
    "mechanism: no noise": lambda: changed(Mechanism, "_add_noise", nothing),
    "mechanism: noise for one": lambda: changed(
        Mechanism, "_add_noise", noise_for_one_only
    ),
    "mechanism: noise beside": lambda: changed(Mechanism, "_add_noise", noise_beside),
    "mechanism: sums change": lambda: changed(
        PendingBatch, "spend_ticket", and_then(double_one_of_batch)
    ),
    "mechanism: noise first": lambda: changed(
        Mechanism, "_charge", noise_before_the_charge
    ),
    "mechanism: divided twice": lambda: changed(Mechanism, "_divide", twice),
    "mechanism: divided by the batch": lambda: changed(
        Mechanism, "_divide", by_the_batch
    ),
    "mechanism: added twice": lambda: changed(Mechanism, "_add_clipped", twice),
    "mechanism: added unseen": lambda: changed(ReleaseWitness, "added", nothing),
    "mechanism: released unseen": lambda: patch.object(
        ReleaseWitness, "releasing", lambda *_: nullcontext()
    ),
    "mechanism: no graph is kept": lambda: changed(
        Engine, "gradients", with_kwargs(keep_graph=False)
    ),
    "mechanism: a ticket is not spent": lambda: changed(
        PendingBatch, "spend_ticket", nothing
    ),
    "mechanism: losses are not compared": lambda: patch(
        "dp._mechanism.mechanism.held_against", lambda *_: {}
    ),
    "sums: of one twice": lambda: changed(Sums, "add", and_then(double_one)),
    "sums: one memory for two": lambda: changed(
        Sums, "_allocated", views_of_one_memory
    ),
    "sums: buffers are copies": lambda: patch.object(
        Sums, "buffers", property(lambda self: [b.clone() for b in self._buffers])
    ),
    "sums: sums are copies": lambda: changed(
        Sums,
        "of_parameters",
        and_then(lambda _self, sums: [one.clone() for one in sums]),
    ),
    "current_values: half the noise": half_the_noise,
    "current_values: no clipping": lambda: patch.object(
        ScheduledClipping, "factors", lambda _self, norms_GB: torch.ones_like(norms_GB)
    ),
    "current_values: another ratio": lambda: patch.object(
        ScheduledClipping, "_ratio", lambda _self: 2.0
    ),
    "current_values: norms are multiplied": lambda: patch.object(
        ScheduledClipping,
        "factors",
        lambda self, norms_GB: self.rule.factors(norms_GB / 3),
    ),
    "private_run: another clipping": lambda: changed(
        PrivateRun, "__post_init__", and_then(with_another_clipping)
    ),
    "private_run: another ledger": lambda: changed(
        PrivateRun, "__post_init__", and_then(with_another_ledger)
    ),
    "private_step: a raw gradient": lambda: released(raw),
    "private_step: a sum is lost": lambda: released(without_one),
    "private_step: a gradient is doubled": lambda: released(scaled),
    "private_step: gradients are exchanged": lambda: released(exchanged),
    "private_step: a gradient is left out": lambda: released(left_out),
    "private_step: those of the step before": of_yesterday,
    "private_step: no release": lambda: changed(
        PrivateStep,
        "_set_private_gradients",
        lambda _right: lambda self: raw(self._trainable()),
    ),
    "dp_optimizer: the step is anyone's": lambda: patch(
        "dp.optimizer._dp_optimizer.protect"
    ),
    "clipping: twice the norm": lambda: changed(
        FlatClipping, "factors", and_then(lambda _self, factors_GB: 2 * factors_GB)
    ),
    "clipping: one unit is not clipped": lambda: changed(
        FlatClipping,
        "factors",
        and_then(lambda _self, factors_GB: factors_GB[:, :1].fill_(1) and None),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.filterwarnings("ignore")
def test_a_defect_between_gradients_and_update_is_noticed(name):
    """In the first steps, before the optimizer moves a parameter."""
    torch.manual_seed(3)
    with DEFECTS[name](), pytest.raises(WrongReleaseError):
        train(make_run())


def overwritten(right):
    """Keep the gradients of the last part of a batch alone."""

    def wrong(self, *args):
        self._views = None
        right(self, *args)

    return wrong


def of_two_parts(right):
    """Add the first part of a batch to both."""

    def wrong(self, gradients, *args):
        kept.setdefault(id(self), (gradients, *args))
        right(self, *kept[id(self)])

    kept = {}
    return wrong


@pytest.mark.parametrize("add", [overwritten, of_two_parts])
@pytest.mark.filterwarnings("ignore:units= names fewer")
def test_a_part_of_a_batch_that_is_lost_is_noticed(add):
    """Sums are torch's own after each part, and not only after the last."""
    run = make_run(sampling=dp.PoissonSampling(sampling_probability=1.0))
    with changed(Sums, "add", add), pytest.raises(WrongReleaseError, match="torch's"):
        train(run, num_parts=2)


def test_a_loader_of_another_rate_is_noticed():
    """A batch that is drawn with a larger probability than is charged costs more."""

    def more_often(_plan, data):
        return dp.PoissonLoader(data, sampling_probability=0.9, steps=5)

    with (
        patch("dp.optimizer._dp_optimizer.check_loader"),
        pytest.raises(WrongReleaseError, match="larger probability"),
    ):
        train(make_run(make_loader=more_often))


def truncated(plan, data):
    """Draw as often as planned, and let an example displace another."""
    return dp.PoissonLoader(
        data,
        sampling_probability=plan.sampling_probability,
        steps=plan.steps,
        max_batch_size=15,
    )


def in_order(_plan, data):
    return UnamplifiedLoader(data, batch_size=4)


def by_rows(plan, data):
    """Draw rows, of which a unit may have several."""
    return dp.PoissonLoader(
        data, sampling_probability=plan.sampling_probability, steps=plan.steps
    )


OTHER_DRAWS = {
    "truncated": (truncated, {}, "not drawn as planned"),
    "in order": (in_order, {}, "larger probability"),
    "by rows": (by_rows, {"unit_of_privacy": "one value of user"}, "drawn by rows"),
}


@pytest.mark.parametrize("name", OTHER_DRAWS)
def test_a_loader_of_other_draws_is_noticed(name):
    """Also where nobody compared it with the plan before."""
    make_loader, changes, message = OTHER_DRAWS[name]
    with (
        patch("dp.optimizer._dp_optimizer.check_loader"),
        patch("dp._mechanism.mechanism.check_grouped"),
        pytest.raises(WrongReleaseError, match=message),
    ):
        train(make_run(make_loader=make_loader, **changes))


def test_losses_that_nobody_looked_at_are_not_released():
    """Of several losses an example, none is taken for another example's."""
    model, optimizer, loader = make_run()
    (x,) = next(iter(loader))
    with (
        patch("dp.optimizer._private_step.check_losses"),
        pytest.raises(RuntimeError, match="invalid for input"),
    ):
        optimizer.backward(losses(model, x)[:, None] * torch.ones(2))


def test_a_debugging_seed_that_is_not_told_is_noticed():
    """Or else a certificate would state an epsilon of noise that anyone can repeat."""
    with (
        patch.object(PrivateRun, "note_debugging"),
        pytest.raises(WrongReleaseError, match="debugging seed"),
    ):
        train(make_run(noise=dp.GaussianNoise(rng="debug", seed=1)))


def forgotten(right):
    """Leave every first of two calls out: the mechanism's own, before the witness'."""
    calls = itertools.count()
    return lambda *args: right(*args) if next(calls) % 2 else None


def test_weights_that_another_ledger_paid_for_are_noticed():
    """Also where nobody asked before the release."""
    run = make_run()
    train(run, num_steps=1)
    with changed(Account, "check", forgotten), pytest.raises(dp.LedgerError):
        train(make_run(model=run[0]), num_steps=1)


@pytest.mark.filterwarnings("ignore:units= names fewer")
def test_a_part_of_a_batch_that_is_released_alone_is_noticed():
    """Also where nobody asked before the release."""
    model, optimizer, loader = make_run()
    (x,) = next(iter(loader))
    optimizer.backward(losses(model, x[1:]))
    with (
        changed(PendingBatch, "check_complete", forgotten),
        pytest.raises(dp.SamplingMismatchError, match="has not seen every example"),
    ):
        optimizer.step()


def test_an_accounted_noise_above_what_was_added_is_noticed():
    """A charge is of what was planned, if that is less noise and not more."""
    with (
        changed(
            dp.ledger._terms,
            "accounted",
            and_then(lambda _plan, c: replace(c, planned_noise_multiplier=3.0)),
        ),
        pytest.raises(WrongReleaseError, match="not the noise that was charged"),
    ):
        train(make_run())


def test_a_unit_that_counts_twice_is_noticed():
    """More gradients than units were drawn, where admission let them pass."""
    model, optimizer, loader = make_run()
    (x,) = next(iter(loader))
    with (
        patch.object(PendingBatch, "admit"),
        patch("dp._mechanism.batch.RowsRead.admit"),
    ):
        for _ in range(2):
            optimizer.backward(losses(model, x))
    with pytest.raises(WrongReleaseError, match="two gradients"):
        optimizer.step()


def test_what_is_wrong_later_ends_the_run():
    """The ledger keeps it, nothing of it reaches the optimizer, no epsilon holds."""
    model, optimizer, _ = run = make_run()
    train(run, num_steps=1)
    before = [p.detach().clone() for p in model.parameters()]
    with (
        changed(Mechanism, "_divide", twice),
        pytest.raises(WrongReleaseError) as caught,
    ):
        train(run)

    assert "noisy sum over the expected batch size" in str(caught.value)
    assert all(map(torch.equal, before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert optimizer.spent().epsilon == math.inf
    assert "NOT PRIVATE: a release was wrong" in optimizer.certificate().to_text()
    with pytest.raises(dp.LedgerError, match="a release was wrong"):
        train(run)


def test_sums_that_are_wrong_before_the_first_release_can_be_mended():
    """Nothing was charged, and nothing left."""
    run = make_run()
    with changed(Sums, "add", and_then(double_one)), pytest.raises(WrongReleaseError):
        train(run)
    train(run)

    assert math.isfinite(run[1].spent().epsilon)


def model_of(dtype):
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1)).to(dtype)


class PartlyUsed(nn.Sequential):
    """A model with a parameter that no loss depends on, and one without elements."""

    def __init__(self):
        super().__init__(nn.Linear(3, 1))
        self.unused = nn.Parameter(torch.zeros(2, 2))
        self.empty = nn.Parameter(torch.zeros(0))


def frozen():
    model = model_of(torch.float32)
    model[0].weight.requires_grad = False
    return model


class Turned(nn.Linear):
    """A linear model with a frozen complex parameter."""

    def __init__(self):
        super().__init__(3, 1)
        self.phase = nn.Parameter(torch.ones(1, dtype=torch.complex64))
        self.phase.requires_grad = False


HONEST = {
    "as it is": {},
    "momentum, upwards": {
        "inner": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, maximize=True)
    },
    "two optimizers": {
        "inner": lambda p: dp.JointOptimizer(
            torch.optim.SGD(p[:1]), torch.optim.Adam(p[1:])
        )
    },
    "normalised": {"clipping": dp.AutomaticClipping(max_grad_norm=C)},
    "by layer": {"clipping": dp.PerLayerClipping(max_grad_norm=C)},
    "by group": {
        "clipping": dp.PerGroupClipping(group_sizes=(3, 1), max_grad_norms=(0.3, 0.4))
    },
    "scheduled": {
        "noise_multiplier": dp.Schedule(((1, 2.0), (2, 1.0))),
        "max_grad_norm": dp.Schedule(((1, C), (3, 1.0))),
    },
    "fast noise": {"noise": dp.GaussianNoise(rng="fast")},
    "debugging": {"noise": dp.GaussianNoise(rng="debug", seed=1)},
    "empty batches": {"sampling": dp.PoissonSampling(sampling_probability=0.02)},
    "truncated": {
        "sampling": dp.TruncatedPoissonSampling(
            sampling_probability=0.5, max_batch_size=20, dataset_size=24
        ),
        "neighboring_relation": "replace_one",
    },
    "allocated": {
        "sampling": dp.RandomAllocation(steps_per_pass=4),
        "neighboring_relation": "zero_out",
    },
    "unamplified": {
        "sampling": dp.Unamplified(),
        "make_loader": lambda _plan, data: UnamplifiedLoader(data, batch_size=4),
    },
    "float64": {"model": lambda: model_of(torch.float64)},
    "bfloat16": {"model": lambda: model_of(torch.bfloat16)},
    "float16": {"model": lambda: model_of(torch.float16)},
    "a frozen parameter": {"model": frozen},
    "a frozen complex parameter": {"model": Turned},
    "a parameter without loss": {"model": PartlyUsed},
}


@pytest.mark.parametrize("num_parts", [1, 3])
@pytest.mark.parametrize("name", HONEST)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_an_honest_run_is_admitted(name, num_parts, monkeypatch):
    """Twin: whatever is compared at every step, rounding is no alarm."""
    monkeypatch.setattr(witness, "_EVERY", 1)
    looks = []
    monkeypatch.setattr(
        ReleaseWitness,
        "_check_charge",
        and_then(lambda _self, _none: looks.append(1))(ReleaseWitness._check_charge),
    )
    run = make_run(**HONEST[name])

    train(run, num_steps=6, num_parts=num_parts)

    assert len(looks) == 6
    assert run[1].mechanism.witness.has_compared


@pytest.mark.parametrize("every", [1, 10**9])
def test_releases_are_compared_at_first_and_then_at_random(every, monkeypatch):
    """No count tells which one is: the operating system draws."""
    monkeypatch.setattr(witness, "_EVERY", every)
    run = make_run()
    train(run, num_steps=3)

    with changed(Mechanism, "_divide", twice):
        if every > 1:
            train(run)
        else:
            with pytest.raises(WrongReleaseError):
                train(run)


BLIND = {
    "correlated": {
        "sampling": dp.CyclicPoisson(sampling_probability=0.25, bands=4),
        "correlation": dp.BandedNoise.optimal(4, steps=20),
    },
    "scaled": {"clipping": dp.ScaledClipping(max_grad_norm=C)},
    "quantile": {
        "clipping": dp.QuantileClipping(max_grad_norm=C),
        "expected_batch_size": 100.0,
    },
    "sparse": {"clipping": dp.SparseClipping(max_grad_norm=C, tables=(0,))},
}


@pytest.mark.parametrize("name", BLIND)
def test_what_is_not_compared_is_known(name):
    """The page names it: the files that a comparison excuses are believed then."""
    _, optimizer, _ = make_run(**BLIND[name])

    assert optimizer.mechanism.witness.is_blind


COMPARED = "Releases that were not compared with their charge"
UNCOMPARED = "Releases were made as they were charged where none was compared"


def test_a_certificate_says_whether_releases_were_compared():
    """Whoever reads it knows what was taken on trust, also after a resume."""
    seen, unseen = make_run(), make_run(**BLIND["correlated"])
    before = said(seen[1]), said(unseen[1])
    for run in (seen, unseen):
        train(run, num_steps=2)
    resumed = make_run(**BLIND["correlated"])[1]
    resumed.load_state_dict(unseen[1].state_dict())

    assert before == ([], [])
    assert said(seen[1]) == [COMPARED]
    assert said(unseen[1]) == said(resumed) == [UNCOMPARED]


def said(optimizer):
    document = optimizer.certificate().to_text()
    return [one for one in (COMPARED, UNCOMPARED) if one in document]


def test_a_certificate_says_that_nothing_could_be_compared(monkeypatch):
    """As of batches whose gradients are not finite; the ledger is told in the end."""
    monkeypatch.setattr(witness, "_MOST_TRIES", 3)
    monkeypatch.setattr(witness, "_EVERY", 10**9)
    monkeypatch.setattr(Engine, "own_sums", lambda *_: None)
    run = make_run()

    train(run, num_steps=1)
    assert said(run[1]) == [UNCOMPARED]
    assert not run[1].ledger.remarks.assumptions  # The next one may be compared.
    train(run, num_steps=3)
    assert UNCOMPARED in " ".join(run[1].ledger.remarks.assumptions)


def test_a_run_that_cannot_be_compared_is_not_tried_for_ever(monkeypatch):
    """As one whose every batch has a gradient that is not finite."""
    monkeypatch.setattr(witness, "_MOST_TRIES", 4)
    monkeypatch.setattr(witness, "_EVERY", 10**9)
    monkeypatch.setattr(Engine, "own_sums", lambda *_: None)
    run = make_run()

    train(run, num_steps=3)
    assert run[1].mechanism.witness.is_due
    train(run, num_steps=1)
    assert not run[1].mechanism.witness.is_due


def test_what_cannot_be_compared_is_admitted(make_plan):
    """Complex parameters, or those of a device, have no elements that are read here."""
    plan = make_plan()
    ledger = Ledger(plan)
    witness = ReleaseWitness(plan, FlatClipping(max_grad_norm=1.0), ledger, Engine())

    parameter = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    parameter.grad = torch.ones_like(parameter)

    witness.admit([{"params": [parameter]}])

    assert ledger.failure is None


def test_a_batch_is_admitted_where_torch_has_no_sums_of_a_part():
    """What cannot be compared of its first part is not asked for of the next."""
    run = make_run()
    with patch.object(Engine, "own_sums", lambda *_: None):
        train(run, num_steps=2, num_parts=2)

    assert run[1].ledger.steps == 2


def test_a_run_that_goes_on_within_a_pass_owes_nothing_for_it():
    """Its first step has paid for all of it, before a state was loaded."""
    sampling = dp.RandomAllocation(steps_per_pass=4)
    model, optimizer, loader = make_run(sampling=sampling, steps=8)
    for step, (x,) in zip(range(3), loader, strict=False):
        optimizer.backward(lambda batch: losses(model, batch), x)
        optimizer.step()
        if step == 0:
            optimizer.load_state_dict(optimizer.state_dict())

    assert optimizer.ledger.segments().keys() - {optimizer.ledger.segment}
    assert optimizer.ledger.failure is None


def test_an_interrupt_leaves_no_witness_behind():
    """Of a release that was broken off, the next one's noise is none of its business."""
    seen = []
    context = witnessed_release(lambda add, _: seen.append("stale") or add())
    context.__enter__()
    context.gen.close()  # As where the frame that it was in goes away.

    GaussianNoise().add_([torch.zeros(3)], stddev=1.0)

    assert seen == []


def test_what_an_interrupt_left_is_replaced_by_the_next_release():
    """A debugger raises anywhere, also where the witness was about to be taken away."""
    run = make_run()
    stale = witnessed_release(
        lambda _add, _sums: pytest.fail("a stale witness was called")
    )
    stale.__enter__()

    train(run, num_steps=2)

    stale.gen.close()
    GaussianNoise().add_([torch.zeros(3)], stddev=1.0)


@pytest.mark.parametrize("is_patched_around", ["the step", "all of it"])
def test_a_program_may_look_at_sums_in_place_of_noise(is_patched_around):
    """What stands in for the noise stage is the program's own; later ones are compared."""
    model, optimizer, loader = make_run()
    sums = []

    def look(_self, tensors, *, stddev):
        sums.extend(tensor.clone() for tensor in tensors)
        return stddev

    stands_in = patch.object(GaussianNoise, "add_", look)
    for (x,), _ in zip(loader, range(2), strict=False):
        with stands_in if is_patched_around == "all of it" else nullcontext():
            optimizer.backward(lambda batch: losses(model, batch), x)
            with stands_in if is_patched_around == "the step" else nullcontext():
                optimizer.step()
    assert sums

    assert optimizer.mechanism.witness.is_due


def test_an_audit_reports_what_is_wrong_by_itself():
    """The run's own witness would end the run before it is told of it."""
    optimizer = make_run()[1]
    seen = []

    with hooked(lambda *_: seen.append(optimizer.mechanism.witness.is_blind)):
        train(make_run(), num_steps=1)

    assert seen == [True]
    assert not optimizer.mechanism.witness.is_blind
