"""The life of a wrapper: copies, pickles, references, threads, patches."""

import copy
import gc
import pickle
import threading
import weakref
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    ForwardingMeta,
    Wrapper,
    forwarded,
    forwarded_attributes,
    target,
    unwrap,
)


T = TypeVar("T")


class Owner:
    def __init__(self, x):
        self.x = x

    def method(self):
        return self


class OnWrapper(Wrapper[Owner]):
    x = Forwarded()
    method = Forwarded()


class OnTarget(metaclass=ForwardingMeta):
    inner = target(Owner)
    x = forwarded(inner.x)
    method = forwarded(inner.method)

    def __init__(self, inner):
        self.inner = inner


class Bare:
    x = Forwarded(to="inner")
    method = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner


class Slotted:
    __slots__ = ("__weakref__", "inner")
    x = Forwarded(to="inner")
    method = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner


KINDS = [OnWrapper, OnTarget, Bare, Slotted]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_depth = pytest.mark.parametrize("depth", [1, 2, 3])


def stack(kind, owner, depth):
    top = owner
    for _ in range(depth):
        top = kind(top)
    return top


@each_kind
@each_depth
def test_a_copy_shares_the_target(kind, depth):
    """copy.copy makes a second wrapper of the same object."""
    owner = Owner([])
    top = stack(kind, owner, depth)
    twin = copy.copy(top)
    twin.x = 1

    assert type(twin) is kind
    assert twin is not top
    assert top.x == owner.x == 1


@each_kind
@each_depth
def test_a_deep_copy_is_independent(kind, depth):
    """copy.deepcopy copies every layer and the owner."""
    owner = Owner([1])
    top = stack(kind, owner, depth)
    twin = copy.deepcopy(top)
    twin.x.append(2)

    assert type(twin) is kind
    assert (owner.x, twin.x) == ([1], [1, 2])
    assert unwrap(twin) is twin.method() is not owner


@each_kind
@each_depth
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_the_whole_stack(kind, depth, protocol):
    """Types, depth and values survive."""
    top = stack(kind, Owner([1]), depth)
    twin = pickle.loads(pickle.dumps(top, protocol))  # noqa: S301
    twin.x = 3

    assert type(twin) is kind
    assert type(unwrap(twin)) is Owner
    assert unwrap(twin).x == 3
    assert top.x == [1]


@each_kind
def test_nothing_keeps_a_wrapper_or_its_target_alive(kind):
    """There is no cycle: both are freed at once, without the collector."""
    gc.disable()
    try:
        owner = Owner(1)
        top = kind(owner)
        top.x = 2
        top.method()
        references = [weakref.ref(owner), weakref.ref(top)]
        del owner, top

        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_cycle_does_keep_it_alive():
    """The test above can fail: an object in a cycle waits for the collector."""
    gc.disable()
    try:
        owner = Owner(1)
        owner.x = owner
        reference = weakref.ref(owner)
        del owner

        assert reference() is not None
    finally:
        gc.enable()


@each_kind
@each_depth
@given(value=st.integers() | st.lists(st.integers()))
def test_patching_data_and_back_restores_the_owners_object(kind, depth, value):
    """mock.patch.object sets, deletes and sets again."""
    owner = Owner(value)
    top = stack(kind, owner, depth)
    with mock.patch.object(top, "x", "patched"):
        assert owner.x == "patched"

    assert owner.x is value


@pytest.mark.parametrize("kind", [OnWrapper, OnTarget, Bare])
def test_patching_a_method_and_back_touches_one_layer(kind):
    """A patched method stays on the layer that was patched."""
    owner = Owner(1)
    below = kind(owner)
    top = kind(below)
    with mock.patch.object(top, "method", return_value="patched"):
        assert top.method() == "patched"
        assert below.method() is owner

    assert top.method() is owner
    assert "method" not in vars(top)


@each_kind
def test_threads_read_some_target_of_the_history(kind):
    """A reader sees the old or the new target, never a mixture or an error."""
    owners = [Owner(i) for i in range(20)]
    top = kind(owners[0])
    attribute = "__wrapped__" if kind is OnWrapper else "inner"
    seen, stop = set(), threading.Event()

    def reads():
        while not stop.is_set():
            seen.add(top.x)

    threads = [threading.Thread(target=reads) for _ in range(3)]
    for thread in threads:
        thread.start()
    for owner in owners * 20:
        setattr(top, attribute, owner)
    stop.set()
    for thread in threads:
        thread.join()

    assert top.x == 19
    assert seen <= set(range(20))


def test_instances_made_without_init_find_their_target_by_getattr():
    """Lightning makes such instances; the target is read as any attribute."""

    class Late(OnTarget):
        def __getattr__(self, name):
            if name == "inner":
                return vars(self)["_optimizer"]
            raise AttributeError(name)

    late = Late.__new__(Late)
    late._optimizer = Owner(1)
    late.x = 2

    assert late._optimizer.x == 2
    assert late.method() is late._optimizer


def test_a_subclass_made_by_type_forwards():
    """Frameworks combine classes at run time."""
    dynamic = type("Dynamic", (Bare, OnTarget), {})

    assert dynamic(Owner(4)).x == 4


def test_repr_shows_the_layers():
    """A cycle or a half-built wrapper is shown, not an error."""
    wrapper = Wrapper(OnWrapper([1]))
    loop = Wrapper(None)
    loop.__wrapped__ = loop

    assert repr(wrapper) == "Wrapper(OnWrapper([1]))"
    assert repr(loop) == "Wrapper(...)"
    assert repr(Wrapper.__new__(Wrapper)) == "Wrapper(<nothing yet>)"


def test_dir_lists_what_is_forwarded():
    """Completion works on every layer."""
    assert {"x", "method", "__wrapped__"} <= set(dir(OnWrapper(Owner(1))))


class Pair(Wrapper[T]):
    """A wrapper that is itself generic."""

    extend = Forwarded()


class Ints(Pair[list[int]]):
    append = Forwarded()


class Named(Wrapper["Owner"]):
    x = Forwarded()
    method = Forwarded()


class Raw(Wrapper):
    append = Forwarded()


class RawBelow(Raw):
    extend = Forwarded()


@pytest.mark.parametrize(
    ("cls", "name", "kind"),
    [
        (Pair, "extend", "data"),
        (Ints, "append", "method"),
        (Ints, "extend", "data"),
        (Named, "method", "method"),
        (Raw, "append", "data"),
        (RawBelow, "extend", "data"),
    ],
)
def test_the_type_argument_tells_methods_from_data(cls, name, kind):
    """Only a class that is known when the class is made tells anything."""
    assert forwarded_attributes(cls)[name].kind == kind


def test_generic_wrappers_can_be_subscripted():
    """``Pair[list]`` is the same class at run time."""
    wrapper = Pair[list]([1])
    wrapper.extend([2])

    assert wrapper.__wrapped__ == [1, 2]
