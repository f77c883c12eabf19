"""One line makes TRL's trainers private: each text, or each pair, has its own loss.

Small random models; the tokenizer is built from text that ships with Python.
"""

import logging
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import dp
from dp import DPOptimizer, UnsupportedOperationError


datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")

from dp.integrations.private._preferences import LOSSES  # noqa: E402 -- as trl
from dp.integrations.private._trl import PairCollation  # noqa: E402


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{told}")
    for told in (
        # Of the libraries to themselves.
        ".*gradient_checkpointing.* is deprecated:FutureWarning",
        ".*compute_loss_func.* is deprecated:FutureWarning",
        ".*return_outputs=True.*:FutureWarning",
        ".*torch.jit:DeprecationWarning",
        ".*use_reentrant",
        ".*fan_in_fan_out",
    )
]
LINES = [
    line.strip()
    for text in topics.values()
    for line in text.splitlines()
    if len(line.strip()) > 30
]
NUMBERS = {"epsilon": 8.0, "delta": 1e-4, "dataset_size": 40}


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps one state for the process; every test starts with none."""
    torch.manual_seed(0)
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer of 300 tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(LINES[:2000], trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def lora(*targets):
    return peft.LoraConfig(
        r=2,
        target_modules=list(targets) or ["c_attn"],
        task_type="CAUSAL_LM",
        fan_in_fan_out=not targets,
    )


def arguments(kind, folder, **changes):
    return kind(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "per_device_train_batch_size": 10,
            "max_length": 32,
            "num_train_epochs": 1,
            **changes,
        }
    )


@pytest.fixture
def make_sft(tokenizer, tmp_path):
    """Build an SFTTrainer on forty lines of four users each ten."""

    def make(model=None, *, peft_config=None, **changes):
        return trl.SFTTrainer(
            gpt2() if model is None else model,
            arguments(trl.SFTConfig, tmp_path, **changes),
            train_dataset=datasets.Dataset.from_dict(
                {"text": LINES[:40], "user": [row % 10 for row in range(40)]}
            ),
            eval_dataset=datasets.Dataset.from_dict({"text": LINES[40:46]}),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


@pytest.fixture
def make_dpo(tokenizer, tmp_path):
    """Build a DPOTrainer on forty pairs of lines."""

    def make(*, reference=None, peft_config=None, **changes):
        pairs = {"prompt": LINES[:40], "chosen": LINES[40:80]}
        return trl.DPOTrainer(
            gpt2(),
            ref_model=reference,
            args=arguments(trl.DPOConfig, tmp_path, **{"max_length": 48, **changes}),
            train_dataset=datasets.Dataset.from_dict(
                {**pairs, "rejected": LINES[80:120]}
            ),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


def changed(trainer, before):
    return {
        name
        for name, p in trainer.model.named_parameters()
        if not torch.equal(p, before[name])
    }


def values(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("units", "num_units"), [(None, 40), ("user", 10)], ids=["texts", "users"]
)
def test_adapters_of_texts_train_privately(make_sft, tokenizer, units, num_units):
    """With gradient checkpointing, TRL's default; and the model writes afterwards."""
    trainer = make_sft(peft_config=lora(), per_device_train_batch_size=5)
    before = values(trainer)
    trainer = dp.private(
        trainer, epsilon=8, delta=1e-4, dataset_size=num_units, units=units
    )
    trainer.train()

    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer.args.gradient_checkpointing
    assert changed(trainer, before) == trained
    assert all("lora" in name for name in trained)
    assert trainer.certificate().epsilon <= 8.0
    assert not any("loss" in log for log in trainer.state.log_history)
    assert not any("entropy" in log for log in trainer.state.log_history)
    assert {"eval_loss"} <= set(trainer.evaluate())
    prompt = tokenizer("The", return_tensors="pt").input_ids
    assert trainer.model.generate(input_ids=prompt, max_new_tokens=3).shape[1] > 1


def test_a_texts_loss_is_trls_own_for_it_alone(make_sft):
    """The mean over its own tokens, as TRL computes it for a batch of one."""
    trainer = make_sft()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    trainer.model.eval()
    alone = [
        trainer.compute_loss(
            trainer.model,
            {k: v[i : i + 1] for k, v in batch.items()},
        ).item()
        for i in range(3)
    ]

    trainer = dp.private(trainer, **NUMBERS)

    together = trainer.per_example_losses(trainer.model, batch)
    assert together.tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_adapters_made_before_or_after_a_move_are_the_trained_ones(make_sft, before):
    """opacus#820: an optimizer of tensors that a move replaced trains nothing."""
    model = gpt2()
    if before:
        model = peft.get_peft_model(model, lora())
    model = model.to(torch.float64).to(torch.float32).to("cpu")
    if not before:
        model = peft.get_peft_model(model, lora())
    trainer = dp.private(make_sft(model, max_steps=1), **NUMBERS)
    start = values(trainer)
    trainer.train()

    held = {id(p) for g in trainer.private_optimizer.param_groups for p in g["params"]}
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert held == {id(p) for p in trained.values()}
    assert changed(trainer, start) == set(trained)


