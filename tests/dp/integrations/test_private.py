"""One line makes a Hugging Face Trainer private, by the Trainer's own arguments."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import set_seed

import dp
from dp import UnsupportedOperationError
from dp._mechanism.paid_for import apart
from dp.integrations.transformers import PrivateTrainer


CONFIG = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps one state for the process; every test starts with none."""
    set_seed(0)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def sentences(num_rows, *, num_users=20):
    return [
        {"input_ids": ids, "labels": ids.clone(), "user": row % num_users}
        for row, ids in enumerate(torch.randint(3, 20, (num_rows, 6)))
    ]


@pytest.fixture
def make_trainer(tmp_path):
    """Build a Trainer as for training without privacy."""

    def make(kind=Trainer, *, data=None, model=None, **changes):
        arguments = TrainingArguments(
            **{
                "output_dir": str(tmp_path),
                "use_cpu": True,
                "report_to": [],
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "save_strategy": "no",
                "logging_steps": 2,
                "per_device_train_batch_size": 5,
                "num_train_epochs": 1,
                **changes,
            }
        )
        return kind(
            LlamaForCausalLM(LlamaConfig(**CONFIG)) if model is None else model,
            arguments,
            train_dataset=sentences(40) if data is None else data,
            eval_dataset=sentences(8),
        )

    return make


NUMBERS = {"epsilon": 8.0, "delta": 1e-4, "dataset_size": 40}


@pytest.mark.parametrize(
    ("arguments", "batch_size", "steps"),
    [
        ({}, 5, 8),
        ({"num_train_epochs": 2.5}, 5, 20),
        ({"gradient_accumulation_steps": 3}, 15, 3),
        ({"max_steps": 7, "num_train_epochs": 30}, 5, 7),
        ({"per_device_train_batch_size": 16, "num_train_epochs": 2}, 16, 6),
    ],
)
def test_the_plan_follows_from_the_trainers_own_arguments(
    make_trainer, arguments, batch_size, steps
):
    """Batches, length and clipping; what the Trainer does not know is given."""
    trainer = dp.private(make_trainer(max_grad_norm=0.5, **arguments), **NUMBERS)

    plan = trainer.plan
    assert plan.expected_batch_size == batch_size
    assert plan.sampling_probability == batch_size / 40
    assert plan.steps == trainer.args.max_steps == steps
    assert plan.max_grad_norm == 0.5
    assert 7.9 < plan.guarantee().epsilon <= 8.0


def test_the_number_of_rows_is_the_callers_and_never_read(make_trainer):
    """The same call on other data makes the same plan, to the last digit."""
    few, many = (
        dp.private(make_trainer(data=sentences(n)), **NUMBERS).plan for n in (30, 50)
    )

    assert few == many


def test_epochs_end_where_they_were_asked_to(make_trainer):
    """Also where batches do not divide the rows: an epoch of 40 by 16 has 3 steps."""
    plain = make_trainer(per_device_train_batch_size=16, num_train_epochs=1)
    trainer = dp.private(plain, **NUMBERS)
    trainer.train()

    assert trainer.state.global_step == 3
    assert trainer.state.epoch == 1.0


@pytest.mark.slow
def test_a_trainer_trains_saves_resumes_and_reports(make_trainer, tmp_path):
    """Under its old name too; a resumed run counts both parts, and its epochs go on."""
    plain = make_trainer(save_strategy="steps", save_steps=4, num_train_epochs=2)
    trainer = dp.private(plain, **NUMBERS)
    output = trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="poet")

    assert trainer is plain
    assert isinstance(plain, PrivateTrainer)
    assert output.global_step == 16
    assert 7.9 < trainer.certificate().epsilon <= 8.0
    assert trainer.evaluate()["eval_loss"] > 0
    assert {path.name for path in (tmp_path / "privacy").iterdir()} >= {
        "certificate.json",
        "index.html",
        "plan.json",
        "verification.txt",
    }
    verified = dp.verify(tmp_path / "privacy/certificate.json", quick=True)
    assert verified.ok, verified
    assert "about 40 examples is public" in trainer.certificate().assumptions[-2]
    assert "weights that the run began with" in trainer.certificate().assumptions[-1]
    assert json.loads((tmp_path / "privacy/plan.json").read_text())["steps"] == 16

    again = dp.private(
        make_trainer(num_train_epochs=2, data=trainer.train_dataset), **NUMBERS
    )
    with apart():  # As in another process: here, later steps are known.
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))

    assert again.private_optimizer.ledger.steps == 16
    assert again.state.epoch == trainer.state.epoch == 2.0
    assert [log["epoch"] for log in again.state.log_history if log["step"] == 14] == [
        log["epoch"] for log in trainer.state.log_history if log["step"] == 14
    ]


