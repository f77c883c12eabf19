"""That the losses of a step are those of its ticket's examples, each one once."""

import gc
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    RandomSampler,
    Subset,
    TensorDataset,
    default_collate,
)

import dp
from dp import DPOptimizer, MicroBatches, PoissonLoader, UnamplifiedLoader
from dp.exceptions import (
    SampleMixingError,
    SamplingMismatchError,
    UnsupportedOperationError,
)
from dp.sampling._rows_read import RowsRead
from dp.sampling._yielded import YieldedTensors


N = 12


def everyone(**changes):
    """A loader that draws everyone at every step, so all batches have one size."""
    data = TensorDataset(torch.randn(N, 4), torch.randint(0, 3, (N,)))
    return PoissonLoader(data, sampling_probability=1.0, steps=6, **changes)


@pytest.fixture
def make_optimizer(make_plan):
    def make(model, loader):
        plan = make_plan(sampling=loader.sampling)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        return DPOptimizer(sgd, plan=plan, loader=loader)

    return make


def plain(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


def shifted(model, x, y):
    """The first layer keeps a new tensor: only the labels tell the batch."""
    return plain(model, x + 1, y)


def squared(model, x, y):
    """Only the data tells: the labels are not kept."""
    return (model(x)[:, 0] - y).square()


def binary(model, x, y):
    logits, targets = model(x + 1)[:, 0], (y > 0).float()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@pytest.mark.parametrize("losses", [plain, shifted, squared])
def test_another_batch_of_the_same_size_is_refused(make_optimizer, losses):
    """The first batch over and over is not what later tickets are for."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer, batches = make_optimizer(model, loader), iter(loader)
    first = next(batches)
    optimizer.backward(losses(model, *first))
    optimizer.step()
    second = next(batches)

    with pytest.raises(SamplingMismatchError, match="yielded before the last"):
        optimizer.backward(losses(model, *first))
    optimizer.backward(losses(model, *second))
    optimizer.step()
    assert optimizer.ledger.steps == 2


def test_a_part_of_an_earlier_batch_is_refused(make_optimizer):
    """A view has the storage of what it is a view of."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer, batches = make_optimizer(model, loader), iter(loader)
    x, y = next(batches)
    next(batches)

    with pytest.raises(SamplingMismatchError, match="yielded before the last"):
        optimizer.backward(plain(model, x[2:8], y[2:8]))


@pytest.mark.parametrize("made", [torch.clone, lambda x: x.double().float()])
def test_a_copy_belongs_to_no_known_batch_and_passes(make_optimizer, made):
    """As after a copy to another device: nothing can be told, and nothing is."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer = make_optimizer(model, loader)
    for x, y in loader:
        optimizer.backward(plain(model, made(x), y + 0))
        optimizer.step()

    assert optimizer.ledger.steps == 6


def test_a_micro_batch_twice_and_another_never_is_refused(make_optimizer):
    """Counts agree; the rows do not."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer = make_optimizer(model, loader)
    x, y = next(iter(loader))
    optimizer.backward(plain(model, x[:6], y[:6]))

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        optimizer.backward(plain(model, x[:6], y[:6]))
    optimizer.backward(plain(model, x[6:], y[6:]))
    optimizer.step()


def test_parts_that_share_an_example_are_refused(make_optimizer):
    """One row in common is enough."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer = make_optimizer(model, loader)
    x, y = next(iter(loader))
    optimizer.backward(plain(model, x[:6], y[:6]))

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        optimizer.backward(plain(model, x[5:11], y[5:11]))


@pytest.mark.parametrize("step", [slice(0, None, 2), slice(1, None, 2)])
def test_parts_that_lie_between_each_other_are_apart(make_optimizer, step):
    """Every second example here, the others there: their spans meet, their rows do not."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer = make_optimizer(model, loader)
    x, y = next(iter(loader))
    optimizer.backward(plain(model, x[step], y[step]))
    others = slice(1 - step.start, None, 2)
    optimizer.backward(plain(model, x[others], y[others]))
    optimizer.step()

    assert optimizer.ledger.steps == 1


CUTS = {
    "other columns": (lambda x, _: x[:6, :2], lambda x, _: x[:6, 2:]),
    "a column, transposed": (lambda x, _: x[:6].T[:2], lambda x, _: x.T[2:, :1]),
    "the label": (lambda x, _: x[:6], lambda _, y: y[3:8]),
    "in pairs": (lambda x, _: x.view(6, 8)[::2, 1:3], lambda x, _: x[4:5, :1]),
    "flat": (lambda x, _: x.flatten()[5:7], lambda x, _: x[1:3, :1]),
    "flat, over rows": (lambda x, _: x.flatten()[3:9], lambda x, _: x[2:3, 3:]),
}


@pytest.mark.parametrize(("first", "then"), CUTS.values(), ids=CUTS)
def test_parts_of_one_example_are_that_example(first, then):
    """Some columns in one call and the others, or the label, in the next."""
    x, y = torch.randn(N, 4), torch.arange(N)
    yielded, read = YieldedTensors(), RowsRead()
    yielded.replace([x, y], empty_batch=[x[:0], y[:0]], num_rows=N)
    read.admit([first(x, y)], yielded)
    read.keep()

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        read.admit([then(x, y)], yielded)


APART = {
    "halves": (lambda x, y: [x[:6], y[:6]], lambda x, y: [x[6:], y[6:]]),
    "columns": (lambda x, _: [x[::2, :2]], lambda x, y: [x[1::2, 2:], y[1::2]]),
    "pairs": (lambda x, _: [x.view(6, 8)[::2]], lambda x, y: [x[2:4], y[6:8]]),
    "flat": (lambda x, _: [x.flatten()[5:7]], lambda x, y: [x[:1], y[2:]]),
}


@pytest.mark.parametrize(("first", "then"), APART.values(), ids=APART)
def test_parts_of_other_examples_are_apart(first, then):
    """However they are cut."""
    x, y = torch.randn(N, 4), torch.arange(N)
    yielded, read = YieldedTensors(), RowsRead()
    yielded.replace([x, y], empty_batch=[x[:0], y[:0]], num_rows=N)
    read.admit(first(x, y), yielded)
    read.keep()
    read.admit(then(x, y), yielded)
    read.keep()

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        read.admit([x[:, :1]], yielded)


def test_columns_of_a_batch_in_column_order_are_compared_by_their_bytes():
    """A row of it lies everywhere."""
    x = torch.randn(4, N).T
    yielded, read = YieldedTensors(), RowsRead()
    yielded.replace(x, empty_batch=torch.empty(0, 4), num_rows=N)
    read.admit([x[:6]], yielded)
    read.keep()
    read.admit([x[6:]], yielded)

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        read.admit([x[5:6]], yielded)


def test_what_a_row_lacks_is_seen_in_training(make_optimizer):
    """Half of the examples twice, by other columns, and the others never."""
    model, loader = nn.Linear(2, 3), everyone()
    optimizer = make_optimizer(model, loader)
    x, y = next(iter(loader))
    optimizer.backward(plain(model, x[:6, :2], y[:6]))

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        optimizer.backward(plain(model, x[:6, 2:], y[6:] * 1))
    assert optimizer.ledger.steps == 0


def test_what_failed_may_be_tried_again(make_optimizer):
    """Rows are read once their gradients were added, and not before."""
    model, loader = nn.Linear(4, 3), everyone()
    optimizer = make_optimizer(model, loader)
    x, y = next(iter(loader))
    with pytest.raises(SampleMixingError):
        optimizer.backward(plain(model, x, y) / plain(model, x, y).sum())
    optimizer.backward(plain(model, x, y))
    optimizer.step()

    assert optimizer.ledger.steps == 1


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}], ids=["none", "one"])
def test_micro_batches_pass_and_another_pass_does_not_confuse_them(
    make_optimizer, workers
):
    """No false alarm, however the parts are read."""
    model, loader = nn.Linear(4, 3), everyone(**workers)
    optimizer = make_optimizer(model, loader)
    for _ in range(2):
        for number, (x, y) in enumerate(MicroBatches(loader, per_step=3)):
            optimizer.backward(plain(model, x, y))
            if number % 3 == 2:
                optimizer.step()

    assert optimizer.ledger.steps == 12


