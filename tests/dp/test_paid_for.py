"""That a ledger knows all that its weights and data have cost in this process."""

import copy
import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

import dp
from dp import DPOptimizer, LedgerError
from dp._mechanism import paid_for
from dp.accounting import epsilon
from dp.ledger import Ledger
from dp.query import Queries
from dp.sampling import kept_rows


@pytest.fixture(autouse=True)
def _memory_of_its_own():
    """Nothing that other tests trained is known, and none of this is later."""
    with paid_for.apart():
        yield


def data(num=20):
    return TensorDataset(torch.randn(num, 4), torch.randn(num))


@pytest.fixture
def make_optimizer(make_plan):
    def make(model, dataset, *, steps=20, earlier=None, **changes):
        plan = make_plan(steps=steps, **changes)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = plan.loader(dataset)
        return DPOptimizer(sgd, plan=plan, loader=loader, continue_from=earlier)

    return make


def step(optimizer, model):
    """Take a step on a batch of the optimizer's own loader."""
    x = next(iter(optimizer.mechanism.loader))[0]
    optimizer.backward(model(x).squeeze(1).square())
    optimizer.step()


@pytest.mark.slow
def test_a_notebook_cell_that_runs_again_is_refused_or_goes_on(make_plan):
    """The second run adds to the first; alone it would claim what one run costs."""
    dataset, model = data(40), nn.Linear(4, 1)

    def cell(earlier=None, **numbers):
        plan = make_plan(**{"steps": 3, **numbers})
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader, continue_from=earlier)
        for (x, y), _ in zip(loader, range(3), strict=False):
            optimizer.backward((model(x).squeeze(1) - y).square())
            optimizer.step()
        return optimizer

    first = cell()
    with pytest.raises(LedgerError, match="these parameters were trained on before"):
        cell()
    with pytest.raises(dp.BudgetExhaustedError):
        cell(earlier=first)
    second = cell(earlier=first, steps=6)

    assert second.ledger.steps == 6
    both = epsilon(
        second.plan.releases(6),
        delta=1e-5,
        neighboring_relation="add_or_remove_one",
    )
    assert second.certificate().epsilon >= both.epsilon - 1e-6
    assert second.certificate().steps == 6
    with pytest.raises(LedgerError, match="were trained on before"):
        step(first, model)


def test_a_second_optimizer_of_one_inner_optimizer_is_refused(make_plan):
    """Each would charge its own steps of the same weights."""
    model, plan = nn.Linear(4, 1), make_plan()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    first, second = (
        DPOptimizer(sgd, plan=plan, loader=plan.loader(data())) for _ in range(2)
    )
    first_x = next(iter(first.mechanism.loader))[0]
    second_x = next(iter(second.mechanism.loader))[0]
    first.backward(model(first_x).squeeze(1))
    first.step()
    second.backward(model(second_x).squeeze(1))
    with pytest.raises(LedgerError, match="these parameters were trained on before"):
        second.step()

    assert second.ledger.steps == 0


def test_other_weights_on_the_same_data_are_refused(make_optimizer):
    """The data is what is paid for, whatever was trained on it."""
    dataset, one, other = data(), nn.Linear(4, 1), nn.Linear(4, 1)
    first = make_optimizer(one, dataset)
    step(first, one)
    second = make_optimizer(other, dataset)
    with pytest.raises(LedgerError, match="rows of this dataset were trained on"):
        step(second, other)
    assert second.ledger.steps == 0

    shared = make_optimizer(other, dataset, earlier=first)
    assert shared.ledger is first.ledger
    step(shared, other)
    step(first, one)
    assert first.ledger.steps == 3


@pytest.mark.parametrize("of", ["optimizer", "ledger"])
def test_another_plan_takes_over_the_charges(make_optimizer, of):
    """It counts them in its own budget, and the earlier optimizer is at its end."""
    dataset, model = data(), nn.Linear(4, 1)
    first = make_optimizer(model, dataset)
    step(first, model)
    earlier = first if of == "optimizer" else first.ledger
    second = make_optimizer(model, dataset, steps=30, earlier=earlier)
    step(second, model)

    assert [first.ledger.steps, second.ledger.steps] == [1, 2]
    with pytest.raises(LedgerError, match="were trained on before"):
        step(first, model)


def test_a_checkpoint_carries_what_was_paid(make_optimizer):
    """A state that is loaded has the charges; an older one has not all of them."""
    dataset, model = data(), nn.Linear(4, 1)
    first = make_optimizer(model, dataset)
    step(first, model)
    older = copy.deepcopy(first.state_dict())
    step(first, model)
    resumed = make_optimizer(model, dataset)
    resumed.load_state_dict(first.state_dict())
    step(resumed, model)
    assert resumed.ledger.steps == 3

    rolled_back = make_optimizer(model, dataset)
    rolled_back.load_state_dict(older)
    with pytest.raises(LedgerError, match="were trained on before"):
        step(rolled_back, model)


