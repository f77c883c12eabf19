"""Checkpoints of every kind carry the ledger, and cost nothing to take."""

import io
import json
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from dp import (
    DPOptimizer,
    LedgerError,
    PoissonSampling,
    SamplingMismatchError,
)


OPTIONS = {
    "by name": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def momentum_sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


KINDS = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD, "momentum": momentum_sgd}


@pytest.fixture(autouse=True)
def one_process():
    """Torch warns that a checkpoint of one process is one of one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is (disabled|unavailable)")
        yield


class AppState(Stateful):
    """The recipe of torch's tutorial: one object for model and optimizer."""

    def __init__(self, run):
        self.run = run

    def state_dict(self):
        model, optimizer = get_state_dict(self.run.model, self.run.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state_dict):
        set_state_dict(
            self.run.model,
            self.run.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )


def same_state(optimizer, other):
    """Whether hyperparameters and every buffer agree."""
    states = [o.state_dict() for o in (optimizer, other)]
    buffers, expected = ({k: b for k, b in s["state"].items() if b} for s in states)
    torch.testing.assert_close(buffers, expected)
    rate, expected_rate = (s["param_groups"][0]["lr"] for s in states)
    return rate == expected_rate


@pytest.mark.parametrize(
    ("kind", "options"),
    # torch itself fails to load a full state that holds no tensor.
    [(k, o) for k in KINDS for o in OPTIONS if (k, o) != ("SGD", "full")],
)
def test_a_state_by_parameter_name_resumes_with_its_ledger(make_run, kind, options):
    """As FSDP and pipelines exchange it; only two keys of a state survive that."""
    run, resumed = make_run(KINDS[kind]), make_run(KINDS[kind])
    run.train(3)
    run.optimizer.param_groups[0]["lr"] = 0.05
    state = get_optimizer_state_dict(run.model, run.optimizer, options=OPTIONS[options])

    set_optimizer_state_dict(
        resumed.model, resumed.optimizer, state, options=OPTIONS[options]
    )

    assert resumed.optimizer.spent() == run.optimizer.spent()
    assert resumed.optimizer.ledger.steps == 3
    assert same_state(resumed.optimizer, run.optimizer)
    resumed.train(1)
    assert resumed.optimizer.ledger.steps == 4


class Around(torch.optim.Optimizer):
    """An optimizer around another one, whose state has a form of its own.

    As Lookahead, Magma and ScheduleFreeWrapper of pytorch-optimizer.
    """

    def __init__(self, params, lr):
        self.inner = momentum_sgd(params, lr)
        super().__init__(self.inner.param_groups, {})
        self.num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        return self.inner.step(closure)

    def state_dict(self):
        return {"base": self.inner.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state_dict):
        assert state_dict.keys() == {"base", "num_steps"}
        self.inner.load_state_dict(state_dict["base"])
        self.num_steps = state_dict["num_steps"]


def test_a_state_without_groups_resumes_with_its_ledger(make_run):
    """What the optimizer around another one wrote is what it gets back."""
    run, resumed = make_run(Around), make_run(Around)
    run.train(3)
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)

    resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))

    assert resumed.optimizer.spent() == run.optimizer.spent()
    assert resumed.optimizer.original_optimizer.num_steps == 3
    resumed.train(1)
    assert resumed.optimizer.ledger.steps == 4


def test_nor_is_one_without_groups_loaded_without_its_ledger(make_run):
    """Of the two ways to load it, each takes the states that are its own."""
    run = make_run(Around)
    state = run.optimizer.state_dict()
    bare = run.optimizer.original_optimizer.state_dict()

    with pytest.raises(LedgerError, match="has no ledger"):
        run.optimizer.load_state_dict(bare)
    with pytest.raises(LedgerError, match="has a ledger"):
        run.optimizer.load_state_dict_without_ledger(state)
    run.optimizer.load_state_dict_without_ledger(bare)


