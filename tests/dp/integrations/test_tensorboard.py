"""Epsilon in TensorBoard: what is written, when, and to the real event files."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dp.integrations.tensorboard import log_epsilon


def train(script, num_steps):
    for batch, _ in zip(script.loader, range(num_steps), strict=False):
        script.optimizer.backward(script.losses(batch))
        script.optimizer.step()


def test_event_files_hold_epsilon_at_every_so_many_steps(make_script, tmp_path):
    """Read back by TensorBoard itself: the run's and that of the steps so far."""
    script = make_script()

    with SummaryWriter(tmp_path) as writer:
        log_epsilon(script.optimizer, writer, every=3)
        train(script, 6)

    written = EventAccumulator(str(tmp_path)).Reload()
    whole = written.Scalars("privacy/epsilon")
    so_far = written.Scalars("privacy/epsilon_if_planned_to_stop_here")
    assert [event.step for event in whole] == [event.step for event in so_far] == [3, 6]
    spent = pytest.approx(script.optimizer.spent().epsilon)
    assert whole[0].value == whole[1].value == so_far[1].value == spent
    assert so_far[0].value < so_far[1].value


def test_logging_ends_with_its_handle(make_script):
    """Two entries a step under the tag that was asked for, until it is removed."""
    script, written = make_script(), []

    class Writer:
        def add_scalar(self, tag, scalar_value, global_step):
            written.append((tag, scalar_value > 0, global_step))

    handle = log_epsilon(script.optimizer, Writer(), tag="eps")
    train(script, 2)
    handle.remove()
    train(script, 1)

    assert written == [
        (tag, True, step)
        for step in (1, 2)
        for tag in ("eps", "eps_if_planned_to_stop_here")
    ]


def test_only_private_optimizers_have_an_epsilon():
    """A plain one would be logged as if it cost nothing."""
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(TypeError, match="no DPOptimizer was found in SGD"):
        log_epsilon(plain, None)
