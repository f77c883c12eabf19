"""DPOptimizer in the Hugging Face Trainer, by real Trainers on tiny random models."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GreedyLR,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

import dp
from dp import (
    BudgetExhaustedError,
    DPOptimizer,
    LedgerError,
    PoissonSampling,
    PrivacyError,
    PrivacyPlan,
    RandomAllocation,
    Unamplified,
    UnsupportedOperationError,
)
from dp._mechanism.changed_options import warn_of_metric_schedulers
from dp._mechanism.paid_for import apart
from dp.integrations.transformers import PrivateTrainer, per_example_losses


SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LENGTH = 6


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps one state for the process; every test starts with none."""
    torch.manual_seed(0)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def llama(head=LlamaForCausalLM, **changes):
    return head(
        LlamaConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, **changes)
    )


def sentences(num_examples, *, labels="tokens"):
    data = []
    for _ in range(num_examples):
        ids = torch.randint(3, 20, (LENGTH,))
        label = ids.clone() if labels == "tokens" else torch.randint(3, ())
        data.append({"input_ids": ids, "labels": label})
    return data


def plan_of(**changes):
    numbers = {
        "sampling": PoissonSampling(sampling_probability=0.5),
        "noise_multiplier": 10.0,
        "max_grad_norm": 1.0,
        "expected_batch_size": 6.0,
        "steps": 6,
        "target_delta": 1e-5,
    }
    return PrivacyPlan(**{**numbers, **changes})


@pytest.fixture
def arguments(tmp_path):
    """Build training arguments that write little and log every step."""

    def make(**changes):
        return TrainingArguments(
            **{
                "output_dir": str(tmp_path),
                "use_cpu": True,
                "report_to": [],
                "disable_tqdm": True,
                "dataloader_pin_memory": False,
                "save_strategy": "no",
                "logging_steps": 2,
                "learning_rate": 0.01,
                **changes,
            }
        )

    return make


def sgd(model, lr=0.1):
    """An optimizer whose update can be computed by hand, and a constant rate."""
    inner = torch.optim.SGD(model.parameters(), lr=lr)
    return inner, torch.optim.lr_scheduler.LambdaLR(inner, lambda _: 1.0)


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def padded(ids, labels, **extra):
    return {"input_ids": ids, "labels": labels, **extra}


