"""What a private step releases, charges and refuses."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from dp import (
    BudgetExhaustedError,
    DPOptimizer,
    FlatClipping,
    GaussianNoise,
    LedgerError,
    PoissonLoader,
    PoissonSampling,
    PrivacyError,
    SamplingMismatchError,
    Unamplified,
    UnsupportedOperationError,
)


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def pickled(optimizer):
    return pickle.loads(pickle.dumps(optimizer))  # noqa: S301 -- our own bytes


def unnoised(run, batch):
    """The clipped mean gradient of *batch*, by a loop over its examples."""
    total = torch.zeros(4, dtype=torch.float64)
    for x, y in zip(*batch, strict=True):
        loss = run.losses((x[None], y[None])).sum()
        gradient = torch.autograd.grad(loss, list(run.model.parameters()))
        flat = torch.cat([g.flatten() for g in gradient]).double()
        total += flat * min(1.0, run.optimizer.plan.max_grad_norm / flat.norm().item())
    return (total / run.optimizer.plan.expected_batch_size).float()


def test_without_noise_a_step_applies_the_mean_of_clipped_gradients(make_run):
    """With noise_multiplier 0, the update is Algorithm 1 of Abadi et al. to the bit."""
    run = make_run(noise_multiplier=0.0)
    batch = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, batch)

    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


@pytest.mark.statistical
def test_the_noise_has_the_planned_standard_deviation(make_run, decisions):
    """20 000 coordinates have a standard error of 0.5 %.

    False alarms: 1e-15 of the scale, 3e-12 of the mean. A scale that is off by 6 % is
    missed with probability 3e-5.
    """
    plan = {"noise_multiplier": 2.0, "max_grad_norm": 0.5, "expected_batch_size": 4.0}
    run = make_run(**plan)
    wide = nn.Parameter(torch.zeros(20_000))
    run.optimizer.add_param_group({"params": [wide]})
    batch = next(iter(run.loader))

    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    stddev = 2.0 * 0.5 / 4.0
    assert not decisions.differs("scale", wide.grad.std().item(), stddev, rel=0.04)
    error = stddev / 20_000**0.5
    assert not decisions.exceeds("mean", abs(wide.grad.mean().item()) / error, 7)


def test_equal_seeds_do_not_give_equal_noise(make_run):
    """Noise comes from the operating system, whatever ``torch.manual_seed`` says."""
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        run = make_run(num_features=64)
        batch = next(iter(run.loader))
        torch.manual_seed(0)
        run.optimizer.backward(run.losses(batch) * 0)
        run.optimizer.step()
        gradients.append(run.model.weight.grad)

    assert not torch.equal(*gradients)


def test_an_empty_batch_is_a_step_like_any_other(make_run):
    """Nobody was drawn: noise is added and the ledger charged all the same."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1e-12))
    batch = next(iter(run.loader))
    before = weights(run.model)

    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    assert len(batch[0]) == 0
    assert (weights(run.model) != before).any()
    assert run.optimizer.ledger.steps == 1


