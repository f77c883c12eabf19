"""Targets that are looked up at each access, or made at the first."""

import asyncio
import contextvars
import copy
import gc
import inspect
import pickle
import threading
import weakref
from functools import cached_property

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    TargetMissingError,
    Wrapper,
    chain,
    forwarded,
    forwarded_attributes,
    lazy,
    owner_of,
    target,
    unwrap,
    verify,
)


class Session:
    def __init__(self, name="main"):
        self.name = name
        self.log = []

    def add(self, item):
        self.log.append(item)
        return self

    async def commit(self):
        return self.name

    def rows(self):
        yield from self.log


current = contextvars.ContextVar("current")
local = threading.local()
stack = [Session("bottom")]


def top():
    return stack[-1]


class InContext(Forwarding):
    session = target(Session, via=current)
    name = forwarded(session.name)
    add = forwarded(session.add)
    commit = forwarded(session.commit)
    rows = forwarded(session.rows)


class InThread(Forwarding, forward="name add commit rows"):
    session = target(Session, via=local)


class OfRegistry(Forwarding):
    session = target(Session, via=top)
    name = forwarded(session.name)
    add = forwarded(session.add)
    commit = forwarded(session.commit)
    rows = forwarded(session.rows)


class Weak(Forwarding, forward=Session):
    session = target(Session, via=weakref.ref)


KINDS = {
    InContext: current.set,
    InThread: lambda session: setattr(local, "session", session),
    OfRegistry: stack.append,
    Weak: lambda _: None,
}


@pytest.fixture(params=KINDS, ids=lambda cls: cls.__name__)
def bound(request):
    """Yield a wrapper and its present target."""
    session = Session("bound")
    wrapper = request.param()
    KINDS[request.param](session)
    if request.param is Weak:
        wrapper.session = session
    yield wrapper, session
    current.set(Session("gone"))
    vars(local).clear()
    del stack[1:]


def test_everything_is_forwarded_to_the_present_target(bound):
    """Get, set, delete, methods of every sort; introspection too."""
    wrapper, session = bound
    wrapper.name = "renamed"
    assert (wrapper.name, session.name) == ("renamed", "renamed")
    assert wrapper.add(3) is session
    assert list(wrapper.rows()) == [3]
    assert asyncio.run(wrapper.commit()) == "renamed"
    assert inspect.iscoroutinefunction(type(wrapper).commit)
    assert wrapper.session is session
    assert chain(wrapper) == (wrapper, session)
    assert unwrap(wrapper) is session
    assert owner_of(wrapper, "name") == (session, "name")
    verify(wrapper)
    del wrapper.name
    assert not hasattr(wrapper, "name")
    assert not hasattr(session, "name")


def test_a_method_stays_on_the_layer(bound):
    """Its kind is known from target()."""
    wrapper, session = bound
    wrapper.add = len

    assert "add" not in vars(session)
    assert wrapper.add("abc") == 3


class Unset(Forwarding):
    session = target(Session, via=contextvars.ContextVar("unset"))
    name = forwarded(session.name)
    add = forwarded(session.add)


class Elsewhere(Forwarding):
    session = target(Session, via=threading.local())
    name = forwarded(session.name)
    add = forwarded(session.add)


class NotYet(Forwarding):
    session = target(Session, via=weakref.ref)
    name = forwarded(session.name)
    add = forwarded(session.add)


def empty():
    raise LookupError("the stack is empty")


class Empty(Forwarding):
    session = target(Session, via=empty)
    name = forwarded(session.name)
    add = forwarded(session.add)


UNBOUND = {
    Unset: "Unset.session has no target now: the ContextVar 'unset' is not set in this "
    "context",
    Elsewhere: "Elsewhere.session has no target now: this thread has bound none",
    NotYet: "NotYet.session has no target now: it was collected, or none was assigned",
    Empty: "Empty.session has no target now: empty() found none",
}


@pytest.mark.parametrize("cls", UNBOUND, ids=lambda cls: cls.__name__)
def test_where_nothing_is_bound_the_error_says_so(cls):
    """Not a bare LookupError; and hasattr answers."""
    wrapper = cls()
    for use in (
        lambda: wrapper.name,
        lambda: wrapper.session,
        lambda: wrapper.add(1),
        lambda: setattr(wrapper, "name", 1),
        lambda: delattr(wrapper, "name"),
    ):
        with pytest.raises(TargetMissingError) as caught:
            use()
        assert str(caught.value) == UNBOUND[cls]
    assert isinstance(caught.value, AttributeError | ForwardingError)
    assert not hasattr(wrapper, "name")


def test_an_error_of_the_target_is_not_taken_for_a_missing_target():
    """A LookupError or AttributeError inside passes as it is."""

    class Broken(Session):
        @property
        def name(self):
            raise KeyError("inside")

        @name.setter
        def name(self, value):
            pass

    wrapper = InContext()
    context = contextvars.copy_context()

    def use():
        current.set(Broken())
        with pytest.raises(KeyError, match="inside"):
            wrapper.name  # noqa: B018
        with pytest.raises(AttributeError, match="no attribute 'unknown'"):
            wrapper.session.unknown  # noqa: B018

    context.run(use)


def test_each_task_has_its_own():
    """Twenty tasks, no leak."""
    wrapper = InContext()

    async def work(number):
        wrapper.session = Session(number)
        await asyncio.sleep(0)
        wrapper.add(number)
        await asyncio.sleep(0)
        return wrapper.name, wrapper.session.log

    async def all_of_them():
        return await asyncio.gather(*(work(n) for n in range(20)))

    found = contextvars.copy_context().run(asyncio.run, all_of_them())

    assert found == [(n, [n]) for n in range(20)]