@pytest.mark.parametrize("saved", ["recipe", "optimizer"])
def test_a_distributed_checkpoint_on_disk_resumes_with_its_ledger(
    make_run, tmp_path, saved
):
    """By torch's recipe, and with the optimizer itself as the Stateful."""
    run, resumed = make_run(torch.optim.Adam), make_run(torch.optim.Adam)
    run.train(3)
    before, after = (
        {"app": AppState(r) if saved == "recipe" else r.optimizer}
        for r in (run, resumed)
    )
    if saved == "optimizer":
        resumed.train(1)  # Such a checkpoint loads into state that exists.
    dcp.save(before, checkpoint_id=tmp_path)

    dcp.load(after, checkpoint_id=tmp_path)

    already = 1 if saved == "optimizer" else 0
    assert resumed.optimizer.ledger.steps == 3 + already
    assert same_state(resumed.optimizer, run.optimizer)
    resumed.train(1)
    assert resumed.optimizer.ledger.steps == 4 + already


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after_steps", [0, 1])
def test_taking_a_checkpoint_adds_no_noise_and_charges_nothing(
    make_run, kind, after_steps
):
    """Torch creates missing state by a step with zero gradients and rate 0."""
    run = make_run(KINDS[kind])
    run.train(after_steps)
    run.optimizer.zero_grad()
    before = [p.detach().clone() for p in run.model.parameters()]

    state = get_optimizer_state_dict(run.model, run.optimizer)
    set_optimizer_state_dict(run.model, run.optimizer, state)

    assert run.optimizer.ledger.steps == after_steps
    assert run.optimizer.param_groups[0]["lr"] == 0.1
    for parameter, value in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    if not after_steps:
        buffers = [b for s in run.optimizer.state.values() for b in s.values()]
        assert not any(b.any() for b in buffers if torch.is_tensor(b) and b.dim())


def test_a_checkpoint_within_a_batch_leaves_the_batch(make_run):
    """The stand-in is a gradient to torch, so it makes no empty step."""
    run = make_run(torch.optim.Adam)
    batch = next(batch for batch in run.loader if len(batch[0]))
    run.optimizer.backward(run.losses(batch))
    get_optimizer_state_dict(run.model, run.optimizer)
    assert run.optimizer.ledger.steps == 0

    run.optimizer.step()

    assert run.optimizer.ledger.steps == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_step_at_rate_zero_is_not_taken_for_a_checkpoints(make_run, kind):
    """A warm-up from 0 with zeroed gradients is released and charged like any step."""
    run = make_run(KINDS[kind], lr=0.0)
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for steps, batch in enumerate(run.loader, 1):
        if steps % 2:
            run.optimizer.backward(run.losses(batch))
        else:
            run.optimizer.private_loss(run.losses(batch)).backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=False)
        assert run.optimizer.ledger.steps == steps
        if steps == 4:
            break


@pytest.mark.parametrize("kind", KINDS)
def test_a_raw_gradient_at_rate_zero_is_not_taken_for_a_checkpoints(make_run, kind):
    """It would go into the state, which later updates are made of, and cost nothing."""
    everyone = PoissonSampling(sampling_probability=1.0)
    run = make_run(KINDS[kind], lr=0.0, sampling=everyone)
    next(iter(run.loader))
    run.model.weight.grad = torch.zeros_like(run.model.weight)
    run.model.bias.grad = torch.ones_like(run.model.bias)

    with pytest.raises(SamplingMismatchError):
        run.optimizer.step()

    assert not run.optimizer.state
    assert run.optimizer.ledger.steps == 0


def test_an_empty_batch_at_rate_zero_is_not_taken_for_a_checkpoints(make_run):
    """It needs no backward, and zeroed gradients of the last release stay ours."""
    run = make_run(lr=0.0, sampling=PoissonSampling(sampling_probability=1e-12))
    for steps, _ in zip(range(1, 4), run.loader, strict=False):
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=False)
        assert run.optimizer.ledger.steps == steps


def test_zero_gradients_are_no_checkpoints_once_there_is_state(make_run):
    """Torch creates state only where none is; this is a step without a backward."""
    run = make_run(torch.optim.Adam)
    run.train(1)
    next(batch for batch in run.loader if len(batch[0]))
    run.optimizer.param_groups[0]["lr"] = 0.0
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    with pytest.raises(SamplingMismatchError):
        run.optimizer.step(closure=None)


