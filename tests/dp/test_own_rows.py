"""Rows that a dataset makes of several examples, as it reads them, are refused."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import dp
from dp.exceptions import SampleMixingError
from dp.sampling._own_rows import check_own_rows


NUM = 40


class Rows(Dataset):
    """Features of so many rows, and the class of each."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(NUM, 3, generator=generator)
        self.labels = [row % 4 for row in range(NUM)]
        self.rng = np.random.default_rng(0)
        self.last, self.mean, self.num_read = None, torch.zeros(3), 0
        self.more()

    def more(self):
        """Keep what a kind needs."""

    def __len__(self):
        return NUM


class Mixup(Rows):
    def __getitem__(self, i):
        return 0.7 * self.x[i] + 0.3 * self.x[int(torch.randint(NUM, ()))]


class MixupNowAndThen(Rows):
    def __getitem__(self, i):
        row = self.x[i]
        if random.random() < 0.8:  # noqa: S311 -- as people do
            row = row + self.x[random.randrange(NUM)]  # noqa: S311
        return row


class MixupByItsGenerator(Rows):
    def __getitem__(self, i):
        return self.x[i] + self.x[int(self.rng.integers(NUM))]


class OfArrays(Rows):
    def more(self):
        self.x = self.x.numpy()

    def __getitem__(self, i):
        return self.x[i] + self.x[np.random.randint(NUM)]  # noqa: NPY002 -- as people do


class Mosaic(Rows):
    """Four images in one, from a list of images."""

    def more(self):
        self.images = [*self.x.view(NUM, 1, 3)]

    def __getitem__(self, i):
        others = random.sample(range(NUM), 3)
        return torch.cat([self.images[j] for j in (i, *others)])


class Triplets(Rows):
    def __getitem__(self, i):
        alike = [j for j in range(NUM) if self.labels[j] == self.labels[i]]
        negative = (i + 1) % NUM
        positive = random.choice(alike)  # noqa: S311
        return self.x[i], self.x[positive], self.x[negative]


class Around(Rows):
    """A wrapper of another dataset."""

    def more(self):
        self.base = TensorDataset(self.x, torch.arange(NUM))
        del self.x

    def __getitem__(self, i):
        one, label = self.base[i]
        partner = random.randrange(len(self.base.tensors[0]))  # noqa: S311
        other, _ = self.base[partner]
        return (one + other) / 2, label


class Tokens(Rows):
    """Ids of a whole row, some of which come from another row."""

    def more(self):
        self.x = torch.arange(NUM * 3).view(NUM, 3)

    def __getitem__(self, i):
        return torch.where(torch.rand(3) < 0.5, self.x[i], self.x[i - 1])


class Pasted(Rows):
    """A part of the row that was read before is pasted into each."""

    def __getitem__(self, i):
        before = self.x[i] if self.last is None else self.last
        self.last = self.x[i]
        return self.x[i] + 0.1 * before


class RunningMean(Rows):
    def __getitem__(self, i):
        self.num_read += 1
        self.mean = self.mean + (self.x[i] - self.mean) / self.num_read
        return self.x[i] - self.mean


class Standardized(Rows):
    """By the mean and deviation of all rows."""

    def __getitem__(self, i):
        return (self.x[i] - self.x.mean(0)) / self.x.std(0)


class OverLargest(Rows):
    def more(self):
        self.x = self.x.numpy()

    def __getitem__(self, i):
        return self.x[i] / abs(self.x).max()


class Nearest(Rows):
    """A row beside the one that is nearest to it."""

    def __getitem__(self, i):
        distances = (self.x - self.x[i]).norm(dim=1)
        return self.x[[i, int(distances.topk(2, largest=False).indices[1])]]


class OfNeighbours(Rows):
    """A node of a graph, with what its neighbours have."""

    def more(self):
        self.neighbours = torch.randint(NUM, (NUM, 3))

    def __getitem__(self, i):
        return self.x[i] + self.x[self.neighbours[i]].sum(0)


MIXING = [
    Standardized,
    OverLargest,
    Nearest,
    OfNeighbours,
    Mixup,
    MixupNowAndThen,
    MixupByItsGenerator,
    OfArrays,
    Mosaic,
    Triplets,
    Around,
    Tokens,
    Pasted,
    RunningMean,
]


WRAPPED = {
    "itself": lambda data: data,
    "a subset": lambda data: Subset(data, range(30)),
    "concatenated": lambda data: ConcatDataset([Augmented(), data]),
}


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_dataset_that_makes_rows_of_several_examples_is_refused(kind, wrapped):
    """Before the first draw, by every loader."""
    told = f"{kind.__name__}.__getitem__ makes rows of several examples"

    with pytest.raises(SampleMixingError, match=told):
        dp.PoissonLoader(WRAPPED[wrapped](kind()), sampling_probability=0.1, steps=2)
    with pytest.raises(SampleMixingError, match=told):
        dp.UnamplifiedLoader(WRAPPED[wrapped](kind()))


class Augmented(Rows):
    def __getitem__(self, i):
        row = self.x[i] + 0.1 * torch.randn(3)
        is_flipped = random.random() < 0.5  # noqa: S311
        return row.flip(0) if is_flipped else row, self.labels[i]


class AugmentedByItsGenerator(Rows):
    def __getitem__(self, i):
        return self.x[i] + float(self.rng.normal())


class Memo(Rows):
    """It keeps what it made of a row, with its random part."""

    def more(self):
        self.made = {}

    def __getitem__(self, i):
        self.num_read += 1
        if i not in self.made:
            self.made[i] = self.x[i] + torch.randn(3)
        return self.made[i]


