"""One line makes a Lightning Trainer private, by its own arguments and its loader's."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
)
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ConstantLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import dp
from dp import DPOptimizer, SampleMixingError, UnsupportedOperationError
from dp.integrations.lightning import PrivacyCallback


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{told}")
    for told in (
        # Lightning's advice and its use of torch's older names; not ours to act on.
        ".*does not have many workers which may be a bottleneck",
        ".*isinstance.treespec, LeafSpec.. is deprecated:FutureWarning",
        ".*`max_epochs` was not set",
        ".*The number of training batches .* is smaller than the logging interval",
        ".*Checkpoint directory .* exists and is not empty",
        ".*training to be resumed from a checkpoint.*epoch",
        ".*resume.*dataloader.*not resumable",
        ".*You're resuming from a checkpoint that ended before the epoch",
    )
]
NUMBERS = {"epsilon": 3.0, "delta": 1e-4, "dataset_size": 60}


def rows(num_rows=60):
    return TensorDataset(torch.randn(num_rows, 8), torch.randint(3, (num_rows,)))


class Classifier(LightningModule):
    """As for training without privacy, but for reduction="none"."""

    def __init__(self, *, scheduled=None):
        super().__init__()
        self.net = torch.nn.Linear(8, 3)
        self.scheduled = scheduled

    def training_step(self, batch, batch_idx):
        del batch_idx
        x, y = batch
        losses = cross_entropy(self.net(x), y, reduction="none")
        self.log("train_loss", losses.mean())
        return losses

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.scheduled is None:
            return optimizer
        return self.scheduled(optimizer)


class Named(Classifier):
    """Its losses are in a dictionary, and its optimizer in a list."""

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)}

    def configure_optimizers(self):
        return [super().configure_optimizers()]


@pytest.fixture
def make_trainer(tmp_path):
    """Build a Trainer as for training without privacy."""

    def make(**changes):
        return Trainer(
            **{
                "max_epochs": 2,
                "accelerator": "cpu",
                "default_root_dir": tmp_path,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **changes,
            }
        )

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ({}, (10, 12, 1.0)),
        ({"max_epochs": -1, "max_steps": 5}, (10, 5, 1.0)),
        ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, (20, 6, 0.5)),
    ],
)
def test_the_plan_follows_from_the_trainer_and_its_loader(
    make_trainer, tmp_path, arguments, numbers
):
    """All planned steps are taken, and the report is left in the root folder."""
    trainer = dp.private(make_trainer(**arguments), **NUMBERS)
    trainer.fit(Classifier(), DataLoader(rows(), batch_size=10, shuffle=True))

    plan = trainer.plan
    assert plan == trainer.private_optimizer.plan
    assert (plan.expected_batch_size, plan.steps, plan.max_grad_norm) == numbers
    assert plan.sampling_probability == pytest.approx(numbers[0] / 60)
    assert trainer.global_step == plan.steps
    assert 2.9 < trainer.certificate().epsilon <= 3.0
    assert "train_loss" not in trainer.callback_metrics
    assert dp.verify(tmp_path / "privacy/certificate.json", quick=True).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduled",
    [
        lambda o: {"optimizer": o, "lr_scheduler": LinearLR(o, 1, 0.5, 2)},
        lambda o: ([o], [{"scheduler": LinearLR(o, 1, 0.5, 2)}]),
        lambda o: {
            "optimizer": o,
            "lr_scheduler": SequentialLR(
                o, [ConstantLR(o, 1.0), LinearLR(o, 1, 0.5, 1)], [1]
            ),
        },
        lambda o: {"optimizer": o},
    ],
    ids=["dict", "lists", "nested", "none"],
)
def test_schedulers_go_on_with_the_private_optimizer(make_trainer, scheduled):
    """In whatever form the module returns them."""
    module = Classifier(scheduled=scheduled)
    trainer = dp.private(make_trainer(), **NUMBERS)
    trainer.fit(module, DataLoader(rows(), batch_size=30))

    private = trainer.private_optimizer
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    assert all(scheduler.optimizer is private for scheduler in schedulers)
    assert private.param_groups[0]["lr"] == pytest.approx(0.05 if schedulers else 0.1)


@pytest.mark.slow
def test_the_module_is_its_own_again_after_the_fit(make_trainer):
    """Nothing of the private run stays on it."""
    module = Named()
    trainer = dp.private(make_trainer(max_epochs=1), **NUMBERS)
    trainer.fit(module, DataLoader(rows(), batch_size=30))

    assert isinstance(trainer.private_optimizer, DPOptimizer)
    assert not {"training_step", "configure_optimizers"} & set(vars(module))


@pytest.mark.slow
def test_a_run_resumes_with_its_ledger(make_trainer, tmp_path):
    """In a trainer of its own; both parts together keep the target."""
    data, path = rows(), tmp_path / "half.ckpt"

    class Saving(Classifier):
        def on_train_batch_end(self, *_):
            if self.trainer.global_step == 4:
                self.trainer.save_checkpoint(path)
                self.trainer.should_stop = True

    first = dp.private(make_trainer(), **NUMBERS)
    first.fit(Saving(), DataLoader(data, batch_size=10))
    again = dp.private(make_trainer(), **NUMBERS)
    again.fit(Classifier(), DataLoader(data, batch_size=10), ckpt_path=path)

    assert again.private_optimizer.ledger.steps == 12
    assert again.certificate().epsilon <= 3.0


@pytest.mark.slow
def test_users_are_one_value_a_row(make_trainer):
    """A dataset of tensors has no column to name."""
    users = [row // 3 for row in range(60)]
    trainer = dp.private(
        make_trainer(max_epochs=1), **{**NUMBERS, "dataset_size": 20}, units=users
    )
    trainer.fit(Classifier(), DataLoader(rows(), batch_size=5))

    assert (
        trainer.private_optimizer.plan.unit_of_privacy == "one value of the units given"
    )
    assert trainer.private_optimizer.mechanism.loader.units_digest is not None


@pytest.mark.slow
def test_a_single_example_is_not_checked(make_trainer):
    """There is no second one to compare it with."""
    trainer = dp.private(make_trainer(max_epochs=1), **{**NUMBERS, "dataset_size": 1})
    trainer.fit(Classifier(), DataLoader(rows(1), batch_size=1))

    assert trainer.global_step == 1


class Mixing(Classifier):
    """Batch normalization of a frozen part mixes examples."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def training_step(self, batch, batch_idx):
        return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)


