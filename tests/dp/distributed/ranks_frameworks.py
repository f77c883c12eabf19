"""The demo model in frameworks that start or join the processes themselves.

Also run by ``accelerate launch``, with the folder for results as its argument.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from torch import distributed
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

import dp
from dp.cli import _input, _models, main
from dp.integrations.accelerate import prepare, private_loss, private_optimizer


NUM_STEPS = 3


def demo():
    """The model, the digits, and the plan of the demo, shortened."""
    table = _input.built_in("digits")
    torch.manual_seed(0)
    model = _models.model_for(table)
    plan = dp.PrivacyPlan(
        sampling=dp.PoissonSampling(sampling_probability=0.1),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=0.1 * len(table.train),
        steps=NUM_STEPS,
        target_delta=1e-5,
    )
    return model, plan, plan.loader(table.train)


def outcome(model, optimizer):
    """What every rank must have alike."""
    return {
        "epsilon": optimizer.spent().epsilon,
        "steps": optimizer.ledger.steps,
        "weights": [p.detach().double().sum().item() for p in model.parameters()],
    }


def by_accelerate():
    """Train as an Accelerate script does."""
    from accelerate import Accelerator  # noqa: PLC0415 -- it looks at the environment

    model, plan, loader = demo()
    sgd = torch.optim.SGD(model.parameters(), lr=0.25)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    accelerator = Accelerator(cpu=True)
    model, optimizer, batches = prepare(accelerator, model, optimizer, loader)
    for x, y in batches:
        losses = F.cross_entropy(model(x), y, reduction="none")
        accelerator.backward(private_loss(losses, optimizer))
        optimizer.step()
        optimizer.zero_grad()
    wrapper = type(model).__name__
    return {"wrapper": wrapper, **outcome(model, private_optimizer(optimizer))}


def by_lightning():
    """Train as a Lightning module does, in DistributedDataParallel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on import and on small runs.
        from lightning.pytorch import LightningModule, Trainer  # noqa: PLC0415
        from lightning.pytorch.strategies import DDPStrategy  # noqa: PLC0415

        model, plan, loader = demo()
        wrappers = set()

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.model = model

            def training_step(self, batch, _index):
                wrappers.add(type(self.trainer.strategy.model).__name__)
                x, y = batch
                losses = F.cross_entropy(self.model(x), y, reduction="none")
                return self.optimizers().private_loss(losses)

            def configure_optimizers(self):
                sgd = torch.optim.SGD(self.parameters(), lr=0.25)
                return dp.DPOptimizer(sgd, plan=plan, loader=loader)

        trainer = Trainer(
            accelerator="cpu",
            devices=distributed.get_world_size(),
            strategy=DDPStrategy(process_group_backend="gloo"),
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # The loader draws for its rank itself.
        )
        trainer.fit(Module(), loader)
    (wrapper,), (optimizer,) = wrappers, trainer.optimizers
    return {"wrapper": wrapper, **outcome(model, optimizer)}


def command_line(folder, data="breast_cancer", options=()):
    """Train as ``torchrun -m dp train`` does; return the exit code, None for 0."""
    steps = ["--steps", "2", "--report", folder]
    try:
        main(["train", "--data", data, *options, *steps])
    except SystemExit as end:
        return end.code


if __name__ == "__main__":
    found = by_accelerate()
    rank = distributed.get_rank()
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
