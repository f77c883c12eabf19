"""Adapters of a GPT-2 by one line: the line that makes it private is marked with '+'.

The weights are random and the tokens are letters, so nothing is downloaded: the model
learns to spell from the topics of Python's own help.
"""

import tempfile
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import dp  # +


LENGTH = 32


def main(epochs: int = 6) -> tuple[float, float, float]:
    """Train, and return the loss on other lines before and after, and epsilon."""
    torch.manual_seed(0)
    rows = _lines()
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=128,
            n_positions=LENGTH,
            n_embd=32,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    )
    adapters = LoraConfig(
        r=8,
        target_modules=["c_attn", "c_fc", "c_proj"],
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            get_peft_model(model, adapters),
            TrainingArguments(
                folder,
                learning_rate=0.05,
                num_train_epochs=epochs,
                per_device_train_batch_size=64,
                gradient_accumulation_steps=4,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                save_strategy="no",
            ),
            train_dataset=rows[:2000],
            eval_dataset=rows[2000:2200],
        )
        before = trainer.evaluate()["eval_loss"]
        trainer = dp.private(trainer, epsilon=8, delta=1e-5, dataset_size=2000)  # +
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    return before, after, trainer.certificate().epsilon


def _lines() -> list[dict[str, torch.Tensor]]:
    """Return lines of the help, each letter a token; what is short is padded."""
    lines = [line.strip() for text in topics.values() for line in text.splitlines()]
    rows = []
    for line in dict.fromkeys(line for line in lines if len(line) >= LENGTH // 2):
        letters = [min(ord(letter), 127) for letter in line[:LENGTH]]
        padding = LENGTH - len(letters)
        rows.append(
            {
                "input_ids": torch.tensor(letters + [0] * padding),
                "labels": torch.tensor(letters + [-100] * padding),
            }
        )
    return rows


if __name__ == "__main__":
    first, last, spent = main()
    print(f"loss {first:.2f} before, {last:.2f} after, at epsilon {spent:.2f}")  # noqa: T201