def test_losses_of_pieces_of_several_rows_are_refused(make_optimizer):
    """A wrong reshape: as many losses as examples, each of two examples' data."""
    data = TensorDataset(torch.randn(N, 6), torch.randn(N))
    loader = PoissonLoader(data, sampling_probability=1.0, steps=3)
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model, loader)
    x, _y = next(iter(loader))

    with pytest.raises(SampleMixingError, match="units meet in the batch"):
        optimizer.backward(model(x.reshape(18, 4)).square().view(-1)[:12])
    assert optimizer.ledger.steps == 0


def test_a_sequence_as_long_as_the_batch_is_large_is_not_taken_for_rows(make_optimizer):
    """Time-major batches: their first axis is not the examples'."""

    def time_major(examples):
        x, y = default_collate(examples)
        return x.transpose(0, 1).contiguous(), y

    data = TensorDataset(torch.randn(N, N, 4), torch.randint(0, 3, (N,)))
    loader = PoissonLoader(
        data, sampling_probability=1.0, steps=3, collate_fn=time_major
    )
    gru, head = nn.GRU(4, 5), nn.Linear(5, 3)
    optimizer = make_optimizer(nn.ModuleList([gru, head]), loader)
    for x, y in loader:
        optimizer.backward(plain(head, gru(x)[1][0], y))
        optimizer.step()

    assert optimizer.ledger.steps == 3


