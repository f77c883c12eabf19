"""The tensors that clipped gradients are added up in."""

import torch
from hypothesis import given, strategies as st

from dp._mechanism.sums import scale_sums, zero_sums


shapes = st.lists(st.integers(0, 70), max_size=3)
dtypes = st.sampled_from([torch.float16, torch.float32, torch.float64])


@given(st.lists(st.tuples(shapes, dtypes), max_size=6))
def test_every_parameter_has_zeros_of_its_own(kinds):
    """Each sum has its parameter's shape, is wide enough, and shares no element."""
    parameters = [torch.ones(shape, dtype=dtype) for shape, dtype in kinds]
    sums = zero_sums(parameters)
    for number, total in enumerate(sums):
        total.add_(number)

    for number, (total, parameter) in enumerate(zip(sums, parameters, strict=True)):
        wide = torch.promote_types(parameter.dtype, torch.float32)
        assert (total.shape, total.dtype) == (parameter.shape, wide)
        assert (total == number).all()


def test_sums_of_small_parameters_lie_behind_one_another():
    """Noise finds one vector, and a large sum keeps memory of its own."""
    sums = zero_sums([torch.ones(3, 2), torch.ones(5000), torch.ones(4)])

    assert sums[2].data_ptr() == sums[0].data_ptr() + sums[0].nbytes
    assert sums[1].untyped_storage().nbytes() == sums[1].nbytes


@given(st.lists(st.tuples(shapes, dtypes), max_size=6))
def test_all_sums_are_scaled(kinds):
    """Whatever class a tensor is of, as a shard is."""
    sums = [torch.ones(shape, dtype=dtype) for shape, dtype in kinds]
    sums.append(torch.nn.Parameter(torch.ones(2), requires_grad=False))
    scale_sums(sums, 0.25)

    assert all((total == 0.25).all() for total in sums)