def test_zero_gradients_at_another_rate_are_no_checkpoints(make_run):
    """Then it is a step without a backward pass, and refused as one."""
    run = make_run()
    next(batch for batch in run.loader if len(batch[0]))
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    with pytest.raises(SamplingMismatchError):
        run.optimizer.step(closure=None)


def test_a_state_whose_ledger_was_altered_is_refused(make_run):
    """Before anything is loaded."""
    run = make_run()
    state = run.optimizer.state_dict()
    state["param_groups"][0].update(dp_ledger="{", lr=0.75)

    with pytest.raises(LedgerError, match="damaged"):
        run.optimizer.load_state_dict(state)

    assert run.optimizer.param_groups[0]["lr"] == 0.1


def test_a_state_saved_without_the_wrapper_is_refused_by_every_loader(make_run):
    """What it cost is unknown, by whatever way it comes."""
    run, model = make_run(torch.optim.Adam), nn.Linear(3, 1)
    plain = torch.optim.Adam(model.parameters())
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    by_name = get_optimizer_state_dict(model, plain)
    flattened = get_optimizer_state_dict(model, plain, options=flat)

    with pytest.raises(LedgerError, match="has no ledger"):
        set_optimizer_state_dict(run.model, run.optimizer, by_name)
    with pytest.raises(KeyError, match="dp_ledger"):
        set_optimizer_state_dict(run.model, run.optimizer, flattened, options=flat)


def charges(run):
    return [
        (c.noise_multiplier, c.max_grad_norm) for c in run.optimizer.ledger.charges()
    ]


def by_state_dict(run, resumed):
    resumed.optimizer.load_state_dict(run.optimizer.state_dict())


def by_name(run, resumed, options="by name"):
    state = get_optimizer_state_dict(run.model, run.optimizer, options=OPTIONS[options])
    set_optimizer_state_dict(
        resumed.model, resumed.optimizer, state, options=OPTIONS[options]
    )


