"""The probes that laws are written with, and what each refuses."""

import copy
import inspect
import io
import sys
import threading

import pytest
from hypothesis import settings

from forwarding import Forwarded, Wrapper
from forwarding.testing import judge, probes
from forwarding.testing.probes import NotApplicableError, alike


FEW = settings(max_examples=8, derandomize=True)


class Ambiguous:
    """Compares element by element, as an array does."""

    def __init__(self, *items):
        self.items = items

    def __eq__(self, other):
        return Ambiguous(
            *(a == b for a, b in zip(self.items, other.items, strict=True))
        )

    def __hash__(self):
        return 0

    def __bool__(self):
        raise ValueError("the truth value is ambiguous")

    def __repr__(self):
        return f"Ambiguous{self.items}"


def test_values_without_a_truth_value_are_compared_by_what_they_show():
    """Arrays and tensors raise when their comparison is asked for its truth."""
    assert alike(Ambiguous(1, 2), Ambiguous(1, 2))
    assert not alike(Ambiguous(1, 2), Ambiguous(1, 3))


def test_the_address_of_an_object_makes_no_difference():
    """A copy of what shows nothing but its address is alike."""

    class Plain:
        pass

    assert alike(Plain(), Plain())


def test_an_object_that_stores_nothing_has_an_empty_dictionary():
    """Also one whose ``__dict__`` is something else than a dictionary."""

    class Slotted:
        __slots__ = ("__dict__",)

    class Odd:
        __slots__ = ()
        __dict__ = property(lambda _: "odd")

    assert probes.own_dict(object()) == {}
    assert probes.own_dict(Odd()) == {}
    assert probes.own_dict(Slotted()) == {}


class NeedsATarget:
    def __new__(cls, _target):
        return super().__new__(cls)


def no_weak_references():
    return 7


class HoldsItself:
    def __init__(self):
        self.me = self


class Uncopyable:
    def __init__(self):
        self.lock = threading.Lock()


class Same:
    here = 7


class DropsEverything:
    def __deepcopy__(self, memo):
        return type(self)()


class Slotted:
    __slots__ = ()


class ClassIsFixed:
    __class__ = property(lambda _: int)


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (lambda: probes.addable(None), "no value drawn can be added"),
        (lambda: probes.half_built(NeedsATarget), "has no bare instances"),
        (lambda: probes.override(True), "bool has no subclasses"),  # noqa: FBT003
        (lambda: probes.override([]), "class of a list cannot be exchanged"),
        (lambda: probes.override(ClassIsFixed()), "a ClassIsFixed cannot be exchanged"),
        (lambda: probes.link(Slotted(), None), "keeps no further attribute"),
        (lambda: probes.link(DropsEverything(), None), "attribute in a copy"),
        (lambda: probes.patchable(Slotted()), "no dictionary to patch"),
        (
            lambda: probes.compute(Uncopyable(), "lock"),
            "value of lock cannot be copied",
        ),
        (lambda: probes.unbound(Same, Same, "here"), "not depend on the instance"),
        (lambda: probes.parameters(dict.update), "a method tells no signature"),
        (lambda: probes.travelled(Uncopyable()), "cloudpickle cannot pack it"),
        (lambda: probes.weakly(7, lambda: 7), "takes no weak references"),
        (lambda: probes.weakly(7, HoldsItself), "waits for the garbage collector"),
    ],
)
def test_a_probe_that_means_nothing_for_an_object_says_so(probe, reason):
    """A law is then not applicable, rather than broken or kept."""
    with pytest.raises(NotApplicableError, match=reason):
        probe()


def test_a_coroutine_that_waits_for_something_is_not_run_to_its_end():
    """What waits is not the recorder, so the wrapper called something else."""

    class Pause:
        def __await__(self):
            yield

    async def waits():
        await Pause()

    with pytest.raises(RuntimeError, match="waits for something of its own"):
        probes.finish(waits())


def test_the_kit_derives_from_what_a_function_builds():
    """The class of a wrapper that only a function can make is changed in place."""

    class Engine:
        rpm = 900

    class Car(Wrapper):
        rpm = Forwarded()

    def build(target):
        return Car(target)

    child = probes.derive(build, Engine(), rpm=property(repr))

    assert isinstance(child, Car)
    assert child.rpm.startswith("Car(")


def test_a_local_class_is_pickled_by_reference():
    """A test may define its wrapper where it uses it."""

    class Local:
        def __init__(self):
            self.kinds = [Local, int]

    twin = probes.pickled(Local())

    assert type(twin) is Local
    assert twin.kinds == [Local, int]


