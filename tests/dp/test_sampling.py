"""That a ticket belongs to its batch, and that nothing but the OS chose the batch."""

import copy
import itertools
import os
import pickle
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from hypothesis import given, strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from dp.exceptions import SamplingMismatchError
from dp.sampling import (
    PoissonLoader,
    PoissonSampling,
    Ticket,
    Unamplified,
    poisson_sample,
)
from dp.sampling._ticket import Draw


NUMBERS = TensorDataset(torch.arange(40), torch.arange(40.0).reshape(40, 1))


def make_loader(dataset=NUMBERS, **changes):
    arguments = {"sampling_probability": 0.1, "steps": 12, **changes}
    return PoissonLoader(dataset, **arguments)


class DataFrame(dict):
    """A table of pandas, as far as a loader looks."""

    iloc = None


class Rows(Dataset):
    """A dataset in the manner of HF datasets: one row, or columns of several."""

    def __len__(self):
        return 40

    def __getitem__(self, key):
        if isinstance(key, int):
            return {"x": float(key), "label": key}
        return {"x": [float(i) for i in key], "label": list(key)}

    def __getitems__(self, keys):
        assert keys, "an empty list of rows cannot be read"
        columns = self[keys]
        return [
            {name: column[i] for name, column in columns.items()}
            for i in range(len(keys))
        ]


class Failing(Dataset):
    """Every example but the first cannot be read."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index:
            raise OSError("unreadable")
        return torch.zeros(2)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.count()


WORKERS = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "prefetch_factor": 5, "persistent_workers": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS, ids=["none", "two", "persistent"])
def test_the_ticket_belongs_to_the_batch_yielded_last(workers):
    """However many batches are loaded ahead, count and batch agree; serials rise."""
    loader = make_loader(sampling_probability=0.05, steps=30, **workers)
    serials, sizes = [], []
    for _ in range(2):
        for indices, values in loader:
            assert loader.ticket.num_samples == len(indices) == len(values)
            assert indices.tolist() == sorted(set(indices.tolist()))
            assert values.shape[1:] == (1,)
            serials.append(loader.ticket.serial)
            sizes.append(len(indices))

    assert len(serials) == 60
    assert serials == sorted(set(serials))
    assert len(set(sizes)) > 2


def test_serials_rise_over_all_loaders_of_a_process():
    """A ticket of a new loader never passes for one that was spent."""
    first, second = make_loader(), make_loader()
    list(first)
    list(second)

    assert first.ticket.serial < second.ticket.serial


def test_an_unshown_count_is_not_in_the_repr():
    """How many examples were drawn is private, so no log may show it by accident."""
    assert repr(Ticket(serial=3, draw=Draw([17]))) == "Ticket(serial=3)"


def test_there_is_no_ticket_before_the_first_batch():
    """Neither a new loader nor a new pass vouches for anything."""
    loader = make_loader()
    assert loader.ticket is None

    next(iter(loader))
    assert loader.ticket is not None
    iter(loader)
    assert loader.ticket is None


@pytest.mark.parametrize("workers", WORKERS, ids=["none", "two", "persistent"])
def test_a_pass_that_was_broken_off_leaves_nothing_behind(workers):
    """Batches that were loaded ahead are dropped; the next pass is whole and its own."""
    loader = make_loader(steps=20, **workers)
    for _ in itertools.islice(loader, 3):
        pass
    broken_off = loader.ticket.serial
    sizes = []
    for indices, _values in loader:
        sizes.append(len(indices))
        assert loader.ticket.num_samples == len(indices)
        assert loader.ticket.serial > broken_off

    assert len(sizes) == 20


def test_the_batch_before_a_break_keeps_its_ticket():
    """It is the batch yielded last, and may still be used for one step."""
    loader = make_loader()
    indices, _values = next(iter(loader))

    assert loader.ticket.num_samples == len(indices)


def test_a_second_iterator_ends_the_first():
    """Two live passes could not both own the loader's ticket."""
    loader = make_loader()
    first = iter(loader)
    next(first)
    second = iter(loader)

    with pytest.raises(SamplingMismatchError, match="another iteration"):
        next(first)
    assert loader.ticket is None
    next(second)
    assert loader.ticket is not None