def test_a_copy_on_the_same_data_is_refused_once_its_original_went_on(make_optimizer):
    """Both would state their own part."""
    dataset, model = data(), nn.Linear(4, 1)
    first = make_optimizer(model, dataset)
    step(first, model)
    twin = copy.deepcopy(first)
    step(first, model)
    weight, bias = twin.param_groups[0]["params"]
    x = next(iter(twin.mechanism.loader))[0]
    twin.backward((x @ weight.T + bias).squeeze(1))

    with pytest.raises(LedgerError, match="rows of this dataset"):
        twin.step()


def test_a_failure_is_known_as_well(make_optimizer):
    """Weights of a run that mixed examples have no epsilon under another ledger either."""
    dataset, model = data(), nn.Linear(4, 1)
    first = make_optimizer(model, dataset)
    step(first, model)
    state = first.ledger.state_dict()
    first.ledger.fail("examples were mixed")
    second = make_optimizer(model, dataset)
    second.ledger.load_state_dict(state)

    with pytest.raises(LedgerError, match="were trained on before"):
        step(second, model)


def test_a_ledger_that_contradicts_another_does_not_include_it(make_plan):
    """Segments of one name that went two ways."""
    one, other = Ledger(make_plan()), Ledger(make_plan())
    for ledger, sigma in ((one, 1.0), (other, 2.0)):
        ledger.use_segment("a")
        ledger.reserve(
            sampling_probability=0.5, noise_multiplier=sigma, max_grad_norm=1.0
        )

    assert one.includes(one)
    assert not one.includes(other)


class Read(Dataset):
    """A dataset that only reads."""

    def __init__(self, num=20):
        self.rows = torch.randn(num, 4)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row], torch.tensor(0.0)


class Slotted(Sequence):
    """It cannot be referred to weakly."""

    __slots__ = ("rows",)

    def __init__(self):
        self.rows = torch.randn(20, 4)

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return self.rows[row], torch.tensor(0.0)


class Kept(Read):
    """A dataset of what it is given, by whatever name."""

    def __init__(self, rows, **kept):
        self.rows = rows
        vars(self).update(kept)

    def __getitem__(self, row):
        entry = self.rows[row]
        return entry if isinstance(entry, tuple) else (torch.as_tensor(entry), 0.0)


class Tokenized(Kept):
    """What is in a mapping, as tokenizers return it."""

    def __init__(self, x):
        self.encodings = {"x": x}

    def __len__(self):
        return len(self.encodings["x"])

    def __getitem__(self, row):
        return self.encodings["x"][row], torch.tensor(0.0)


class Person:
    """An object of one's own."""

    def __init__(self):
        self.x = torch.randn(4)


class People(Read):
    """A dataset of objects."""

    def __init__(self, people):
        self.people = people

    def __len__(self):
        return len(self.people)

    def __getitem__(self, row):
        return self.people[row].x, torch.tensor(0.0)


def listed(rows):
    """A list of the same rows, made anew."""
    return [(row, torch.tensor(0.0)) for row in rows]