def test_each_thread_has_its_own():
    """What one assigns, another does not see."""
    wrapper, found = Elsewhere(), {}

    def work(number):
        wrapper.session = Session(number)
        found[number] = wrapper.name

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {n: n for n in range(8)}
    assert not hasattr(wrapper, "name")


def test_a_weak_target_is_not_kept_alive():
    """And its end is told."""
    weak, session = Weak(), Session()
    weak.session = session
    assert weak.name == "main"
    del session
    gc.collect()

    with pytest.raises(TargetMissingError, match="it was collected"):
        weak.name  # noqa: B018
    with pytest.raises(TargetMissingError, match="it was collected"):
        weak.session  # noqa: B018


class Car(Forwarding):
    made = 0
    session = target(Session, via=lazy(lambda car: car.build()))
    name = forwarded(session.name)
    add = forwarded(session.add)

    def build(self):
        type(self).made += 1
        return Session("built")


@pytest.fixture
def car():
    Car.made = 0
    return Car()


LOOKS = [repr, dir, vars, copy.copy, copy.deepcopy, pickle.dumps, hash, isinstance]


@pytest.mark.parametrize("look", LOOKS[:-1], ids=lambda look: look.__name__)
def test_looking_at_a_wrapper_does_not_make_its_target(car, look):
    """Only a use of the target does."""
    look(car)
    assert Car.made == 0
    assert car.name == "built"
    assert Car.made == 1


def test_a_lazy_target_is_made_once_and_is_then_an_attribute(car):
    """No look-up remains, so later access costs what a plain target costs."""
    for _ in range(3):
        car.add(1)

    assert Car.made == 1
    assert not isinstance(Car.session, Session)
    assert vars(car) == {"session": car.session}
    assert Car.name.fget.__code__.co_names == ("session", "name")


def test_threads_make_one_target():
    """``functools.cached_property`` makes one each since Python 3.12."""
    barrier = threading.Barrier(8)
    made = []

    class Slow(Forwarding):
        def build(self):
            made.append(1)
            threading.Event().wait(0.05)
            return Session()

        session = target(Session, via=lazy(build))
        name = forwarded(session.name)

    slow, found = Slow(), []

    def work():
        barrier.wait()
        found.append(slow.session)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1
    assert all(session is slow.session for session in found)


def test_instances_do_not_wait_for_each_other():
    """A factory may use another wrapper that is being built in another thread."""
    barrier = threading.Barrier(2, timeout=10)

    class Waits(Forwarding):
        session = target(Session, via=lazy(lambda _: (barrier.wait(), Session())[1]))
        name = forwarded(session.name)

    threads = [threading.Thread(target=lambda: Waits().name) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not barrier.broken


def test_an_error_of_the_factory_passes_and_the_next_access_tries_again():
    """A failed wrapper can still be copied and pickled."""

    class Flaky(Wrapper[Session], forward="name"):
        tries = 0

        def build(self):
            self.tries += 1
            if self.tries < 3:
                raise OSError(f"try {self.tries}")
            return Session()

        __wrapped__ = target(Session, via=lazy(build))

        def __init__(self):
            pass

    flaky = Flaky()
    for number in (1, 2):
        with pytest.raises(OSError, match=f"try {number}"):
            flaky.name  # noqa: B018
    assert repr(flaky) == "Flaky(<nothing yet>)"
    assert copy.deepcopy(flaky).tries == 2
    assert flaky.name == "main"
    assert vars(flaky).keys() == {"tries", "__wrapped__"}


def test_a_typed_target_may_be_redefined_by_what_makes_it():
    """The declarations above it go on to mean the attribute of that name."""

    class Lazy(Forwarding):
        session = target(Session)
        name = forwarded(session.name)
        add = forwarded(session.add)

        @cached_property
        def session(self):
            return Session("cached")

    made = Lazy()
    made.add(1)

    assert (made.name, made.session.log) == ("cached", [1])
    assert forwarded_attributes(Lazy)["add"].kind == "method"
    assert unwrap(made) is made.session


def test_a_path_that_no_body_declared_is_refused():
    """A target made elsewhere has no name here."""
    elsewhere = target(Session)

    with pytest.raises((ForwardingError, RuntimeError)) as caught:
        type("Car", (), {"name": forwarded(elsewhere.name)})
    refusal = caught.value.__cause__ or caught.value
    assert "its target was not declared in the class body" in str(refusal)


@pytest.mark.parametrize(
    "via",
    [3, "current", Session, object()],
    ids=["number", "name", "class", "object"],
)
def test_what_leads_to_no_target_is_refused(via):
    """Where it is written."""
    with pytest.raises(ForwardingError, match="via= takes a ContextVar"):
        target(Session, via=via)


def test_a_look_up_is_one_call():
    """The getter asks the registry itself; there is no property in between."""
    source = inspect.getsource(OfRegistry.name.fget)

    assert "target_ = session_via()" in source
    assert "return target_.name" in source


def test_a_target_by_name_may_be_dynamic_too():
    """``Forwarded(to=...)`` finds the resolver of the target that it names."""

    class Named(Forwarding):
        session = target(Session, via=top)
        name = Forwarded(to="session")
        entries = Forwarded(path="session.log")

    assert (Named().name, Named().entries) == ("bottom", stack[-1].log)


class Below(OfRegistry):
    log = Forwarded()


def test_a_subclass_looks_its_target_up_the_same_way():
    """The record of the base is asked."""
    assert Below().log is stack[-1].log
    assert "session_via" in inspect.getsource(Below.log.fget)
