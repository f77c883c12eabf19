"""Several optimizers, several models, and loops that do not go as planned."""

import copy
import os
import threading
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dp import (
    DPOptimizer,
    LedgerError,
    PoissonSampling,
    PrivacyError,
    SamplingMismatchError,
)
from dp._mechanism.sums import Sums
from dp.optimizer._guard import private_owner_of


ALL = PoissonSampling(sampling_probability=1.0)


def private(parameters, plan, loader, kind=torch.optim.SGD, *, lr=0.1, earlier=None):
    return DPOptimizer(
        kind(parameters, lr=lr), plan=plan, loader=loader, continue_from=earlier
    )


def examples(num_features=3):
    return TensorDataset(torch.randn(20, num_features), torch.randn(20))


@pytest.fixture
def two_parts(make_plan):
    """One model in two parts, an optimizer for each, and what they draw from."""

    def built(*, shared_loader, shared_ledger=False):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        plan, data = make_plan(noise_multiplier=0.0, sampling=ALL), examples()
        first = plan.loader(data)
        loaders = first, (first if shared_loader else plan.loader(data))
        first = private(model[0].parameters(), plan, loaders[0])
        earlier = first if shared_ledger else None
        second = private(model[2].parameters(), plan, loaders[1], earlier=earlier)
        return model, loaders, (first, second)

    return built


def losses(model, batch):
    return (model(batch[0]).squeeze(1) - batch[1]).square()


def test_two_optimizers_on_one_model_each_charge_for_their_own_part(two_parts):
    """With a loader each, the releases are independent, and one ledger adds them up."""
    model, loaders, optimizers = two_parts(shared_loader=False, shared_ledger=True)
    for _ in range(2):
        for optimizer, loader in zip(optimizers, loaders, strict=True):
            optimizer.backward(losses(model, next(iter(loader))))
            optimizer.step()

    assert [o.ledger.steps for o in optimizers] == [4, 4]


@pytest.mark.filterwarnings("ignore:parameters of shape")
def test_one_batch_is_released_once_whichever_optimizer_asks(two_parts):
    """Two releases of one batch cost more than two ledgers would say."""
    model, (loader, _), (first, second) = two_parts(shared_loader=True)
    batch = next(iter(loader))
    first.backward(losses(model, batch))
    second.backward(losses(model, batch))
    first.step()

    with pytest.raises(SamplingMismatchError, match="groups of one optimizer"):
        second.step()
    with pytest.raises(SamplingMismatchError, match="groups of one optimizer"):
        second.backward(losses(model, batch))

    assert [first.ledger.steps, second.ledger.steps] == [1, 0]
    second.zero_grad()
    batch = next(iter(loader))
    second.backward(losses(model, batch))
    with pytest.raises(LedgerError, match="continue_from"):
        second.step()
    assert second.ledger.steps == 0


def test_a_copy_cannot_release_the_batch_of_its_original(make_run):
    """The copy has a ledger of its own, which knows nothing of the other's release."""
    run = make_run()
    twin = copy.deepcopy(run.optimizer)
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    with pytest.raises(SamplingMismatchError, match="already used"):
        twin.step()


def test_a_new_plan_goes_on_with_the_same_parameters(make_run, make_plan):
    """A second phase, or a second round of federated learning, is no bypass."""
    run = make_run(steps=1)
    run.train(1)
    plan = make_plan(steps=2)
    loader = plan.loader(examples())
    second = private(run.model.parameters(), plan, loader, earlier=run.optimizer)
    second.backward(run.losses(next(iter(loader))))
    second.step()

    assert [run.optimizer.ledger.steps, second.ledger.steps] == [1, 2]


def test_a_parameter_leads_to_the_optimizer_that_makes_it_private(make_run):
    """Trainers hold a model only, and must find out whose it is."""
    run = make_run()

    assert private_owner_of(run.model.weight) is run.optimizer
    assert private_owner_of(nn.Parameter(torch.zeros(1))) is None


def test_one_optimizer_on_two_models_noises_both(make_plan):
    """A model that no loss reached in this step is not told from one that was."""
    models = nn.Linear(64, 1), nn.Linear(64, 1)
    plan = make_plan()
    loader = plan.loader(examples(64))
    parameters = [p for model in models for p in model.parameters()]
    optimizer = private(parameters, plan, loader)
    for steps, batch in enumerate(loader, 1):
        optimizer.backward(losses(models[steps % 2], batch))
        optimizer.step()
        # Rounded to a lattice, noise is 0 with probability 0.025.
        assert all(model.weight.grad.count_nonzero() > 32 for model in models)
        assert optimizer.ledger.steps == steps
        if steps == 4:
            break


