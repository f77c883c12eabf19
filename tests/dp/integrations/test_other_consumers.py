"""DPOptimizer in the loops and wrappers of further libraries."""

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, PiecewiseLinear
from ignite.handlers.tensorboard_logger import OptimizerParamsHandler, TensorboardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import StepLR
from torch_ema import ExponentialMovingAverage

from dp.integrations.tensorboard import log_epsilon


def engine_of(script):
    def step(_, batch):
        script.optimizer.zero_grad()
        script.optimizer.private_loss(script.losses(batch)).backward()
        script.optimizer.step()

    return Engine(step)


def test_ignite_trains_with_its_own_scheduler(make_script):
    """Its parameter schedulers write to ``param_groups``; the update follows."""
    script = make_script()
    trainer = engine_of(script)
    schedule = PiecewiseLinear(script.optimizer, "lr", [(0, 0.1), (5, 0.6)])
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)

    trainer.run(script.loader, max_epochs=1)

    script.assert_private(steps=6, rates=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_ignite_trains_with_torchs_scheduler_and_logs_its_rate(make_script, tmp_path):
    """What TensorBoard shows of rate and epsilon is what the run used and spent."""
    script = make_script()
    trainer = engine_of(script)
    scheduler = LRScheduler(StepLR(script.optimizer, 2, gamma=0.5))
    trainer.add_event_handler(Events.ITERATION_STARTED, scheduler)

    with TensorboardLogger(log_dir=tmp_path) as logger:
        logger.attach(
            trainer,
            log_handler=OptimizerParamsHandler(script.optimizer),
            event_name=Events.ITERATION_COMPLETED,
        )
        log_epsilon(script.optimizer, logger.writer, every=6)
        trainer.run(script.loader, max_epochs=1)

    events = EventAccumulator(str(tmp_path)).Reload()
    logged = [event.value for event in events.Scalars("lr/group_0")]
    script.assert_private(steps=6, rates=logged)
    assert len(events.Scalars("privacy/epsilon")) == 1


def test_ignites_checkpoint_brings_the_ledger_back(make_script, tmp_path):
    """Saved by its handler, loaded by its loader, with ``weights_only``."""
    script = make_script(torch.optim.Adam)
    objects = {"model": script.model, "optimizer": script.optimizer}
    trainer = engine_of(script)
    saver = Checkpoint(objects, DiskSaver(tmp_path), filename_prefix="at")
    trainer.add_event_handler(Events.COMPLETED, saver)
    trainer.run(script.loader, max_epochs=1)

    resumed = make_script(torch.optim.Adam)
    state = torch.load(next(tmp_path.iterdir()), weights_only=True)
    Checkpoint.load_objects(
        {"model": resumed.model, "optimizer": resumed.optimizer}, state
    )

    assert resumed.optimizer.spent() == script.optimizer.spent()
    assert torch.equal(resumed.weights(), script.weights())


def test_an_exponential_average_follows_the_private_weights(make_script):
    """torch-ema reads parameters; its average is of what was released."""
    script = make_script()
    average = ExponentialMovingAverage(script.model.parameters(), decay=0.5)
    expected = script.weights()
    for number, batch in enumerate(script.loader, start=1):
        script.optimizer.backward(script.losses(batch))
        script.optimizer.step()
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * script.weights()

    with average.average_parameters():
        torch.testing.assert_close(script.weights(), expected)
    script.assert_private(steps=6, rates=[0.1] * 6)
