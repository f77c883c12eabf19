"""What a function may change is found, and put back."""

import collections
import functools
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dp
from dp.evidence._program_state import ProgramState
from dp.evidence._random_state import RandomState, numpys_position
from dp.evidence._reach import reach_of


number = 1.0  # A global that a function below changes.


class Keeper:
    """An object of the program's own, with some state."""

    kind = 0  # Of the class.

    def __init__(self):
        self.count = 0
        self.total = torch.zeros(2)
        self.seen, self.by_name = [], {"a": 1}
        self.names, self.last = {"x"}, collections.deque([1], maxlen=3)

    def losses(self, batch):
        self.count += 1
        self.total += batch
        self.total = self.total * 2
        self.seen.append(self.count)
        self.by_name["b"] = 2
        self.names.add("y")
        self.last.append(2)
        self.made = "since"
        return batch * self.count

    def __call__(self, batch):
        return self.losses(batch)

    def facts(self):
        return (
            self.count,
            self.total.tolist(),
            list(self.seen),
            dict(self.by_name),
            set(self.names),
            list(self.last),
            hasattr(self, "made"),
        )


def of_a_method(keeper):
    return keeper.losses


def of_an_object(keeper):
    return keeper


def of_a_closure(keeper):
    return lambda batch: 2 * keeper.losses(batch)


def of_a_partial(keeper):
    return functools.partial(Keeper.losses, keeper)


def of_a_default(keeper):
    def losses(batch, inner=keeper):
        return inner.losses(batch)

    return losses


def of_a_keyword(keeper):
    def losses(batch, *, inner=keeper):
        return inner.losses(batch)

    return losses


def of_a_container(keeper):
    by_name = {"keeper": [keeper]}
    return lambda batch: 2 * by_name["keeper"][0].losses(batch)


def of_a_hook(keeper):
    model = nn.Linear(2, 2)

    def hook(*_):
        keeper.losses(torch.ones(2))

    model.register_forward_hook(hook)
    return model


@pytest.mark.parametrize(
    "make",
    [
        *(of_a_method, of_an_object, of_a_closure, of_a_partial, of_a_default),
        *(of_a_keyword, of_a_container, of_a_hook),
    ],
)
def test_state_of_objects_is_put_back(make):
    """By whatever way the function knows them; each is the object that it was."""
    keeper = Keeper()
    function = make(keeper)
    state = ProgramState(function)
    before = keeper.facts()
    function(torch.ones(2)) if make is not of_a_hook else function(torch.ones(1, 2))
    after, objects = keeper.facts(), (keeper.total, keeper.seen, keeper.by_name)
    with state.excursion():
        state.rewind()
        rewound = keeper.facts()
        function(torch.ones(1, 2) if make is of_a_hook else torch.full((2,), 5.0))

    assert rewound == before
    assert keeper.facts() == after
    assert all(
        one is other
        for one, other in zip(
            (keeper.total, keeper.seen, keeper.by_name), objects, strict=True
        )
    )


def test_variables_and_globals_are_put_back():
    """Numbers, tensors that are written to, and a name that did not exist."""
    calls, mean = 0, torch.zeros(2)

    def losses(batch):
        global number
        nonlocal calls
        number, calls = number * 2, calls + 1
        mean.mul_(0.5).add_(batch)
        return batch * number * calls

    state = ProgramState(losses)
    losses(torch.ones(2))
    with state.excursion():
        state.rewind()
        assert (number, calls) == (1.0, 0)
        losses(torch.full((2,), 5.0))

    assert (number, calls) == (2.0, 1)
    assert mean.tolist() == [1, 1]


def test_a_variable_that_was_deleted_stays_so():
    """Or was never assigned."""
    if torch.ones(1) > 2:
        unset = 1
    gone = 3

    def losses(batch):
        nonlocal gone
        del gone
        return batch if batch.sum() else unset

    state = ProgramState(losses)
    losses(torch.ones(2))
    with state.excursion():
        state.rewind()

    with pytest.raises(NameError):
        losses(torch.ones(2))


def test_buffers_are_not_written_to():
    """Autograd saved those of the real pass: address and version stay."""
    model = nn.BatchNorm1d(3)
    state = ProgramState(model)
    losses = model(torch.randn(5, 3)).sum(1)
    before = {
        k: (v, v.data_ptr(), v._version, v.clone()) for k, v in model.named_buffers()
    }
    with state.excursion():
        state.rewind()
        assert model.num_batches_tracked == 0
        model(torch.randn(5, 3))
        model.eval()

    for name, buffer in model.named_buffers():
        kept, address, version, copy = before[name]
        assert buffer is kept
        assert (buffer.data_ptr(), buffer._version) == (address, version)
        assert torch.equal(buffer, copy)
    assert model.training
    losses.sum().backward()