def test_a_private_discriminator_trains_against_a_public_generator(make_plan):
    """The generator's loss leaves raw gradients on the discriminator: none is used."""
    generator, discriminator = nn.Linear(2, 3), nn.Linear(3, 1)
    plan = make_plan(noise_multiplier=0.0, sampling=ALL)
    loader = plan.loader(examples())
    private_half = private(discriminator.parameters(), plan, loader)
    public_half = torch.optim.SGD(generator.parameters(), lr=0.1)
    for steps, (x, _) in enumerate(loader, 1):
        fake = generator(torch.randn(20, 2))
        discriminator(fake).mean().mul(1e6).backward()
        assert discriminator.weight.grad.norm() > 1e3
        public_half.step()
        real_losses = nn.functional.softplus(-discriminator(x)).squeeze(1)
        fake_losses = nn.functional.softplus(discriminator(fake.detach())).squeeze(1)
        private_half.backward(real_losses + fake_losses)
        private_half.step()
        norm = torch.cat([p.grad.flatten() for p in discriminator.parameters()]).norm()
        assert norm <= 20 / plan.expected_batch_size * plan.max_grad_norm
        assert private_half.ledger.steps == steps
        if steps == 3:
            break


def test_parameters_may_be_frozen_and_unfrozen_between_steps(make_run):
    """What is frozen does not move; what is not is noised, from the next batch on."""
    run = make_run(num_features=64)
    weight = run.model.weight
    moved = []
    for trains, batch in zip((True, False, True), run.loader, strict=False):
        weight.requires_grad_(trains)
        before = weight.detach().clone()
        run.optimizer.backward(run.losses(batch))
        run.optimizer.step()
        moved.append(not torch.equal(weight, before))

    assert moved == [True, False, True]
    assert run.optimizer.ledger.steps == 3


def test_a_step_with_everything_frozen_is_charged_all_the_same(make_run):
    """Nothing moves, but whoever reads the ledger learns nothing from that."""
    run = make_run()
    run.model.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    before = run.model.weight.clone()
    run.optimizer.private_loss(run.losses(next(iter(run.loader)))).backward()
    run.optimizer.step()

    assert torch.equal(run.model.weight, before)
    assert run.optimizer.ledger.steps == 1


def test_freezing_within_a_batch_is_refused(make_run):
    """The sums at hand are of other parameters than the step would be."""
    run = make_run(sampling=ALL)
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))
    run.model.weight.requires_grad_(False)  # noqa: FBT003 -- torch's signature

    with pytest.raises(PrivacyError, match="parameters changed"):
        run.optimizer.step()

    assert run.optimizer.ledger.steps == 0
    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()
    assert run.optimizer.ledger.steps == 1


def test_a_forward_without_a_backward_changes_nothing(make_run):
    """Whatever was computed besides, the step is about the losses that were given."""
    run, twin = (make_run(noise_multiplier=0.0, sampling=ALL) for _ in range(2))
    twin.model.load_state_dict(run.model.state_dict())
    batch = next(iter(run.loader))
    next(iter(twin.loader))
    run.losses(batch)
    run.optimizer.backward(run.losses(batch))
    run.losses(batch)
    run.optimizer.step()
    twin.optimizer.backward(twin.losses(batch))
    twin.optimizer.step()

    torch.testing.assert_close(run.model.weight, twin.model.weight)


def test_a_plain_backward_is_not_a_private_one(make_run):
    """Gradients that ``loss.backward()`` left there are neither used nor enough."""
    run = make_run(sampling=ALL)
    batch = next(iter(run.loader))
    before = run.model.weight.detach().clone()
    run.losses(batch).mean().backward()

    with pytest.raises(SamplingMismatchError, match="without gradients"):
        run.optimizer.step()

    assert run.optimizer.ledger.steps == 0
    assert torch.equal(run.model.weight, before)