def test_batches_of_other_containers_are_told_apart(make_optimizer):
    """Mappings, numbers and text beside the tensors."""

    def collate(examples):
        x, y = default_collate(examples)
        return {"x": x, "labels": {"y": y}, "names": ["a"] * len(y), "scale": 1.0}

    data = TensorDataset(torch.randn(N, 4), torch.randint(0, 3, (N,)))
    loader = PoissonLoader(data, sampling_probability=1.0, steps=3, collate_fn=collate)
    model = nn.Linear(4, 3)
    optimizer, batches = make_optimizer(model, loader), iter(loader)
    first = next(batches)
    second = next(batches)

    assert [len(rows) for rows in loader.yielded.rows] == [N, N]
    with pytest.raises(SamplingMismatchError, match="yielded before the last"):
        optimizer.backward(plain(model, second["x"], first["labels"]["y"]))


def test_labels_of_other_losses_tell_the_batch(make_optimizer):
    """Where a loss keeps its targets."""
    data = TensorDataset(torch.randn(N, 4), torch.rand(N))
    loader = PoissonLoader(data, sampling_probability=1.0, steps=3)
    model = nn.Linear(4, 1)
    optimizer, batches = make_optimizer(model, loader), iter(loader)
    x, y = next(batches)
    next(batches)

    with pytest.raises(SamplingMismatchError, match="yielded before the last"):
        optimizer.backward(
            F.mse_loss(model(x + 1).squeeze(1), y, reduction="none").mul(2).div(3)
        )


def test_a_freed_storage_is_not_taken_for_another_at_its_address():
    """Earlier batches are not kept alive, and their addresses are not believed."""
    yielded = YieldedTensors()
    for number in range(300):
        batch = [torch.full((4, 4), float(number))]
        yielded.replace(batch, empty_batch=None, num_rows=4)
        assert yielded.batch_of(batch[0]) == "last"
        fresh = torch.ones(4, 4)
        assert yielded.batch_of(fresh) is None
    del batch
    gc.collect()

    assert len(yielded._earlier) <= 65
    assert yielded.rows == []


def test_the_address_of_a_freed_storage_says_nothing_of_the_next_one_there():
    """The allocator gives it to whatever comes, such as features of this batch."""
    yielded = YieldedTensors()
    earlier, last = torch.ones(4, 4), torch.ones(4, 4)
    yielded.replace([earlier], empty_batch=None, num_rows=4)
    yielded.replace([last], empty_batch=None, num_rows=4)
    assert yielded.batch_of(earlier) == "earlier"
    (key,) = set(yielded._earlier) - yielded._current
    handle = yielded._earlier.pop(key)
    del earlier
    newcomer = torch.ones(4, 4)
    yielded._earlier[newcomer.untyped_storage()._cdata] = handle

    assert handle.expired()
    assert yielded.batch_of(newcomer) is None