TABLE, LABELS, OTHER, COLUMN = (
    torch.randn(40, 4),
    torch.randn(40),
    Read(),
    torch.randn(1, 4).expand(40, 4),
)
WHOLE = TensorDataset(TABLE, LABELS)
ARRAY = torch.randn(40, 4).numpy()
ROWS = listed(torch.randn(40, 4).unbind())
PEOPLE = [Person() for _ in range(40)]
EDGES = torch.randn(4)
MEET = {
    "the same object": (OTHER, OTHER),
    "the same tensors": (TensorDataset(TABLE, LABELS), TensorDataset(TABLE, LABELS)),
    "a part and the whole": (Subset(WHOLE, range(5, 25)), WHOLE),
    "parts with a row in common": (
        Subset(WHOLE, range(20)),
        Subset(WHOLE, [19, *range(25, 40)]),
    ),
    "counted from the end": (Subset(WHOLE, [-1, 3]), Subset(WHOLE, [39, 5])),
    "a part of a concatenation": (ConcatDataset([data(), OTHER]), OTHER),
    "slices with a row in common": (
        TensorDataset(TABLE[:21]),
        TensorDataset(TABLE[20:]),
    ),
    "every second row": (TensorDataset(TABLE[::2]), TensorDataset(TABLE[2:9])),
    "one row many times": (TensorDataset(COLUMN), TensorDataset(COLUMN)),
    "one list": (ROWS, ROWS),
    "lists with rows in common": (ROWS[:25], ROWS[20:]),
    "a shuffled list": (ROWS, ROWS[::-1]),
    "a list of a tensor's rows": (listed(TABLE), listed(TABLE)),
    "a list of a tensor's rows, and the tensor": (listed(TABLE), WHOLE),
    "a list of an array's rows": (listed(ARRAY), listed(ARRAY)),
    "datasets of one tensor": (Kept(TABLE), Kept(TABLE)),
    "a dataset and a tensor": (Kept(TABLE), WHOLE),
    "datasets of one array": (Kept(ARRAY), Kept(ARRAY)),
    "datasets of slices of an array": (Kept(ARRAY[:25]), Kept(ARRAY[20:])),
    "datasets of one dataset": (Kept(OTHER), Kept(OTHER)),
    "datasets around datasets": (Kept(Kept(TABLE)), WHOLE),
    "a part of a dataset of a tensor": (Subset(Kept(TABLE), range(5)), WHOLE),
    "datasets of one list": (Kept([*TABLE]), Kept([*TABLE])),
    "datasets of one mapping": (Tokenized(TABLE), Tokenized(TABLE)),
    "objects": (People(PEOPLE), People(PEOPLE[30:])),
}
APART = {
    "two objects": (Read(), Read()),
    "equal tensors": (TensorDataset(TABLE), TensorDataset(TABLE.clone())),
    "parts": (Subset(WHOLE, range(20)), Subset(WHOLE, range(20, 40))),
    "slices": (TensorDataset(TABLE[:20]), TensorDataset(TABLE[20:])),
    "even and odd rows": (TensorDataset(TABLE[::2]), TensorDataset(TABLE[1::2])),
    "other parts of a concatenation": (
        Subset(ConcatDataset([WHOLE, OTHER]), range(20)),
        OTHER,
    ),
    "what cannot be referred to": (one := Slotted(), one),
    "parts of a list": (ROWS[:20], ROWS[20:]),
    "lists of parts of a tensor": (listed(TABLE[:20]), listed(TABLE[20:])),
    "datasets of parts of an array": (Kept(ARRAY[:20]), Kept(ARRAY[20:])),
    "other objects": (People(PEOPLE[:20]), People(PEOPLE[20:])),
    "whole numbers, which say where things are": (
        Kept(torch.randn(40, 4), order=(order := torch.randperm(40))),
        Kept(torch.randn(40, 4), order=order),
    ),
    "what has no length": (
        Kept(TABLE.clone(), kind=list),
        Kept(TABLE.clone(), kind=list),
    ),
}


def on_both(make_optimizer, datasets):
    for dataset in datasets:
        model = nn.Linear(4, 1)
        step(make_optimizer(model, dataset), model)


@pytest.mark.parametrize("datasets", MEET.values(), ids=MEET)
def test_rows_that_two_datasets_share_are_recognised(make_optimizer, datasets):
    """By what they are read from; no value is kept."""
    with pytest.raises(LedgerError, match="rows of this dataset"):
        on_both(make_optimizer, datasets)


@pytest.mark.parametrize("datasets", APART.values(), ids=APART)
def test_other_rows_are_other_peoples(make_optimizer, datasets):
    """Parts of one dataset that have no row in common are paid for each by itself."""
    on_both(make_optimizer, datasets)


def shared(rows):
    """Rows that all have one tensor in front, as the edges of a graph."""
    return [({"edges": EDGES}, row) for row in rows]


def test_what_all_rows_of_a_list_share_is_nobodys():
    """The edges of one graph are in each row of both lists."""
    assert [*kept_rows(shared(TABLE[:20]), range(20))] == []


@pytest.mark.parametrize(
    "entry", ["text", 3, 2.5, None, np.float32(1), [1, 2, 3], {"ids": [4, 5]}], ids=repr
)
def test_nothing_refers_to_plain_values(entry):
    """Two lists of them may be two peoples'."""
    assert [*kept_rows([entry] * 3, range(3))] == []


def test_of_a_long_list_a_part_is_kept():
    """The same part of whichever list they are in."""
    rows = listed(torch.randn(5000, 1))
    kept = [*kept_rows(rows, range(5000))]
    others = [*kept_rows(rows[1000:], range(4000))]

    def places(found):
        return {(source.storage_offset(), *rows) for source, rows in found}

    assert len(kept) == len(others) == 1024
    assert len(places(kept) & places(others)) > 500


@pytest.mark.slow
def test_what_is_gone_is_forgotten(make_optimizer, monkeypatch):
    """An address that is used again is not taken for what was there."""
    monkeypatch.setattr(paid_for, "_FEW", 4)
    memory = paid_for._memory.get()
    memory.most = 4
    for _ in range(12):
        model = nn.Linear(4, 1)
        optimizer = make_optimizer(model, data())
        step(optimizer, model)
        step(optimizer, model)
        del model, optimizer
        gc.collect()

    assert len(memory.payments) <= 8