def own_loss_cases():
    ids = torch.randint(3, 20, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    some = ids.clone()
    some[0, 3:] = some[1, :2] = -100
    floats = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    bert = BertConfig(**SIZES, max_position_embeddings=16)
    t5 = T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    single, multi = "single_label_classification", "multi_label_classification"
    return {
        "causal": (llama(), ids, some),
        "masked": (BertForMaskedLM(bert), ids, some),
        "seq2seq": (T5ForConditionalGeneration(t5), ids, some),
        "tokens": (
            llama(LlamaForTokenClassification, num_labels=3),
            ids,
            (ids % 3).masked_fill(some == -100, -100),
        ),
        "classes": (
            llama(LlamaForSequenceClassification, num_labels=3),
            ids,
            ids[:, 0] % 3,
        ),
        "declared": (
            llama(LlamaForSequenceClassification, num_labels=3, problem_type=single),
            ids,
            ids[:, 0] % 3,
        ),
        "several": (llama(LlamaForSequenceClassification, num_labels=3), ids, floats),
        "several declared": (
            llama(LlamaForSequenceClassification, num_labels=3, problem_type=multi),
            ids,
            floats,
        ),
        "number": (
            llama(LlamaForSequenceClassification, num_labels=1),
            ids,
            floats[:, 0],
        ),
        "numbers": (
            llama(
                LlamaForSequenceClassification, num_labels=3, problem_type="regression"
            ),
            ids,
            floats,
        ),
    }


@pytest.mark.parametrize("name", list(own_loss_cases()))
def test_an_examples_loss_is_the_models_own_for_it_alone(name):
    """Whatever the head, and however many tokens have no label."""
    model, ids, labels = own_loss_cases()[name]
    model.eval()
    inputs = {"labels": labels} if model.config.is_encoder_decoder else {}

    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits
        losses = per_example_losses(model, logits, labels)
        alone = [
            model(input_ids=i[None], labels=label[None]).loss
            for i, label in zip(ids, labels, strict=True)
        ]

    torch.testing.assert_close(losses, torch.stack(alone))


@pytest.mark.parametrize("name", ["causal", "tokens", "classes"])
def test_labels_are_smoothed_as_by_the_trainer(name):
    """``label_smoothing_factor`` means what it means there."""
    model, ids, labels = own_loss_cases()[name]
    model.eval()

    with torch.no_grad():
        outputs = model(input_ids=ids)
        losses = per_example_losses(model, outputs.logits, labels, label_smoothing=0.2)
        alone = [
            LabelSmoother(epsilon=0.2)(
                {"logits": outputs.logits[i : i + 1]},
                labels[i : i + 1],
                shift_labels=name == "causal",
            )
            for i in range(4)
        ]

    torch.testing.assert_close(losses, torch.stack(alone))


def test_an_example_without_any_label_has_loss_zero():
    """It has nothing to say, and must not divide by zero."""
    model = llama()
    labels = torch.full((1, LENGTH), -100)

    losses = per_example_losses(model, torch.randn(1, LENGTH, 20), labels)

    assert losses.tolist() == [0.0]


def test_losses_that_are_not_known_are_refused_by_name():
    """A mean over something else must not be taken apart as one over tokens."""
    bert = BertForQuestionAnswering(BertConfig(**SIZES))
    regression = own_loss_cases()["number"][0]

    with pytest.raises(UnsupportedOperationError, match="ForQuestionAnswering"):
        per_example_losses(bert, torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(UnsupportedOperationError, match="Linear has loss_type=None"):
        per_example_losses(nn.Linear(2, 2), torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(UnsupportedOperationError, match=r"label_smoothing=0\.5"):
        per_example_losses(
            regression, torch.zeros(1, 1), torch.zeros(1), label_smoothing=0.5
        )


def test_adapted_models_have_the_loss_of_what_they_adapt():
    """The plain model is handed out by ``get_base_model``, as in peft."""
    model, ids, labels = own_loss_cases()["causal"]

    class GPT2LMHeadModel(nn.Module):  # A name that says nothing of its loss.
        config = model.config

    adapted = SimpleNamespace(config=model.config, get_base_model=GPT2LMHeadModel)
    logits = model(input_ids=ids).logits

    assert torch.equal(
        per_example_losses(adapted, logits, labels),
        per_example_losses(model, logits, labels),
    )


TRAINED = {
    "causal": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "classes": lambda: BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)),
    "tokens": lambda: llama(LlamaForTokenClassification, num_labels=20),
    "seq2seq": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=20,
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    ),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_private_for_every_kind_of_head(arguments, witness_of, kind):
    """The Trainer's schedule drives it, noise is there, each step is charged once."""
    plan = plan_of()
    model = TRAINED[kind]()
    labels = "classes" if kind == "classes" else "tokens"
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    witness = witness_of(inner)
    trainer = PrivateTrainer(
        model,
        arguments(num_train_epochs=100, lr_scheduler_type="linear"),
        train_dataset=sentences(12, labels=labels),
        optimizers=(inner, None),
        plan=plan,
    )

    result = trainer.train()

    assert result.global_step == trainer.private_optimizer.ledger.steps == 6
    assert witness.rates == pytest.approx(
        [0.1 * (1 - step / 6) for step in range(6)], rel=1e-3
    )
    assert witness.spreads == pytest.approx([10 / 6] * 6, rel=0.25)
    certificate = trainer.certificate()
    assert certificate.steps == 6
    for name in ("epsilon", "epsilon_if_planned_to_stop_here"):
        assert trainer.state.log_history[-1][name] == certificate.epsilon


def test_losses_of_training_data_are_logged_only_on_request(arguments, tmp_path):
    """Logs, the trainer's state on disk and its result hold what is covered."""
    for unsafe in (False, True):
        trainer = PrivateTrainer(
            llama(),
            arguments(save_strategy="steps", save_steps=6),
            train_dataset=sentences(12),
            plan=plan_of(),
            unsafe_log_loss=unsafe,
        )

        result = trainer.train()

        state = json.loads((tmp_path / "checkpoint-6/trainer_state.json").read_text())
        logged = {key for log in state["log_history"] for key in log}
        logged |= {key for log in trainer.state.log_history for key in log}
        assert logged >= {"epsilon", "learning_rate"}
        assert ({"loss", "grad_norm", "train_loss"} <= logged) == unsafe
        assert not unsafe or result.training_loss == pytest.approx(
            math.log(20), rel=0.2
        )
        assert ("train_loss" in result.metrics) == unsafe
        assert math.isnan(result.training_loss) != unsafe
        assert ("withheld" in repr(result)) != unsafe


@pytest.mark.parametrize(("parts", "at_once"), [(1, 8), (1, 3), (3, 2), (4, 8)])
def test_accumulation_and_device_batches_do_not_change_the_step(
    arguments, parts, at_once
):
    """Nothing is divided twice: the update is that of the whole draw."""
    data = sentences(8)
    model = llama()
    before = weights(model)
    plan = plan_of(
        noise_multiplier=0.0,
        sampling=PoissonSampling(sampling_probability=1.0),
        max_grad_norm=0.7,
        steps=1,
    )
    total = torch.zeros_like(before)
    for example in data:
        batch = {key: value[None] for key, value in example.items()}
        model.zero_grad()
        model(**batch).loss.backward()
        grad = torch.cat([p.grad.flatten() for p in model.parameters()])
        total += grad * min(1.0, 0.7 / grad.norm().item())
    model.zero_grad()
    sizes = []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer = PrivateTrainer(
        model,
        arguments(
            gradient_accumulation_steps=parts, per_device_train_batch_size=at_once
        ),
        train_dataset=data,
        optimizers=sgd(model, lr=0.1),
        plan=plan,
        check_first=False,  # It would be counted.
    )

    trainer.train()

    torch.testing.assert_close(weights(model), before - 0.1 * total / 6)
    assert trainer.private_optimizer.ledger.steps == 1
    assert sum(sizes) == 8
    assert len(sizes) == -(-8 // at_once)


def test_before_training_there_is_no_epsilon_to_log(arguments):
    """Evaluating a model that was not trained yet is as ever."""
    trainer = PrivateTrainer(
        llama(),
        arguments(label_names=["labels"]),
        eval_dataset=sentences(4),
        plan=plan_of(),
    )

    trainer.evaluate()

    (logged,) = trainer.state.log_history
    assert "eval_loss" in logged
    assert "epsilon" not in logged


def test_evaluation_in_between_costs_nothing(arguments):
    """It runs as ever, is logged as ever, and charges nothing."""
    trainer = PrivateTrainer(
        llama(),
        arguments(eval_strategy="steps", eval_steps=2, label_names=["labels"]),
        train_dataset=sentences(12),
        eval_dataset=sentences(4),
        plan=plan_of(),
    )

    trainer.train()

    evaluated = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["step"] for log in evaluated] == [2, 4, 6]
    assert evaluated[-1]["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    assert trainer.private_optimizer.ledger.steps == 6


def test_a_rate_that_follows_the_evaluation_is_told_of(arguments, witness_of):
    """It is what the update uses; what the metric is computed from is the user's to say."""
    model, data = llama(), sentences(12)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = PrivateTrainer(
        model,
        arguments(
            eval_strategy="steps",
            eval_steps=2,
            lr_scheduler_type="reduce_lr_on_plateau",
            lr_scheduler_kwargs={"patience": 0, "threshold": 1e9, "factor": 0.5},
        ),
        train_dataset=data,
        eval_dataset=data,
        plan=plan_of(),
        optimizers=(inner, None),
    )
    witness = witness_of(inner)

    with pytest.warns(UserWarning, match="private_data_touches"):
        trainer.train()

    assert len(witness.rates) == trainer.private_optimizer.ledger.steps == 6
    rates = [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    assert witness.rates == pytest.approx(rates, rel=1e-3)


def test_a_greedy_schedule_is_told_as_a_plateau_is():
    """It shares no class with torch's, and is found by what its step demands."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.warns(UserWarning, match="GreedyLR sets the learning rate by a metric"):
        warn_of_metric_schedulers([GreedyLR(sgd)])


def test_a_checkpoint_resumes_with_its_ledger(arguments, tmp_path):
    """Draws are new, what was spent is known, and the budget ends the run."""
    data, plan = sentences(12), plan_of()
    saving = arguments(save_strategy="steps", save_steps=2)
    first = PrivateTrainer(llama(), saving, train_dataset=data, plan=plan)
    first.train()

    resumed = PrivateTrainer(llama(), saving, train_dataset=data, plan=plan)
    seen = []
    resumed.add_callback(Recorder(seen))
    checkpoint = str(tmp_path / "checkpoint-4")
    with pytest.raises(dp.LedgerError, match="rows of this dataset"):
        resumed.train(resume_from_checkpoint=checkpoint)  # It lacks two steps.
    resumed = PrivateTrainer(llama(), saving, train_dataset=data, plan=plan)
    resumed.add_callback(Recorder(seen))
    with apart():  # As in another process.
        resumed.train(resume_from_checkpoint=checkpoint)

    assert seen == [5, 6]  # Steps of the run, of which the resumed one took two.
    assert resumed.private_optimizer.ledger.steps == 6
    assert resumed.private_optimizer.ledger.num_segments == 2
    assert resumed.certificate().epsilon == pytest.approx(first.certificate().epsilon)
    assert not torch.equal(weights(resumed.model), weights(first.model))


class Recorder(TrainerCallback):
    """Remember at which steps the trainer's own count was."""

    def __init__(self, seen):
        self.seen = seen

    def on_step_end(self, args, state, control, **kwargs):
        del args, control, kwargs
        self.seen.append(state.global_step)


def test_a_checkpoint_without_its_optimizer_is_refused(arguments, tmp_path):
    """What was spent to reach it is unknown, so an epsilon would be too small."""
    data, plan = sentences(12), plan_of()
    saving = arguments(save_strategy="steps", save_steps=4, save_only_model=True)
    PrivateTrainer(llama(), saving, train_dataset=data, plan=plan).train()
    trainer = PrivateTrainer(llama(), saving, train_dataset=data, plan=plan)

    with pytest.raises(LedgerError, match="took 4 steps, but the ledger knows of 0"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_training_again_goes_on_with_the_same_ledger(arguments):
    """The plan's steps are for all calls of train together."""
    trainer = PrivateTrainer(
        llama(), arguments(max_steps=3), train_dataset=sentences(12), plan=plan_of()
    )

    trainer.train()
    trainer.train()

    assert trainer.private_optimizer.ledger.steps == 6
    with pytest.raises(BudgetExhaustedError):
        trainer.train()


def test_a_model_that_is_trained_anew_adds_to_what_was_spent(arguments):
    """``model_init`` starts a new model on the same data, not a new ledger."""
    trainer = PrivateTrainer(
        args=arguments(max_steps=3),
        model_init=lambda: llama(LlamaForCausalLM),
        train_dataset=sentences(12),
        plan=plan_of(),
    )

    trainer.train()
    first = trainer.private_optimizer
    trainer.train()

    assert trainer.private_optimizer is not first
    assert trainer.private_optimizer.ledger.steps == 6


def test_empty_draws_are_steps_like_any_other(arguments):
    """Nobody was drawn: no forward pass, and noise and charges all the same."""
    model = llama()
    before = weights(model)
    trainer = PrivateTrainer(
        model,
        arguments(logging_steps=50, gradient_accumulation_steps=2),
        train_dataset=sentences(12),
        plan=plan_of(sampling=PoissonSampling(sampling_probability=1e-12)),
    )

    trainer.train()

    assert trainer.private_optimizer.ledger.steps == 6
    assert (weights(model) != before).float().mean() > 0.9


def test_random_allocation_trains_a_pass_an_epoch(arguments):
    """Each epoch has every example once, and one charge."""
    seen = []

    class Watched(PrivateTrainer):
        def training_step(self, *args, **kwargs):
            rows = self._loader.ticket.draw.rows
            seen.append((self.state.epoch, list(rows)))
            return super().training_step(*args, **kwargs)

    trainer = Watched(
        llama(),
        arguments(logging_steps=50),
        train_dataset=sentences(12),
        plan=plan_of(sampling=RandomAllocation(steps_per_pass=3)),
    )

    trainer.train()

    assert len(seen) == trainer.private_optimizer.ledger.steps == 6
    for steps in (seen[:3], seen[3:]):
        assert sorted(row for _, rows in steps for row in rows) == list(range(12))
    (charge,) = trainer.private_optimizer.ledger.charges()
    assert (charge.count, charge.steps_per_pass) == (6, 3)


def test_bfloat16_trains_with_the_noise_of_float32(arguments, witness_of):
    """The forward pass is in bfloat16; sums and noise are not."""
    model = llama()
    optimizer, scheduler = sgd(model)
    witness, seen = witness_of(optimizer), set()
    model.lm_head.register_forward_hook(lambda _m, _a, out: seen.add(out.dtype))
    trainer = PrivateTrainer(
        model,
        arguments(bf16=True),
        train_dataset=sentences(12),
        optimizers=(optimizer, scheduler),
        plan=plan_of(),
    )

    trainer.train()

    assert seen == {torch.bfloat16}
    assert witness.spreads == pytest.approx([10 / 6] * 6, rel=0.25)


def test_batches_from_another_loader_need_no_ticket_without_amplification(arguments):
    """An unamplified plan leaves sampling to the Trainer, and charges for it."""
    trainer = PrivateTrainer(
        llama(),
        arguments(
            gradient_accumulation_steps=2, per_device_train_batch_size=3, max_steps=2
        ),
        train_dataset=sentences(12),
        plan=plan_of(sampling=Unamplified(backwards_per_step=2)),
    )

    trainer.train()
    trainer.train()

    (release,) = trainer.private_optimizer.ledger.releases()
    assert (release.sampling_probability, release.count) == (1.0, 4)


def test_a_custom_loss_is_a_vector(arguments):
    """``compute_loss_func`` gets the outputs, as ever, and returns one an example."""
    calls = []

    def own(outputs, labels, num_items_in_batch=None):
        calls.append(num_items_in_batch)
        return outputs.logits.float().square().mean((1, 2)) * (labels > 0).all(1)

    trainer = PrivateTrainer(
        llama(),
        arguments(max_steps=1),
        train_dataset=sentences(12),
        compute_loss_func=own,
        plan=plan_of(sampling=PoissonSampling(sampling_probability=1.0)),
        check_first=False,
    )

    trainer.train()

    assert calls == [None, None]  # Twelve examples, eight at once.
    assert trainer.private_optimizer.ledger.steps == 1


def test_a_custom_trainer_becomes_private(arguments):
    """Its overrides go on working below the private ones."""

    class Own(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.RMSprop((model or self.model).parameters())
            return self.optimizer

    class Private(PrivateTrainer, Own):
        def per_example_losses(self, model, inputs):
            return model(input_ids=inputs["input_ids"]).logits.square().mean((1, 2))

        def make_private(self, optimizer, loader):
            private = super().make_private(optimizer, loader)
            private.was_made_here = True
            return private

    trainer = Private(llama(), arguments(), train_dataset=sentences(12), plan=plan_of())
    trainer.train()

    inner = trainer.private_optimizer.original_optimizer
    assert isinstance(inner, torch.optim.RMSprop)
    assert trainer.private_optimizer.was_made_here


def test_a_custom_scalar_loss_is_refused(arguments):
    """It has lost the examples: nothing can be clipped, and the step says so."""

    class Scalar(PrivateTrainer):
        def per_example_losses(self, model, inputs):
            return model(**inputs).loss

    trainer = Scalar(llama(), arguments(), train_dataset=sentences(12), plan=plan_of())

    with pytest.raises(PrivacyError, match="not one loss"):
        trainer.train()

    unchecked = Scalar(
        llama(),
        arguments(),
        train_dataset=sentences(12),
        plan=plan_of(),
        check_first=False,
    )
    with pytest.raises(ValueError, match="one loss an example"):
        unchecked.train()


@pytest.mark.parametrize("sampling", [None, dp.Unamplified()])
def test_a_loss_that_mixes_examples_is_found_before_the_first_step(arguments, sampling):
    """What no gradient shows: every loss is divided by the size of its batch."""

    class Mixing(PrivateTrainer):
        def per_example_losses(self, model, inputs):
            return super().per_example_losses(model, inputs) / len(inputs["labels"])

    plan = plan_of(**({} if sampling is None else {"sampling": sampling}))
    trainer = Mixing(llama(), arguments(), train_dataset=sentences(12), plan=plan)

    with pytest.raises(PrivacyError, match="examples are mixed"):
        trainer.train()
    assert trainer.private_optimizer.ledger.steps == 0


def test_a_single_example_is_not_checked(arguments):
    """There is nothing to mix it with."""
    trainer = PrivateTrainer(
        llama(), arguments(max_steps=1), train_dataset=sentences(1), plan=plan_of()
    )
    trainer.train()

    assert trainer.private_optimizer.ledger.steps == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_steps": 7}, "max_steps=7, but the plan has 6"),
        ({"max_grad_norm": 0.5}, "max_grad_norm=0.5, but the plan clips"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last=True"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
    ],
)
def test_arguments_that_contradict_the_plan_are_refused(arguments, changes, told):
    """An argument that is ignored would be worse than one that is refused."""
    with pytest.raises(ValueError, match=told):
        PrivateTrainer(
            llama(), arguments(**changes), train_dataset=sentences(3), plan=plan_of()
        )


def test_an_unamplified_plan_counts_the_trainers_micro_batches(arguments):
    """Two backward calls a step that the plan does not know of could share examples."""
    with pytest.raises(ValueError, match="gradient_accumulation_steps=2"):
        PrivateTrainer(
            llama(),
            arguments(gradient_accumulation_steps=2),
            train_dataset=sentences(3),
            plan=plan_of(sampling=Unamplified()),
        )


def test_an_optimizer_that_is_private_already_must_have_the_trainers_plan(arguments):
    """Its noise and its budget are the ones that count."""
    model, data = llama(), sentences(12)
    for plan, told in ((plan_of(), None), (plan_of(steps=7), "another plan")):
        private = DPOptimizer(sgd(model)[0], plan=plan, loader=plan.loader(data))
        trainer = PrivateTrainer(
            model,
            arguments(max_steps=1),
            train_dataset=data,
            optimizers=(private, None),
            plan=plan_of(),
        )
        if told is None:
            trainer.train()
            assert trainer.private_optimizer is private
        else:
            with pytest.raises(ValueError, match=told):
                trainer.train()


@pytest.mark.parametrize("strategy", ["DeepSpeed", "FSDP", "DataParallel"])
def test_strategies_that_sum_over_examples_are_refused_by_name(
    arguments, monkeypatch, strategy
):
    """As they would be found on a machine that has them."""
    args = arguments()
    if strategy == "DataParallel":
        monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    else:
        monkeypatch.setattr(
            PrivateTrainer,
            "create_accelerator_and_postprocess",
            enabling(f"is_{strategy.lower()}_enabled"),
        )

    with pytest.raises(UnsupportedOperationError, match=strategy):
        PrivateTrainer(llama(), args, train_dataset=sentences(3), plan=plan_of())


def enabling(flag):
    def create(self):
        Trainer.create_accelerator_and_postprocess(self)
        setattr(self, flag, True)

    return create


def test_a_search_over_hyperparameters_is_refused(arguments):
    """Each trial would train on the private data, under a ledger of its own."""
    trainer = PrivateTrainer(
        llama(), arguments(), train_dataset=sentences(3), plan=plan_of()
    )

    with pytest.raises(UnsupportedOperationError, match="once a trial"):
        trainer.hyperparameter_search()


def test_batches_without_labels_are_named(arguments):
    """The remedy says what there is."""
    data = [{"input_ids": torch.randint(3, 20, (LENGTH,))} for _ in range(12)]
    trainer = PrivateTrainer(llama(), arguments(), train_dataset=data, plan=plan_of())

    with pytest.raises(ValueError, match=r"no 'labels', only \['input_ids'\]"):
        trainer.train()