def test_an_empty_batch_needs_no_backward(make_run):
    """There is nothing to differentiate, and the step is due all the same."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1e-12))
    next(iter(run.loader))

    run.optimizer.step()

    assert run.optimizer.ledger.steps == 1


def test_the_split_into_micro_batches_does_not_change_the_step(make_run):
    """Sums of clipped gradients add up: two backward calls equal one."""
    run = make_run(
        noise_multiplier=0.0, sampling=PoissonSampling(sampling_probability=1.0)
    )
    x, y = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, (x, y))

    for part in (slice(0, 7), slice(7, 7), slice(7, 20)):
        run.optimizer.backward(run.losses((x[part], y[part])))
    run.optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


def test_the_budget_ends_before_the_step_that_would_exceed_it(make_run):
    """One step more than planned raises, and neither moves nor charges anything."""
    run = make_run(steps=2)
    run.train(2)
    spent, reached = run.optimizer.spent(), weights(run.model)
    run.optimizer.backward(run.losses(next(iter(run.loader))))

    with pytest.raises(BudgetExhaustedError):
        run.optimizer.step()

    assert run.optimizer.spent() == spent
    assert torch.equal(weights(run.model), reached)


def test_spent_is_zero_before_the_first_step(make_run):
    """Nothing was released, so nothing was spent."""
    assert make_run().optimizer.spent().epsilon == 0


def test_a_batch_is_good_for_one_step_only(make_run):
    """A second step on the same draw would release its examples twice."""
    run = make_run()
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    with pytest.raises(SamplingMismatchError, match="already used"):
        run.optimizer.backward(run.losses(batch))
    with pytest.raises(SamplingMismatchError, match="already used"):
        run.optimizer.step()

    assert run.optimizer.ledger.steps == 1


def test_a_step_needs_a_batch_from_the_loader(make_run):
    """Data that the loader did not draw cannot claim amplification."""
    run = make_run()

    with pytest.raises(SamplingMismatchError, match="no batch has been drawn"):
        run.optimizer.backward(run.losses((torch.zeros(2, 3), torch.zeros(2))))


def test_a_step_on_part_of_the_batch_is_refused(make_run):
    """Fewer losses than examples drawn: some were dropped by someone."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1.0))
    x, y = next(iter(run.loader))
    run.optimizer.backward(run.losses((x[1:], y[1:])))

    with pytest.raises(SamplingMismatchError, match="every example"):
        run.optimizer.step()

    assert run.optimizer.ledger.steps == 0


def test_backward_twice_on_the_same_examples_is_refused(make_run):
    """An example whose backward runs twice would contribute twice."""
    run = make_run(sampling=PoissonSampling(sampling_probability=1.0))
    batch = next(iter(run.loader))
    run.optimizer.backward(run.losses(batch))

    with pytest.raises(SamplingMismatchError, match="more losses than"):
        run.optimizer.backward(run.losses(batch))


def test_a_batch_that_was_broken_off_leaves_nothing_behind(make_run):
    """Sums of an abandoned batch do not leak into the next one's release."""
    run = make_run(noise_multiplier=0.0)
    batches = iter(run.loader)
    run.optimizer.backward(run.losses(next(batches)) * 1e3)
    batch = next(batches)
    before, gradient = weights(run.model), unnoised(run, batch)

    with pytest.warns(UserWarning, match="its step was never taken"):
        run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


def test_zero_grad_drops_the_batch_and_it_may_be_computed_again(make_run):
    """Gradients that the user discards stay discarded; their ticket is not spent."""
    run = make_run(noise_multiplier=0.0)
    batch = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, batch)

    run.optimizer.backward(run.losses(batch) * -3)
    run.optimizer.zero_grad()
    run.optimizer.backward(run.losses(batch))
    run.optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_poisoned_example_contributes_nothing(make_run, poison):
    """One NaN or infinite example neither stops the step nor reaches the weights."""
    run = make_run(
        noise_multiplier=0.0, sampling=PoissonSampling(sampling_probability=1.0)
    )
    x, y = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, (x[1:], y[1:]))
    x[0] = poison

    run.optimizer.backward(run.losses((x, y)))
    run.optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


def test_a_parameter_that_no_example_reaches_gets_noise(make_run):
    """Whether a parameter was used is private, so every one is noised."""
    run = make_run()
    unused = nn.Parameter(torch.zeros(64))
    run.optimizer.add_param_group({"params": [unused]})

    run.train(1)

    assert unused.count_nonzero() > 32  # Rounded to a lattice, a few are 0.


def test_a_frozen_parameter_is_left_alone(make_run):
    """It is neither trained nor noised, and a stale raw gradient is dropped."""
    run = make_run()
    run.model.bias.requires_grad_(False)  # noqa: FBT003 -- torch's signature
    run.model.bias.grad = torch.ones(1)
    before = run.model.bias.clone()

    run.train(1)

    assert torch.equal(run.model.bias, before)