def test_a_term_beside_the_private_loss_is_not_dropped_silently(make_run):
    """Its gradient cannot be told from a raw one; the warning says where to put it."""
    run, twin = (make_run(noise_multiplier=0.0, sampling=ALL) for _ in range(2))
    twin.model.load_state_dict(run.model.state_dict())
    batch, penalty = next(iter(run.loader)), run.model.weight.square().sum()
    next(iter(twin.loader))
    (run.optimizer.private_loss(run.losses(batch)) + penalty).backward()

    with pytest.warns(UserWarning, match="to each example's loss"):
        run.optimizer.step()

    twin.optimizer.backward(twin.losses(batch))
    twin.optimizer.step()
    torch.testing.assert_close(run.model.weight, twin.model.weight)


def test_a_batch_that_failed_half_way_can_be_run_again(make_run):
    """An error in the middle of a batch leaves nothing of it in the next release."""
    run, twin = (make_run(noise_multiplier=0.0, sampling=ALL) for _ in range(2))
    twin.model.load_state_dict(run.model.state_dict())
    x, y = next(iter(run.loader))
    next(iter(twin.loader))
    run.optimizer.backward(run.losses((x[:7], y[:7])) * 5)
    with pytest.raises(ValueError, match="one loss an example"):
        run.optimizer.backward(run.losses((x[7:], y[7:])).mean())
    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses((x, y)))
    run.optimizer.step()
    twin.optimizer.backward(twin.losses((x, y)))
    twin.optimizer.step()

    torch.testing.assert_close(run.model.weight, twin.model.weight)
    assert run.optimizer.ledger.steps == 1


def test_a_micro_batch_that_failed_half_way_leaves_no_half_sum(make_run, monkeypatch):
    """What an error left in the sums is dropped, and the batch is incomplete then."""
    run = make_run(noise_multiplier=0.0, sampling=ALL)
    x, y = next(iter(run.loader))
    run.optimizer.backward(run.losses((x[:7], y[:7])))
    add = Sums.add

    def run_out_of_memory(*args):
        add(*args)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "add", run_out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            run.optimizer.backward(run.losses((x[7:], y[7:])))
    run.optimizer.backward(run.losses((x[7:], y[7:])))

    with pytest.raises(SamplingMismatchError, match="not seen every example"):
        run.optimizer.step()
    assert run.optimizer.ledger.steps == 0


def test_a_graph_is_good_for_one_backward(make_run):
    """The second pass over one loss is torch's error, or the ticket's."""
    run = make_run(sampling=ALL)
    loss = run.optimizer.private_loss(run.losses(next(iter(run.loader))))
    loss.backward(retain_graph=True)

    with pytest.raises(SamplingMismatchError, match="more losses than"):
        loss.backward()

    run.optimizer.step()
    assert run.optimizer.ledger.steps == 1


def test_a_second_thread_inside_a_step_is_refused(make_run):
    """Sums are updated in place; the other thread's step goes on undisturbed."""
    run = make_run()
    inside, go_on = threading.Event(), threading.Event()

    def add(_sums, *, stddev):
        inside.set()
        go_on.wait(10)
        return stddev

    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))
    losses = run.losses(batch)
    with mock.patch.object(
        type(run.optimizer.mechanism.noise), "add_", staticmethod(add)
    ):
        other = threading.Thread(target=run.optimizer.step)
        other.start()
        inside.wait(10)
        with pytest.raises(PrivacyError, match="another thread"):
            run.optimizer.backward(losses)
        go_on.set()
        other.join()

    assert run.optimizer.ledger.steps == 1
    run.optimizer.zero_grad()


def test_a_fork_has_no_right_to_the_batch_of_its_parent(make_run, monkeypatch):
    """Both would release it, and each ledger would know of one."""
    run = make_run()
    losses = run.losses(next(iter(run.loader)))
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(SamplingMismatchError, match="forked"):
        run.optimizer.backward(losses)


def test_a_step_goes_from_idle_over_accumulating_to_released(make_run):
    """And back to idle where the batch is dropped."""
    run = make_run(sampling=ALL)
    state = run.optimizer.mechanism.step
    seen = [state.phase]
    for _ in range(2):
        run.optimizer.backward(run.losses(next(iter(run.loader))))
        seen.append(state.phase)
        run.optimizer.step()
        seen.append(state.phase)
    run.optimizer.zero_grad()
    seen.append(state.phase)

    assert seen == ["idle", *2 * ["accumulating", "released"], "idle"]
