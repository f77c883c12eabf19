"""One line makes an Accelerator private: prepare and backward do the rest."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dp
from dp import UnsupportedOperationError


NUMBERS = {"epsilon": 3.0, "delta": 1e-4, "dataset_size": 60, "epochs": 2}


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps one state for the process; every test starts with none."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def rows(num_rows=60):
    return TensorDataset(torch.randn(num_rows, 8), torch.randint(3, (num_rows,)))


def prepared(accelerator, *, model=None, data=None):
    model = nn.Linear(8, 3) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.5, 4)
    loader = DataLoader(rows() if data is None else data, batch_size=10, shuffle=True)
    return accelerator.prepare(model, optimizer, loader, scheduler)


def losses_of(model):
    return lambda batch: cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "steps"), [(1, 12), (2, 6)])
@pytest.mark.parametrize("finished", [False, True])
def test_a_loop_trains_privately_and_reports(tmp_path, parts, steps, finished):
    """The loop is the one of training without privacy, but for its backward."""
    accelerator = dp.private(
        Accelerator(cpu=True, gradient_accumulation_steps=parts, project_dir=tmp_path),
        **NUMBERS,
    )
    model, optimizer, loader, scheduler = prepared(accelerator)
    loss_fn = losses_of(model)
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                if finished:
                    accelerator.backward(loss_fn(batch))
                else:
                    accelerator.backward(loss_fn, batch)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    accelerator.end_training()

    plan = accelerator.plan
    assert plan == accelerator.private_optimizer.plan
    assert plan.expected_batch_size == 10 * parts
    assert accelerator.private_optimizer.ledger.steps == plan.steps == steps
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert 2.9 < accelerator.certificate().epsilon <= 3.0
    assert dp.verify(tmp_path / "privacy/certificate.json", quick=True).ok


def test_a_state_that_is_saved_has_its_ledger(tmp_path):
    """As accelerate saves any state."""
    data = rows()
    for part in (1, 2):
        accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)
        model, optimizer, loader, _ = prepared(accelerator, data=data)
        if part == 2:
            accelerator.load_state(tmp_path)
        for batch in loader:
            accelerator.backward(losses_of(model), batch)
            optimizer.step()
        accelerator.save_state(tmp_path)
        accelerator.end_training()  # Without a folder there is no report.

    assert accelerator.private_optimizer.ledger.steps == 12


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_has_no_steps_left(tmp_path):
    """The same loop passes over nothing, and reports once more."""
    data = rows()
    for _ in range(2):
        accelerator = dp.private(
            Accelerator(cpu=True, project_dir=tmp_path), **{**NUMBERS, "epochs": 0.3}
        )
        model, optimizer, loader, _ = prepared(accelerator, data=data)
        if (tmp_path / "state").exists():
            accelerator.load_state(tmp_path / "state")
        before = model.weight.clone()
        for _ in range(2):  # Twice as often as planned.
            for batch in loader:
                accelerator.backward(losses_of(model), batch)
                optimizer.step()
        accelerator.save_state(tmp_path / "state")
        accelerator.end_training()

    assert accelerator.private_optimizer.ledger.steps == 2
    assert torch.equal(model.weight, before)
    assert dp.verify(tmp_path / "privacy/certificate.json", quick=True).ok


def test_a_model_that_mixes_examples_is_found_before_the_first_step():
    """By dp.check, at the first backward of a batch with two examples."""
    accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)
    model = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))
    model, _, loader, _ = prepared(accelerator, model=model)
    batch = next(batch for batch in loader if len(batch[0]) > 1)

    with pytest.raises(dp.PrivacyError, match="BatchNorm"):
        accelerator.backward(losses_of(model), batch)


def test_a_batch_of_one_example_is_checked_later():
    """There is no second one to compare it with."""
    accelerator = dp.private(Accelerator(cpu=True), **{**NUMBERS, "dataset_size": 10})
    model, _, loader, _ = prepared(accelerator, data=rows(1))
    accelerator.backward(losses_of(model), next(iter(loader)))

    assert accelerator._unchecked


def test_what_is_evaluated_only_is_prepared_as_ever():
    """Loaders and models without an optimizer."""
    accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)
    loader = accelerator.prepare(DataLoader(rows(), batch_size=30))

    assert [len(x) for x, _ in loader] == [30, 30]
    with pytest.raises(TypeError, match="no private optimizer yet: train first"):
        accelerator.certificate()


def test_one_optimizer_and_one_loader_are_prepared_once():
    """Others would cost as much again, or be trained on without a plan."""
    accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)
    model = nn.Linear(8, 3)
    sgd = torch.optim.SGD(model.parameters())
    loader = DataLoader(rows(), batch_size=10)
    with pytest.raises(UnsupportedOperationError, match="prepare got 0 loaders"):
        accelerator.prepare(model, sgd)
    with pytest.raises(UnsupportedOperationError, match="prepare got 2 loaders"):
        accelerator.prepare(model, sgd, loader, loader)
    with pytest.raises(UnsupportedOperationError, match="plans for one optimizer"):
        accelerator.prepare(model, sgd, sgd, loader)
    prepared(accelerator)
    with pytest.raises(UnsupportedOperationError, match="plans for one optimizer"):
        accelerator.prepare(model, sgd, loader)


def test_an_accelerator_that_prepared_an_optimizer_stays_as_it_is():
    """A loop with that optimizer would train without privacy, and nothing would tell."""
    accelerator = Accelerator(cpu=True)
    prepared(accelerator)

    with pytest.raises(UnsupportedOperationError, match=r"call dp\.private first"):
        dp.private(accelerator, **NUMBERS)
    assert type(accelerator) is Accelerator


def test_what_is_asked_before_anything_was_prepared_says_what_to_prepare():
    """The Accelerator's own steps, and not those of a loop by hand."""
    accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)

    for ask in (accelerator.certificate, lambda: accelerator.backward(torch.zeros(3))):
        with pytest.raises(TypeError, match="prepare the model, the optimizer and"):
            ask()


def test_clipping_of_the_sum_is_refused_unless_it_says_the_same():
    """There is no sum to clip before the private step."""
    accelerator = dp.private(Accelerator(cpu=True), **NUMBERS)
    model, _, loader, _ = prepared(accelerator)
    accelerator.backward(losses_of(model), next(iter(loader)))

    assert accelerator.clip_grad_norm_(model.parameters(), 1.0) == 0
    with pytest.raises(
        UnsupportedOperationError, match=r"max_grad_norm=5 to dp\.private"
    ):
        accelerator.clip_grad_norm_(model.parameters(), 5)
    with pytest.raises(UnsupportedOperationError, match=r"clip_grad_value_.*nothing"):
        accelerator.clip_grad_value_(model.parameters(), 5)


def test_epochs_are_asked_for():
    """An Accelerator does not know them."""
    with pytest.raises(ValueError, match="epochs=None: an Accelerator does not know"):
        dp.private(Accelerator(cpu=True), **{**NUMBERS, "epochs": None})
