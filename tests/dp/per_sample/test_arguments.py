"""That an argument which changes between batches is noticed, though shapes do not."""

import pytest
import torch

from dp import SampleMixingError
from dp.per_sample import Engine


SIDE = 6  # Of examples and of entries, so that no shape tells the axes apart.

# An operation along an axis, of which 1 keeps examples apart and 0 does not.
ALONG = {
    "softmax": lambda h, axis: h.softmax(axis),
    "log_softmax": lambda h, axis: h.log_softmax(axis),
    "sum": lambda h, axis: h.sum(axis)[:, None] * h,
    "mean": lambda h, axis: h - h.mean(axis, keepdim=False)[:, None],
    "cumsum": lambda h, axis: h.cumsum(axis),
    "roll": lambda h, axis: h.roll(1, axis),
    "flip": lambda h, axis: h.flip(axis),
    "logsumexp": lambda h, axis: h - h.logsumexp(axis)[:, None],
    "amax": lambda h, axis: h - h.amax(axis)[:, None],
    "normalize": lambda h, axis: torch.nn.functional.normalize(h, dim=axis),
    "batch norm": lambda h, axis: torch.nn.functional.batch_norm(
        h, torch.zeros(SIDE), torch.ones(SIDE), training=axis == 0
    ),
}


# Those whose shapes are the same along either axis, however many examples there are.
UNSEEN = ("batch norm", "cumsum", "log_softmax", "softmax")
CASES = [*((name, SIDE) for name in ALONG), *((name, 2 * SIDE + 1) for name in UNSEEN)]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_an_axis_that_changes_is_noticed(name, size):
    """A graph that was walked and recognised before is followed again, and refused."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, SIDE), torch.nn.Tanh(), torch.nn.Linear(SIDE, SIDE)
    )
    parameters, engine = [*model.parameters()], Engine()

    def gradients(axis):
        hidden = ALONG[name](model(torch.randn(size, 3)), axis)
        return engine.gradients((hidden.square() * hidden.sin()).sum(1), parameters)

    for _ in range(3):
        gradients(1)

    with pytest.raises(SampleMixingError, match="examples are mixed"):
        gradients(0)
    gradients(1)
