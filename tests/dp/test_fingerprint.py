"""What tells two processes' data and parameters apart, and what cannot."""

import numpy as np
import pytest
import torch

from dp._mechanism.fingerprint import fingerprint_of_dataset, fingerprint_of_tensors


@pytest.mark.parametrize(
    "example",
    [
        torch.ones(2),
        np.ones(2),
        (torch.ones(2), 3),
        {"x": [1.0, None], "y": "name"},
        b"bytes",
        np.float32(2),
    ],
)
def test_equal_datasets_have_equal_fingerprints(example):
    """The same examples, in the same order, though they are other objects."""
    from copy import deepcopy  # noqa: PLC0415 -- for this alone

    one, other = [example, 0, 1], [deepcopy(example), 0, 1]

    assert fingerprint_of_dataset(one) == fingerprint_of_dataset(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2, 3], [2, 1, 3]),
        ([1, 2, 3], [1, 2, 4]),
        ([1, 2, 3], [1, 2, 2, 3]),
        ([torch.ones(2)], [torch.ones(3)]),
        ([torch.ones(2)], [torch.ones(2, dtype=torch.float64)]),
        ([torch.ones(2)], [np.ones(2)]),
        ([], [1]),
    ],
)
def test_different_datasets_have_different_fingerprints(one, other):
    """Other examples, another order, or another number of them."""
    assert fingerprint_of_dataset(one) != fingerprint_of_dataset(other)


def test_a_dataset_that_reads_differently_each_time_has_no_fingerprint():
    """With random augmentation nothing can be told, so nothing is claimed."""

    class Augmented:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return index + torch.rand(1)

    assert fingerprint_of_dataset(Augmented()) is None


def test_objects_count_by_their_type():
    """Their bytes may be addresses, which differ between processes."""
    assert fingerprint_of_dataset([object()]) == fingerprint_of_dataset([object()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e5m2])
def test_a_changed_bit_changes_the_fingerprint_of_a_tensor(dtype):
    """In any precision, and wherever it is in a tensor that is not contiguous."""
    tensor = torch.linspace(-1, 1, 12).view(3, 4).T.to(dtype)
    changed = tensor.clone()
    changed[2, 1] = 0.5

    assert fingerprint_of_tensors([tensor]) == fingerprint_of_tensors([tensor.clone()])
    assert fingerprint_of_tensors([tensor]) != fingerprint_of_tensors([changed])
