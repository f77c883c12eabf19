"""Batches whose examples are exchanged keep their containers and shapes."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

import dp
from dp.evidence._company import Companies, Drawn
from dp.evidence._exchange import (
    axes_of_loader,
    copied,
    devices_of,
    exchanged,
    fits,
    possible_axes,
)


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str


class Users(dict):
    """A kind of mapping."""


def packed():
    return nn.utils.rnn.pack_padded_sequence(
        torch.arange(12.0).view(4, 3, 1),
        torch.tensor([3, 1, 2, 2]),
        batch_first=True,
        enforce_sorted=False,
    )


BATCHES = {
    "tensor": torch.arange(4),
    "tuple": (torch.arange(8).view(4, 2), torch.arange(4)),
    "namedtuple": Point(torch.arange(4), torch.arange(4) * 10),
    "time-major": (torch.arange(24).view(3, 4, 2), torch.arange(4)),
    "dict, nested": {"a": {"b": [torch.arange(4)]}, "c": "text", "d": 4},
    "subclass of dict": Users(a=torch.arange(4)),
    "frozen dataclass": Frozen(torch.arange(4), "x"),
    "strings": (["a", "b", "c", "d"], torch.arange(4)),
    "list of dicts": [{"x": torch.arange(i + 1)} for i in range(4)],
    "list of ragged tensors": [torch.zeros(n, 2) for n in (4, 1, 2, 3)],
    "numpy": np.arange(4),
    "packed": packed(),
    "scalar beside": (torch.arange(4), torch.tensor(3.0)),
}


def examples_of(part):
    """The examples of a part of a batch, each as something comparable."""
    if isinstance(part, nn.utils.rnn.PackedSequence):
        part, _ = nn.utils.rnn.pad_packed_sequence(part, batch_first=True)
    if isinstance(part, torch.Tensor | np.ndarray):
        return part.tolist()
    if isinstance(part, Frozen):
        return part.x.tolist()
    return [str(entry) for entry in part]


WHERE = {  # The part of each batch that is looked at, if it is not the whole.
    "tuple": lambda b: b[0],
    "namedtuple": lambda b: b.y,
    "time-major": lambda b: b[0].transpose(0, 1),
    "dict, nested": lambda b: b["a"]["b"][0],
    "subclass of dict": lambda b: b["a"],
    "strings": lambda b: b[0],
    "scalar beside": lambda b: b[0],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_examples_take_the_places_of_others(kind):
    """In every container, with its type."""
    batch = BATCHES[kind]
    axes = next(possible_axes(batch, 4))
    same, other = (
        exchanged(batch, [0, 1, 2, 3], axes),
        exchanged(batch, [0, 0, 2, 2], axes),
    )

    assert type(same) is type(other) is type(batch)
    part_of = WHERE.get(kind, lambda whole: whole)
    examples = examples_of(part_of(batch))
    assert examples_of(part_of(same)) == examples
    assert examples_of(part_of(other)) == [examples[i] for i in (0, 0, 2, 2)]


@pytest.mark.parametrize(
    "batch",
    [
        {"nodes": torch.zeros(9, 3), "edges": torch.zeros(2, 20)},
        {
            "nodes": torch.zeros(9, 4),
            "edges": torch.zeros(2, 20),
        },  # Features: by chance.
        {"x": torch.zeros(4, 2), "weights of classes": torch.zeros(3)},
        "text",
        (),
    ],
)
def test_no_axis_is_guessed_where_one_array_has_none(batch):
    """What is exchanged along a wrong axis would look as if it were mixed."""
    assert list(possible_axes(batch, 4)) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_no_axis_is_guessed_of_a_nested_tensor(layout):
    """One layout cannot be indexed, and the other has no shape."""
    rows = [torch.zeros(n, 2) for n in (4, 1, 2, 3)]
    batch = torch.nested.nested_tensor(rows, layout=layout), torch.zeros(4)

    assert list(possible_axes(batch, 4)) == []


def test_every_axis_that_is_as_long_is_a_guess():
    """The first is the likeliest."""
    axes = list(possible_axes((torch.zeros(4, 4), torch.zeros(4)), 4))

    assert axes == [{(0,): 0, (1,): 0}, {(0,): 1, (1,): 0}]


def test_a_copy_stays_as_it_is_when_the_batch_is_written_to():
    """Tensors, arrays and containers."""
    batch = {"x": torch.ones(3), "y": np.ones(3), "z": [1, 2]}
    copy = copied(batch)
    batch["x"].mul_(2)
    batch["y"] *= 2
    batch["new"] = 1

    assert copy["x"].sum() == copy["y"].sum() == 3
    assert "new" not in copy


def test_a_tensor_of_a_graph_is_not_copied():
    """It is no data, and a copy would lose its graph."""
    made = torch.ones(3, requires_grad=True) * 2

    assert copied({"made": made})["made"] is made


def test_devices_are_those_of_accelerators():
    """A generator of a CPU is asked for anyway."""
    there = torch.empty(1, device="meta")

    assert devices_of([torch.zeros(1), {"x": there}, "text"]) == {there.device}
    assert devices_of("text") == set()


def time_major(items):
    x, y = default_collate(items)
    return {
        "x": x.T,
        "y": y,
        "classes": torch.arange(3),
        "names": [str(y) for _, y in items],
    }


def graphs(items):
    return torch.cat([x for x, _ in items]), len(items)


ITEM = (torch.arange(2.0), torch.tensor(1))


def test_axes_are_what_one_more_example_makes_longer():
    """Not what is as long as the batch: here the features are, too."""
    axes = axes_of_loader([ITEM, ITEM], time_major)
    batch = time_major([(torch.arange(2.0) + i, torch.tensor(i)) for i in range(2)])

    assert axes == {("x",): 1, ("y",): 0, ("classes",): None, ("names",): -1}
    assert fits(batch, 2, axes)
    assert exchanged(batch, [1, 1], axes)["x"].tolist() == [[1, 1], [2, 2]]
    assert axes_of_loader([ITEM, ITEM], default_collate) == {(0,): 0, (1,): 0}
    assert axes_of_loader([(packed(), 1)] * 2, lambda i: i[0][0]) == {(): 0}


@pytest.mark.parametrize(
    "collate",
    [
        graphs,
        lambda items: [torch.cat([x for x, _ in items])] if len(items) == 2 else (),
        lambda items: {str(i): 1 for i in range(len(items))},
    ],
    ids=["beside one another", "of another type", "by name"],
)
def test_examples_along_no_axis_are_not_given_one(collate):
    """Graphs are put side by side."""
    assert axes_of_loader([ITEM, ITEM], collate) is None


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(2, 5), "y": torch.zeros(4), "classes": 0, "names": "abcd"},
        {"x": torch.zeros(2, 4), "y": torch.zeros(4), "classes": 0, "names": 3},
        {"x": torch.zeros(4), "y": torch.zeros(4), "classes": 0, "names": ["a"] * 4},
        {"x": torch.zeros(2, 4), "z": torch.zeros(4)},
        torch.zeros(4),
        packed(),
        "text",
    ],
)
def test_a_batch_that_is_not_the_loaders_is_not_taken_for_one(batch):
    """It has another structure, or other sizes."""
    axes = {("x",): 1, ("y",): 0, ("classes",): None, ("names",): -1}

    assert not fits(batch, 4, axes)


def test_an_empty_packed_sequence_has_no_example():
    """Torch makes one of no batch sizes."""
    none = nn.utils.rnn.PackedSequence(torch.zeros(0), torch.zeros(0, dtype=torch.long))

    assert fits(none, 0, {(): 0})
    assert not fits({"a": 1}, 0, {("b",): None})


def loader_of(dataset, **options):
    loader = dp.PoissonLoader(dataset, sampling_probability=1.0, steps=1, **options)
    return loader, next(iter(loader))


def company(batch, loader=None, *, num_losses=4, units=None):
    return Companies().of(
        batch,
        num_losses=num_losses,
        units=units,
        loader=loader,
        drawn=Drawn.by(loader),
    )


def test_a_loaders_batch_is_exchanged_along_its_axes():
    """Four examples of four features, which could be either."""
    loader, (x,) = loader_of(TensorDataset(torch.arange(16.0).view(4, 4)))
    known = company([x], loader)

    assert len(known.ways) == 1
    assert known.ways[0]([0, 0, 0, 0])[0].equal(x[[0, 0, 0, 0]])
    assert len(company([x]).ways) == 2


def test_examples_along_no_axis_are_collated_anew():
    """By the loader, of the rows that it drew."""
    items = [(torch.full((n, 4), float(n)), 0) for n in (1, 2, 3, 4)]
    loader, batch = loader_of(items, collate_fn=graphs, empty_batch=())
    of_graphs = company(batch, loader)
    assert not of_graphs.keeps_shapes
    nodes, num_graphs = of_graphs.ways[0]([1, 1, 2, 1])

    assert nodes[:, 0].tolist() == [2, 2, 2, 2, 3, 3, 3, 2, 2]
    assert num_graphs == 4
    assert company(batch, loader, num_losses=3) is None
    assert company(batch) is None


def test_what_is_collated_anew_is_moved_to_its_device():
    """A batch may have been."""
    items = [(torch.ones(n, 4), "name") for n in (1, 2, 3, 4)]
    loader, (nodes, _) = loader_of(items, collate_fn=graphs, empty_batch=())
    moved = company((nodes.to("meta"), 4), loader).ways[0]([0, 1, 2, 3])

    assert moved[0].device.type == "meta"
    assert moved[1] == 4
    assert axes_of_loader(items[:1], graphs) is not None  # Why several are asked.


def test_a_dataset_that_cannot_be_asked_is_no_hindrance():
    """An axis is one that is as long as the batch, then."""

    class Once(list):
        def __getitem__(self, index):
            if isinstance(index, int) and index == 0 and self.asked:
                raise RuntimeError("read twice")
            return super().__getitem__(index)

    dataset = Once(torch.arange(8.0).view(4, 2))
    dataset.asked = False
    loader, batch = loader_of(dataset)
    dataset.asked = True

    assert len(company(batch, loader).ways) == 1


def test_units_of_several_rows_stay_together():
    """A half of the users gives its places away, with all rows."""
    loader, (x,) = loader_of(
        TensorDataset(torch.arange(12.0).view(6, 2)), units=[7, 7, 8, 8, 8, 9]
    )
    of_users = company([x], loader, num_losses=6)

    assert of_users.num_units == 3
    for order, stays in of_users.halves():
        kept = [row for row, other in enumerate(order) if row == other]
        users = {int(of_users.unit_of_row[row]) for row in kept}
        assert stays.tolist() == [u in users for u in of_users.unit_of_loss.tolist()]


def test_units_that_the_caller_names_are_those_of_losses():
    """Two views of each of four images."""
    units = torch.arange(4).repeat_interleave(2)
    of_views = company([torch.zeros(4, 3)], num_losses=8, units=units)

    assert (of_views.num_rows, len(of_views.unit_of_loss)) == (4, 8)
    orders = dict.fromkeys(tuple(order) for order, _ in of_views.halves())
    assert all(len(order) == 4 for order in orders)


def test_units_that_the_caller_names_may_be_the_loaders():
    """Whose rows are then exchanged together."""
    loader, (x,) = loader_of(TensorDataset(torch.zeros(5, 2)), units=[0, 0, 1, 1, 1])
    units = loader.unit_of_row[:, None].expand(5, 3)
    of_tokens = company([x], loader, num_losses=15, units=units)

    assert (of_tokens.num_units, of_tokens.num_rows) == (2, 5)
    assert company([x], loader, num_losses=4) is None  # One loss a row, or units.