def test_parameters_that_change_within_a_batch_are_refused(make_run):
    """Half a batch's sums do not know a parameter that was added in between."""
    run = make_run()
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    with pytest.raises(PrivacyError, match="parameters changed"):
        run.optimizer.step()


def test_gradients_never_show_before_the_noise_is_in(make_run):
    """Between backward and step, ``p.grad`` holds nothing, or zeros."""
    run = make_run()
    run.model.weight.grad = torch.ones(1, 3)

    run.optimizer.backward(run.losses(next(iter(run.loader))))

    assert not any(p.grad.any() for p in run.model.parameters() if p.grad is not None)


def test_noise_of_another_size_than_was_charged_is_never_released(
    make_run, monkeypatch
):
    """The noise stage says what it used; if it used less, nobody sees the sums."""
    run = make_run()
    before = weights(run.model)
    run.optimizer.backward(run.losses(next(iter(run.loader))))
    monkeypatch.setattr(
        GaussianNoise, "add_", lambda _self, _sums, *, stddev: stddev / 2
    )

    with pytest.raises(PrivacyError, match=r"used a standard deviation of 0\.5"):
        run.optimizer.step()
    assert torch.equal(weights(run.model), before)
    assert not any(p.grad.any() for p in run.model.parameters() if p.grad is not None)
    assert run.optimizer.ledger.steps == 1


def test_private_loss_is_backward_for_trainers_that_call_it_themselves(make_run):
    """A scalar to log and differentiate; whatever scales it changes nothing."""
    run = make_run(noise_multiplier=0.0)
    batch = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, batch)

    loss = run.optimizer.private_loss(run.losses(batch))
    (loss / 8).backward()
    run.optimizer.step()

    assert loss.item() == pytest.approx(run.losses(batch).mean().item(), rel=1)
    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


def test_a_closure_is_evaluated_once_and_its_value_returned(make_run):
    """As Lightning calls it: the losses are computed inside ``step``."""
    run = make_run()
    batch, calls = next(iter(run.loader)), []

    def closure():
        losses = run.losses(batch)
        run.optimizer.backward(losses)
        calls.append(losses.sum().item())
        return calls[-1]

    with torch.no_grad():
        returned = run.optimizer.step(closure)

    assert [returned] == calls
    assert run.optimizer.ledger.steps == 1


@pytest.mark.parametrize(
    ("bad", "remedy"),
    [
        (torch.tensor(1.0), "use reduction='none'"),
        (torch.ones(2).long(), "use reduction='none'"),
        (torch.ones(2, 1), "give outputs and targets one shape"),
        (torch.ones(2, 2), r"losses\.flatten\(1\)\.mean\(1\)"),
    ],
)
def test_losses_must_be_a_vector(make_run, bad, remedy):
    """A mean over the batch cannot be taken apart again; outputs [n, 1] need a shape."""
    with pytest.raises(ValueError, match=f"one loss an example.*{remedy}"):
        make_run().optimizer.backward(bad)


def test_unamplified_training_takes_any_batches_once_a_step(make_plan):
    """One's own loader: every step is charged in full, one backward each."""
    model = nn.Linear(3, 1)
    plan = make_plan(sampling=Unamplified())
    optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)

    optimizer.backward(model(torch.randn(4, 3)).square().squeeze(1))
    with pytest.raises(SamplingMismatchError, match="backwards_per_step"):
        optimizer.backward(model(torch.randn(4, 3)).square().squeeze(1))
    optimizer.step()
    with pytest.raises(SamplingMismatchError, match="without gradients"):
        optimizer.step()

    (release,) = optimizer.ledger.releases()
    assert (release.sampling_probability, release.count) == (1.0, 1)