def test_parts_of_parts_with_repeated_rows_share_memory_with_themselves_only():
    """Expanded tensors have many rows at one address."""
    base = torch.randn(6, 4)
    yielded = YieldedTensors()
    yielded.replace(base, empty_batch=torch.empty(0, 4), num_rows=6)
    read = RowsRead()
    read.admit([base[:1].expand(5, 4), torch.empty(0, 4), base[:0]], yielded)
    read.keep()
    read.admit([base[1:2].expand(5, 4)], yielded)

    with pytest.raises(SamplingMismatchError, match="two backward calls"):
        read.admit([base[:2]], yielded)


DATA = TensorDataset(torch.arange(10.0)[:, None])
ONE = torch.ones(3)
TWICE = {
    "a repeated index": Subset(DATA, [0, 3, 5, 3]),
    "an index from the end": Subset(DATA, [0, 9, 5, -1]),
    "a dataset with itself": ConcatDataset([DATA, DATA]),
    "parts that overlap": ConcatDataset(
        [Subset(DATA, [1, 2, 3]), Subset(DATA, [4, 3])]
    ),
    "a subset of a concatenation": Subset(ConcatDataset([DATA, DATA]), [2, 12]),
    "one tensor in a list": [ONE, torch.ones(3), ONE],
    "one record in a list": [(ONE, 0), (torch.ones(3), 0), (ONE, 1)][:1] * 2,
}
ONCE = {
    "all": DATA,
    "a part": Subset(DATA, [5, 3]),
    "two parts": ConcatDataset([Subset(DATA, [1, 2]), Subset(DATA, [4, 3])]),
    "two datasets": ConcatDataset([DATA, TensorDataset(torch.ones(3, 1))]),
    "equal numbers": [1.0, 2.0, 1.0, 1.0],
    "equal records": [(1.0, 2), (1.0, 2), (3.0, 4)],
    "equal tensors": [torch.ones(3), torch.ones(3)],
}


@pytest.mark.parametrize("dataset", TWICE.values(), ids=TWICE)
@pytest.mark.parametrize(
    "make",
    [
        lambda data: PoissonLoader(data, sampling_probability=0.5, steps=2),
        lambda data: UnamplifiedLoader(data, batch_size=2),
    ],
    ids=["sampled", "unamplified"],
)
def test_an_example_in_two_rows_is_refused(dataset, make):
    """Drawn together, it would count twice."""
    with pytest.raises(SamplingMismatchError, match="are the same example"):
        make(dataset)


@pytest.mark.parametrize("dataset", ONCE.values(), ids=ONCE)
def test_examples_that_are_apart_pass(dataset):
    """Equal values are not one example."""
    assert PoissonLoader(dataset, sampling_probability=0.5, steps=2).ticket is None


def test_several_rows_of_an_example_are_fine_in_one_unit():
    """They are clipped as one; in two units the example would count twice."""
    twice = Subset(DATA, [0, 3, 5, 3])
    numbers = {"sampling_probability": 0.5, "steps": 2}
    PoissonLoader(twice, units=["a", "b", "c", "b"], **numbers)

    with pytest.raises(SamplingMismatchError, match="rows 1 and 3"):
        PoissonLoader(twice, units=["a", "b", "c", "a"], **numbers)


def records(num=20, *, ragged=False):
    lengths = [1 + i % 5 if ragged else 3 for i in range(num)]
    return [(torch.randn(length), torch.tensor(i)) for i, length in enumerate(lengths)]


def neighbours_mixed(examples):
    x, y = default_collate(examples)
    return 0.5 * x + 0.5 * x.roll(1, 0), y


def mixed_up(examples):
    x, y = default_collate(examples)
    share = np.random.beta(0.4, 0.4)  # noqa: NPY002 -- as such functions do
    order = torch.randperm(len(x))
    return share * x + (1 - share) * x[order], y, y[order], share


def standardised(examples):
    x, y = default_collate(examples)
    return (x - x.mean(0)) / x.std(0), y


