"""Rows that look like copies of others are told of, wherever they are."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import dp
from dp.sampling import _copied_rows


GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.randn(400, 8, generator=GENERATOR)
PICTURES = torch.rand(40, 1, 8, 8, generator=GENERATOR)
RARE = torch.randint(10, (400,), generator=GENERATOR)
ORDER = torch.randperm(800, generator=GENERATOR)
PAIRS = torch.randint(40, (300, 2), generator=GENERATOR)
WEEK = torch.arange(3000) // 30


SERIES = torch.randn(615, generator=GENERATOR)
WINDOWS = SERIES.unfold(0, 16, 1)[torch.randperm(600, generator=GENERATOR)]
HOURS = torch.randperm(40, generator=GENERATOR)


class Made(Dataset):
    """So many rows, each made by a function of its number."""

    def __init__(self, num, make):
        self.num, self.make = num, make

    def __len__(self):
        return self.num

    def __getitem__(self, row):
        return self.make(row)


def balanced():
    """A class of 10 rows, drawn until it has as many as the other."""
    x = torch.cat([TABLE, torch.randn(10, 8, generator=GENERATOR)[RARE]])
    return x[ORDER], (ORDER >= 400).long()


COPIES = {
    "a rare class, drawn until it is large": TensorDataset(*balanced()),
    "drawn with replacement": TensorDataset(TABLE[torch.randint(400, (400,))]),
    "each twice in a row": TensorDataset(TABLE.repeat_interleave(2, 0)),
    "of arrays in a list": [TABLE[i].numpy() for i in RARE],
    "by an index": Made(400, lambda row: (TABLE[RARE[row]], 1)),
    "and augmented by a seed": Made(
        400, lambda row: TABLE[RARE[row]] + torch.randn(8) * torch.rand(())
    ),
    "a part of them": Subset(TensorDataset(*balanced()), range(700)),
    "beside others": ConcatDataset(
        [TensorDataset(TABLE), TensorDataset(TABLE[20:40].repeat_interleave(3, 0) + 1)]
    ),
    "pairs of few pictures": Made(
        300, lambda row: (*PICTURES[PAIRS[row]], int(row % 2))
    ),
    "pairs in one array": Made(300, lambda row: PICTURES[PAIRS[row]]),
    "windows, shuffled": TensorDataset(WINDOWS),
    "of arrays, with what they predict": [
        (window[:-1], window[-1]) for window in WINDOWS.numpy()
    ],
    "what groups had and have": TensorDataset(TABLE[WEEK], TABLE[WEEK + 1]),
}
ANSWERS = torch.randint(5, (3000, 4), generator=GENERATOR) / 7
MEANS = torch.where(torch.rand(400, 1, generator=GENERATOR) > 0.5, TABLE, TABLE.mean(0))
PLACES = torch.randint(30, (400,), generator=GENERATOR)
OWN = {
    "of their own": TensorDataset(TABLE),
    "answers to a few questions": TensorDataset(ANSWERS),
    "of people in one place": TensorDataset(TABLE[PLACES], torch.randn(400, 1)),
    "opinions on a few things": TensorDataset(
        TABLE[PLACES], torch.randint(5, (400,), generator=GENERATOR)
    ),
    "means in place of what is missing": TensorDataset(MEANS),
    "texts": [{"ids": [5, 7, 9, 11][: 1 + i % 3] * 9} for i in range(90)],
    "whole numbers": TensorDataset(torch.randint(2, (400, 3), generator=GENERATOR)),
    "windows that do not overlap, shuffled": TensorDataset(
        SERIES[:600].view(50, 12)[torch.randperm(50, generator=GENERATOR)]
    ),
    "pictures of few colours": TensorDataset(
        torch.randint(256, (500, 1, 9, 9), generator=GENERATOR) / 255
    ),
    "with the hour of the day, shuffled": Made(
        40, lambda row: (TABLE[row].repeat(8)[:60], HOURS[row] + torch.arange(60) / 7)
    ),
    "that end as others begin": TensorDataset(
        torch.randint(3, (500, 9), generator=GENERATOR) / 7 + 0.1
    ),
    "one number": TensorDataset(ANSWERS[:, :1]),
    "with what all share": Made(
        200, lambda row: (PICTURES[0], TABLE[row], PICTURES[0])
    ),
    "without numbers": Made(90, lambda _: ()),
    "two views of each": Made(200, lambda row: (TABLE[row], TABLE[row])),
    "what cannot be read": Made(90, lambda row: TABLE[row + 400]),
}


def told(dataset, **options):
    """Return the warnings of a loader that is made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dp.PoissonLoader(
            dataset,
            sampling_probability=0.5,
            steps=2,
            collate_fn=list,
            empty_batch=[],
            **options,
        )
    return [str(one.message) for one in caught if "as other rows" in str(one.message)]


@pytest.mark.parametrize("kind", COPIES)
def test_rows_that_look_like_copies_are_told_of(kind):
    """Once for each dataset, with what to do."""
    (message,) = told(COPIES[kind])

    assert "units=" in message


@pytest.mark.parametrize("kind", OWN)
def test_rows_that_are_equal_by_chance_are_not_told_of(kind):
    """The twin."""
    assert told(OWN[kind]) == []


def test_copies_that_are_one_units_are_not_told_of():
    """Its rows are clipped together, whatever they hold."""
    rows = TensorDataset(TABLE.repeat_interleave(2, 0))

    assert told(rows, units=[row // 2 for row in range(800)]) == []
    assert told(rows, units=[row % 400 for row in range(800)])


def test_why_copies_are_told_of(make_plan):
    """One of ten people of a rare class moves the sum by 40 times the clipping norm."""
    sums = []
    for value in (0.0, 1.0):
        model = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        x = torch.zeros(400, 8)
        x[:40, 0] = value  # A person of it, drawn 40 times.
        plan = make_plan(sampling=dp.Unamplified(), expected_batch_size=400.0)
        optimizer = dp.DPOptimizer(torch.optim.SGD(model.parameters()), plan=plan)
        optimizer.backward(lambda x, model=model: model(x)[:, 0], x)
        (weight,) = optimizer.mechanism.pending.sums.of_parameters()
        sums.append(weight.clone())

    assert (sums[1] - sums[0]).norm() == pytest.approx(
        40 * plan.max_grad_norm, rel=1e-4
    )


def test_large_rows_are_compared_as_far_as_memory_allows(monkeypatch):
    """Few rows, and then none, without an error."""
    monkeypatch.setattr(_copied_rows, "_MOST_NUMBERS", 100)
    assert told(TensorDataset(TABLE.repeat_interleave(2, 0))) == []

    monkeypatch.setattr(_copied_rows, "_MOST_NUMBERS", 1)
    assert told(TensorDataset(TABLE.repeat_interleave(2, 0))) == []


def test_hashes_differ_by_column_and_value():
    """Equal rows have equal hashes, and others have others."""
    rows = [np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 3.0]), np.array([1.0, 2, 3])]

    one, other, again = _copied_rows._by_column(rows).tolist()

    assert one == again
    assert one[2] == other[2]
    assert {*one[:2]}.isdisjoint(other[:2])