@pytest.mark.slow
def test_the_model_card_says_what_is_guaranteed_once(make_trainer, tmp_path):
    """However often it is created; before training there is nothing to say."""
    trainer = dp.private(make_trainer(max_steps=2), **NUMBERS)
    trainer.create_model_card(model_name="poet")
    before = (tmp_path / "README.md").read_text()
    trainer.train()
    for _ in range(2):
        trainer.create_model_card(model_name="poet")
    card = (tmp_path / "README.md").read_text()

    assert "## Privacy" not in before
    assert card.count("## Privacy") == 1
    assert "| steps | 2 of 2 planned |" in card
    assert "| protects | one training example |" in card


@pytest.mark.slow
def test_what_batches_cost_to_compute_is_not_saved(make_trainer, tmp_path):
    """It tells how many examples were drawn, and gets no noise."""
    trainer = dp.private(
        make_trainer(max_steps=2, save_strategy="steps", save_steps=2), **NUMBERS
    )
    trainer.train()

    state = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())
    assert state["total_flos"] == 0
    assert Trainer.floating_point_ops(trainer, sentences(1)[0]) > 0


class Bag(nn.Module):
    """A linear model of eight numbers, whose gradient can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return x @ self.weight


class BagTrainer(Trainer):
    """A trainer with a loss of its own, one an example."""

    def per_example_losses(self, model, inputs):
        return model(inputs["x"])


def gradients_of(data):
    return torch.stack([row["x"] for row in data])


@pytest.mark.slow
def test_all_rows_of_a_user_are_clipped_as_one(make_trainer):
    """The update is that of a loop over users.

    Noise has a spread of about 0.002, so a right sum is off by 0.015 less than once in
    a billion runs; each row clipped alone would be off by more in any.
    """
    data = [{"x": x, "user": row // 4} for row, x in enumerate(torch.randn(24, 8))]
    trainer = make_trainer(
        BagTrainer,
        data=data,
        model=Bag(),
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        max_steps=1,
        max_grad_norm=0.5,
        remove_unused_columns=True,
    )
    inner = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    trainer.optimizer = inner
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(inner, lambda _: 1.0)
    trainer = dp.private(trainer, epsilon=1e3, delta=1e-4, dataset_size=6, units="user")
    trainer.train()

    gradients = gradients_of(data).view(6, 4, 8).sum(1)
    expected = -(0.5 * gradients / gradients.norm(dim=1, keepdim=True)).sum(0) / 6
    assert trainer.plan.unit_of_privacy == "one value of user"
    assert trainer.private_optimizer.mechanism.loader.units_digest is not None
    assert torch.allclose(trainer.model.weight.detach(), expected, atol=0.015)
    alone = 0.5 * gradients_of(data) / gradients_of(data).norm(dim=1, keepdim=True)
    assert not torch.allclose(-alone.sum(0) / 6, expected, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "numbers", "error", "told"),
    [
        ({}, {"epsilon": 0}, ValueError, "epsilon must be > 0"),
        ({}, {"delta": 1}, ValueError, "delta must be strictly"),
        ({}, {"dataset_size": 4.5}, ValueError, "dataset_size must be a whole"),
        ({}, {"dataset_size": 4}, ValueError, "a step takes 5 examples"),
        ({}, {"epochs": 3}, ValueError, "epochs=3: an Accelerator does not know"),
        ({}, {"units": "name"}, ValueError, "units='name' names no column.*'user'"),
        ({}, {"units": range(40)}, ValueError, "units must name a column.*a range"),
        ({}, {"max_per_unit": 3}, ValueError, "max_per_unit=3 limits.*units="),
        ({}, {"max_grad_norm": -1}, ValueError, "max_grad_norm must be"),
        ({"max_grad_norm": 0}, {}, ValueError, "max_grad_norm=0 turns clipping off"),
        (
            {"dataloader_drop_last": True},
            {},
            ValueError,
            "dataloader_drop_last=True choose batches",
        ),
        (
            {"auto_find_batch_size": True},
            {},
            UnsupportedOperationError,
            "auto_find_batch_size=True starts training again",
        ),
        (
            {"include_num_input_tokens_seen": True},
            {},
            UnsupportedOperationError,
            "include_num_input_tokens_seen='all' counts the tokens",
        ),
        (
            {"neftune_noise_alpha": 5.0},
            {},
            UnsupportedOperationError,
            "neftune_noise_alpha=5.0 scales an example's noise",
        ),
        (
            {"torch_compile": True},
            {},
            UnsupportedOperationError,
            "torch_compile=True compiles by a backend that hides",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    make_trainer, changes, numbers, error, told
):
    """Before anything is changed: the Trainer is what it was."""
    trainer = make_trainer(**changes)

    with pytest.raises(error, match=told):
        dp.private(trainer, **{**NUMBERS, **numbers})
    assert type(trainer) is Trainer


def test_a_trainer_that_trained_without_privacy_stays_as_it_is(make_trainer):
    """No later step takes back what the weights know."""
    trainer = make_trainer(max_steps=2)
    trainer.train()

    with pytest.raises(UnsupportedOperationError, match="took 2 steps without privacy"):
        dp.private(trainer, **NUMBERS)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_optimizer_has_to_hold_what_is_to_be_trained(make_trainer, frozen):
    """Not the parameters of before the adapters; what is frozen may be left out."""
    trainer = make_trainer()
    head = list(trainer.model.lm_head.parameters())
    trainer.optimizer = torch.optim.SGD(head)
    if frozen:
        trainer.model.requires_grad_(requires_grad=False)
        trainer.model.lm_head.requires_grad_()
        assert isinstance(dp.private(trainer, **NUMBERS), PrivateTrainer)
        return

    with pytest.raises(ValueError, match="does not hold model"):
        dp.private(trainer, **NUMBERS)


class OwnLoss(Trainer):
    """A trainer whose loss is of a whole batch."""

    def compute_loss(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs)


class OwnLossAndLosses(OwnLoss):
    """A trainer that also says what one example's loss is."""

    def per_example_losses(self, model, inputs):
        return model(input_ids=inputs["input_ids"]).logits.square().mean((1, 2))


