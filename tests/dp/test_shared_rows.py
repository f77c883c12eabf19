"""Rows that have data in common are refused: windows, repeated rows, rows at random."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import dp
from dp import SamplingMismatchError
from dp.sampling import _shared_rows
from dp.sampling._common_parts import Told


GENERATOR = torch.Generator().manual_seed(0)
SERIES = torch.randn(120, generator=GENERATOR).cumsum(0)
TABLE = torch.randn(40, 5, generator=GENERATOR)
TEXT = "".join(random.Random(0).choices("abcdefghij klmnop", k=600))  # noqa: S311
LENGTH = 8


class Made(Dataset):
    """So many rows, each made by a function of the dataset and the row's number."""

    def __init__(self, num, make, **kept):
        self.num, self.make = num, make
        vars(self).update(kept)

    def __len__(self):
        return self.num

    def __getitem__(self, row):
        return self.make(self, row)


def windows(*, stride=1, num=50, length=LENGTH):
    """Windows of a series, each with the number after it."""

    def make(self, row):
        start = stride * row
        return self.x[start : start + length], self.x[start + length]

    return Made(num, make, x=SERIES)


def ids(text):
    return [*map(ord, text)]


def characters(*, stride):
    """A text's characters, and the ones after them, as models of language read them."""

    def make(self, row):
        cut = ids(self.text[stride * row : stride * row + 33])
        return {"x": torch.tensor(cut[:-1]), "y": torch.tensor(cut[1:])}

    return Made((len(TEXT) - 33) // stride, make, text=TEXT)


OVERLAPPING = {
    "windows of a series": windows(),
    "of two numbers in common": windows(length=3),
    "that overlap in a part": windows(stride=6, num=18),
    "a tensor's": TensorDataset(SERIES.unfold(0, LENGTH, 1)),
    "in a list": [(SERIES[i : i + LENGTH], 0) for i in range(50)],
    "of arrays": Made(
        50, lambda d, i: d.x[:, i : i + LENGTH], x=torch.randn(3, 60).numpy()
    ),
    "lags, the latest first": Made(
        50, lambda d, i: d.x[i : i + LENGTH].flip(0), x=SERIES
    ),
    "crops of a picture": Made(
        20, lambda d, i: d.x[None, :, 3 * i : 3 * i + 9], x=torch.rand(8, 100)
    ),
    "augmented": Made(50, lambda d, i: d.x[i : i + 20] + torch.randn(()), x=SERIES),
    "a part of them": Subset(windows(), range(0, 50, 2)),
    "a random part of them": Subset(windows(), torch.randperm(50).tolist()[:45]),
    "beside other data": ConcatDataset([TensorDataset(TABLE, TABLE), windows()]),
    "characters": characters(stride=1),
    "with the time of each number": Made(
        50,
        lambda d, i: (
            d.x[i : i + 20],
            torch.arange(i, i + 20) / 24 % 1,
            torch.ones(20),
        ),
        x=SERIES,
    ),
    "ids in lists": [{"ids": ids(TEXT[i : i + 40])} for i in range(0, 500, 9)],
    "texts": [{"text": TEXT[i : i + 40]} for i in range(0, 500, 9)],
}
DAYS = torch.randn(121, 4, generator=GENERATOR)
WORDS = torch.randint(1000, (41, 30), generator=GENERATOR)


def columns_of_lags(*lags):
    """The numbers of a series that are so many places back."""
    return torch.stack([SERIES[max(lags) - lag :][:80] for lag in lags], 1)


HANDED_ON = {
    "the next day is to predict": TensorDataset(DAYS[:-1], DAYS[1:]),
    "the next number is": TensorDataset(SERIES[:-1], SERIES[1:]),
    "of windows that do not overlap": Made(
        30, lambda d, i: (d.x[4 * i : 4 * i + 3], d.x[4 * i + 3 : 4 * i + 5]), x=SERIES
    ),
    "lags": TensorDataset(columns_of_lags(0, 1, 7, 30)),
    "lags, in order of time": TensorDataset(columns_of_lags(30, 7, 1, 0)),
    "pairs of frames": Made(
        39, lambda d, i: torch.stack([d.x[i], d.x[i + 1]]), x=torch.rand(40, 300)
    ),
    "pairs of arrays": [
        {"x": DAYS[i].numpy(), "y": DAYS[i + 1].numpy()} for i in range(60)
    ],
    "replies": Made(
        40,
        lambda d, i: {"prompt": d.x[i], "reply": d.x[i + 1], "labels": d.x[i + 1]},
        x=WORDS,
    ),
    "a part of them": Subset(TensorDataset(DAYS[:-1], DAYS[1:]), range(10, 100)),
    "two series": TensorDataset(
        torch.cat([DAYS[:59], DAYS[60:-1]]), torch.cat([DAYS[1:60], DAYS[61:]])
    ),
}
OF_ONE = {
    "longer by row % n": Made(400, lambda d, i: d.x[i % 40], x=TABLE),
    "not a whole number of times": Made(90, lambda d, i: d.x[i % 40], x=TABLE),
    "longer by row // n": Made(160, lambda d, i: d.x[i // 4], x=TABLE),
    "longer by row // 2": Made(80, lambda d, i: d.x[i // 2], x=TABLE),
    "and augmented": Made(400, lambda d, i: d.x[i % 40] + torch.randn(5), x=TABLE),
    "from elsewhere": Made(120, lambda _, i: TABLE[i % 40]),
    "a tensor repeated": TensorDataset(TABLE.repeat(3, 1)),
    "a part of them": Subset(Made(400, lambda d, i: d.x[i % 40], x=TABLE), range(300)),
    "whole numbers": TensorDataset(torch.randint(99, (40, 60)).repeat(3, 1)),
}
AT_RANDOM = {
    "random": Made(40, lambda d, _: d.x[random.randrange(40)], x=TABLE),  # noqa: S311
    "torch's": Made(40, lambda d, _: d.x[int(torch.randint(40, ()))], x=TABLE),
    "numpy's": Made(40, lambda d, _: d.x[np.random.randint(40)], x=TABLE),  # noqa: NPY002
    "of a list": Made(40, lambda d, _: random.choice(d.rows), rows=[*TABLE]),  # noqa: S311
    "of a class": Made(
        40,
        lambda d, _: random.choice(d.of_class[random.randrange(2)]),  # noqa: S311
        of_class={0: TABLE[:20], 1: TABLE[20:]},
    ),
    "of another dataset": Made(
        80,
        lambda d, _: d.data[random.randrange(40)][0],  # noqa: S311
        data=TensorDataset(TABLE),
    ),
}
SHARED = [
    *((name, data, "have data in common") for name, data in OVERLAPPING.items()),
    *((name, data, "a part of one is another") for name, data in HANDED_ON.items()),
    *((name, data, "are the same example") for name, data in OF_ONE.items()),
    *((name, data, "draws a row at random") for name, data in AT_RANDOM.items()),
]


def loader_of(dataset, **options):
    return dp.PoissonLoader(
        dataset,
        sampling_probability=0.5,
        steps=2,
        collate_fn=list,
        empty_batch=[],
        **options,
    )


@pytest.mark.parametrize(
    ("dataset", "told"),
    [pytest.param(data, told, id=f"{told}-{name}") for name, data, told in SHARED],
)
def test_rows_that_have_data_in_common_are_refused(dataset, told):
    """Before the first draw, by every loader, also where each row is said to be a unit."""
    with pytest.raises(SamplingMismatchError, match=told):
        loader_of(dataset)
    with pytest.raises(SamplingMismatchError, match=told):
        loader_of(dataset, units=range(len(dataset)))
    with pytest.raises(SamplingMismatchError, match=told):
        dp.UnamplifiedLoader(dataset)


def test_what_is_in_several_windows_moves_a_sum_once_for_each(make_plan):
    """Why: one of 60 numbers is in 8 windows, of which each is clipped by itself."""
    plan = make_plan(sampling=dp.Unamplified(), expected_batch_size=60.0)
    model = nn.Linear(LENGTH, 1, bias=False)
    sums = []
    for number in (0.0, 1e4):
        series = torch.ones(60)
        series[30] += number
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = dp.DPOptimizer(sgd, plan=plan)
        x = series.unfold(0, LENGTH, 1)
        optimizer.backward(lambda x: model(x)[:, 0], x)
        (weight,) = optimizer.mechanism.pending.sums.of_parameters()
        sums.append(weight.clone())

    # In each of the 8 windows it is at another place: their gradients are orthogonal.
    moved = (sums[0] - sums[1]).norm() / plan.max_grad_norm
    assert moved > 2.4


def periodic(length=168):
    return torch.sin(torch.arange(length) * 2 * torch.pi / 24).round(decimals=5)


# Of few values, as standardised answers to three questions: neighbours are often equal.
ANSWERS = torch.randint(2, (400, 3), generator=GENERATOR) / 3 + torch.rand(3)
SORTED = torch.stack(sorted(ANSWERS.unbind(), key=torch.Tensor.tolist))

HOUSES = torch.arange(400) // 10
TOKENS = torch.randint(1000, (40, 60), generator=GENERATOR)
OWN = {
    "few values": TensorDataset(ANSWERS),
    "few values, sorted": TensorDataset(SORTED),
    "read one by one": Made(400, lambda d, i: d.x[i], x=SORTED),
    "with random numbers": Made(400, lambda d, i: d.x[i] + torch.randn(3), x=SORTED),
    "with a name for each class": Made(
        400,
        lambda d, i: (d.x[i], d.names[int(d.x[i, 0] > 0.5)]),
        x=SORTED,
        names=["no", "yes"],
    ),
    "two kinds of rows, sorted": Made(
        40,
        lambda d, i: d.x[i],
        x=torch.randn(2, 30).repeat_interleave(20, 0),
        names=[*range(20)],
    ),
    "always the same": Made(40, lambda d, _: d.row, row=torch.randn(20)),
    "units of the axes": TensorDataset(torch.eye(60)),
    "windows as far apart as they are long": windows(stride=LENGTH + 1, num=13),
    "windows of which such a part is taken": Subset(
        windows(), range(0, 50, LENGTH + 1)
    ),
    "characters": characters(stride=33),
    "a row each": TensorDataset(TABLE),
    "random numbers alone": Made(40, lambda *_: torch.randn(20)),
    "random numbers beside what is kept": Made(40, lambda *_: torch.randn(20), x=TABLE),
    "weeks with the hour of the day": Made(
        20, lambda d, i: (d.x[i], periodic()), x=torch.randn(20, 168)
    ),
    "the same mask for all": Made(40, lambda d, i: (d.x[i], torch.ones(64)), x=TABLE),
    "texts with masks": Made(
        40, lambda d, i: {"x": d.x[i], "mask": torch.arange(60) < 50 - i}, x=TOKENS
    ),
    "masks of other lengths than data": Made(
        40, lambda d, i: {"x": d.x[i], "mask": torch.arange(90) < 50 - i}, x=TOKENS
    ),
    "windows apart with the time of day": Made(
        20,
        lambda d, i: (d.x[i], torch.arange(60 * i, 60 * i + 60) / 84 % 1),
        x=TOKENS,
    ),
    "every second day": TensorDataset(DAYS[:-1:2], DAYS[1::2]),
    "intervals": TensorDataset(
        torch.arange(60) / 7, torch.arange(1, 61) / 7, DAYS[:60]
    ),
    "the hour and the next": TensorDataset(
        torch.arange(60) / 7 % 1, torch.arange(1, 61) / 7 % 1, DAYS[:60]
    ),
    "answers of one to ten": TensorDataset(
        torch.randint(10, (400, 30), generator=GENERATOR) / 10
    ),
    "what a household has, and every second of its people": TensorDataset(
        torch.stack(
            [
                DAYS[HOUSES, 0],
                torch.where(torch.arange(400) % 2 == 0, DAYS[HOUSES, 0], TABLE[0, 0]),
                torch.randn(400, generator=GENERATOR),
            ],
            1,
        )
    ),
    "one column twice, sorted": TensorDataset(
        (torch.arange(80) // 2 / 7)[:, None].expand(80, 3), DAYS[:80]
    ),
    "pictures without colour": Made(
        40, lambda d, i: d.x[i].expand(3, 8, 8), x=torch.rand(40, 8, 8)
    ),
    "two values, sorted": TensorDataset(
        torch.arange(4000)[:, None] // 2000 * torch.ones(9)
    ),
    "whole numbers in order": TensorDataset(torch.arange(80.0).view(40, 2)),
    "augmented": Made(40, lambda d, i: d.x[i] + torch.randn(5), x=TABLE),
    "other noise at each reading": Made(
        40,
        lambda d, i: d.x[i] + d.rng.normal(),
        x=TABLE,
        rng=np.random.default_rng(0),
    ),
    "complex and sparse": Made(
        40,
        lambda d, i: (d.x[i] * 1j, d.x.to_sparse()[i], np.ones(3) * 1j, object()),
        x=TABLE,
    ),
    "what cannot be read": Made(40, lambda d, i: d.x[i + 40], x=TABLE),
    "few windows": Made(10, lambda d, i: d.x[i : i + LENGTH], x=SERIES),
}


@pytest.mark.parametrize("kind", OWN)
def test_rows_of_their_own_are_served(kind):
    """The twin."""
    loader_of(OWN[kind])


def test_windows_of_one_unit_may_overlap():
    """A recording of each patient is cut into windows: a patient is clipped once."""
    recordings = torch.randn(20, 12).unfold(1, LENGTH, 1).reshape(100, LENGTH)
    patients = [row // 5 for row in range(100)]
    loader_of(TensorDataset(recordings), units=patients)

    with pytest.raises(SamplingMismatchError, match="have data in common"):
        loader_of(TensorDataset(recordings), units=[row % 50 for row in range(100)])


def test_rows_of_one_unit_are_compared_with_none():
    """Wherever the rows lie."""
    rows = [TABLE[row % 10] for row in range(40)]

    _shared_rows.check_shared_rows(rows, np.arange(40), np.zeros(40, np.int64))


def test_repeated_rows_of_one_unit_are_served():
    """Each user's rows, several times."""
    rows = Made(400, lambda d, i: d.x[i % 40], x=TABLE)
    loader_of(rows, units=[row % 40 for row in range(400)])


def test_rows_too_large_to_compare_are_left_out(monkeypatch):
    """Neither time nor memory is spent on them."""
    monkeypatch.setattr(_shared_rows, "_MOST", LENGTH)

    loader_of(windows())


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_equal_values_are_chance_where_they_are_few(size):
    """Of texts of four letters, windows are told from chance by what they have in common."""
    told = Told()
    told.add(np.array([*itertools.islice(itertools.cycle(range(size)), 60)]))

    assert told.bits() == pytest.approx(60 * np.log2(size))
    assert told.bits(fewest_whole=16) == 0.0