def test_unamplified_steps_may_declare_micro_batches(make_plan):
    """The caller promises that the calls of one step share no example."""
    model = nn.Linear(3, 1)
    plan = make_plan(sampling=Unamplified(backwards_per_step=2))
    optimizer = DPOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), plan=plan)

    for _ in range(2):
        optimizer.backward(model(torch.randn(4, 3)).square().squeeze(1))
    optimizer.step()

    assert optimizer.ledger.steps == 1


def test_a_state_dict_carries_the_ledger_and_loads_with_weights_only(make_run):
    """A checkpoint that resumes knows what was spent."""
    run, resumed = make_run(), make_run()
    run.train(3)
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)

    resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))

    assert resumed.optimizer.spent() == run.optimizer.spent()


def test_loading_ones_own_state_charges_nothing_twice(make_run):
    """Accelerate loads an optimizer's own state back when it prepares it."""
    run = make_run()
    run.train(3)

    run.optimizer.load_state_dict(run.optimizer.state_dict())

    assert run.optimizer.ledger.steps == 3


def test_a_state_without_a_ledger_is_refused(make_run):
    """What it cost is unknown, so it is not loaded, unless the caller vouches."""
    run = make_run(torch.optim.Adam)
    state = {**run.inner.state_dict()}
    state["param_groups"][0]["lr"] = 0.75

    with pytest.raises(LedgerError, match="has no ledger"):
        run.optimizer.load_state_dict(state)
    assert run.optimizer.param_groups[0]["lr"] == 0.1

    run.optimizer.load_state_dict_without_ledger(state)
    assert run.optimizer.param_groups[0]["lr"] == 0.75
    with pytest.raises(LedgerError, match="has a ledger, so"):
        run.optimizer.load_state_dict_without_ledger(run.optimizer.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_keeps_the_charges_and_shares_no_noise(make_run, duplicate):
    """A copy is a fork: it has spent what the original spent, and goes its own way."""
    run = make_run(num_features=64)
    run.train(2)
    before = weights(run.model)

    twin = duplicate(run.optimizer)
    others = torch.utils.data.TensorDataset(torch.randn(20, 64), torch.randn(20))
    twin.attach(run.optimizer.plan.loader(others))
    twin_parameters = [p for g in twin.param_groups for p in g["params"]]
    for optimizer, parameters in (
        (run.optimizer, list(run.model.parameters())),
        (twin, twin_parameters),
    ):
        (weight, bias), (x, _) = parameters, next(iter(optimizer.mechanism.loader))
        optimizer.backward((x @ weight.T + bias).squeeze(1) * 0)
        optimizer.step()

    assert twin.ledger.steps == run.optimizer.ledger.steps == 3
    assert not torch.equal(twin_parameters[0].grad, run.model.weight.grad)
    assert not torch.equal(weights(run.model), before)


def test_parameters_of_16_bits_are_summed_and_noised_in_32(make_run):
    """Rounding a sum or its noise to 8 bits would be seen; rounding both is fine."""
    run = make_run(noise_multiplier=0.0)
    run.model.bfloat16()
    x, y = next(iter(run.loader))

    run.optimizer.backward(run.losses((x.bfloat16(), y.bfloat16())))
    sums = run.optimizer.mechanism.pending.sums.of_parameters()
    run.optimizer.step()

    assert {s.dtype for s in sums} == {torch.float32}
    assert run.model.weight.grad.dtype == torch.bfloat16


def test_a_loader_of_another_rate_cannot_be_attached(make_run):
    """Its batches would be charged at the plan's sampling probability."""
    run = make_run()
    other = PoissonLoader(range(9), sampling_probability=0.9, steps=20)

    with pytest.raises(ValueError, match=r"plan says .*=0\.5\)"):
        run.optimizer.attach(other)

    assert run.optimizer.mechanism.loader is run.loader


def test_a_copy_without_a_loader_claims_nothing(make_run):
    """An unpickled optimizer has no loader until one is attached."""
    run = make_run()
    twin = pickled(run.optimizer)

    with pytest.raises(SamplingMismatchError, match="attach"):
        twin.step()


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (torch.optim.LBFGS, "line search"),
        (torch.optim.SparseAdam, "sparse"),
    ],
)
def test_optimizers_that_cannot_be_private_are_refused_by_name(
    make_plan, refused, reason
):
    """The reason is in the message, before anything is built."""
    inner = refused([nn.Parameter(torch.zeros(1))])

    with pytest.raises(
        UnsupportedOperationError, match=rf"{refused.__name__}.*{reason}"
    ):
        DPOptimizer(inner, plan=make_plan(sampling=Unamplified()))


