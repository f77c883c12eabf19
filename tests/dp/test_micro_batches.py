"""Batches in parts: nothing is lost, doubled or reordered."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.data import TensorDataset

from dp import MicroBatches, PoissonLoader, split_batch
from dp.micro_batches import split_by_unit


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Sample:
    x: torch.Tensor
    name: str


def loader_of(num_examples, probability=1.0, steps=1):
    data = TensorDataset(torch.arange(num_examples))
    return PoissonLoader(data, sampling_probability=probability, steps=steps)


@given(st.integers(1, 30), st.integers(1, 40))
def test_the_parts_of_a_draw_are_the_draw(num_examples, per_step):
    """Whatever the numbers, every example is in one part, in order."""
    parts = [x for (x,) in MicroBatches(loader_of(num_examples), per_step=per_step)]

    assert len(parts) == per_step
    assert torch.equal(torch.cat(parts), torch.arange(num_examples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_number_of_parts_does_not_depend_on_the_draw():
    """Empty draws have as many parts as full ones, so nobody's count shifts."""
    batches = MicroBatches(loader_of(4, probability=1e-12, steps=3), per_step=2)

    assert [len(x) for (x,) in batches] == [0] * 6
    assert len(batches) == 6
    assert len(batches.dataset) == 4


@given(st.integers(0, 30), st.integers(1, 40))
def test_no_part_holds_more_examples_than_allowed(num_examples, most):
    """The device's limit holds, and an empty batch has no part."""
    parts = split_batch(torch.arange(num_examples), max_examples=most)

    assert all(0 < len(part) <= most for part in parts)
    assert len(parts) == -(-num_examples // most)
    assert torch.equal(torch.cat([torch.arange(0), *parts]), torch.arange(num_examples))


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.arange(4), "deep": {"y": torch.zeros(4, 2)}},
        [torch.arange(4), torch.zeros(4, 2)],
        (torch.arange(4), torch.zeros(4, 2)),
        Pair(torch.arange(4), torch.zeros(4, 2)),
        Sample(torch.arange(4), "kept"),
        np.arange(4),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_containers_keep_their_type(batch):
    """A part looks like a batch: only the first axis of tensors is shorter."""
    first, second = split_batch(batch, max_examples=3)

    assert type(first) is type(batch)
    sizes = [_first_size(first), _first_size(second)]
    assert sizes == [3, 1]


def _first_size(batch):
    while not isinstance(batch, torch.Tensor | np.ndarray):
        if isinstance(batch, dict):
            batch = batch["x"]
        else:
            batch = batch.x if isinstance(batch, Sample) else batch[0]
    return len(batch)


def test_a_list_with_one_entry_an_example_is_split_and_constants_are_kept():
    """Strings go with their examples; numbers and scalars with every part."""
    batch = {
        "x": torch.arange(3),
        "text": ["a", "b", "c"],
        "scale": torch.tensor(2.0),
        "names": ("x", "y"),
        "id": "abc",
    }

    first, second = split_batch(batch, max_examples=2)

    assert (first["text"], second["text"]) == (["a", "b"], ["c"])
    assert first["scale"] == second["scale"] == 2.0
    assert second["names"] == ("x", "y")
    assert second["id"] == "abc"


def test_a_batch_that_cannot_be_split_is_refused():
    """Guessing the batch axis could give one example to two parts."""
    with pytest.raises(TypeError, match="type dict holds no tensor"):
        split_batch({"text": ["a", "b"]}, max_examples=1)
    with pytest.raises(ValueError, match="differ in the size of their first axis"):
        split_batch([torch.zeros(3), torch.zeros(2)], max_examples=1)
    with pytest.raises(ValueError, match="max_examples"):
        split_batch(torch.zeros(3), max_examples=0)
    with pytest.raises(ValueError, match="per_step"):
        MicroBatches(loader_of(3), per_step=0)


@pytest.mark.slow
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 7))
def test_a_draw_is_split_between_units_and_never_within_one(rows_of_units, most):
    """Each part is whole units: as many rows as allowed, or one unit that has more."""
    units = [unit for unit, num in enumerate(rows_of_units) for _ in range(num)]
    loader = PoissonLoader(
        range(len(units)), sampling_probability=1.0, steps=1, units=units
    )
    (batch,) = loader
    seen = []
    for part in split_by_unit(loader, batch, max_examples=most):
        seen.extend(part.tolist())
        of_part = [units[row] for row in part.tolist()]

        assert loader.part == slice(len(seen) - len(part), len(seen))
        assert len(part) <= most or len(set(of_part)) == 1
        assert all(of_part.count(unit) == rows_of_units[unit] for unit in of_part)
    assert seen == list(range(len(units)))


def test_rows_that_are_units_are_split_as_any_batch():
    """And an empty draw has no part."""
    loader = loader_of(5)
    (batch,) = loader
    sizes = [len(x) for (x,) in split_by_unit(loader, batch, max_examples=2)]

    assert sizes == [2, 2, 1]
    assert not list(split_by_unit(loader, [batch[0][:0]], max_examples=2))