def test_differences_of_pictures_are_named_if_they_are_in_buffers():
    """And counted anywhere."""
    model, keeper = nn.BatchNorm1d(3), Keeper()
    state = ProgramState(lambda batch: keeper.losses(model(batch)))
    before = state.picture()
    model(torch.randn(5, 3))
    after = state.picture()
    keeper.by_name["a"] = [torch.zeros(1)]
    later = state.picture()
    keeper.by_name["a"] = [torch.zeros(1)]
    equal = state.picture()
    keeper.by_name["a"] = [torch.ones(1)]

    assert not state.differing(before, before).anywhere
    # A buffer is the same object in both: what changed in place shows in copies only.
    assert not state.differing(before, after).anywhere
    model.running_mean = torch.full((3,), 7.0)
    assert state.differing(after, state.picture()).buffers == [
        "BatchNorm1d.running_mean"
    ]
    assert state.differing(after, later).anywhere
    assert state.differing(later, state.picture()).anywhere
    model.running_mean = torch.zeros(4)
    assert state.differing(after, state.picture()).buffers == [
        "BatchNorm1d.running_mean"
    ]
    assert equal[-1].keys() == later[-1].keys()
    keeper.new = 1
    assert state.differing(after, state.picture()).anywhere


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        (1, 2, True),
        ([1], (1,), True),
        ([1], [1], False),
        ([1], [1, 2], True),
        ({1}, {2}, True),
        ({"a": 1}, {"b": 1}, True),
        ({"a": object}, {"a": object}, False),
        ((1, 2), (1, 3), True),
        (object(), object(), False),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int), True),
    ],
)
def test_values_are_compared_by_what_they_hold(one, other, differ):
    """Objects that cannot be compared are no difference."""
    keeper = Keeper()
    state = ProgramState(keeper.losses)
    keeper.thing = one
    before = state.picture()
    keeper.thing = other

    assert state.differing(before, state.picture()).anywhere is differ


def test_data_and_weights_are_not_copied():
    """Large tensors outside of modules may be the data."""
    large, weight = torch.zeros(1 << 23), torch.ones(2, requires_grad=True)
    sparse = torch.zeros(2, 2).to_sparse()
    state = ProgramState(lambda b: b * large.sum() * weight * sparse)

    variables = state.before[0]
    assert variables.keys() == {"large", "weight", "sparse"}
    assert all(kept.copy is None for kept in variables.values())


def test_the_data_and_optimizers_are_not_walked(make_optimizer):
    """They are no state of a loss."""
    optimizer = make_optimizer(nn.Linear(2, 2))
    dataset = TensorDataset(torch.zeros(3))
    loader = torch.utils.data.DataLoader(dataset)
    long, deep = [[nn.Linear(1, 1)]] * 100, [[[[[[[[nn.Linear(1, 1)]]]]]]]]
    reach = reach_of(
        lambda _: (optimizer, dataset, loader, long, deep, dp, TensorDataset)
    )

    assert reach.modules == []
    assert {p.owner for p in reach.places} == {"<lambda>()", __name__, "list"}
    assert all(len(p.namespace) == 1 for p in reach.places if p.owner == "list")


def test_compiled_functions_are_followed():
    """To the function that was compiled."""
    model = nn.Linear(2, 2)

    @torch.compile(backend="eager")
    def losses(batch):
        return model(batch).sum(1)

    assert reach_of(losses).modules == [model]
    assert not reach_of(losses).is_compiled
    assert reach_of(torch.compile(model, backend="eager")).is_compiled
    model.compile(backend="eager")
    assert reach_of(model).is_compiled


def test_accelerators_of_weights_are_known():
    """Their generators count."""
    model = nn.Linear(2, 2, device="cpu")
    model.register_buffer("empty", None)
    model.register_buffer("placed", torch.empty(1, device="meta"))

    assert reach_of(model).devices == set()
    there = torch.device("cuda", 0)
    model._buffers["there"] = types.SimpleNamespace(device=there)  # There may be none.
    assert reach_of(model).devices == {there}


def test_functions_of_libraries_are_not_followed():
    """Their globals are not the program's."""
    assert reach_of(nn.functional.dropout).places == []


@pytest.mark.parametrize(
    "make",
    [
        torch.Generator,
        np.random.default_rng,
        np.random.RandomState,
        random.Random,
    ],
)
def test_generators_go_on_from_where_they_were(make):
    """Those of the program's own, and of every library."""
    generator = make()

    def draws():
        if isinstance(generator, torch.Generator):
            own = float(torch.rand(1, generator=generator))
        else:
            own = float(
                generator.normal()
                if hasattr(generator, "normal")
                else generator.random()
            )
        return own, float(torch.rand(1)), random.random(), float(np.random.randn())

    state = RandomState([generator])
    first = draws()
    after = state.now()
    state.restore()
    again = draws()

    assert first == again
    assert state.now().equals(after)
    draws()
    assert not state.now().equals(after)


def test_an_accelerators_generator_is_asked_for(monkeypatch):
    """By its device module."""
    drawn = {"x": 1}

    class Module:
        @staticmethod
        def get_rng_state(device):
            return drawn[device]

        @staticmethod
        def set_rng_state(state, device):
            drawn[device] = state

    monkeypatch.setattr(torch, "get_device_module", lambda _: Module)
    state = RandomState(devices=["x"])
    drawn["x"] = 2
    state.restore()

    assert drawn["x"] == 1


def test_numpys_position_tells_of_every_draw():
    """Also of an integer; and costs a microsecond where its state costs a hundred."""
    before = numpys_position()
    assert numpys_position() == before
    np.random.randint(3)
    assert numpys_position() != before