def test_a_pass_does_not_survive_a_fork(monkeypatch):
    """Parent and child would both train on the draws that were made before."""
    loader = make_loader()
    batches = iter(loader)
    next(batches)
    monkeypatch.setattr(os, "getpid", lambda: -1)

    with pytest.raises(SamplingMismatchError, match="forked"):
        next(batches)
    assert len(list(loader)) == 12


def test_the_length_is_the_number_of_steps_whatever_the_data():
    """Neither the length nor anything else public tells how many examples there are."""
    small = make_loader(TensorDataset(torch.zeros(1)))
    large = make_loader(TensorDataset(torch.zeros(1000)))

    assert len(small) == len(large) == len(list(small)) == len(list(large)) == 12


def test_the_probability_can_be_read_and_not_set():
    """What the optimizer compares with its plan is what the loader draws with."""
    loader = make_loader()
    assert loader.sampling_probability == 0.1

    with pytest.raises(AttributeError):
        loader.sampling_probability = 0.01


def test_everyone_is_in_every_batch_at_probability_one():
    """A full batch is the limit of Poisson sampling, and an honest one."""
    for indices, _values in make_loader(sampling_probability=1, steps=3):
        assert indices.tolist() == list(range(40))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_global_seed_chooses_the_batches(num_workers):
    """Torch draws a base seed for workers; it must not reach the draws."""

    def seeded():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 -- the legacy generator is the global one
        random.seed(0)
        loader = make_loader(num_workers=num_workers)
        return [indices.tolist() for indices, _values in loader]

    assert seeded() != seeded()


def test_a_loader_that_a_seed_decides_would_be_noticed():
    """Twin of the test above: torch's own shuffling repeats under a seed."""

    def seeded():
        torch.manual_seed(0)
        return [x.tolist() for x, _ in DataLoader(NUMBERS, 4, shuffle=True)]

    assert seeded() == seeded()


def test_drawing_leaves_the_global_generators_alone():
    """Sampling consumes no random numbers that the model would have used."""
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    poisson_sample(1000, sampling_probability=0.1)

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_a_loader_seeds_no_device(monkeypatch, make_plan):
    """What it draws to try a dataset out is drawn on the host, and forgotten.

    torch.manual_seed would change the generators of devices, which nothing restores, and
    where there are none it writes down the stack each time, which takes a millisecond.
    """
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)

    make_plan().loader(NUMBERS)

    assert seeds == []


@pytest.mark.parametrize("probability", [0.5, 0.1, 1 - 2**-53, 0.07])
def test_the_coin_is_exact_to_its_last_bit(monkeypatch, probability):
    """Of the 2**64 faces of a coin, exactly floor(q * 2**64) select an example."""
    winning = int(probability * 2**64)

    class Coins:
        def integers(self, _count, dtype):
            return np.array([0, max(winning - 1, 0), winning, 2**64 - 1], dtype=dtype)

    monkeypatch.setattr("dp.sampling._draws.Keystream", Coins)
    expected = [0, 1] if winning else []
    assert poisson_sample(4, sampling_probability=probability) == expected


@given(st.integers(0, 50), st.floats(1e-3, 1))
def test_a_sample_is_a_set_of_indices_in_order(num_examples, probability):
    """Every draw is a subset of the dataset, each example once, in its order."""
    drawn = poisson_sample(num_examples, sampling_probability=probability)

    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(num_examples))


@pytest.mark.parametrize("probability", [0, -0.1, 1.1, float("nan"), True, "0.1"])
def test_a_probability_outside_its_range_is_refused(probability):
    """The plan, the loader and the draw refuse it alike."""
    for make in (
        lambda: PoissonSampling(sampling_probability=probability),
        lambda: make_loader(sampling_probability=probability),
        lambda: poisson_sample(3, sampling_probability=probability),
    ):
        with pytest.raises(ValueError, match=r"sampling_probability must be in \(0, 1"):
            make()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_that_are_not_a_positive_whole_number_are_refused(steps):
    """The number of steps is public, so it is the caller's to say."""
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
        make_loader(steps=steps)


def test_unamplified_counts_backward_calls():
    """One call a step unless the user promises that calls share no example."""
    assert Unamplified().backwards_per_step == 1
    with pytest.raises(ValueError, match="backwards_per_step must be a whole number"):
        Unamplified(backwards_per_step=0)


