"""DPOptimizer in Lightning and Fabric, by their real trainers."""

import csv
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from lightning import Fabric
from lightning.fabric.utilities.data import _update_dataloader
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, SequentialSampler

import dp
from dp import (
    BudgetExhaustedError,
    DPOptimizer,
    MicroBatches,
    PoissonSampling,
    PrivacyError,
    RandomAllocation,
    SampleMixingError,
    SamplingMismatchError,
    Unamplified,
    UnsupportedOperationError,
)
from dp.evidence import checked_on
from dp.integrations.lightning import PrivacyCallback, _checked


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{told}")
    for told in (
        # Lightning's advice and its use of torch's older names; not ours to act on.
        ".*does not have many workers which may be a bottleneck",
        ".*isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",
        ".*The number of training batches .* is smaller than the logging interval",
        ".*Experiment logs directory .* exists and is not empty",
        ".*Checkpoint directory .* exists and is not empty",
        ".*resuming from a checkpoint that ended before the epoch ended",
    )
]


class Classifier(LightningModule):
    """A module of Lightning's documentation, its loss a vector."""

    def __init__(self, script, *, manual=False):
        super().__init__()
        self.model = script.model
        self.script = [script]  # In a list, so that it is not taken for a module.
        self.automatic_optimization = not manual
        self.gamma = 1.0

    def training_step(self, batch, _):
        x, y = batch
        optimizer = self.optimizers()
        losses = cross_entropy(self.model(x), y, reduction="none")
        loss = optimizer.private_loss(losses)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self):
        optimizer = self.script[0].optimizer
        scheduler = StepLR(optimizer, 2, gamma=self.gamma)
        config = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}


@pytest.fixture
def make_trainer(tmp_path):
    """Build a trainer on the host that is private and quiet."""

    def make(*callbacks, **changes):
        callbacks = [*callbacks, PrivacyCallback()]
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        arguments = {"enable_checkpointing": False, "logger": False, "max_epochs": 9}
        return Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=tmp_path,
            callbacks=callbacks,
            **{**quiet, **arguments, **changes},
        )

    return make


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_training_is_private_and_ends_at_the_budget(make_script, make_trainer, manual):
    """Nine epochs are asked for, one is afforded; steps are charged once each."""
    script, trainer = make_script(), make_trainer()
    module = Classifier(script, manual=manual)

    trainer.fit(module, script.loader)

    script.assert_private(steps=6, rates=[0.1] * 6)
    assert trainer.global_step == 6
    for name in ("epsilon", "epsilon_if_planned_to_stop_here"):
        assert trainer.callback_metrics[name] == pytest.approx(
            script.optimizer.spent().epsilon
        )


def test_random_allocation_trains_in_whole_passes(make_script, make_trainer):
    """Lightning reads a batch ahead; each still comes with its place in its pass."""
    script = make_script(sampling=RandomAllocation(steps_per_pass=3))
    trainer = make_trainer()

    trainer.fit(Classifier(script), script.loader)

    script.assert_private(steps=6)
    (charge,) = script.optimizer.ledger.charges()
    assert (charge.count, charge.steps_per_pass) == (6, 3)


