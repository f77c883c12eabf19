"""The rest of torch that takes an optimizer: averaging, compilation, sharding."""

import warnings

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms.model_averaging.averagers import (
    PeriodicModelAverager,
)
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import dp
from dp import DPOptimizer, PoissonSampling, UnsupportedOperationError
from dp._mechanism.beside import Beside
from dp._mechanism.changed_options import ChangedOptions


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.* is deprecated")
    from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
    from torch.distributed.optim.apply_optimizer_in_backward import (
        _apply_optimizer_in_backward,
    )


@pytest.fixture
def process_group():
    """A group of one process."""
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.5)])
def test_averaged_models_average_what_was_released(make_run, average):
    """Weights after a private step are public, and so is any mean of them."""
    run = make_run()
    averaged = AveragedModel(run.model, multi_avg_fn=average)
    schedule = SWALR(run.optimizer, swa_lr=0.01, anneal_epochs=2)
    seen = []
    for batch, _ in zip(run.loader, range(3), strict=False):
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        averaged.update_parameters(run.model)
        schedule.step()
        seen.append(run.model.weight.detach().clone())

    ema = (seen[0] / 2 + seen[1] / 2) / 2 + seen[2] / 2
    expected = torch.stack(seen).mean(0) if average is None else ema
    torch.testing.assert_close(averaged.module.weight, expected)
    assert run.inner.param_groups[0]["lr"] == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_compiled_step_releases_and_charges_as_ever(make_run, kind):
    """What dynamo cannot trace, it runs as it is."""
    changes = {
        "noise_multiplier": 0.0,
        "sampling": PoissonSampling(sampling_probability=1.0),
    }
    run, twin = make_run(kind, **changes), make_run(kind, **changes)
    twin.model.load_state_dict(run.model.state_dict())
    compiled = torch.compile(run.optimizer.step, backend="eager")
    steps = zip(range(1, 4), run.loader, twin.loader, strict=False)
    for number, batch, _ in steps:
        run.optimizer.backward(run.losses(batch))
        compiled()
        twin.optimizer.backward(twin.losses(batch))
        twin.optimizer.step()
        assert run.optimizer.ledger.steps == number

    torch.testing.assert_close(run.model.weight, twin.model.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_nothing_that_is_kept_by_identity_is_traced(make_run, monkeypatch):
    """Parameters that die before their guard is made would fail the compilation."""
    run, seen = make_run(), []

    def noted(note):
        def tell(self, *args, **kwargs):
            seen.append(torch.compiler.is_compiling())
            return note(self, *args, **kwargs)

        return tell

    for kind in (Beside, ChangedOptions):
        monkeypatch.setattr(kind, "note", noted(kind.note))
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    torch.compile(run.optimizer.step, backend="eager")()

    assert seen == [False, False]


def test_a_redundancy_free_optimizer_goes_inside(make_run, process_group):  # noqa: ARG001 -- held open
    """It shards the update; what is sharded is private already."""

    def sharded(params, lr):
        return ZeroRedundancyOptimizer(params, torch.optim.Adam, lr=lr)

    run = make_run(sharded)
    run.train(2)
    run.optimizer.consolidate_state_dict()

    assert run.optimizer.ledger.steps == 2
    assert run.optimizer.state_dict()["state"][0]["step"].item() == 2


@pytest.mark.usefixtures("process_group")
def test_a_redundancy_free_optimizer_cannot_go_around(make_run):
    """Also on one process, where it would train: its checkpoints have no ledger."""
    run = make_run()
    kind = dp.wrap_class(torch.optim.SGD, plan=run.optimizer.plan, loader=run.loader)
    model = nn.Linear(3, 1)
    around = ZeroRedundancyOptimizer(model.parameters(), kind, lr=0.1)
    (x, y), before = next(iter(run.loader)), model.weight.detach().clone()
    around.optim.backward((model(x).squeeze(1) - y).square())

    with pytest.raises(UnsupportedOperationError, match="put it inside"):
        around.step()

    assert around.optim.ledger.steps == 0
    assert torch.equal(model.weight, before)


@pytest.mark.usefixtures("process_group")
def test_post_local_averaging_goes_around(make_run):
    """It averages weights after the step, which are released by then; it resumes."""
    run = make_run(lr=0.1)
    around = PostLocalSGDOptimizer(run.optimizer, PeriodicModelAverager(period=2))
    around.param_groups[0]["lr"] = 0.5
    before = run.model.weight.detach().clone()
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    around.step()
    moved = before - run.model.weight.detach()
    torch.testing.assert_close(moved, 0.5 * run.model.weight.grad)
    around.zero_grad()
    assert run.model.weight.grad is None

    resumed = make_run()
    other = PostLocalSGDOptimizer(resumed.optimizer, PeriodicModelAverager(period=2))
    other.load_state_dict(around.state_dict())

    assert run.optimizer.ledger.steps == resumed.optimizer.ledger.steps == 1
    assert other.averager.step == around.averager.step == 1
    assert resumed.inner.param_groups[0]["lr"] == 0.5


def test_an_optimizer_for_every_parameter_is_refused(make_run):
    """Each would clip and charge alone; torch builds them from one class."""
    run = make_run()
    kind = dp.wrap_class(torch.optim.SGD, plan=run.optimizer.plan, loader=run.loader)

    with pytest.raises(UnsupportedOperationError, match="ledger of its own"):
        _apply_optimizer_in_backward(kind, nn.Linear(3, 1).parameters(), {"lr": 0.1})


def test_lookahead_and_its_like_go_around(make_run):
    """A foreign layer that leads to the private optimizer may step its parameters."""

    class Lookahead(torch.optim.Optimizer):
        def __init__(self, base):
            super().__init__(base.param_groups, base.defaults)
            self.param_groups = base.param_groups
            self.base = base

        def step(self, closure=None):
            return self.base.step(closure)

    run = make_run()
    around = Lookahead(run.optimizer)
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    around.step()

    assert isinstance(around.base, DPOptimizer)
    assert run.optimizer.ledger.steps == 1