@pytest.mark.parametrize(
    "argument",
    [
        {"batch_size": 8},
        {"shuffle": True},
        {"sampler": [1, 2]},
        {"batch_sampler": [[1, 2]]},
        {"drop_last": False},
        {"generator": torch.Generator()},
        {"in_order": False},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_arguments_that_choose_the_batches_are_refused(argument):
    """The message names the argument and says who chooses instead."""
    (name,) = argument
    with pytest.raises(TypeError, match=f"takes no {name}, got .*: (each|the|a) "):
        make_loader(**argument)


def test_a_misspelt_argument_is_refused():
    """No keyword is swallowed."""
    with pytest.raises(TypeError, match="unexpected argument num_worker=2"):
        make_loader(num_worker=2)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (None, "dataset is None; pass the training data"),
        (DataFrame(x=[1.0, 2.0]), r"DataFrame, of which \[i\] is no row"),
        ((torch.ones(5, 3), torch.ones(5)), "a tuple of arrays.*TensorDataset"),
        ([np.ones((5, 3)), np.ones((5, 1)), np.ones(5)], "a list of arrays"),
    ],
    ids=["None", "a frame", "a pair", "columns"],
)
def test_columns_are_not_taken_for_examples(dataset, told):
    """What torch would index by column is no dataset of rows."""
    with pytest.raises(TypeError, match=told):
        PoissonLoader(dataset, sampling_probability=0.5, steps=1)


@pytest.mark.parametrize(
    "dataset",
    [
        [torch.ones(2, 3), torch.zeros(2, 3)],
        [torch.ones(2, 3), torch.zeros(4, 3)],
        [torch.tensor(1.0), torch.tensor(2.0)],
        [(torch.ones(2), torch.ones(2, 3))] * 2,
        [torch.ones(5, 3)],
    ],
    ids=["one shape", "several lengths", "numbers", "pairs", "one"],
)
def test_a_short_list_of_examples_is_a_dataset(dataset):
    """A list of examples is what it was; pairs of arrays are examples, too."""
    copies = [copy.deepcopy(row) for row in dataset]  # No two rows are one object.
    loader = PoissonLoader(copies, sampling_probability=0.5, steps=1)

    assert len(loader.dataset) == len(dataset)


def test_an_unordered_loader_issues_no_ticket():
    """If workers may overtake each other, a count could belong to another batch."""
    loader = make_loader(num_workers=2)
    loader.in_order = False

    with pytest.raises(SamplingMismatchError, match="in_order"):
        iter(loader)


@pytest.mark.parametrize(
    "dataset", [Endless(), iter([1, 2]), 7], ids=["endless", "iterator", "number"]
)
def test_a_dataset_without_random_access_is_refused(dataset):
    """Independent draws need random access; the message says how to get it."""
    with pytest.raises(TypeError, match=r"__len__ and __getitem__, such as list"):
        make_loader(dataset)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_datasets_in_the_manner_of_hf_datasets_work(num_workers):
    """Rows are read together by ``__getitems__``, and never none of them."""
    loader = make_loader(Rows(), sampling_probability=0.03, num_workers=num_workers)
    sizes = []
    for batch in loader:
        assert batch["x"].shape == batch["label"].shape == (loader.ticket.num_samples,)
        assert batch["x"].dtype == torch.float64
        sizes.append(len(batch["x"]))

    assert len(sizes) == 12


def test_plain_sequences_and_custom_collates_work():
    """A list is a dataset, and a batch is whatever the collate function makes."""
    words = ["one", "three", "eleven"] * 5
    loader = make_loader(words, collate_fn=list, sampling_probability=0.2)

    for batch in loader:
        assert isinstance(batch, list)
        assert len(batch) == loader.ticket.num_samples


def test_an_explicit_empty_batch_is_yielded_as_a_copy():
    """What a step does to one empty batch does not show in the next."""
    empty = {"x": torch.zeros(0, 3), "names": []}
    loader = make_loader([1, 2], empty_batch=empty, sampling_probability=2**-60)
    for batch in loader:
        assert batch["x"].shape == (0, 3)
        assert batch["names"] == []
        batch["names"].append("changed")

    assert empty["names"] == []
    assert loader.ticket.num_samples == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_of_empty_batches_is_a_whole_pass(num_workers):
    """Noise is due on every step, so a step must happen for an empty batch too."""
    loader = make_loader(sampling_probability=2**-60, num_workers=num_workers)

    assert [tuple(values.shape) for _, values in loader] == [(0, 1)] * 12


