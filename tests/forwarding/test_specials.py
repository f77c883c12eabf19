"""The table of special methods: complete, enforced, and the one in the docs."""

import array
import builtins
import collections.abc
import contextlib
import decimal
import fractions
import io
import operator
import pathlib
import re
import runpy
import types
import weakref

import pytest
from hypothesis import given, strategies as st

from forwarding import Forwarded, Forwarding, ForwardingError, Wrapper
from forwarding._specials import SPECIALS, refusal


DOCS = pathlib.Path(__file__).parents[2] / "docs"
MODULES = (
    array,
    builtins,
    collections,
    collections.abc,
    contextlib,
    decimal,
    fractions,
    io,
    pathlib,
    types,
    weakref,
)
# Named like special methods, but data of functions, frames, modules and errors, C
# layout, what copyreg caches on a class, or names that only ``operator`` and single
# classes of the library have.
NOT_SPECIAL = """
    __alloc__ __args__ __basicsize__ __callback__ __cause__ __closure__ __code__
    __context__ __defaults__ __dictoffset__ __flags__ __func__ __getformat__
    __globals__ __builtins__ __itemsize__ __kwdefaults__ __origin__ __self__
    __self_class__ __suppress_context__ __text_signature__ __thisclass__
    __traceback__ __typing_unpacked_tuple_args__ __unpacked__ __vectorcalloffset__
    __weakrefoffset__ __concat__ __iconcat__ __inv__ __not__ __all__ __cached__
    __file__ __loader__ __package__ __spec__ __signature__ __slotnames__
"""
FORWARDED = [n for n, special in SPECIALS.items() if special.standing == "forwarded"]
OTHERS = [n for n, special in SPECIALS.items() if special.standing != "forwarded"]


def special_names_of_the_library():
    classes = (
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type)
    )
    names = {name for cls in classes for base in cls.__mro__ for name in vars(base)}
    return {n for n in names | set(vars(operator)) if re.fullmatch(r"__\w+__", n)}


def test_every_special_method_of_the_library_is_in_the_table():
    """No special method that a class of Python's own defines is forgotten."""
    assert special_names_of_the_library() - set(NOT_SPECIAL.split()) <= set(SPECIALS)


def test_a_forgotten_special_method_would_be_found():
    """The check above sees every name that it should."""
    found = special_names_of_the_library()

    assert {"__len__", "__matmul__", "__aiter__", "__fspath__", "__ior__"} <= found


@pytest.mark.parametrize("name", FORWARDED)
def test_what_the_table_calls_forwarded_can_be_declared(name):
    """A declaration of it makes a class."""
    cls = type("Car", (Forwarding,), {name: Forwarded(to="engine")})

    assert name in vars(cls)
    assert refusal(name) is None


# Python itself refuses these before a declaration is looked at.
@pytest.mark.parametrize("name", sorted({*OTHERS} - {"__slots__", "__qualname__"}))
def test_what_the_table_does_not_call_forwarded_is_refused_with_its_reason(name):
    """The error names the attribute and says why."""
    reason = refusal(name, wrapper="car", target="engine")

    with pytest.raises(ForwardingError, match=f"^Car.{name} cannot") as caught:
        type("Car", (Forwarding,), {name: Forwarded(to="engine")})
    assert str(caught.value) == f"Car.{name} cannot be forwarded: {reason}"


def test_an_in_place_operator_is_refused_with_what_it_would_do():
    """The message shows the statement that would go wrong, and the remedy."""
    assert refusal("__iadd__", wrapper="car", target="engine") == (
        "'car += x' would rebind the name to the engine; "
        "use forwarding.proxy.TransparentProxy"
    )


@given(st.from_regex(r"[a-z_]{1,9}|__array_[a-z]{1,5}__", fullmatch=True))
def test_a_name_that_python_does_not_know_is_never_refused(name):
    """Only names of the data model are in the table."""
    assert name in SPECIALS or refusal(name) is None


class Arithmetic(Wrapper):
    """Forwards every operator that the table allows."""

    __eq__ = Forwarded()
    __hash__ = Forwarded()
    __lt__ = Forwarded()
    __bool__ = Forwarded()
    __index__ = Forwarded()
    __abs__ = Forwarded()
    __neg__ = Forwarded()
    __add__ = Forwarded()
    __radd__ = Forwarded()
    __mul__ = Forwarded()
    __rsub__ = Forwarded()
    __divmod__ = Forwarded()
    __format__ = Forwarded()


UNARY = [abs, bool, hash, operator.index, operator.neg, "{:>9}".format]
BINARY = [
    lambda number: number + 7,
    lambda number: 7 + number,
    lambda number: number * 7,
    lambda number: 7 - number,
    lambda number: divmod(number, 7),
    lambda number: number == 7,
    lambda number: number < 7,
]