def time_major_over_largest(examples):
    x, y = default_collate(examples)
    return (x / x.abs().max()).T, y


def padded_and_centred(examples):
    x = nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True)
    return {"x": x - x.mean(), "y": torch.stack([y for _, y in examples]).numpy()}


def names_of_neighbours(examples):
    names = [str(int(y)) for _, y in examples]
    return torch.stack([y for _, y in examples]), names[1:] + names[:1]


class Centring:
    """Keeps the mean of the first batch, and subtracts it ever after."""

    def __init__(self):
        self.mean = None

    def __call__(self, examples):
        x, y = default_collate(examples)
        if self.mean is None:
            self.mean = x.mean(0)
        return x - self.mean, y

    def collate(self, examples):
        return self(examples)


@pytest.mark.parametrize(
    "collate",
    [
        Centring(),
        Centring().collate,
        neighbours_mixed,
        mixed_up,
        standardised,
        time_major_over_largest,
        padded_and_centred,
        names_of_neighbours,
    ],
)
def test_a_collate_fn_that_mixes_is_refused(collate):
    """Before the first batch; the generators are left as they were."""
    ragged = collate in (padded_and_centred, names_of_neighbours)
    data = records(ragged=ragged)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    before = torch.get_rng_state()

    with pytest.raises(SampleMixingError, match="collate_fn makes rows of several"):
        PoissonLoader(
            data,
            sampling_probability=0.5,
            steps=2,
            collate_fn=collate,
            empty_batch=(),
        )
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before, torch.get_rng_state())


class ReadTogether(Dataset):
    """Makes rows as they are read, with one operation for all of them."""

    def __init__(self, make):
        self.x, self.make = torch.randn(20, 3), make

    def __len__(self):
        return len(self.x)

    def __getitems__(self, rows):
        return self.make(self.x[rows])


def of_their_mean(x):
    return [{"x": row, "y": 0} for row in x - x.mean(0)]


def of_their_number(x):
    return [(row, float(x.sum() > 0), str(float(x.max()))) for row in x]


@pytest.mark.parametrize("make", [of_their_mean, of_their_number])
def test_rows_that_depend_on_what_they_are_read_with_are_refused(make):
    with pytest.raises(SampleMixingError, match="__getitems__ makes rows of several"):
        PoissonLoader(ReadTogether(make), sampling_probability=0.5, steps=2)


def alone(x):
    return [(row, 1, "name", None) for row in x.masked_fill(x > 0, torch.nan)]


def augmented(x):
    return list(x + torch.randn_like(x))


def augmented_by_their_own(x):
    noise = np.random.default_rng().normal(size=tuple(x.shape))
    return list(x + torch.tensor(noise))


def drawn_by_what_they_are(x):
    return [row + torch.rand(int(x.sum() > 0)).sum() for row in x]


def padded_to_the_longest(x):
    return [row[: 1 + int(x.max() > 2)] for row in x]


@pytest.mark.parametrize(
    "make",
    [
        *(alone, augmented, augmented_by_their_own),
        *(drawn_by_what_they_are, padded_to_the_longest),
    ],
)
def test_rows_that_are_read_together_and_made_apart_pass(make):
    """Or that cannot be compared, as what draws from a generator of its own."""
    for seed in range(5):
        torch.manual_seed(seed)
        data = ReadTogether(make)
        assert PoissonLoader(data, sampling_probability=0.5, steps=2, empty_batch=())


def test_a_collate_fn_that_cannot_be_copied_is_called_itself():
    class Once:
        def __copy__(self):
            raise TypeError("there is one")

        def __call__(self, examples):
            return default_collate(examples)

    loader = PoissonLoader(
        records(), sampling_probability=0.5, steps=2, collate_fn=Once()
    )
    assert loader.ticket is None


def padded(examples):
    x = nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True)
    return {"x": x, "mask": x.numpy() != 0, "y": [int(y) for _, y in examples]}


def padded_time_major(examples):
    x = nn.utils.rnn.pad_sequence([x for x, _ in examples])
    return x, torch.tensor([len(x) for x, _ in examples])