def test_a_dataset_at_the_address_of_another_is_not_taken_for_it(make_optimizer):
    """One that was let go of leaves its address to the next."""
    model = nn.Linear(4, 1)
    optimizer = make_optimizer(model, data())
    step(optimizer, model)
    address = id(optimizer.mechanism.loader.dataset)
    optimizer.attach(optimizer.plan.loader(data()))  # Not stepped on.
    kept = []
    while id(again := data()) != address and len(kept) < 1000:
        kept.append(again)
    optimizer.attach(optimizer.plan.loader(again))
    step(optimizer, model)

    fresh = nn.Linear(4, 1)
    with pytest.raises(LedgerError, match="rows of this dataset"):
        step(make_optimizer(fresh, again), fresh)


def test_steps_of_one_run_ask_once(make_optimizer, monkeypatch):
    """What was settled stays settled until another ledger pays for something new."""
    dataset, model = data(), nn.Linear(4, 1)
    optimizer = make_optimizer(model, dataset)
    step(optimizer, model)
    asked = []
    monkeypatch.setattr(
        paid_for._Memory, "check", lambda *_arguments: asked.append("again")
    )
    step(optimizer, model)
    assert asked == []

    another = nn.Linear(4, 1)
    step(make_optimizer(another, data()), another)
    step(optimizer, model)
    assert len(asked) == 2 + 2  # By the release, and by the witness of an early one.


@pytest.mark.parametrize("wrong", [1, {"segments": {}}])
def test_what_is_continued_must_be_an_optimizer(make_optimizer, wrong):
    """A state is loaded, not continued."""
    with pytest.raises(TypeError, match="continue_from must be a DPOptimizer"):
        make_optimizer(nn.Linear(4, 1), data(), earlier=wrong)


def test_audits_train_on_one_dataset_and_remember_nothing(make_plan):
    """They run a training function three times, and publish none of it."""
    dataset, model = data(), nn.Sequential(nn.Linear(4, 1))

    def train(model, dataset):
        plan = make_plan(steps=2)
        loader = plan.loader(dataset)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = DPOptimizer(sgd, plan=plan, loader=loader)
        for x, _ in loader:
            optimizer.backward(model(x).squeeze(1))
            optimizer.step()

    assert dp.audit.replay(train, model, dataset).ok
    train(model, dataset)


# Queries

ASKED = (
    dp.Query(name="adults", noise_multiplier=2.0),
    dp.Query(name="age", noise_multiplier=2.0),
)


@pytest.fixture
def make_ledger(make_plan):
    return lambda: Ledger(make_plan(queries=ASKED))


def test_rows_that_were_asked_about_are_charged_by_no_other_ledger(make_ledger):
    """Neither for another query nor for a step, and nothing is charged."""
    dataset = data()
    first, second = make_ledger(), make_ledger()
    Queries(first, dataset=dataset).count("adults", [True])

    with pytest.raises(LedgerError, match="or asked about"):
        Queries(second, dataset=Subset(dataset, [3, 4])).count("adults", [True])
    Queries(first, dataset=dataset).mean("age", [1.0], low=0, high=2, num_units=1)
    Queries(second, dataset=data()).count("adults", [True])


def test_steps_after_queries_go_on_with_their_ledger(make_optimizer, make_ledger):
    """Before the first step, and what the optimizer's loader reads is asked about."""
    dataset, model, ledger = data(), nn.Linear(4, 1), make_ledger()
    Queries(ledger, dataset=dataset.tensors[0]).count("adults", [True])
    other = nn.Linear(4, 1)
    apart = make_optimizer(other, dataset, queries=ASKED)
    with pytest.raises(LedgerError, match="rows of this dataset were trained on"):
        step(apart, other)
    assert apart.ledger.steps == 0

    optimizer = make_optimizer(model, dataset, queries=ASKED, earlier=ledger)
    step(optimizer, model)
    Queries(optimizer).mean("age", [1.0], low=0, high=2, num_units=1)

    with pytest.raises(LedgerError, match="or asked about"):
        Queries(make_ledger(), dataset=dataset).count("adults", [True])


def test_whose_rows_are_asked_about_has_to_be_said(make_ledger, make_plan):
    """A ledger does not know; an optimizer without a loader is asked of no dataset."""
    with pytest.raises(TypeError, match="needs dataset="):
        Queries(make_ledger())
    plan = make_plan(sampling=dp.Unamplified(), queries=ASKED)
    sgd = torch.optim.SGD(nn.Linear(4, 1).parameters(), lr=0.1)

    answer = Queries(DPOptimizer(sgd, plan=plan)).count("adults", [True])

    assert answer.stddev == 2.0


def test_a_kind_of_tensor_dataset_reads_from_its_tensors():
    class Named(TensorDataset):
        pass

    rows = torch.randn(4, 2)

    kept = [owner for owner, _ in kept_rows(Named(rows), range(4))]

    assert any(owner is rows for owner in kept)
