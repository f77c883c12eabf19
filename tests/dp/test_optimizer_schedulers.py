"""Every scheduler of torch drives the update, and none of them drops the noise."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR


SCHEDULERS = {
    "ChainedScheduler": lambda o: ChainedScheduler(
        [ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: ConstantLR(o, 0.5, 2),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: CyclicLR(o, 0.05, 0.2, step_size_up=2, cycle_momentum=False),
    "CyclicLR with momentum": lambda o: CyclicLR(o, 0.05, 0.2, step_size_up=2),
    "ExponentialLR": lambda o: ExponentialLR(o, 0.5),
    "LambdaLR": lambda o: LambdaLR(o, lambda epoch: 0.5**epoch),
    "LinearLR": lambda o: LinearLR(o, 0.25, total_iters=3),
    "MultiStepLR": lambda o: MultiStepLR(o, [1, 2], gamma=0.5),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda _: 0.5),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.2, total_steps=10),
    "PolynomialLR": lambda o: PolynomialLR(o, 10),
    "ReduceLROnPlateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=3),
    "SequentialLR": lambda o: SequentialLR(
        o, [ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.5)], milestones=[2]
    ),
    "StepLR": lambda o: StepLR(o, 1, gamma=0.5),
}
# How a scheduler may meet the optimizer; each takes the run and builds the scheduler.
MEETINGS = {
    "as built": lambda run, build: build(run.optimizer),
    "before it was wrapped": lambda run, build: build(run.inner),
    "after groups were rebound": lambda run, build: (rebind(run), build(run.optimizer))[
        1
    ],
    "after a state was loaded": lambda run, build: (reload(run), build(run.optimizer))[
        1
    ],
}


def rebind(run):
    run.optimizer.param_groups = [dict(g) for g in run.optimizer.param_groups]


def reload(run):
    run.optimizer.load_state_dict(run.optimizer.state_dict())


def advance(scheduler, metric=1.0):
    scheduler.step(*([metric] if isinstance(scheduler, ReduceLROnPlateau) else []))


def momentum_sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def hyperparameters(optimizer):
    (group,) = optimizer.param_groups
    return {
        k: float(v)
        for k, v in group.items()
        if k in {"lr", "momentum"} and v is not None
    }


def trained(run, scheduler, num_steps):
    """Train without data, so that gradients are noise alone; yield what was used."""
    noised = 0  # Of four coordinates a step. Rounded to a lattice, a few are 0.
    for steps, batch in enumerate(run.loader, 1):
        before = [p.detach().clone() for p in run.model.parameters()]
        used = hyperparameters(run.inner)
        run.optimizer.backward(run.losses(batch) * 0)
        run.optimizer.step()
        noised += sum(int(p.grad.count_nonzero()) for p in run.model.parameters())
        assert run.optimizer.ledger.steps == steps
        moved = [b - p for b, p in zip(before, run.model.parameters(), strict=True)]
        buffers = [run.inner.state[p] for p in run.model.parameters()]
        yield used, moved, buffers
        advance(scheduler)
        if steps == num_steps:
            break
    assert noised > num_steps


def test_the_table_has_every_scheduler_of_torch():
    """A scheduler that a new release adds must be tried here."""
    classes = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type)
        and (issubclass(kind, lr_scheduler.LRScheduler))
        and not name.startswith("_")
    }

    assert classes - {"LRScheduler"} <= {name.split()[0] for name in SCHEDULERS}


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau:UserWarning")
@pytest.mark.parametrize("meeting", MEETINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduled_rate_is_the_one_that_moves_the_weights(make_run, name, meeting):
    """The same rates as without privacy, used by an update that is noise alone."""
    build = SCHEDULERS[name]
    run, plain = make_run(momentum_sgd), make_run(momentum_sgd)
    scheduler = MEETINGS[meeting](run, build)
    expected = build(plain.inner)
    rates = []
    with warnings.catch_warnings():
        # It is the rates of the plain optimizer that are wanted, not its steps.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        for used, moved, buffers in trained(run, scheduler, 4):
            assert used == pytest.approx(hyperparameters(plain.inner))
            assert used == hyperparameters(run.optimizer)
            for distance, state in zip(moved, buffers, strict=True):
                torch.testing.assert_close(
                    distance,
                    used["lr"] * state["momentum_buffer"],
                    rtol=1e-3,
                    atol=1e-6,
                )
            rates.append(used)
            advance(expected)

    assert any(used != rates[0] for used in rates)


@pytest.mark.parametrize("kind", [CyclicLR, OneCycleLR])
def test_cycled_betas_reach_the_wrapped_optimizer(make_run, kind):
    """Schedulers find out from ``defaults`` what there is to cycle."""
    run = make_run(torch.optim.Adam)
    bounds = {CyclicLR: (0.05, 0.2, 2), OneCycleLR: (0.2, 10)}[kind]
    scheduler = kind(run.optimizer, *bounds)
    betas = [run.inner.param_groups[0]["betas"][0] for _ in trained(run, scheduler, 3)]

    assert len(set(betas)) == 3


def test_a_tensor_rate_is_written_in_place(make_run):
    """So that a compiled or captured update sees it."""
    run = make_run(lr=torch.tensor(0.5))
    rate = run.inner.param_groups[0]["lr"]
    for _ in trained(run, StepLR(run.optimizer, 1, gamma=0.5), 2):
        pass

    assert run.inner.param_groups[0]["lr"] is rate
    assert rate.item() == 0.125


def test_two_schedulers_on_one_optimizer_patch_it_once(make_run):
    """Each step is one step, whoever counts it."""
    run = make_run()
    schedulers = [StepLR(run.optimizer, 1, gamma=0.5) for _ in range(2)]
    for steps, batch in enumerate(run.loader, 1):
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        assert run.optimizer.ledger.steps == steps
        if steps == 2:
            break

    assert run.inner.param_groups[0]["lr"] == 0.1 / 16


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_schedule_goes_on_where_it_stopped(make_run, name):
    """Optimizer and scheduler each restore their own state."""
    build = SCHEDULERS[name]
    run, resumed = make_run(momentum_sgd), make_run(momentum_sgd)
    scheduler = build(run.optimizer)
    for _ in trained(run, scheduler, 3):
        pass
    continued = build(resumed.optimizer)
    resumed.optimizer.load_state_dict(run.optimizer.state_dict())
    continued.load_state_dict(scheduler.state_dict())
    assert hyperparameters(resumed.inner) == hyperparameters(run.inner)

    for each, schedule in ((run, scheduler), (resumed, continued)):
        each.optimizer.backward(each.losses(next(iter(each.loader))))
        each.optimizer.step()
        advance(schedule)

    assert hyperparameters(resumed.inner) == hyperparameters(run.inner)
    assert resumed.optimizer.ledger.steps == 4