def noisy(examples):
    x, y = default_collate(examples)
    return x + torch.randn_like(x), y, torch.bernoulli(torch.full(x.shape, 0.3))


def cut_by_rejection(examples):
    """Draws until it likes the number: how often depends on the examples before."""
    cut = []
    for x, _ in examples:
        while random.random() > float(x.abs().max() % 1):  # noqa: S311 -- no secret
            pass
        cut.append(x + random.random())  # noqa: S311
    return torch.stack(cut)


def crops_in_pairs(examples):
    """Pairwise masks grow along two axes: no row of them is one example's alone."""
    y = torch.stack([y for _, y in examples])
    return y, y[:, None] == y[None, :]


def objects(examples):
    return [object() for _ in examples], torch.stack([y for _, y in examples])


def missing_values(examples):
    x, y = default_collate(examples)
    return x.masked_fill(x > 0, float("nan")), y


@pytest.mark.parametrize(
    ("collate", "ragged"),
    [
        (default_collate, False),
        (padded, True),
        (padded_time_major, True),
        (noisy, False),
        (cut_by_rejection, False),
        (crops_in_pairs, False),
        (objects, False),
        (missing_values, False),
        (sum, False),
    ],
)
def test_a_collate_fn_that_does_not_mix_or_cannot_be_compared_passes(collate, ragged):
    """Padding, augmentation of each example, and what raises: no false alarm."""
    for seed in range(5):
        torch.manual_seed(seed)
        loader = PoissonLoader(
            records(ragged=ragged),
            sampling_probability=0.5,
            steps=2,
            collate_fn=collate,
            empty_batch=(),
        )
        assert loader.ticket is None


class Columns(list):
    """Reads many rows as columns, and not as a list of examples."""

    def __getitems__(self, rows):
        return {"x": [self[row] for row in rows]}


def test_examples_that_cannot_be_compared_one_by_one_pass():
    """Too few, or read in columns."""
    numbers = {"sampling_probability": 0.5, "steps": 2, "empty_batch": ()}
    PoissonLoader(records(3), collate_fn=neighbours_mixed, **numbers)
    PoissonLoader(Columns(range(9)), collate_fn=lambda read: read["x"], **numbers)


def longest_first_of_two(examples):
    """Two lengths, of which no example has both: no copy keeps the shapes."""
    one = nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True)
    other = nn.utils.rnn.pad_sequence([y for _, y in examples], batch_first=True)
    return one, other


def test_lengths_that_no_example_has_alone_pass():
    """What cannot be compared is left to training."""
    pairs = [(torch.ones(1 + i), torch.ones(9 - i)) for i in range(8)]
    numbers = {"sampling_probability": 0.5, "steps": 2, "empty_batch": ()}

    assert PoissonLoader(pairs, collate_fn=longest_first_of_two, **numbers)


def unamplified(make_plan, loader=None, **numbers):
    plan = make_plan(sampling=dp.Unamplified(), expected_batch_size=4.0, **numbers)
    model = nn.Linear(4, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, DPOptimizer(sgd, plan=plan, loader=loader)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 4},
        {"batch_size": 4, "shuffle": True},
        {"batch_size": 4, "sampler": range(9, -1, -1), "drop_last": True},
        {"batch_sampler": [[0, 1, 2, -1], [4, 5, 6, 7], [3, 8]]},
        {"batch_size": 4, "num_workers": 1},
    ],
)
def test_batches_in_any_order_have_tickets(make_plan, arguments):
    """Each example once a pass; backward may be called for parts, as often as needed."""
    data = TensorDataset(torch.randn(10, 4), torch.arange(10) % 3)
    loader = UnamplifiedLoader(data, **arguments)
    assert loader.sampling == dp.Unamplified()
    assert (loader.sharded, loader.units_digest) == (False, None)
    model, optimizer = unamplified(make_plan, loader)
    read = []
    for x, y in loader:
        assert loader.ticket.num_samples == len(x)
        read += x.tolist()
        optimizer.backward(plain(model, x[:1], y[:1]))
        optimizer.backward(plain(model, x[1:], y[1:]))
        optimizer.step()

    assert optimizer.ledger.steps == len(loader)
    assert len({tuple(row) for row in read}) == len(read)
    assert optimizer.ledger.releases()[0].sampling_probability == 1.0