WAYS = {
    "state_dict": by_state_dict,
    "by name": by_name,
    "flat": lambda run, resumed: by_name(run, resumed, "flat"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_assigned_is_resumed_as_learning_rates_are(make_run, way):
    """A run that had raised its noise goes on with it, and says so in the ledger."""
    run, resumed = make_run(torch.optim.Adam), make_run(torch.optim.Adam)
    run.optimizer.noise_multiplier = 3.0
    run.train(2)
    resumed.optimizer.max_grad_norm = 0.25  # The state says nothing of it: the plan's.

    WAYS[way](run, resumed)
    resumed.train(1)

    assert (resumed.optimizer.noise_multiplier, resumed.optimizer.max_grad_norm) == (
        3.0,
        1.0,
    )
    assert charges(resumed) == [(3.0, 1.0)] * 2
    del resumed.optimizer.noise_multiplier
    assert resumed.optimizer.noise_multiplier == 1.0


@pytest.mark.statistical
def test_the_noise_of_a_resumed_run_is_the_noise_that_it_had(make_run, decisions):
    """And not the plan's, a third of it.

    20 000 coordinates have a standard error of 0.5 %: false alarms 1e-15, and the
    plan's noise is as good as never missed.
    """
    run, resumed = make_run(), make_run()
    run.optimizer.noise_multiplier = 3.0
    by_state_dict(run, resumed)
    wide = nn.Parameter(torch.zeros(20_000))
    resumed.optimizer.add_param_group({"params": [wide]})
    resumed.train(1)

    assert not decisions.differs("scale", wide.grad.std().item(), 0.3, rel=0.04)


@pytest.mark.slow
def test_resuming_under_another_plan_is_told(make_run):
    """It may be meant, as a second phase; what differs is named, and both add up."""
    run, resumed = make_run(), make_run(noise_multiplier=2.0, steps=30)
    run.train(1)

    with pytest.warns(UserWarning, match=r"\(noise_multiplier=1.0, now 2.0\)"):
        by_state_dict(run, resumed)
    resumed.train(1)

    assert charges(resumed) == [(1.0, 1.0), (2.0, 1.0)]


def test_a_plan_that_is_only_longer_is_the_same(make_run):
    """To take more steps than were planned is a new plan of the same steps."""
    run, resumed = make_run(), make_run(steps=30)
    run.train(1)
    by_state_dict(run, resumed)

    assert resumed.optimizer.ledger.steps == 1


def with_settings(state, **changes):
    text = json.loads(state["param_groups"][0]["dp_ledger"])
    text["settings"].update(changes)
    state["param_groups"][0]["dp_ledger"] = json.dumps(text)
    return state


@pytest.mark.parametrize(
    "assigned", [{"noise_multiplier": -1.0}, {"noise_multiplier": "1"}, {"sigma": 1.0}]
)
def test_damaged_settings_are_refused_before_anything_is_loaded(make_run, assigned):
    """By the name and the value that cannot have been assigned."""
    run, resumed = make_run(), make_run()
    run.train(1)
    state = with_settings(run.optimizer.state_dict(), assigned=assigned)

    with pytest.raises(LedgerError, match=f"{next(iter(assigned))}=.*damaged"):
        resumed.optimizer.load_state_dict(state)

    assert resumed.optimizer.ledger.steps == 0
    assert resumed.optimizer.noise_multiplier == 1.0


def test_settings_that_contradict_each_other_are_refused(make_run):
    """As where the groups of two optimizers were put into one state."""
    run = make_run()
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    state = run.optimizer.state_dict()
    other = with_settings(run.optimizer.state_dict(), assigned={"max_grad_norm": 2.0})
    state["param_groups"][1]["dp_ledger"] = other["param_groups"][0]["dp_ledger"]

    with pytest.raises(LedgerError, match="with other numbers assigned"):
        run.optimizer.load_state_dict(state)

    assert run.optimizer.max_grad_norm == 1.0


def test_a_state_without_settings_leaves_them_alone(make_run):
    """It was saved before they were part of it."""
    run = make_run()
    run.optimizer.noise_multiplier = 3.0
    state = run.optimizer.state_dict()
    ledger = json.loads(state["param_groups"][0]["dp_ledger"])
    del ledger["settings"]
    state["param_groups"][0]["dp_ledger"] = json.dumps(ledger)

    run.optimizer.load_state_dict(state)

    assert run.optimizer.noise_multiplier == 3.0


def test_a_private_state_loads_into_a_plain_optimizer(make_run):
    """Training may go on without private data, or be looked at."""
    run = make_run(torch.optim.Adam)
    run.train(2)
    plain = torch.optim.Adam([torch.zeros_like(p) for p in run.model.parameters()])

    plain.load_state_dict(run.optimizer.state_dict())

    assert [s["step"].item() for s in plain.state.values()] == [2, 2]


@pytest.mark.filterwarnings("ignore:parameters of shape")
def test_two_private_optimizers_of_one_model_keep_their_ledgers(make_plan):
    """Torch puts their groups into one state, and takes it apart by name."""

    def built():
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        plan = make_plan()
        loaders = [plan.loader(list(torch.randn(20, 2))) for _ in model]
        return (
            model,
            loaders,
            [
                DPOptimizer(torch.optim.Adam(m.parameters()), plan=plan, loader=loader)
                for m, loader in zip(model, loaders, strict=True)
            ],
        )

    (model, loaders, optimizers), (twin, _, resumed) = built(), built()
    for optimizer, loader, steps in zip(optimizers, loaders, (1, 2), strict=True):
        for batch, _ in zip(loader, range(steps), strict=False):
            optimizer.backward(model(batch).square().squeeze(1))
            optimizer.step()

    state = get_optimizer_state_dict(model, optimizers)
    set_optimizer_state_dict(twin, resumed, state)

    assert [o.ledger.steps for o in resumed] == [1, 2]


def test_a_saved_optimizer_is_whole(make_run):
    """``torch.save`` of the object itself, not of its state."""
    run = make_run(torch.optim.Adam)
    run.train(2)
    file = io.BytesIO()
    torch.save(run.optimizer, file)
    file.seek(0)

    twin = torch.load(file, weights_only=False)
    twin.attach(run.loader)

    assert twin.spent() == run.optimizer.spent()
    assert same_state(twin, run.optimizer)
