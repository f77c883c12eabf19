"""Images with the Hugging Face Trainer: the lines that make it private are marked with '+'.

A tiny vision transformer with random weights learns to read digits.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import (
    EvalPrediction,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import dp  # +
from dp.integrations.transformers import PrivateTrainer  # + Was Trainer.


def main(steps: int = 60) -> tuple[float, float]:
    """Train, and return the accuracy on test images and the epsilon spent."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16 - 0.5, dtype=torch.float32)[:, None]
    data = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(images, digits.target.tolist(), strict=True)
    ]
    plan = dp.plan_for(  # + Public numbers, decided in advance.
        target_epsilon=3.0,
        target_delta=1e-4,
        sampling_probability=0.25,
        steps=steps,
        expected_batch_size=350,
        max_grad_norm=1.0,
    )
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = PrivateTrainer(  # + Was Trainer(
            ViTForImageClassification(config),
            TrainingArguments(
                folder,
                learning_rate=0.02,
                lr_scheduler_type="constant",
                per_device_train_batch_size=256,  # At once; the plan draws about 350.
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                save_strategy="no",
            ),
            train_dataset=data[:1400],
            eval_dataset=data[1400:],
            compute_metrics=_accuracy,
            plan=plan,  # +
        )
        trainer.train()
        metrics = trainer.evaluate()
    return metrics["eval_accuracy"], trainer.certificate().epsilon


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    guesses = prediction.predictions.argmax(1)
    return {"accuracy": float((guesses == prediction.label_ids).mean())}


if __name__ == "__main__":
    reached, spent = main()
    print(f"accuracy {reached:.3f} at epsilon {spent:.2f}")  # noqa: T201