def test_only_an_optimizer_can_be_wrapped(make_plan):
    """Horovod-style dynamic subclassing hands over parameter groups instead."""
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got list"):
        DPOptimizer([{"params": []}], plan=make_plan(sampling=Unamplified()))


def test_an_optimizer_is_made_private_once(make_run, make_plan):
    """Two layers of noise and two ledgers would both be wrong."""
    run = make_run()

    with pytest.raises(TypeError, match="already"):
        DPOptimizer(run.optimizer, plan=make_plan(sampling=Unamplified()))


def test_a_plan_with_amplification_needs_its_loader(make_run, make_plan):
    """No loader, a foreign one, or one that samples otherwise is refused."""
    run = make_run()
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    other = make_plan(sampling=PoissonSampling(sampling_probability=0.25))

    with pytest.raises(ValueError, match="plan claims amplification"):
        DPOptimizer(inner, plan=make_plan())
    with pytest.raises(ValueError, match=r"draws by .*=0\.5\)"):
        DPOptimizer(inner, plan=other, loader=run.loader)
    with pytest.raises(ValueError, match="claims no amplification"):
        DPOptimizer(inner, plan=make_plan(sampling=Unamplified()), loader=run.loader)


def test_a_clipping_rule_may_be_given(make_run):
    """One that bounds what the plan says is used as it is."""
    run = make_run(noise_multiplier=0.0)
    optimizer = DPOptimizer(
        run.inner,
        plan=run.optimizer.plan,
        loader=run.loader,
        clipping=FlatClipping(max_grad_norm=1.0),
    )
    batch = next(iter(run.loader))
    before, gradient = weights(run.model), unnoised(run, batch)
    optimizer.backward(run.losses(batch))
    optimizer.step()

    torch.testing.assert_close(weights(run.model), before - 0.1 * gradient)


def test_a_clipping_rule_must_bound_what_the_plan_says(make_run, make_plan):
    """The noise is for the plan's sensitivity, so another one is refused."""
    run = make_run()

    with pytest.raises(ValueError, match=r"clipping has sensitivity 2.0"):
        DPOptimizer(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
            plan=make_plan(),
            loader=run.loader,
            clipping=FlatClipping(max_grad_norm=2.0),
        )


@pytest.mark.slow
def test_the_certificate_says_what_was_spent(make_run):
    """It quotes the ledger, and recomputes from itself."""
    run = make_run()
    run.train(2)

    certificate = run.optimizer.certificate()

    assert certificate.epsilon == run.optimizer.guarantee().epsilon
    assert certificate.epsilon_of_steps_taken == run.optimizer.spent().epsilon


def test_noise_that_sums_cannot_hold_is_refused_before_it_is_charged(make_plan):
    """Standard deviation 1e20 is beyond the lattice of float32: nothing is spent."""
    plan = make_plan(sampling=Unamplified(), max_grad_norm=1e18, noise_multiplier=100.0)
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = DPOptimizer(torch.optim.SGD([weight], lr=0.1), plan=plan)
    optimizer.backward(torch.eye(3) @ weight)

    with pytest.raises(ValueError, match="scale the loss and max_grad_norm"):
        optimizer.step()
    assert optimizer.ledger.steps == 0
    assert optimizer.mechanism.pending is not None
