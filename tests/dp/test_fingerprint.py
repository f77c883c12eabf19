"""What tells two processes' data and parameters apart, and what cannot."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

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


class Augmented:
    """Examples of a random number, and a label that stays."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return index + torch.rand(1), self.labels[index]


def test_what_a_random_augmentation_changes_says_nothing():
    """What it leaves does."""
    found = fingerprint_of_dataset(Augmented([5, 6, 7]))

    assert not found.is_whole
    assert found == fingerprint_of_dataset(Augmented([5, 6, 7]))
    assert found != fingerprint_of_dataset(Augmented([5, 6, 8]))


def test_examples_with_a_random_number_of_leaves_say_nothing():
    """As boxes that are left out at random."""
    numbers = itertools.count()

    class Boxes:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return [index] * (1 + next(numbers) % 4)

    assert fingerprint_of_dataset(Boxes()).leaves == (None,)


@pytest.mark.parametrize("kind", ["subset", "concatenated"])
def test_other_rows_of_the_same_data_have_another_order(kind):
    """Also where what they are cannot be told, as the one label."""
    data = Augmented([1] * 50)
    rows = [Subset(data, range(40)), Subset(data, [39, *range(1, 39), 0])]
    if kind == "concatenated":
        rows = [ConcatDataset([one, Subset(data, [45])]) for one in rows]
    one, other = map(fingerprint_of_dataset, rows)

    assert one.leaves == other.leaves
    assert one.order != other.order


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