def test_a_batch_without_amplification_is_used_once_and_whole(make_plan):
    """As with tickets of drawn batches."""
    data = TensorDataset(torch.randn(10, 4), torch.arange(10) % 3)
    loader = UnamplifiedLoader(data, batch_size=5)
    model, optimizer = unamplified(make_plan, loader)
    batches = iter(loader)
    x, y = next(batches)
    with pytest.raises(SamplingMismatchError, match="more losses than"):
        optimizer.backward(plain(model, x.repeat(2, 1), y.repeat(2)))
    optimizer.backward(plain(model, x[:2], y[:2]))
    with pytest.raises(SamplingMismatchError, match="not seen every example"):
        optimizer.step()
    optimizer.backward(plain(model, x[2:], y[2:]))
    optimizer.step()

    with pytest.raises(SamplingMismatchError, match="already used"):
        optimizer.backward(plain(model, x, y))


def test_sampling_with_replacement_is_refused():
    """An index twice in a batch is an example twice in a step."""
    sampler = RandomSampler(range(10), replacement=True, num_samples=40)
    loader = UnamplifiedLoader(range(10), batch_size=20, sampler=sampler)
    with pytest.raises(SamplingMismatchError, match="index twice"):
        next(iter(loader))
    with pytest.raises(SamplingMismatchError, match="index twice"):
        next(iter(UnamplifiedLoader(range(10), batch_sampler=[[2, -8]])))
    with pytest.raises(SamplingMismatchError, match="no examples"):
        next(iter(UnamplifiedLoader(range(10), batch_sampler=[[]])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sampler": [[1]], "batch_size": 2}, "batch_sampler chooses"),
        ({"batch_sampler": [[1]], "shuffle": True}, "batch_sampler chooses"),
        ({"sampler": [1, 2], "shuffle": True}, "sampler chooses the order"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, message):
    """None is ignored."""
    with pytest.raises(ValueError, match=message):
        UnamplifiedLoader(range(10), **arguments)


def test_processes_that_share_a_dataset_need_parts_of_it(monkeypatch):
    """Each would train on every example, which would count once a process."""
    name = "dp.sampling._unamplified_loader.rank_and_size"
    monkeypatch.setattr(name, lambda: (0, 2))
    with pytest.raises(UnsupportedOperationError, match="sharded=True"):
        iter(UnamplifiedLoader(range(10), batch_size=2))

    assert len(list(UnamplifiedLoader(range(10), batch_size=2, sharded=True))) == 5


def test_a_loader_must_fit_the_plan(make_plan):
    """Tickets of one kind do not serve the other."""
    loader = everyone()
    with pytest.raises(ValueError, match=r"dp\.UnamplifiedLoader"):
        unamplified(make_plan, loader)
    with pytest.raises(TypeError, match=r"dp\.UnamplifiedLoader\(dataset"):
        make_plan(sampling=dp.Unamplified()).loader(range(3))
    sgd = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"only plan\.loader"):
        DPOptimizer(sgd, plan=make_plan(), loader=UnamplifiedLoader(range(9)))


def test_more_losses_than_examples_are_told_once_where_nothing_counts_them(make_plan):
    """Views of an example without tickets and without units: each is clipped alone."""
    model, optimizer = unamplified(make_plan)
    x, y = torch.randn(4, 4), torch.arange(4) % 3
    views, labels = x.repeat_interleave(2, 0), y.repeat_interleave(2)
    with pytest.warns(UserWarning, match="more losses than the plan expects"):
        optimizer.backward(plain(model, views, labels))
    optimizer.step()
    optimizer.backward(plain(model, views, labels))  # A second one would raise here.
    optimizer.step()

    model, optimizer = unamplified(make_plan)
    units = torch.arange(4).repeat_interleave(2)
    optimizer.backward(plain(model, views, labels), units=units)
    optimizer.step()
    optimizer.backward(plain(model, x, y))
    optimizer.step()
    assert optimizer.ledger.steps == 2
