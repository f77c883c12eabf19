"""Rows stay at the numbers by which the loader knows whose they are."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import dp
from dp import SamplingMismatchError
from dp.sampling import _rows_in_place
from dp.sampling._rows_in_place import RowsInPlace, times_changed


NUM, USERS = 40, [row // 4 for row in range(40)]
MOVED = "not where they were when the loader was made"


class Epochs(Dataset):
    """A dataset with an order of its own, and an epoch that decides what is cut out."""

    def __init__(self):
        self.x = torch.arange(NUM * 6.0).view(NUM, 6) + torch.randn(NUM, 1)
        self.order, self.epoch = [*range(NUM)], 0

    def __len__(self):
        return len(self.order)

    def __getitem__(self, row):
        start = (self.order[row] + self.epoch) % 4
        return self.x[self.order[row], start : start + 3]

    def on_epoch_end(self):
        random.shuffle(self.order)


def rows():
    return [(x, float(x.sum())) for x in torch.randn(NUM, 3)]


def texts():
    return [{"text": "a" * row, "mask": np.ones(3)} for row in range(NUM)]


def tensors():
    return TensorDataset(torch.randn(NUM, 3).to(torch.bfloat16))


def reverse(dataset):
    x = dataset.tensors[0]
    x.copy_(x.flip(0).clone())


WAYS = {
    "a list is shuffled": (rows, random.shuffle),
    "a list of texts is sorted": (texts, list.reverse),
    "the first row is taken out": (rows, lambda data: data.pop(0)),
    "a tensor is reversed in place": (tensors, reverse),
    "an epoch has an order of its own": (Epochs, Epochs.on_epoch_end),
}


def users_loader(dataset):
    return dp.PoissonLoader(
        dataset,
        sampling_probability=0.5,
        steps=2,
        units=USERS,
        collate_fn=list,
        empty_batch=[],
    )


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_moved_to_numbers_of_other_units_are_refused(way):
    """Each user's rows would be clipped as those of several; also when it is tried again."""
    make, move = WAYS[way]
    dataset = make()
    loader = users_loader(dataset)
    next(iter(loader))
    move(dataset)

    for _ in range(2):
        with pytest.raises(SamplingMismatchError, match=MOVED):
            iter(loader)


@pytest.mark.parametrize(
    "draw",
    [
        lambda drawn: drawn.random_(2),
        lambda drawn: drawn.copy_(torch.eye(3)[torch.randint(3, (len(drawn),))]),
    ],
    ids=["whole numbers", "units of the axes"],
)
def test_rows_of_few_values_that_change_have_not_moved(draw):
    """As by noise that follows from the epoch: what one row was another is, by chance."""
    drawn = draw(torch.empty(NUM, 3))
    loader = users_loader(TensorDataset(drawn))
    for _ in range(3):
        next(iter(loader))
        draw(drawn)


def test_a_user_whose_rows_moved_counts_several_times(make_plan):
    """Why: by the old numbers, one user's rows are clipped as those of three users."""
    model = nn.Linear(3, 1, bias=False)
    data = [torch.zeros(3) for _ in range(12)]
    data[0], data[1], data[2] = (torch.ones(3) * n for n in (1, 2, 3))
    plan = make_plan(
        sampling=dp.PoissonSampling(sampling_probability=1.0),
        expected_batch_size=4.0,
        unit_of_privacy="one value of user",
    )
    loader = plan.loader(data, units=[row // 3 for row in range(12)])
    data[1], data[4] = data[4], data[1]
    data[2], data[8] = data[8], data[2]
    loader._in_place._repeats = False  # As if nothing looked.
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = dp.DPOptimizer(sgd, plan=plan, loader=loader)
    for batch in loader:
        optimizer.backward(lambda x: model(x)[:, 0], batch)
        break
    (total,) = optimizer.mechanism.pending.sums.of_parameters()

    assert total.norm() > 2.99 * plan.max_grad_norm


STAY = {
    "nothing happens": (rows, lambda _data: None),
    "rows of one user change places": (rows, lambda data: data.insert(0, data.pop(1))),
    "other parts are cut out": (Epochs, lambda data: setattr(data, "epoch", 1)),
    "rows are added": (rows, lambda data: data.append(data[0])),
    "a row gets another label": (
        rows,
        lambda data: data.__setitem__(0, (data[0][0], 7)),
    ),
}


@pytest.mark.parametrize("way", STAY)
def test_rows_that_stay_their_units_are_drawn(way):
    """The twin."""
    make, change = STAY[way]
    dataset = make()
    loader = users_loader(dataset)
    for _ in range(3):
        change(dataset)
        next(iter(loader))


class Noisy(Epochs):
    """Its rows are others at each reading."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def __getitem__(self, row):
        return super().__getitem__(row) + self.rng.normal()


class Broken(Epochs):
    def __getitem__(self, row):
        if row == 0:
            raise OSError("gone")
        return super().__getitem__(row)


@pytest.mark.parametrize("kind", [Noisy, Broken])
def test_what_cannot_be_compared_is_left_to_who_trains(kind):
    """An order of their own for each epoch shows in rows that can be read again."""
    dataset = kind()
    in_place = RowsInPlace(dataset, np.array(USERS))
    dataset.on_epoch_end()
    in_place.check()

    assert in_place.num_changes == 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_any_order_serves_where_numbers_say_nothing(monkeypatch, num_ranks):
    """Alone and without users; ranks have to compare their orders anew."""
    monkeypatch.setattr(_rows_in_place, "rank_and_size", lambda: (0, num_ranks))
    data = rows()
    loader = dp.PoissonLoader(data, sampling_probability=0.5, steps=2)
    seen = []
    for _ in range(3):
        loader._in_place.check()
        seen.append(times_changed(loader))
        random.shuffle(data)

    assert seen == ([0, 0, 0] if num_ranks == 1 else [0, 1, 2])
    assert times_changed(object()) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(1), torch.tensor(1.0)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (np.zeros(2), np.zeros(3)),
        ({"a": 1}, {"b": 1}),
        ([1, "2"], [1, 2]),
        (torch.eye(2).to_sparse(), torch.eye(2)),
        (len, 1),
    ],
    ids=str,
)
def test_contents_differ_by_value_type_and_shape(one, other):
    """Not a number is what it was; of objects the type is compared."""
    content = _rows_in_place._content_of

    assert content(one) != content(other)
    assert content([one, torch.tensor(torch.nan)]) == content(
        [one, torch.tensor(torch.nan)]
    )
