"""A statistic of the first batch that a loss function keeps is found wherever it is.

Evaluated again, the function finds it made and repeats itself: unless what it keeps is
put back before, no exchange of examples changes a loss, and no later batch shows it.
"""

import functools
from collections import deque

import pytest
import torch
from torch import nn

from dp import SampleMixingError
from dp.evidence._namespaces import (
    ClassAttributes,
    Defaults,
    Entries,
    Slots,
    is_programs_own,
)
from dp.evidence._program_state import ProgramState
from dp.evidence._reach import reach_of

from . import keeping
from .keeping import centred_by_name
from .losses import Net, cross_entropy


@pytest.fixture(autouse=True)
def forgotten():
    yield
    keeping.forget()


class Centre:
    """Keeps it in the class."""

    of_all = None
    table = {}  # noqa: RUF012 -- as programs do

    def of_class(self, x):
        if type(self).of_all is None:
            Centre.of_all = x.mean(0)
        return x - Centre.of_all

    @classmethod
    def of_table(cls, x):
        return x - cls.table.setdefault("centre", x.mean(0))

    @property
    def losses(self):
        return keeping.centred


class Slotted:
    __slots__ = ("centre", "others")

    def centred(self, x):
        if not hasattr(self, "centre"):
            self.centre = x.mean(0)
        return x - self.centre


class Forward(Net):
    """Keeps it where only the method of a module names it."""

    def forward(self, x):
        return super().forward(centred_by_name(x))


def in_a_class(_model):
    Centre.of_all = None
    return Centre().of_class


def in_a_table_of_a_class(_model):
    Centre.table.clear()
    return Centre.of_table


def in_slots(_model):
    return Slotted().centred


def in_a_global_of_a_module(_model):
    return lambda x: keeping.centred(x)  # noqa: PLW0108 -- by the module's name


def in_a_global(_model):
    return centred_by_name


def by_a_property(_model):
    centre = Centre()
    return lambda x: centre.losses(x)  # noqa: PLW0108 -- read at every call


def in_a_default(_model):
    def centred(x, kept={}):  # noqa: B006 -- as programs do
        return x - kept.setdefault("centre", x.mean(0))

    return centred


def in_a_default_that_is_written_to(_model):
    def centred(x, centre=torch.zeros(4)):  # noqa: B008 -- as programs do
        if not centre.any():
            centre.copy_(x.mean(0))
        return x - centre

    return centred


def in_a_keyword(_model):
    def centred(x, *, kept=[]):  # noqa: B006 -- as programs do
        kept.extend([x.mean(0)] if not kept else [])
        return x - kept[0]

    return centred


def in_a_function(_model):
    def centred(x):
        if not hasattr(centred, "centre"):
            centred.centre = x.mean(0)
        return x - centred.centre

    return centred


def in_a_dictionary_of_a_dictionary(_model):
    state = {"of": {"all": {}}}
    return lambda x: x - state["of"]["all"].setdefault("centre", x.mean(0))


def in_a_list_of_a_tuple(_model):
    state = ((0, []),)

    def centred(x):
        kept = state[0][1]
        kept.extend([x.mean(0)] if not kept else [])
        return x - kept[0]

    return centred


def in_a_deque(_model):
    state = {"centres": (deque(maxlen=3),)}

    def centred(x):
        (kept,) = state["centres"]
        kept.extend([x.mean(0)] if not kept else [])
        return x - kept[0]

    return centred


def in_a_tensor_of_a_list(_model):
    kept = [[torch.zeros(4)]]

    def centred(x):
        if not kept[0][0].any():
            kept[0][0].copy_(x.mean(0))
        return x - kept[0][0]

    return centred


def in_a_partial(_model):
    return functools.partial(
        lambda x, kept: x - kept.setdefault("centre", x.mean(0)), kept={}
    )


KEPT = [
    in_a_class,
    in_a_table_of_a_class,
    in_slots,
    in_a_global_of_a_module,
    in_a_global,
    by_a_property,
    in_a_default,
    in_a_default_that_is_written_to,
    in_a_keyword,
    in_a_function,
    in_a_dictionary_of_a_dictionary,
    in_a_list_of_a_tuple,
    in_a_deque,
    in_a_tensor_of_a_list,
    in_a_partial,
]


def batch_of(size=16):
    return torch.randn(size, 4) + 1, torch.randint(0, 3, (size,))


@pytest.mark.parametrize("make", KEPT)
def test_a_statistic_of_the_first_batch_is_found_where_it_is_kept(make_optimizer, make):
    model = Net()
    centred = make(model)
    optimizer = make_optimizer(model.a, model.b)

    with pytest.raises(SampleMixingError, match="of an example"):
        optimizer.backward(
            lambda b: cross_entropy(model(centred(b[0])), b[1]), batch_of()
        )


def test_what_a_module_keeps_in_a_global_is_found(make_optimizer):
    model = Forward()
    optimizer = make_optimizer(model.a, model.b)

    with pytest.raises(SampleMixingError, match="of an example"):
        optimizer.backward(lambda b: cross_entropy(model(b[0]), b[1]), batch_of())


@pytest.mark.parametrize("make", KEPT)
def test_it_is_put_back(make):
    """By the end of the look, whoever it was made of is who it is made of."""
    centred = make(None)
    state = ProgramState(centred)
    x = torch.randn(5, 4) + 1
    first = centred(x)
    with state.excursion():
        state.rewind()
        centred(x + 3)

    assert torch.equal(centred(x), first)


def test_installed_packages_are_not_the_programs_own():
    """Nor are Python's modules, and this package's."""
    assert is_programs_own(__name__)
    assert not any(map(is_programs_own, ("dp.plan", "collections", "numpy.random")))
    assert is_programs_own("of_a_notebook")


def test_large_tensors_of_containers_are_data():
    """Every evaluation would copy them."""
    data = [torch.zeros(1 << 22), torch.zeros(1)]
    (holder,) = [p for p in reach_of(lambda _: data).places if p.owner == "list"]

    assert holder.namespace == {0: data}


def test_nothing_of_a_base_class_from_a_package_is_kept():
    """Its attributes belong to every program in the process."""
    places = reach_of(lambda _: nn.Linear).places

    assert [place.owner for place in places if place.owner == "Linear"] == []


def test_names_that_a_look_cannot_take_away_stay():
    """A list is as long as it was before its entries are put back."""
    for namespace in (Entries([1, 2]), Defaults(in_a_default)):
        with pytest.raises(TypeError, match="cannot be taken out of"):
            del namespace[0]
    assert len(Entries([1, 2])) == 2


def test_a_slot_that_was_emptied_is_filled_again():
    """Its value is what it was."""
    slotted = Slotted()
    slotted.centre = 1.0

    def losses(x):
        del slotted.centre
        return x

    state = ProgramState(losses)
    losses(torch.ones(2))
    assert "centre" not in Slots(slotted)
    with state.excursion():
        state.rewind()
        assert slotted.centre == 1.0

    assert not hasattr(slotted, "centre")


def test_what_a_class_was_given_since_is_taken_away_again():
    """As after the evaluation that made it."""

    class Empty:
        pass

    values = ClassAttributes(Empty)
    values["mean"] = 0.5
    assert dict(values) == {"mean": 0.5}
    del values["mean"]

    assert not hasattr(Empty, "mean")
