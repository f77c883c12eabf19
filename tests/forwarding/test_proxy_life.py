"""Life of a transparent proxy: copies, pickles, half-built ones, threads, the end."""

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest

from forwarding import Forwarded, chain, unwrap
from forwarding.proxy import TransparentProxy


class Engine:
    def __init__(self):
        self.rpm = 900

    def __eq__(self, other):
        return isinstance(other, Engine) and vars(self) == vars(other)

    __hash__ = None


class Plain(TransparentProxy):
    pass


class Labelled(TransparentProxy[Any]):
    """A proxy with names of its own, bare and with a value."""

    label: str
    count: int = 0
    rpm = Forwarded()


each_depth = pytest.mark.parametrize("depth", [1, 2, 3])


def stack(target, depth):
    for _ in range(depth):
        target = Labelled(target)
    return target


def twin_by_pickle(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


@each_depth
def test_a_copy_shares_the_target_and_has_its_own_names(depth):
    """The type is the same, including what the target made callable."""
    proxy = stack(Engine(), depth)
    proxy.label = ["mine"]
    twin = copy.copy(proxy)
    twin.count = 5

    assert type(twin) is type(proxy)
    assert twin.__wrapped__ is proxy.__wrapped__
    assert twin.label is proxy.label
    assert proxy.count == 0


@each_depth
@pytest.mark.parametrize("twin_of", [copy.deepcopy, twin_by_pickle])
def test_deep_copies_and_pickles_have_a_target_of_their_own(depth, twin_of):
    """At every layer; the names of each layer come along."""
    proxy = stack(Engine(), depth)
    for number, layer in enumerate(chain(proxy)[:-1]):
        layer.label = [number]
    twin = twin_of(proxy)
    twin.rpm = 1

    assert [layer.label for layer in chain(twin)[:-1]] == [[n] for n in range(depth)]
    assert all(type(layer) is Labelled for layer in chain(twin)[:-1])
    assert twin.label is not proxy.label
    assert (proxy.rpm, unwrap(twin).rpm) == (900, 1)
    assert unwrap(proxy) == Engine()


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, twin_by_pickle])
def test_a_twin_can_do_what_its_target_can(twin_of):
    """A class made for a callable target is pickled by its public name."""
    assert twin_of(Plain(divmod))(7, 2) == (3, 1)
    assert [*twin_of(Plain([1]))] == [1]


@pytest.mark.parametrize("twin_of", [copy.deepcopy, twin_by_pickle])
def test_a_target_may_hold_its_own_proxy(twin_of):
    """A cycle is copied as a cycle."""
    target = []
    proxy = Plain(target)
    target.append(proxy)
    twin = twin_of(proxy)

    assert twin[0] is twin
    assert twin is not proxy


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, twin_by_pickle])
def test_half_built_proxies_store_nothing_and_can_be_copied(twin_of):
    """Every access says which name is missing; none recurses."""
    half = twin_of(Labelled.__new__(Labelled))

    assert not hasattr(half, "anything")
    assert not hasattr(half, "__wrapped__")
    for use in (len, repr, lambda it: it.rpm, lambda it: setattr(it, "oil", 1)):
        with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
            use(half)
    half.label = "mine"
    assert half.label == "mine"


def test_proxies_are_freed_and_can_be_referred_to_weakly():
    """There is no cycle between a proxy and its target."""
    engine = Engine()
    proxy = stack(engine, 3)
    proxy_ref, engine_ref = weakref.ref(proxy), weakref.ref(engine)
    gc.disable()
    try:
        assert proxy_ref() is proxy
        del proxy, engine
        assert proxy_ref() is engine_ref() is None
    finally:
        gc.enable()


def test_threads_that_meet_a_new_kind_of_target_get_one_class():
    """The classes made for targets are shared, whoever makes them first."""

    class Fresh(TransparentProxy):
        pass

    barrier, found = threading.Barrier(8), []

    def make():
        barrier.wait()
        found.append(type(Fresh([])))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert len(set(found)) == 1