@pytest.mark.slow
def test_a_loss_that_mixes_examples_is_found_before_the_first_step(make_trainer):
    """By dp.check; the trainer may fit again when the module is mended."""
    trainer = dp.private(make_trainer(max_epochs=1), **NUMBERS)
    with pytest.raises(dp.PrivacyError, match="BatchNorm"):
        trainer.fit(Mixing(), DataLoader(rows(), batch_size=30))
    trainer.fit(Classifier(), DataLoader(rows(), batch_size=30))

    assert trainer.private_optimizer.ledger.steps == 2
    assert issubclass(SampleMixingError, dp.PrivacyError)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"limit_train_batches": 3}, "limit_train_batches=3 takes a part"),
        ({"overfit_batches": 2}, "limit_train_batches=2 takes a part"),
        ({"max_epochs": -1}, "max_epochs=-1 and max_steps=-1 set no end"),
        (
            {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
            "gradient_clip_algorithm='value' clips each number",
        ),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(make_trainer, changes, told):
    """By name, before anything is changed."""
    trainer = make_trainer(**changes)

    with pytest.raises(UnsupportedOperationError, match=told):
        dp.private(trainer, **NUMBERS)
    assert type(trainer) is Trainer


class Plain(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).mean()


def test_a_trainer_that_trained_without_privacy_stays_as_it_is(make_trainer):
    """No later step takes back what the weights know."""
    trainer = make_trainer(max_epochs=1)
    trainer.fit(Plain(), DataLoader(rows(), batch_size=30))

    with pytest.raises(UnsupportedOperationError, match="took 2 steps without privacy"):
        dp.private(trainer, **NUMBERS)


class Manual(Classifier):
    automatic_optimization = False


class TwoOptimizers(Classifier):
    def configure_optimizers(self):
        return [super().configure_optimizers(), super().configure_optimizers()]


class NoOptimizer(Classifier):
    def configure_optimizers(self):
        return None


@pytest.mark.parametrize(
    ("module", "loader", "error", "told"),
    [
        (Manual, DataLoader(rows()), UnsupportedOperationError, "Manual optimizes by"),
        (Classifier, None, UnsupportedOperationError, "comes from a data module"),
        (Classifier, [1, 2], TypeError, "one torch DataLoader, got list"),
        (
            TwoOptimizers,
            DataLoader(rows()),
            UnsupportedOperationError,
            r"made \['SGD', 'SGD'\]; join",
        ),
        (NoOptimizer, DataLoader(rows()), UnsupportedOperationError, r"made \[\]"),
        (
            Classifier,
            dp.PoissonLoader(rows(), sampling_probability=0.5, steps=2),
            UnsupportedOperationError,
            "PoissonLoader, of a plan of its own",
        ),
        (
            Classifier,
            DataLoader(rows(), sampler=WeightedRandomSampler([1.0] * 60, 60)),
            UnsupportedOperationError,
            "WeightedRandomSampler chooses examples",
        ),
        (
            Classifier,
            DataLoader(rows(), batch_sampler=[[0, 1], [2]]),
            UnsupportedOperationError,
            "list chooses examples, and the plan draws",
        ),
    ],
)
def test_what_a_fit_cannot_make_private_is_refused(
    make_trainer, module, loader, error, told
):
    """The module, its optimizers, or its loader."""
    trainer = dp.private(make_trainer(), **NUMBERS)

    with pytest.raises(error, match=told):
        trainer.fit(module(), loader)


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (LearningRateFinder(), "LearningRateFinder trains to choose a learning rate"),
        (BatchSizeFinder(), "BatchSizeFinder trains to choose a batch size"),
        (GradientAccumulationScheduler({0: 1, 1: 2}), r"accumulates \[1, 2\] batches"),
    ],
    ids=["rate", "size", "accumulation"],
)
def test_callbacks_that_a_private_run_cannot_have_are_refused(
    make_trainer, callback, told
):
    """Before a step is taken: what they see has no noise, or is no planned step."""
    trainer = make_trainer(callbacks=[callback])

    with pytest.raises(UnsupportedOperationError, match=told):
        PrivacyCallback().setup(trainer, Classifier(), "fit")


