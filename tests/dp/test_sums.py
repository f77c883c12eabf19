"""The memory that clipped gradients are added up in."""

import torch
from hypothesis import given, strategies as st
from torch import nn

from dp._mechanism.sums import Sums
from dp.per_sample import Engine


shapes = st.lists(st.integers(0, 70), max_size=3)
dtypes = st.sampled_from([torch.float16, torch.float32, torch.float64])
lists_of_parameters = st.lists(
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, dtypes),
    max_size=6,
)


def used_before(parameters):
    """Return sums in memory that holds numbers of someone else's."""
    sums = Sums(parameters)
    for buffer in sums.buffers:
        buffer.fill_(torch.nan)
    return sums


@given(lists_of_parameters)
def test_every_parameter_has_zeros_of_its_own(parameters):
    """Each sum has its parameter's shape, is wide enough, and shares no element."""
    sums = used_before(parameters).of_parameters()
    assert not any(total.any() for total in sums)
    for number, total in enumerate(sums):
        total.add_(number)

    for number, (total, parameter) in enumerate(zip(sums, parameters, strict=True)):
        wide = torch.promote_types(parameter.dtype, torch.float32)
        assert (total.shape, total.dtype) == (parameter.shape, wide)
        assert (total == number).all()


@given(lists_of_parameters)
def test_the_buffers_hold_every_element_once(parameters):
    """What is done to them, noise above all, is done to each sum once."""
    sums = Sums(parameters)
    views = sums.of_parameters()
    for buffer in sums.buffers:
        buffer.add_(1)

    assert all((total == 1).all() for total in views)
    elements = sum(parameter.numel() for parameter in parameters)
    assert sum(buffer.numel() for buffer in sums.buffers) == elements


def test_sums_of_small_parameters_lie_behind_one_another():
    """Noise finds one vector, and a large sum keeps memory of its own."""
    sums = Sums([torch.ones(3, 2), torch.ones(5000), torch.ones(4)])
    first, large, last = sums.of_parameters()

    assert last.data_ptr() == first.data_ptr() + first.nbytes
    assert large.untyped_storage().nbytes() == large.nbytes
    assert len(sums.buffers) == 2


def test_gradients_overwrite_what_memory_held_before_and_later_ones_are_added():
    """Also a parameter that no loss reached, whose sum is zero."""
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 2), nn.Linear(3, 3))
    parameters = [*model.parameters()]
    sums = used_before(parameters)
    x = torch.randn(4, 80)
    for _ in range(2):
        losses = model[1](model[0](x)).sum(1)
        sums.add(Engine().gradients(losses, parameters), torch.ones(1, 4), [0] * 6)

    model[1](model[0](x)).sum().backward()
    for total, parameter in zip(sums.of_parameters(), parameters, strict=True):
        expected = torch.zeros(()) if parameter.grad is None else 2 * parameter.grad
        torch.testing.assert_close(total, expected.expand_as(total))