def test_a_value_that_the_target_itself_loses_in_a_copy_is_not_missed():
    """The wrapper has to keep what its target keeps, and no more."""

    class Cache:
        def __init__(self):
            self.hot = [1]

        def __deepcopy__(self, memo):
            twin = type(self)()
            twin.hot = None
            return twin

    class Front(Wrapper):
        hot = Forwarded()

    cache = Cache()

    assert probes.keeps(copy.deepcopy, Front(cache), cache, "hot")


def test_a_target_that_cannot_be_copied_is_not_held_against_its_wrapper():
    """A lock, a file or a cursor is wrapped as well."""

    class Guard:
        def __init__(self):
            self.owner = None
            self.lock = threading.Lock()

    class Front(Wrapper):
        owner = Forwarded()

    report = judge(Front, Guard, ["owner"], depth=1, settings=FEW)

    assert report.named("broken") == ()
    assert report["copy"].status == "holds"
    assert report["deepcopy"].summary == (
        "not applicable: deepcopy of the target itself raises TypeError"
    )
    for law in ("pickle", "cycles"):
        assert report[law].status == "not applicable"


async def coroutine(self):
    return self


def generator(self):
    yield self


async def async_generator(self):
    yield self


def plain(self):
    return self


@pytest.mark.parametrize("original", [coroutine, generator, async_generator, plain])
def test_a_stand_in_is_of_the_kind_of_what_it_replaces(original):
    """A wrapper may look before it calls, and the kit runs each to its result."""
    error, calls = ValueError(), []
    failing = probes.failing(error, original)
    recorder = probes.recorder("result", calls, original)

    for made in (failing, recorder, probes.returning_self(original)):
        assert probes.callable_kind(made) == probes.callable_kind(original)
        assert inspect.iscoroutinefunction(made) == inspect.iscoroutinefunction(
            original
        )
    assert probes.attempt(lambda: probes.finish(failing("me"))) is error
    assert probes.finish(recorder("me", 1)) == "result"
    assert probes.finish(lines := io.StringIO("a")) is lines
    assert calls == [("me", probes.received(original, (1,), {}))]
    assert probes.finish(probes.returning_self(original)("me")) == "me"


def test_arguments_that_do_not_fit_are_compared_as_they_are():
    """The law then fails on what the wrapper passed on."""
    assert probes.received(lambda: None, (1,), {"k": 2}) == ((1,), {"k": 2})


def test_what_another_thread_raises_is_raised_here():
    """A law that fails elsewhere is broken."""

    def fail():
        raise KeyError("elsewhere")

    with pytest.raises(KeyError, match="elsewhere"):
        probes.elsewhere(fail)


def test_hashes_are_compared_of_what_is_equal_and_hashable():
    """Objects that differ, or have no hash, cannot be lost in a set."""

    class Same:
        def __init__(self, number):
            self.number = number

        def __eq__(self, other):
            return True

        def __hash__(self):
            return self.number

    assert probes.hashes_agree(Same(1), Same(1))
    assert not probes.hashes_agree(Same(1), Same(2))
    assert probes.hashes_agree([], [])
    assert probes.hashes_agree(1, 2)


@pytest.mark.parametrize("module", ["__main__", "builtins"])  # The latter in a doctest.
def test_a_class_travels_by_value_wherever_it_is_defined(monkeypatch, module):
    """What comes back is built anew, and the class at home is not touched."""
    here = Uncopyable.__new__(Uncopyable)
    before = dict(vars(Uncopyable))

    there = probes.travelled(here)
    assert probes.changed(Uncopyable, before) == []
    monkeypatch.setattr(Uncopyable, "__module__", module)
    from_a_notebook = probes.travelled(here)

    assert type(there).__name__ == type(from_a_notebook).__name__ == "Uncopyable"
    assert type(there) is not Uncopyable


def test_without_cloudpickle_nothing_is_said_of_travelling(monkeypatch):
    """It is no dependency of the kit."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)

    with pytest.raises(NotApplicableError, match="cloudpickle is not installed"):
        probes.travelled(object())


@pytest.mark.slow
def test_a_wrapper_whose_class_takes_no_subclass_is_judged_by_the_other_laws():
    """The laws on subclasses are not applicable to it."""

    class Engine:
        def __init__(self):
            self.rpm = 900

    class Final(Wrapper):
        rpm = Forwarded()

        def __init_subclass__(cls):
            raise TypeError("final")

    report = judge(Final, Engine, ["rpm"], depth=1, settings=FEW)

    assert report["subclass"].summary == "not applicable: Final has no subclasses"
    assert report.named("broken") == ()