def test_a_pass_is_over_when_reading_fails():
    """Which draw failed is unknown, so no later batch can have its ticket."""
    loader = make_loader(Failing(), sampling_probability=0.5)
    batches = iter(loader)

    with pytest.raises(OSError, match="unreadable"):
        next(batches)
    assert loader.ticket is None
    with pytest.raises(StopIteration):
        next(batches)


def test_pinned_memory_may_be_asked_for():
    """Where there is no accelerator torch warns, and the batches are the same."""
    loader = make_loader(pin_memory=True)
    if torch.accelerator.is_available():
        batches = list(loader)
    else:
        with pytest.warns(UserWarning, match="no accelerator is found"):
            batches = list(loader)

    assert len(batches) == 12


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))],  # noqa: S301
    ids=["deepcopy", "pickle"],
)
def test_a_copied_loader_has_yielded_nothing(duplicate):
    """A copy has no ticket, draws its own batches, and leaves the original's alone."""
    loader = make_loader(sampling_probability=0.5)
    batches = iter(loader)
    next(batches)
    duplicated = duplicate(loader)

    assert duplicated.ticket is None
    assert loader.ticket is not None
    ours = [indices.tolist() for indices, _ in batches]
    assert ours != [indices.tolist() for indices, _ in duplicated][1:]


def test_accelerate_passes_the_loader_on():
    """``prepare`` neither rebuilds the loader nor takes its tickets."""
    loader = make_loader()
    prepared = Accelerator(cpu=True).prepare(loader)

    assert prepared is loader
    for indices, _values in prepared:
        assert loader.ticket.num_samples == len(indices)


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda loader: skip_first_batches(loader, 1),
        lambda loader: DataLoader(loader.dataset, batch_sampler=loader.batch_sampler),
    ],
    ids=["accelerate", "torch"],
)
def test_a_rebuilt_loader_yields_no_batch(rebuild):
    """Batches that were drawn elsewhere would have no tickets: it fails closed."""
    loader = make_loader()
    rebuilt = rebuild(loader)

    with pytest.raises(SamplingMismatchError, match="iterate over the PoissonLoader"):
        next(iter(rebuilt))
    assert loader.ticket is None


def test_the_batch_sampler_is_served_only_while_a_pass_is_set_up():
    """Who takes it later, while workers load batches, gets none without a ticket."""
    loader = make_loader(num_workers=1)
    batches = iter(loader)
    next(batches)

    with pytest.raises(SamplingMismatchError, match="iterate over the PoissonLoader"):
        iter(loader.batch_sampler)


def rows_of_tensors():
    """Datasets that are tensors, as training scripts have them."""
    numbers = TensorDataset(torch.arange(40), torch.randn(40, 3, 2))
    parts = random_split(numbers, [30, 10])
    return [numbers, *parts, Subset(parts[0], [3, 5, 2])]


@pytest.mark.parametrize("dataset", rows_of_tensors(), ids=["all", "most", "few", "in"])
def test_tensors_are_read_as_torchs_loader_reads_them(dataset):
    """Reading whole columns gives the batches that reading row by row gives."""
    loader = make_loader(dataset, sampling_probability=1.0, steps=1)
    (ours,) = loader
    (theirs,) = DataLoader(dataset, batch_size=len(dataset))

    assert type(ours) is type(theirs)
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert all(map(torch.equal, ours, theirs))


def test_a_batch_of_tensors_is_not_the_datasets_own_memory():
    """What is done to a batch in place does not reach the data."""
    numbers = TensorDataset(torch.zeros(5))
    (batch,) = make_loader(numbers, sampling_probability=1.0, steps=1)
    batch[0].add_(1)

    assert not numbers.tensors[0].any()


def test_a_subclass_reads_its_rows_itself():
    """Augmentation in ``__getitem__`` is not passed by."""

    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return [2 * x for x in super().__getitem__(index)]

    loader = make_loader(Doubled(torch.arange(4)), sampling_probability=1.0, steps=1)

    assert next(iter(loader))[0].tolist() == [0, 2, 4, 6]
