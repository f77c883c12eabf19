"""That an empty batch looks as any other batch would, with nobody in it."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import Subset, TensorDataset, default_collate

from dp.sampling import PoissonLoader


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Batch:
    x: torch.Tensor
    names: list[str]
    count: int
    source: str = "here"
    cache: dict = field(default_factory=dict, init=False)


def empty_batch(dataset, collate_fn=None):
    """What a loader yields for an empty draw."""
    loader = PoissonLoader(
        dataset, sampling_probability=2.0**-60, steps=1, collate_fn=collate_fn
    )
    (batch,) = loader
    return batch


def skeleton(batch):
    """Structure, dtypes and trailing shapes of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.dtype, tuple(batch.shape[1:])
    if isinstance(batch, dict):
        return {name: skeleton(part) for name, part in batch.items()}
    if batch and isinstance(batch, list | tuple) and not isinstance(batch[0], str):
        return type(batch), [skeleton(part) for part in batch]
    return type(batch)


tensors = st.builds(
    torch.zeros,
    st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]),
)
leaves = tensors | st.integers(-3, 3) | st.floats(0, 1)
examples = st.recursive(
    leaves,
    lambda parts: (
        st.tuples(parts)
        | st.tuples(parts, parts)
        | st.builds(Point, parts, parts)
        | st.dictionaries(st.sampled_from("ab"), parts, min_size=1)
    ),
    max_leaves=5,
)


@given(examples)
def test_an_empty_batch_has_the_form_of_a_full_one(example):
    """Containers, dtypes and trailing shapes are those of torch's collate."""
    empty = empty_batch([example])

    assert skeleton(empty) == skeleton(default_collate([example, example, example]))
    assert all(len(part) == 0 for part in tensors_of(empty))


def tensors_of(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch
    return [tensor for part in parts for tensor in tensors_of(part)]


def test_strings_become_an_empty_list():
    """Torch collates strings to a sequence of them, and none of them to none."""
    assert empty_batch(["one", "two"]) == []
    words, numbers = empty_batch([("one", 1), ("two", 2)])
    assert len(words) == len(numbers) == 0


def test_the_batch_axis_is_found_wherever_it_is():
    """A sequence-first collate, and one that joins examples, lose that axis."""
    data = [torch.zeros(5, 3)]

    assert empty_batch(data, lambda b: torch.stack(b, dim=1)).shape == (5, 0, 3)
    assert empty_batch(data, torch.cat).shape == (0, 3)
    assert empty_batch(data, lambda b: torch.block_diag(*b)).shape == (0, 0)


def test_tuples_of_images_and_targets_become_empty_tuples():
    """The collate of detection models keeps examples apart; so does its emptiness."""
    data = [(torch.zeros(3, 8, 8), {"boxes": torch.zeros(2, 4)})]

    assert empty_batch(data, lambda batch: tuple(zip(*batch, strict=True))) == ((), ())


def test_mappings_arrays_and_dataclasses_keep_their_type():
    """What collate functions of other libraries return is emptied in kind."""
    data = [1.0, 2.0]

    encoding = empty_batch(data, lambda b: UserDict(x=torch.tensor(b)))
    assert isinstance(encoding, UserDict)
    assert encoding["x"].shape == (0,)
    ordered = empty_batch(data, lambda b: OrderedDict(x=np.array(b)))
    assert isinstance(ordered, OrderedDict)
    assert (ordered["x"].shape, ordered["x"].dtype) == ((0,), np.float64)
    batch = empty_batch(
        data, lambda b: Batch(torch.tensor(b), [str(x) for x in b], len(b))
    )
    assert (len(batch.x), batch.names, batch.count, batch.source) == (0, [], 0, "here")


def test_counts_become_zero_and_constants_stay():
    """A number that grows with the batch counts it; one that does not is kept."""
    collated = {"flag": True, "nothing": None, "pad": 7, "name": "en", "rate": 0.5}
    empty = empty_batch([1, 2], lambda b: {**collated, "n": len(b)})

    assert empty == {**collated, "n": 0}


@pytest.mark.parametrize(
    "collate_fn",
    [
        lambda batch: torch.tensor(sum(batch)),
        lambda batch: torch.zeros(len(batch) + 3),
        lambda _batch: torch.zeros(4, 4),
        lambda batch: torch.zeros([1] * len(batch)),
        lambda _batch: torch.zeros(0, 2),
        lambda batch: sum(batch) / 3,
        lambda batch: "x" * len(batch),
        lambda batch: batch if len(batch) == 1 else tuple(batch),
        lambda batch: [0] * (len(batch) + 1),
        lambda batch: dict.fromkeys(batch[: len(batch) - 1]),
        lambda _batch: object(),
    ],
    ids=range(11),
)
def test_a_part_without_a_batch_axis_is_refused(collate_fn):
    """No guess is made when the loader is built; the remedy is in the message."""
    with pytest.raises(TypeError, match="pass empty_batch="):
        empty_batch([1.5, 2.5], collate_fn)


def test_an_empty_dataset_needs_an_explicit_empty_batch():
    """There is no example to tell a shape from, but a run may still be made."""
    arguments = {"sampling_probability": 0.5, "steps": 2}
    with pytest.raises(ValueError, match="pass empty_batch="):
        PoissonLoader([], **arguments)

    loader = PoissonLoader([], empty_batch=torch.zeros(0, 2), **arguments)
    assert [batch.shape for batch in loader] == [(0, 2), (0, 2)]


def test_a_dataset_that_reads_whole_batches_works():
    """``__getitems__`` may return columns; then the collate function gets those."""

    class Columns(TensorDataset):
        def __getitems__(self, indices):
            return tuple(column[indices] for column in self.tensors)

    x, y = empty_batch(Columns(torch.zeros(5, 2), torch.zeros(5)), lambda batch: batch)
    assert (x.shape, y.shape) == ((0, 2), (0,))


def test_subsets_work():
    """Torch's own ``__getitems__`` is used as its loader uses it."""
    subset = Subset(TensorDataset(torch.zeros(9, 2)), [3, 5])

    (x,) = empty_batch(subset)
    assert x.shape == (0, 2)


def test_a_collate_that_takes_its_examples_apart_works():
    """What collating uses up is a copy; the dataset stays whole."""
    data = [{"x": 1.0, "y": 2}]

    def collate(batch):
        labels = [example.pop("y") for example in batch]
        return torch.tensor(labels)

    assert empty_batch(data, collate).shape == (0,)
    assert data == [{"x": 1.0, "y": 2}]


def test_nothing_of_the_first_example_is_left():
    """An empty batch holds shapes and dtypes, not the person they were read from."""
    secret = 123_456.0
    loader = PoissonLoader(
        [(torch.full((3,), secret), "Ada")], sampling_probability=2.0**-60, steps=1
    )
    (batch,) = loader

    assert str(int(secret)) not in repr(batch)
    assert "Ada" not in repr(batch)
    assert all(tensor.untyped_storage().nbytes() == 0 for tensor in batch[:1])
