"""Accelerate, the Trainer, Lightning and Fabric, as they train on a GPU."""

import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from dp import PoissonSampling, PrivacyPlan
from dp.integrations.accelerate import prepare, private_loss
from dp.integrations.lightning import PrivacyCallback
from dp.integrations.transformers import PrivateTrainer


ACCELERATOR = "gpu"
DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:::(?!dp)"),
]


@pytest.fixture(autouse=True)
def _fresh_state():
    torch.manual_seed(0)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_accelerate_moves_model_and_batches(make_script, precision, tmp_path):
    """Whatever the precision, steps are the schedule's; a saved state resumes."""
    script = make_script()
    accelerator = Accelerator(cpu=DEVICE == "cpu", mixed_precision=precision)
    scheduler = StepLR(script.optimizer, 2, gamma=0.5)
    script.model, optimizer, scheduler, loader = prepare(
        accelerator, script.model, script.optimizer, scheduler, script.loader
    )
    for batch in loader:
        loss = private_loss(script.losses(batch), optimizer)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    accelerator.save_state(tmp_path)

    assert script.weights().device.type == DEVICE
    script.assert_private(steps=6, rates=[0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    resumed = make_script()
    resumed.model, _ = prepare(accelerator, resumed.model, resumed.optimizer)
    accelerator._models, accelerator._optimizers = (
        accelerator._models[-1:],
        accelerator._optimizers[-1:],
    )
    accelerator.load_state(tmp_path)
    assert torch.equal(resumed.weights(), script.weights())
    assert resumed.optimizer.spent() == script.optimizer.spent()


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_the_trainer_trains_privately(witness_of, precision, tmp_path):
    """With pinned batches, a schedule, and each step charged once."""
    plan = PrivacyPlan(
        sampling=PoissonSampling(sampling_probability=0.5),
        noise_multiplier=10.0,
        max_grad_norm=1.0,
        expected_batch_size=6.0,
        steps=6,
        target_delta=1e-5,
    )
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(3, 20, (12, 6))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    witness = witness_of(inner)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=DEVICE == "cpu",
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        num_train_epochs=100,
        lr_scheduler_type="linear",
        **({} if precision == "float32" else {precision: True}),
    )
    trainer = PrivateTrainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(inner, None),
        plan=plan,
    )
    result = trainer.train()

    assert model.device.type == DEVICE
    assert result.global_step == trainer.private_optimizer.ledger.steps == 6
    rates = [0.1 * (1 - step / 6) for step in range(6)]
    assert witness.rates == pytest.approx(rates, rel=1e-2)
    assert witness.spreads == pytest.approx([10 / 6] * 6, rel=0.25)


class Classifier(lightning.LightningModule):
    """A module whose loss is a vector."""

    def __init__(self, script):
        super().__init__()
        self.model = script.model
        self.script = [script]  # In a list, so that it is not taken for a module.

    def training_step(self, batch, _):
        x, y = batch
        losses = cross_entropy(self.model(x), y, reduction="none")
        return self.optimizers().private_loss(losses)

    def configure_optimizers(self):
        return self.script[0].optimizer


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_lightning_trains_privately(make_script, precision, tmp_path):
    """Its precision plugins scale, and leave no trace in noise and rate."""
    script = make_script()
    trainer = lightning.Trainer(
        accelerator=ACCELERATOR,
        devices=1,
        precision=precision,
        max_epochs=9,
        default_root_dir=tmp_path,
        callbacks=[PrivacyCallback()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    devices = []
    script.optimizer.register_step_post_hook(
        lambda *_: devices.append(script.weights().device.type)
    )

    trainer.fit(Classifier(script), script.loader)

    assert devices == [DEVICE] * 6
    script.assert_private(steps=6, rates=[0.1] * 6)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_fabric_trains_privately(make_script, precision):
    """Moved by Fabric, with its own scaler."""
    script = make_script()
    fabric = lightning.Fabric(accelerator=ACCELERATOR, devices=1, precision=precision)
    script.model, optimizer = fabric.setup(script.model, script.optimizer)
    for batch in script.loader:
        losses = script.losses([t.to(DEVICE) for t in batch])
        fabric.backward(optimizer.private_loss(losses))
        optimizer.step()
        optimizer.zero_grad()

    assert script.weights().device.type == DEVICE
    script.assert_private(steps=6, rates=[0.1] * 6)