def test_a_base_of_four_bits_is_trained_by_its_adapters(make_sft, tmp_path):
    """And by nothing else: the base stays what it was. dp.check has passed it."""
    pytest.importorskip("bitsandbytes")
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=four_bits
    )
    trainer = make_sft(model, peft_config=lora("q_proj", "v_proj"), max_steps=2)
    before = values(trainer)
    trainer = dp.private(trainer, **NUMBERS)
    trainer.train()

    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainer.model.base_model.model.is_loaded_in_4bit
    assert changed(trainer, before) == trained
    assert all("lora" in name for name in trained)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"packing": True}, "packing=True puts several texts into one row"),
        (
            {"padding_free": True, "max_length": None},
            "padding_free=True puts several texts into one row",
        ),
        ({"loss_type": "dft"}, "loss_type='dft' is not known"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_puts_texts_together_is_refused_by_name(make_sft, changes, told):
    """Before anything is changed."""
    trainer = make_sft(**changes)

    with pytest.raises(UnsupportedOperationError, match=told):
        dp.private(trainer, **NUMBERS)
    assert type(trainer) is trl.SFTTrainer


def test_balancing_experts_over_a_batch_is_refused(make_sft):
    """Their load is a number of all examples together."""
    trainer = make_sft()
    trainer.aux_loss_enabled, trainer.router_aux_loss_coef = True, 0.01

    with pytest.raises(UnsupportedOperationError, match=r"router_aux_loss_coef=0\.01"):
        dp.private(trainer, **NUMBERS)


def test_metrics_of_training_texts_are_logged_only_on_request(make_sft):
    """What TRL gathered of them is dropped before it is logged."""
    trainer = dp.private(make_sft(), **NUMBERS)
    trainer.model.train()
    for unsafe in (False, True):
        trainer._metrics["train"]["entropy"].append(1.0)
        trainer.unsafe_log_loss = unsafe
        trainer.log({})

    assert ["entropy" in log for log in trainer.state.log_history] == [False, True]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_pairs_loss_is_trls_own_for_it_alone(make_dpo, name):
    """For every loss that is known, as TRL computes it for a batch of one pair."""
    smoothing = 0.1 if name in {"exo_pair", "robust"} else 0.0
    trainer = make_dpo(
        reference=gpt2(), loss_type=[name], label_smoothing=smoothing, beta=0.5
    )
    examples = [trainer.train_dataset[i] for i in range(3)]
    trainer.model.eval()
    alone = [
        trainer.compute_loss(trainer.model, trainer.data_collator([example])).item()
        for example in examples
    ]

    trainer = dp.private(trainer, **NUMBERS)

    batch = PairCollation(trainer.data_collator)(examples)
    together = trainer.per_example_losses(trainer.model, batch)
    assert together.tolist() == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["reference", "adapter", "precomputed"])
def test_preferences_train_privately(make_dpo, kind):
    """Whatever the reference is: a model, the base below an adapter, or numbers."""
    trainer = make_dpo(
        reference=gpt2() if kind == "reference" else None,
        peft_config=lora() if kind == "adapter" else None,
        precompute_ref_log_probs=kind == "precomputed",
        max_steps=2,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 0.5],
    )
    before = values(trainer)
    trainer = dp.private(trainer, **NUMBERS)
    trainer.train()

    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert changed(trainer, before) == trained
    assert isinstance(trainer.private_optimizer, DPOptimizer)
    assert trainer.certificate().epsilon <= 8.0
    assert "reference model" in trainer.certificate().assumptions[-1]
    assert not any("rewards/chosen" in log for log in trainer.state.log_history)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss_type": ["aot"]}, "loss_type='aot' sorts or averages over the pairs"),
        ({"use_weighting": True}, "use_weighting=True is not known"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5 is not known.*leave it at None"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence'"),
    ],
)
def test_what_compares_pairs_or_is_not_known_is_refused(make_dpo, changes, told):
    """By the name of the argument."""
    trainer = make_dpo(reference=gpt2(), **changes)

    with pytest.raises(UnsupportedOperationError, match=told):
        dp.private(trainer, **NUMBERS)


def test_a_pair_is_one_entry_of_the_first_axis():
    """So that a part of a batch has whole pairs; numbers of a pair stay as they are."""
    collated = {
        "input_ids": torch.tensor([[1], [2], [3], [-1], [-2], [-3]]),
        "ref_chosen_logps": torch.tensor([0.1, 0.2, 0.3]),
    }
    pairs = PairCollation(lambda _: collated)([SimpleNamespace()] * 3)

    assert pairs["input_ids"].squeeze(-1).tolist() == [[1, -1], [2, -2], [3, -3]]
    assert torch.equal(pairs["ref_chosen_logps"], collated["ref_chosen_logps"])