def test_a_learning_rate_is_not_found_by_a_private_trainer(make_trainer):
    """Its callback comes before ours, but takes no step before all are set up."""
    trainer = dp.private(make_trainer(callbacks=[LearningRateFinder()]), **NUMBERS)

    with pytest.raises(UnsupportedOperationError, match="choose a learning rate"):
        trainer.fit(Classifier(), DataLoader(rows(), batch_size=30))
    assert trainer.private_optimizer is None


@pytest.mark.slow
def test_a_second_fit_is_refused(make_trainer):
    """It would cost as much again."""
    trainer = dp.private(make_trainer(max_epochs=1), **NUMBERS)
    trainer.fit(Classifier(), DataLoader(rows(), batch_size=30))

    with pytest.raises(UnsupportedOperationError, match="was fitted before"):
        trainer.fit(Classifier(), DataLoader(rows(), batch_size=30))


def test_a_sampler_of_several_devices_is_refused_before_lightning_makes_it(
    make_trainer, monkeypatch
):
    """With its flag off, the loader draws for all devices."""
    monkeypatch.setattr(Trainer, "world_size", 2)
    callback = PrivacyCallback()

    with pytest.raises(UnsupportedOperationError, match="use_distributed_sampler=True"):
        callback.setup(make_trainer(), Classifier(), "fit")
    callback.setup(make_trainer(use_distributed_sampler=False), Classifier(), "fit")
    callback.setup(make_trainer(), Classifier(), "validate")
