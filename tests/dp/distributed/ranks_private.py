"""Trainers that ``dp.private`` makes private by one line, on every rank.

Their model has a buffer, and ranks pass through it a different number of times at a
step: with buffers that are shared at every pass they would wait for each other.
"""

import warnings
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dp


NUM_ROWS = 40
NUMBERS = {"epsilon": 8.0, "delta": 1e-4, "dataset_size": NUM_ROWS}


class Net(nn.Module):
    """A linear layer on scaled features, called as models of transformers are."""

    def __init__(self):
        super().__init__()
        # Apart on purpose: wrappers give all ranks the weights of the first.
        torch.manual_seed(distributed.get_rank())
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x, labels=None):
        del labels  # Named, or the Trainer would drop the column.
        return {"logits": self.layer(x / self.scale)}


class Rows(Dataset):
    """Rows with names, ten users, and three classes."""

    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(NUM_ROWS, 4, generator=generator)
        self.y = torch.randint(3, (NUM_ROWS,), generator=generator)

    def __len__(self):
        return NUM_ROWS

    def __getitem__(self, row):
        return {"x": self.x[row], "labels": self.y[row], "user": row % 10}

    def columns(self):
        return TensorDataset(self.x, self.y)


def losses_of(outputs, labels, **_numbers):
    return cross_entropy(outputs["logits"], labels, reduction="none")


def outcome(model, private, certificate):
    """What every rank must have alike."""
    return {
        "wrapper": type(model).__name__,
        "shares_buffers": model.forward_sync_buffers,
        "batch_size": private.plan.expected_batch_size,
        "steps": (private.ledger.steps, private.plan.steps),
        "epsilon": certificate.epsilon,
        "weights": [p.detach().double().sum().item() for p in model.parameters()],
    }


def by_trainer(folder, *, users=False, resumes=False):
    """Train by a Trainer of transformers, and go on from its half if it *resumes*."""
    from accelerate.state import (  # noqa: PLC0415 -- it looks at the environment
        AcceleratorState,
        GradientState,
        PartialState,
    )
    from transformers import Trainer, TrainingArguments  # noqa: PLC0415

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # One that an earlier call left knows other arguments.
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="steps" if resumes else "no",
        save_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
    )
    whose = {"units": "user", "dataset_size": 10} if users else {}
    for start in (None, f"{folder}/checkpoint-2") if resumes else (None,):
        trainer = Trainer(
            Net(), arguments, train_dataset=Rows(), compute_loss_func=losses_of
        )
        trainer = dp.private(trainer, **{**NUMBERS, **whose})
        trainer.train(resume_from_checkpoint=start)
    private = trainer.private_optimizer
    return outcome(trainer.model_wrapped, private, trainer.certificate())


def by_lightning(folder, *, resumes=False):
    """Train by a Trainer of Lightning, and go on in another one if it *resumes*."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on import and on small runs.
        from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415
        from lightning.pytorch.strategies import DDPStrategy  # noqa: PLC0415

        wrappers = []

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Net()

            def training_step(self, batch, _index):
                wrappers.append(self.trainer.strategy.model)
                x, y = batch
                return cross_entropy(self.net(x)["logits"], y, reduction="none")

            def on_train_batch_end(self, *_):
                if resumes and start is None and self.trainer.global_step == 2:
                    self.trainer.save_checkpoint(path)
                    self.trainer.should_stop = True

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.25)

        path = Path(folder) / "half.ckpt"
        for start in (None, path) if resumes else (None,):
            trainer = Trainer(
                accelerator="cpu",
                devices=distributed.get_world_size(),
                strategy=DDPStrategy(process_group_backend="gloo"),
                max_steps=4,
                accumulate_grad_batches=2,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer = dp.private(trainer, **NUMBERS)
            loader = DataLoader(Rows().columns(), batch_size=2)
            trainer.fit(Module(), loader, ckpt_path=start)
    return outcome(wrappers[-1], trainer.private_optimizer, trainer.certificate())


def by_accelerate(folder):
    """Train by a loop around an Accelerator."""
    from accelerate import Accelerator  # noqa: PLC0415 -- it looks at the environment

    accelerator = dp.private(
        Accelerator(cpu=True, project_dir=folder), epochs=0.4, **NUMBERS
    )
    model = Net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.25)
    loader = DataLoader(Rows().columns(), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, sgd, loader)

    def loss_fn(batch):
        x, y = batch
        return cross_entropy(model(x)["logits"], y, reduction="none")

    private = accelerator.private_optimizer
    for _ in range(2):  # The second ends at the budget.
        for batch in loader:
            accelerator.backward(loss_fn, batch)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.state.destroy_process_group = lambda *_: None  # These ranks go on.
    accelerator.end_training()
    del accelerator.state.destroy_process_group
    return outcome(model, private, accelerator.certificate())
