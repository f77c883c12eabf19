"""The memory that clipped gradients are added up in."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from dp import _tuning
from dp._mechanism.sums import Sums
from dp.per_sample import Engine


shapes = st.lists(st.integers(0, 70), max_size=3)
dtypes = st.sampled_from([torch.float16, torch.float32, torch.float64])
lists_of_parameters = st.lists(
    st.builds(lambda shape, dtype: torch.ones(shape, dtype=dtype), shapes, dtypes),
    max_size=6,
)


@contextmanager
def used_before():
    """Let new memory hold numbers of someone else's."""
    empty = torch.empty

    def of_someone_else(*args, **kwargs):
        return empty(*args, **kwargs).fill_(torch.nan)

    with mock.patch("dp._mechanism.sums.torch.empty", of_someone_else):
        yield


def losses_of(model, x):
    return model(x).sum(1)


@given(lists_of_parameters)
def test_every_parameter_has_zeros_of_its_own(parameters):
    """Each sum has its parameter's shape, is wide enough, and shares no element."""
    with used_before():
        sums = Sums(parameters).of_parameters()
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
    too_large = torch.ones(_tuning.SMALL_SUM + 1)
    sums = Sums([torch.ones(3, 2), too_large, torch.ones(4)])
    first, large, last = sums.of_parameters()

    assert last.data_ptr() == first.data_ptr() + first.nbytes
    assert large.untyped_storage().nbytes() == large.nbytes
    assert len(sums.buffers) == 2


@pytest.mark.parametrize("most", [4096, _tuning.SMALL_SUM])
def test_gradients_overwrite_what_memory_held_before_and_later_ones_are_added(
    most, monkeypatch
):
    """Also a parameter that no loss reached, whose sum is zero."""
    monkeypatch.setattr(_tuning, "SMALL_SUM", most)
    model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 2), nn.Linear(3, 3))
    parameters = [*model.parameters()]
    sums = Sums(parameters)
    x = torch.randn(4, 80)
    with used_before():
        for _ in range(2):
            losses = losses_of(model[:2], x)
            sums.add(Engine().gradients(losses, parameters), torch.ones(1, 4), [0] * 6)

    losses_of(model[:2], x).sum().backward()
    for total, parameter in zip(sums.of_parameters(), parameters, strict=True):
        expected = torch.zeros(()) if parameter.grad is None else 2 * parameter.grad
        torch.testing.assert_close(total, expected.expand_as(total))


def deep_model(dtype=torch.float32):
    """Layers that are alike, whose sums are found together, and one that is not."""
    layers = [
        m for _ in range(4) for m in (nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh())
    ]
    return nn.Sequential(*layers, nn.Linear(6, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_that_are_found_together_are_kept_as_they_are(dtype):
    """They become buffers, hold every element once, and are torch's own sums."""
    model = deep_model(dtype)
    parameters = [*model.parameters()]
    x, engine = torch.randn(5, 6, dtype=dtype), Engine()
    for _ in range(2):  # A graph that is known has layers that are served together.
        gradients = engine.gradients(losses_of(model, x), parameters)
    sums = Sums(parameters)
    sums.add(gradients, torch.ones(1, 5, dtype=dtype), [0] * len(parameters))

    totals = sums.of_parameters()
    losses_of(model, x).sum().backward()
    for total, parameter in zip(totals, parameters, strict=True):
        torch.testing.assert_close(total, parameter.grad)
    assert len(sums.buffers) < len(parameters) // 2
    assert sum(b.numel() for b in sums.buffers) == sum(t.numel() for t in totals)
    before = [total.clone() for total in totals]
    for buffer in sums.buffers:
        buffer.add_(1)
    assert all(torch.equal(t, b + 1) for t, b in zip(totals, before, strict=True))


def test_sums_that_are_too_narrow_are_copied_into_wider_memory():
    """A parameter in float64 keeps its precision if its gradients came in less."""
    model = deep_model()
    parameters = [*model.parameters()]
    x, engine = torch.randn(5, 6), Engine()
    for _ in range(2):
        gradients = engine.gradients(losses_of(model, x), parameters)
    sums = Sums([parameter.double() for parameter in parameters])
    sums.add(gradients, torch.ones(1, 5), [0] * len(parameters))

    losses_of(model, x).sum().backward()
    for total, parameter in zip(sums.of_parameters(), parameters, strict=True):
        torch.testing.assert_close(total, parameter.grad.double())