@given(st.integers(), st.sampled_from(UNARY + BINARY))
def test_a_declared_operator_gives_what_the_target_gives(number, operation):
    """Python finds the operator on the class of the wrapper."""
    assert operation(Arithmetic(number)) == operation(number)


def test_of_two_wrappers_the_target_sees_the_other_wrapper():
    """What the table warns of for comparisons is so."""
    assert Arithmetic(7) != Arithmetic(7)


class Box(Wrapper):
    """Forwards what containers, calls and contexts are made of."""

    __len__ = Forwarded()
    __iter__ = Forwarded()
    __contains__ = Forwarded()
    __getitem__ = Forwarded()
    __setitem__ = Forwarded()
    __delitem__ = Forwarded()
    __reversed__ = Forwarded()


@given(st.lists(st.integers(), min_size=1))
def test_a_declared_container_is_the_target(items):
    """Length, items, membership and iteration are the target's."""
    box = Box(list(items))

    assert len(box) == len(items)
    assert [*box] == items
    assert [*reversed(box)] == items[::-1]
    assert items[0] in box
    box[0] = None
    assert box[0] is None
    del box[0]
    assert [*box] == items[1:]


def test_a_declared_context_and_call_run_on_the_target():
    """What ``with`` binds is the target, as the table warns."""

    class Opened(Wrapper):
        __enter__ = Forwarded()
        __exit__ = Forwarded()

    class Called(Wrapper):
        __call__ = Forwarded()

    file = io.StringIO("text")

    with Opened(file) as bound:
        assert bound is file
    assert file.closed
    assert Called(divmod)(7, 2) == (3, 1)


class ByInterface(Wrapper, forward=list):
    pass


class ByName(Wrapper[list[int]]):
    __add__ = Forwarded()


class InPlace(ByInterface):
    def __iadd__(self, other):
        self.__wrapped__ += other
        return self


class Sequence(Forwarding, collections.abc.MutableSequence, to="items", forward=list):
    def __init__(self, items):
        self.items = items


@pytest.mark.parametrize("kind", [ByInterface, ByName])
def test_an_operator_in_place_does_not_lose_the_wrapper(kind):
    """Python would bind the sum, a bare list, and leave the target as it was."""
    wrapper = kind([1])
    name = kind.__name__

    with pytest.raises(ForwardingError) as caught:
        wrapper += [2]

    assert type(wrapper) is kind
    assert str(caught.value) == (
        f"{name}.__iadd__ is refused: '{name.lower()} += x' would rebind the name to "
        "the target; use forwarding.proxy.TransparentProxy"
    )
    assert operator.add(wrapper, [2]) == [1, 2]


@pytest.mark.parametrize("kind", [InPlace, Sequence])
def test_an_operator_in_place_that_a_class_has_is_its_own(kind):
    """Defined in the body, or inherited from an abstract collection."""
    items = [1]
    wrapper = kind(items)
    wrapper += [2]

    assert type(wrapper) is kind
    assert items == [1, 2]


def test_a_target_without_operators_in_place_is_added_to_as_ever():
    """A number is not changed by ``+=``, so nothing is lost but the wrapper."""

    class Number(Wrapper[int], forward=int):
        pass

    number = Number(3)
    number += 1

    assert number == 4


def test_the_table_in_the_docs_is_the_one_in_the_code():
    """``python docs/special_methods.py`` was run after the last change."""
    generator = runpy.run_path(str(DOCS / "special_methods.py"))
    page = generator["PAGE"].read_text()

    assert generator["rewritten"](page) == page


def test_a_stale_table_in_the_docs_would_be_found():
    """The comparison above is not blind to the table."""
    generator = runpy.run_path(str(DOCS / "special_methods.py"))
    page = generator["PAGE"].read_text().replace("`__len__`", "")

    assert generator["rewritten"](page) != page


class Key(Wrapper, forward="__eq__"):
    """A mistake, as in a class body: equal to its target, and not hashed like it."""


class Both(Wrapper, forward="__eq__ __hash__"): ...


class Heir(Both, forward="__eq__"): ...


@pytest.mark.parametrize("wrapper", [Both, Heir])
def test_a_wrapper_with_equality_and_hash_is_found_by_its_target(wrapper):
    """In a dict, either finds the other."""
    assert {"a": 1}[wrapper("a")] == {wrapper("a"): 1}["a"] == 1


def test_equality_without_a_hash_leaves_none_in_bulk_too():
    """An object's own hash would let it be equal to a key, and not be found."""
    assert Key("a") == "a"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Key("a"))