class Named(Rows):
    """It has as many classes, with names and vectors, as rows."""

    def more(self):
        self.names = [f"class {n}" for n in range(NUM)]
        self.vectors = torch.randn(NUM, 2)

    def __getitem__(self, i):
        label = (self.labels[i] + 7) % NUM
        return self.x[i], self.names[label], self.vectors[label]


class Packed(Rows):
    """Rows of several lengths in one tensor, by their ends."""

    def more(self):
        self.ends = torch.arange(3, 3 * NUM + 1, 3)
        self.values = self.x.flatten()

    def __getitem__(self, i):
        start = int(self.ends[i - 1]) if i else 0
        return self.values[start : int(self.ends[i])]


class Permuted(Rows):
    def more(self):
        self.order = [*range(NUM)][::-1]

    def __getitem__(self, i):
        return self.x[self.order[i]]


class WholeBatches(Rows):
    """It reads by slices, of which nothing is known."""

    def __getitem__(self, i):
        return self.x[i : i + 1]


class Transformed(Rows):
    def more(self):
        self.base = TensorDataset(self.x)

    def __getitem__(self, i):
        return 2 * self.base[i][0]


class Looking(Rows):
    """It looks at another row, and makes nothing of it."""

    def __getitem__(self, i):
        assert self.x[i - 1].shape == self.x[i].shape
        return self.x[i]


class Converted(Rows):
    """It makes one array of all rows each time, and takes its own of it."""

    def more(self):
        self.rows = self.x.tolist()

    def __getitem__(self, i):
        return np.asarray(self.rows)[i]


class Curriculum(Rows):
    """What it adds falls with what it has read, and is the same for all."""

    def __getitem__(self, i):
        self.num_read += 1
        return self.x[i] + 1 / self.num_read


class Computed(Dataset):
    """It keeps nothing of its rows."""

    def __len__(self):
        return NUM

    def __getitem__(self, i):
        return torch.tensor([i, i + 1.0])


class Slotted:
    """It has no dictionary of attributes."""

    __slots__ = ("x",)

    def __init__(self):
        self.x = torch.randn(NUM, 3)

    def __len__(self):
        return NUM

    def __getitem__(self, i):
        return self.x[i]


HONEST = [
    Augmented,
    AugmentedByItsGenerator,
    Memo,
    Named,
    Packed,
    Permuted,
    WholeBatches,
    Transformed,
    Looking,
    Converted,
    Curriculum,
    Computed,
    Slotted,
]


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_dataset_that_makes_each_row_of_its_own_example_is_served(kind, wrapped):
    """Whatever it draws, counts, keeps or looks up."""
    dp.PoissonLoader(
        WRAPPED[wrapped](kind()),
        sampling_probability=0.1,
        steps=2,
        collate_fn=list,
        empty_batch=[],
    )


class Pairs(Rows):
    """Two rows of one user, of whom rows 2 n and 2 n + 1 are."""

    def __getitem__(self, i):
        return self.x[i] - self.x[i ^ 1]


class Since(Rows):
    """What changed since the last row that was read."""

    def __getitem__(self, i):
        last, self.last = self.last, self.x[i]
        return self.x[i] if last is None else self.x[i] - last


def test_rows_of_one_unit_may_be_made_of_each_other():
    """The unit is clipped once, whatever its rows are made of."""
    users = np.arange(NUM) // 2
    check_own_rows(Pairs(), users)

    with pytest.raises(SampleMixingError):
        check_own_rows(Pairs())
    with pytest.raises(SampleMixingError):
        check_own_rows(Pairs(), (users + np.arange(NUM) % 2) % NUM)


def test_what_is_kept_of_the_own_unit_alone_is_its_own():
    """One unit has all rows, so no row is another's."""
    check_own_rows(Since(), np.zeros(NUM, np.int64))

    with pytest.raises(SampleMixingError):
        check_own_rows(Since())


class Summed(Rows):
    """It adds up so many rows that watching them would take long."""

    def more(self):
        self.x = [0.5] * 5000

    def __len__(self):
        return 5000

    def __getitem__(self, i):
        return self.x[i] / sum(self.x)


def test_a_row_of_very_many_entries_is_not_waited_for():
    """Nothing is known of it: each entry takes a call."""
    check_own_rows(Summed())


class Short(Mixup):
    """Of so few rows that as many columns, or classes, may be there by chance."""

    def __len__(self):
        return 15


class Seldom(Rows):
    """It draws from the generators more often, the more rows it has read."""

    def __getitem__(self, i):
        self.num_read += 1
        return self.x[i] + 0 * torch.randn(self.num_read).sum()


def test_what_does_not_repeat_itself_is_not_compared():
    """Its rows are equal, but who can tell what it drew for them?"""
    check_own_rows(Seldom())


def test_few_rows_are_not_looked_at():
    """What is kept may have as many entries for another reason."""
    check_own_rows(Short())


def test_looking_at_rows_leaves_generators_and_the_dataset_as_they_were():
    """A run that is repeated by a seed draws the same numbers as without it."""
    made = RunningMean()
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(SampleMixingError):
        check_own_rows(made)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert made.num_read == 0


@pytest.mark.parametrize("in_use", [False, True])
def test_looking_at_rows_leaves_the_generators_of_gpus_as_they_were(
    monkeypatch, in_use
):
    """A model that is made on a GPU after a loader has the weights of the run's seed."""
    seeds, restored = [], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: f"of {device}")
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, _device: restored.append(state)
    )

    check_own_rows(Seldom())

    assert bool(seeds) == in_use
    assert restored == ["of 0"] * len(seeds)