class CustomLoader(Trainer):
    """A trainer that chooses batches by itself."""

    def get_train_dataloader(self):
        return super().get_train_dataloader()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (OwnLoss, "OwnLoss.compute_loss would not be called.*per_example_losses"),
        (CustomLoader, "CustomLoader.get_train_dataloader would not be called"),
    ],
)
def test_methods_that_would_be_left_without_effect_are_refused(
    make_trainer, kind, told
):
    """None is silently replaced."""
    with pytest.raises(UnsupportedOperationError, match=told):
        dp.private(make_trainer(kind), **NUMBERS)


@pytest.mark.slow
def test_a_trainer_with_losses_of_its_own_trains_by_them(make_trainer):
    """Its method is called, not ours."""
    trainer = dp.private(make_trainer(OwnLossAndLosses, max_steps=2), **NUMBERS)
    trainer.train()

    assert type(trainer).per_example_losses is OwnLossAndLosses.per_example_losses
    assert trainer.private_optimizer.ledger.steps == 2


def test_only_trainers_become_private_and_only_once(make_trainer):
    """Anything else is told what to do."""
    with pytest.raises(TypeError, match=r"got Linear; in a loop of your own, wrap"):
        dp.private(nn.Linear(1, 1), **NUMBERS)
    trainer = dp.private(make_trainer(), **NUMBERS)
    with pytest.raises(TypeError, match="PrivateTrainer is private already"):
        dp.private(trainer, **NUMBERS)