def test_a_scheduler_drives_the_update_and_its_monitor_sees_it(
    make_script, make_trainer, tmp_path
):
    """The rate that LearningRateMonitor logs is the rate that was used."""
    script = make_script()
    logger = CSVLogger(tmp_path, name="logs")
    monitor = LearningRateMonitor("step")
    trainer = make_trainer(monitor, logger=logger, log_every_n_steps=1)
    module = Classifier(script)
    module.gamma = 0.5

    trainer.fit(module, script.loader)

    rates = [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    script.assert_private(steps=6, rates=rates)
    logged = _logged(logger)
    assert [row["lr-DPOptimizer"] for row in logged if row.get("lr-DPOptimizer")] == (
        pytest.approx(rates)
    )
    whole = pytest.approx(script.optimizer.guarantee().epsilon, rel=1e-3)
    name = "epsilon_if_planned_to_stop_here"
    so_far = [float(row[name]) for row in logged if row.get(name)]
    assert all(row["epsilon"] == whole for row in logged if row.get("epsilon"))
    assert so_far == sorted(so_far)
    assert so_far[0] < so_far[-1] == whole


def _logged(logger):
    text = Path(logger.experiment.metrics_file_path).read_text()
    rows = csv.DictReader(text.splitlines())
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_divides_once(make_script, make_trainer, parts):
    """The update is that of the whole draw, however Lightning divides the loss."""
    script = make_script(
        noise_multiplier=0.0,
        sampling=PoissonSampling(sampling_probability=1.0),
        steps=1,
    )
    expected = script.update_without_noise(script.data.tensors, lr=0.1)
    before = script.weights()
    trainer = make_trainer(accumulate_grad_batches=parts)

    trainer.fit(Classifier(script), MicroBatches(script.loader, per_step=parts))

    torch.testing.assert_close(script.weights() - before, expected)
    assert script.optimizer.ledger.steps == trainer.global_step == 1


def test_accumulation_over_draws_is_refused(make_script, make_trainer):
    """A step needs one draw whole; the message says how to split it."""
    script = make_script()
    trainer = make_trainer(accumulate_grad_batches=2)

    with pytest.raises(SamplingMismatchError, match=r"comes in 1 part.s., and a step"):
        trainer.fit(Classifier(script), script.loader)


def test_a_checkpoint_resumes_with_its_ledger(make_script, make_trainer, tmp_path):
    """Moments, rates and charges come back; the budget of the plan ends the run."""
    script = make_script(torch.optim.Adam)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="at-4")
    trainer = make_trainer(keep, enable_checkpointing=True, max_steps=4)
    module = Classifier(script)
    module.gamma = 0.5
    trainer.fit(module, script.loader)

    resumed = make_script(torch.optim.Adam)
    module = Classifier(resumed)
    module.gamma = 0.5
    trainer = make_trainer(keep, enable_checkpointing=True)
    trainer.fit(module, resumed.loader, ckpt_path=tmp_path / "at-4.ckpt")

    ledger = resumed.optimizer.ledger
    assert (ledger.steps, ledger.num_segments, trainer.global_step) == (6, 2, 6)
    assert resumed.witness.spreads == pytest.approx([0.5] * 2, rel=0.2)
    assert resumed.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 8)
    assert all(state["step"] == 6 for state in resumed.optimizer.state.values())


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_fit_without_the_callback_is_warned_of(make_script, make_trainer, manual):
    """Its steps are private, but nothing is checked before them; it is said once."""
    script, trainer = make_script(), make_trainer(max_epochs=1)
    trainer.callbacks[:] = []
    with pytest.warns(UserWarning, match="without PrivacyCallback") as told:
        trainer.fit(Classifier(script, manual=manual), script.loader)

    assert len([w for w in told if "PrivacyCallback" in str(w.message)]) == 1
    script.assert_private(steps=6, rates=[0.1] * 6)


def test_validation_in_between_costs_nothing(make_script, make_trainer):
    """It is run and logged as ever; the training batch at hand is not disturbed."""
    script = make_script()
    trainer = make_trainer(val_check_interval=2)

    class Validated(Classifier):
        def validation_step(self, batch, _):
            x, y = batch
            self.log("val_loss", cross_entropy(self.model(x), y))

    validation = DataLoader(script.data, batch_size=20)
    trainer.fit(Validated(script), script.loader, validation)

    assert "val_loss" in trainer.callback_metrics
    script.assert_private(steps=6, rates=[0.1] * 6)


def test_settings_written_through_lightnings_proxy_reach_the_step(
    make_script, make_trainer
):
    """``self.optimizers()`` is an object of a class that Lightning makes of ours."""
    script = make_script()

    class Writes(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            del batch
            optimizer = self.optimizers()
            assert optimizer is not script.optimizer
            assert isinstance(optimizer, DPOptimizer)
            optimizer.param_groups[0]["lr"] = 0.1 / (batch_idx + 1)

    make_trainer().fit(Writes(script), script.loader)

    script.assert_private(steps=6, rates=[0.1 / (step + 1) for step in range(6)])


def test_noise_and_clipping_written_through_the_proxy_reach_the_step(
    make_script, make_trainer
):
    """A proxy has no settings of its own: what is written there is what is released.

    As attributes of the proxy they would be lost in silence, and the noise with them.
    """
    script = make_script()

    class Writes(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            del batch
            optimizer = self.optimizers()
            assert optimizer is not script.optimizer
            if batch_idx == 2:
                optimizer.noise_multiplier = 40.0
            if batch_idx == 3:
                optimizer.max_grad_norm = 0.5
            if batch_idx == 4:
                del optimizer.noise_multiplier
                del optimizer.max_grad_norm

    make_trainer().fit(Writes(script), script.loader)

    # 650 coordinates: a spread 20 % off is beyond seven standard errors.
    stddevs = [10.0 / 20, 10.0 / 20, 40.0 / 20, 20.0 / 20, 10.0 / 20, 10.0 / 20]
    assert script.witness.spreads == pytest.approx(stddevs, rel=0.2)
    charges = script.optimizer.ledger.charges()
    assert [(c.noise_multiplier, c.max_grad_norm, c.count) for c in charges] == [
        (10.0, 1.0, 2),
        (40.0, 1.0, 1),
        (40.0, 0.5, 1),
        (10.0, 1.0, 2),
    ]
    # The surplus of noise may depend on a release, so it is accounted as planned.
    assert script.optimizer.spent() == script.plan.guarantee()
    assert "noise_multiplier" not in vars(script.optimizer)


def test_a_value_that_cannot_be_is_refused_through_the_proxy(make_script, make_trainer):
    """By the message of the plan, wherever it is written."""
    script = make_script()

    class Writes(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            del batch, batch_idx
            self.optimizers().noise_multiplier = -1.0

    with pytest.raises(ValueError, match="noise_multiplier must be"):
        make_trainer().fit(Writes(script), script.loader)

    assert script.optimizer.ledger.steps == 0


def test_a_rate_that_follows_a_metric_is_told_of(make_script, make_trainer):
    """It is set as Lightning sets it, and what it reveals is the user's to state."""
    script = make_script()

    class Follows(Classifier):
        def training_step(self, batch, batch_idx):
            self.log("metric", 1.0, batch_size=1)
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            scheduler = ReduceLROnPlateau(script.optimizer, patience=0, factor=0.5)
            config = {"scheduler": scheduler, "interval": "step", "monitor": "metric"}
            return {"optimizer": script.optimizer, "lr_scheduler": config}

    with pytest.warns(UserWarning, match="ReduceLROnPlateau sets the learning rate"):
        make_trainer().fit(Follows(script), script.loader)

    script.assert_private(steps=6, rates=[0.1, 0.1, *(0.1 / 2**n for n in range(1, 5))])


def test_clipping_by_the_trainer_is_refused(make_script, make_trainer):
    """It would clip what is not there; each example is clipped already."""
    script = make_script()

    with pytest.raises(UnsupportedOperationError, match=r"gradient_clip_val=0.5"):
        make_trainer(gradient_clip_val=0.5).fit(Classifier(script), script.loader)


def test_a_module_without_a_private_optimizer_is_refused(make_script, make_trainer):
    """The callback was asked for privacy, and there is none."""
    script = make_script()

    class Plain(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(torch.nn.Linear(1, 1).parameters())

    with pytest.raises(UnsupportedOperationError, match=r"returned \['SGD'\]"):
        make_trainer().fit(Plain(script), script.loader)


def test_several_private_optimizers_are_logged_by_number(make_script, make_trainer):
    """As of a GAN: two plans, two epsilons, and the first budget ends the training."""
    first, second = make_script(steps=4), make_script(noise_multiplier=20.0)

    class Two(Classifier):
        def __init__(self):
            super().__init__(first, manual=True)
            self.other = second.model
            self.draws = iter(second.loader)

        def training_step(self, batch, _):
            a, b = self.optimizers()
            a.private_loss(first.losses(batch)).backward()
            b.private_loss(second.losses(next(self.draws))).backward()
            a.step()
            b.step()

        def configure_optimizers(self):
            return [first.optimizer, second.optimizer]

    trainer = make_trainer()
    trainer.fit(Two(), first.loader)

    assert (first.optimizer.ledger.steps, second.optimizer.ledger.steps) == (4, 4)
    assert trainer.callback_metrics["epsilon-0"] == pytest.approx(
        first.optimizer.guarantee().epsilon
    )
    assert trainer.callback_metrics["epsilon-1"] == pytest.approx(
        second.optimizer.guarantee().epsilon
    )


def test_another_loader_accumulates_as_the_plan_says(make_script, make_trainer):
    """Lightning's loaders serve an unamplified plan; the numbers must agree."""
    script = make_script()
    plan = type(script.plan)(
        sampling=Unamplified(backwards_per_step=2),
        noise_multiplier=10.0,
        max_grad_norm=1.0,
        expected_batch_size=20.0,
        steps=2,
        target_delta=1e-5,
    )
    inner = torch.optim.SGD(script.model.parameters(), lr=0.1)
    script.optimizer = DPOptimizer(inner, plan=plan)
    loader = DataLoader(script.data, batch_size=10, shuffle=True)

    with pytest.raises(SamplingMismatchError, match="accumulate_grad_batches=1"):
        make_trainer().fit(Classifier(script), loader)
    make_trainer(accumulate_grad_batches=2).fit(Classifier(script), loader)

    assert script.optimizer.ledger.steps == 2


def test_a_loader_that_lightning_rebuilds_is_refused(make_script):
    """As under a distributed strategy: its own message says what to set."""
    script = make_script()

    with pytest.raises(TypeError, match="use_distributed_sampler=False"):
        _update_dataloader(script.loader, SequentialSampler(script.data))


def test_overfitting_on_a_batch_draws_another_one_each_time(make_script, make_trainer):
    """``overfit_batches`` ends every pass early; what is trained on is charged."""
    script = make_script()

    make_trainer(overfit_batches=1).fit(Classifier(script), script.loader)

    script.assert_private(steps=6, rates=[0.1] * 6)


def test_bfloat16_trains_with_the_noise_of_float32(make_script, make_trainer):
    """The forward pass is in bfloat16; sums and noise are not."""
    script, seen = make_script(), set()
    script.model.register_forward_hook(lambda _m, _a, out: seen.add(out.dtype))

    make_trainer(precision="bf16-mixed").fit(Classifier(script), script.loader)

    assert seen == {torch.bfloat16}
    script.assert_private(steps=6, rates=[0.1] * 6)


def test_training_beyond_the_budget_is_refused(make_script, make_trainer):
    """A second fit on the same plan has nothing left to spend."""
    script = make_script()
    make_trainer().fit(Classifier(script), script.loader)

    with pytest.raises(BudgetExhaustedError):
        make_trainer().fit(Classifier(script), script.loader)


def test_fabric_drives_a_private_loop(make_script, tmp_path):
    """Setup, backward, a scheduler, save and load: by Fabric's own objects."""
    script = make_script()
    fabric = Fabric(accelerator="cpu", devices=1)
    script.model, optimizer = fabric.setup(script.model, script.optimizer)
    scheduler = StepLR(optimizer, 2, gamma=0.5)
    for batch in script.loader:
        fabric.backward(optimizer.private_loss(script.losses(batch)))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    script.assert_private(steps=6, rates=[0.1, 0.1, 0.05, 0.05, 0.025, 0.025])

    fabric.save(tmp_path / "state.pt", {"optimizer": optimizer, "model": script.model})
    resumed = make_script()
    model, optimizer = fabric.setup(resumed.model, resumed.optimizer)
    fabric.load(tmp_path / "state.pt", {"optimizer": optimizer, "model": model})

    assert resumed.optimizer.spent() == script.optimizer.spent()
    assert torch.equal(resumed.weights(), script.weights())


def test_fabric_rebuilds_no_private_loader(make_script):
    """On one process it passes the loader on; its batches keep their tickets."""
    script = make_script()
    fabric = Fabric(accelerator="cpu", devices=1)
    script.model, optimizer = fabric.setup(script.model, script.optimizer)

    for batch in fabric.setup_dataloaders(script.loader):
        fabric.backward(optimizer.private_loss(script.losses(batch)))
        optimizer.step()

    script.assert_private(steps=6)


def test_seeding_everything_seeds_no_noise(make_script, make_trainer):
    """Two runs that Lightning seeded alike differ by their noise."""
    ends = []
    for _ in range(2):
        seed_everything(1, verbose=False)
        script = make_script()
        make_trainer(deterministic=True).fit(Classifier(script), script.loader)
        ends.append(script.weights())
    torch.use_deterministic_algorithms(mode=False)

    assert not torch.equal(*ends)


class Logs(Classifier):
    """Logs its losses where a library may evaluate them again."""

    def losses(self, batch):
        losses = cross_entropy(self.model(batch[0]), batch[1], reduction="none")
        self.log("size", float(len(losses)), on_epoch=True, reduce_fx="sum")
        self.log_dict({"one": 1.0}, on_epoch=True, reduce_fx="sum")
        return losses

    def training_step(self, batch, _):
        return self.optimizers().private_loss(self.losses, batch)


def test_losses_that_are_evaluated_again_are_logged_once(make_script, make_trainer):
    """Whatever the module logs within them; afterwards it logs as before."""
    script, trainer = make_script(), make_trainer()
    module = Logs(script)
    module.log_dict = partial(Logs.log_dict, module)
    trainer.fit(module, script.loader)

    assert trainer.callback_metrics["one_epoch"] == 6
    assert isinstance(vars(module)["log_dict"], partial)
    assert "log" not in vars(module)
    (record,) = script.optimizer.mechanism.watch.records.values()
    assert record.looks >= 3


class Checked(Classifier):
    """Gives its losses as a function, which counts its examples."""

    def __init__(self, script, *, mixes=False):
        super().__init__(script)
        self.mixes, self.sizes = mixes, []

    def losses(self, batch):
        x, y = batch
        self.sizes.append(len(x))
        losses = cross_entropy(self.model(x), y, reduction="none")
        return losses / losses.mean().item() if self.mixes and len(x) else losses

    def training_step(self, batch, _):
        return self.optimizers().private_loss(self.losses, batch)


def test_losses_are_checked_before_the_first_step(make_script, make_trainer):
    """By dp.check, on four examples, which leaves nothing behind."""
    script, trainer = make_script(), make_trainer(max_steps=2)
    module = Checked(script)
    seen = []
    with mock.patch("dp.integrations.lightning.check", wraps=dp.check) as check:
        check.side_effect = lambda *a, **_: seen.append(a[2]) or mock.DEFAULT
        trainer.fit(module, script.loader)

    assert [len(x) for x, _ in seen] == [4]
    assert checked_on(script.model.parameters()) is not None
    assert len(module.sizes) >= 2
    assert 4 not in module.sizes[:1]
    script.assert_private(steps=2, rates=[0.1] * 2)


def test_losses_that_mix_are_refused_before_the_first_step(make_script, make_trainer):
    """With what dp.check found; nothing was charged."""
    script, trainer = make_script(), make_trainer()
    with pytest.raises(PrivacyError, match="examples are mixed"):
        trainer.fit(Checked(script, mixes=True), script.loader)

    assert script.optimizer.ledger.steps == 0


def test_checking_first_can_be_left_out(make_script, make_trainer):
    """Looks find the same, if not before the first evaluation."""
    script = make_script()
    trainer = make_trainer()
    trainer.callbacks[:] = [PrivacyCallback(check_first=False)]
    with (
        mock.patch("dp.integrations.lightning.check") as check,
        pytest.raises(SampleMixingError),
    ):
        trainer.fit(Checked(script, mixes=True), script.loader)

    check.assert_not_called()


@pytest.mark.parametrize(
    ("batch", "units", "is_done"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), None, False),
        ((torch.zeros(1, 3), torch.zeros(1)), None, False),
        ((torch.zeros(4, 3), torch.zeros(4)), torch.arange(4), True),
        ("a graph", None, True),
    ],
    ids=["empty", "one", "units", "no tensors"],
)
def test_what_cannot_be_checked_waits_or_is_left_out(
    make_script, batch, units, is_done
):
    """An empty batch says nothing of the next one; units are nothing that it knows."""
    module = Checked(make_script())

    assert _checked(module, module.losses, batch, units) is is_done
    assert module.sizes == []
