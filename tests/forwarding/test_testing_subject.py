"""What the law kit refuses to judge, and how it finds out about a target."""

import enum
import functools
import re

import pytest
from hypothesis import settings, strategies as st

from forwarding import Forwarded, Wrapper
from forwarding.testing import judge, machine_for


FEW = settings(max_examples=8, derandomize=True)


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = [1]


class Car(Wrapper):
    rpm = Forwarded()
    note = Forwarded()


@pytest.mark.parametrize("entry", [judge, machine_for])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "rpm"}, "names must be a non-empty collection, got 'rpm'"),
        ({"names": []}, r"names must be a non-empty collection, got \[\]"),
        ({"names": ["rpm", "gear"]}, "Engine has no gear"),
        ({"read_only": ["note"]}, r"read_only names \['note'\], which names does not"),
        ({"values": {"note": st.none()}}, r"values are given for \['note'\], which"),
        ({"fluent": ["note"]}, r"fluent names \['note'\], which names does not"),
        ({"depth": 0}, "depth must be >= 1, got 0"),
        ({"waive": "dir"}, "waive must be a collection of names, got 'dir'"),
        ({"waive": ["typo"]}, r"waive names \['typo'\]; the laws are get, put-get"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(entry, arguments, message):
    """A law that is never tried for a typo would seem to hold."""
    options = {"names": ["rpm"], **arguments}

    with pytest.raises(ValueError, match=message):
        entry(Car, Engine, **options)


def test_a_factory_that_cannot_wrap_its_own_result_is_judged_on_fewer_layers():
    """A wrapper that takes one class of target only is judged at depth 1."""

    def choosy(target):
        if not isinstance(target, Engine):
            raise TypeError(target)
        return Car(target)

    report = judge(choosy, Engine, ["rpm"], settings=FEW)

    assert report.named("broken") == ()
    assert report.label == "choosy"
    assert report.depth == 1
    assert report["layers"].summary == "not applicable: needs 2 layers"


def test_a_factory_that_makes_something_else_of_its_result_does_not_stack():
    """As a compiler of modules compiles a compiled one to a function."""

    def once(target):
        return (lambda: target) if isinstance(target, Car) else Car(target)

    assert judge(once, Engine, ["rpm"], settings=FEW).depth == 1


def test_a_factory_that_cannot_wrap_even_a_target_raises_what_it_raises():
    """That is no finding about depth."""

    def refuses(target):
        raise TypeError(f"not {target}")

    with pytest.raises(TypeError, match="not <"):
        judge(refuses, Engine, ["rpm"])


def test_a_function_without_a_usable_name_is_called_factory():
    """The counterexample must be a program."""
    nameless = functools.partial(Car)

    report = judge(nameless, Engine, ["rpm"], depth=1, settings=FEW)

    assert report.label == "factory"


def test_two_functions_of_one_name_are_called_by_two():
    """A factory and what builds a target may both be called ``make``."""

    def make_of_engines():
        def make():
            return Engine()

        return make

    def make(target):
        return Car(target)

    report = judge(make, make_of_engines(), ["rpm"], depth=1, settings=FEW)

    assert report["get"].status == "holds"


def test_where_the_target_is_kept_can_be_told():
    """If it does not show, the laws that exchange it need to be told the name."""

    class Secret:
        def __init__(self, engine):
            self._hold = [engine]

        @property
        def engine(self):
            return self._hold[0]

        @engine.setter
        def engine(self, engine):
            self._hold = [engine]

        @property
        def rpm(self):
            return self.engine.rpm

        @rpm.setter
        def rpm(self, value):
            self.engine.rpm = value

        @rpm.deleter
        def rpm(self):
            del self.engine.rpm

    untold = judge(Secret, Engine, ["rpm"], depth=1, settings=FEW)
    told = judge(Secret, Engine, ["rpm"], target="engine", depth=1, settings=FEW)

    assert "pass target=" in untold["re-target"].summary
    assert told["re-target"].status == "holds"


def test_a_target_in_a_slot_is_found():
    """No wrapper needs a dictionary."""

    class Slotted:
        __slots__ = ("engine", "unbound")
        rpm = Forwarded(to="engine")

        def __init__(self, engine):
            self.engine = engine

    report = judge(Slotted, Engine, ["rpm"], depth=1, settings=FEW)

    assert report["re-target"].status == "holds"
    assert report["patched method"].status == "not applicable"


def test_what_the_target_refuses_from_anyone_is_not_asked_of_the_wrapper():
    """A setter that raises something else than AttributeError has nothing to store."""

    class Frozen(Engine):
        @property
        def gear(self):
            return 1

        @gear.setter
        def gear(self, value):
            raise ValueError(value)

    class Driver(Wrapper):
        gear = Forwarded()

    report = judge(Driver, Frozen, ["gear"], depth=1, settings=FEW)

    assert report["get"].status == "holds"
    assert report["put-get"].status == report["read-only"].status == "not applicable"


def test_a_method_that_tells_no_signature_is_called_without_arguments():
    """As many in C do not."""

    class Library:
        least = staticmethod(min)

    class Front(Wrapper):
        least = Forwarded(kind="method")

    report = judge(Front, Library, ["least"], depth=1, settings=FEW)

    assert report["method"].status == "holds"


def test_methods_are_patched_only_where_they_can_be():
    """A wrapper with slots takes no patch, so nothing is said of one."""

    class Starter:
        def start(self):
            return self

    class Slotted:
        __slots__ = ("inner",)
        start = Forwarded(to="inner", kind="method")

        def __init__(self, inner):
            self.inner = inner

    report = judge(Slotted, Starter, ["start"], depth=1, settings=FEW)

    assert report["method"].status == "holds"
    assert report["patched method"].summary == (
        "not applicable: an instance has no dictionary to patch"
    )


class Motor:
    def __init__(self):
        self.speed = 0

    serial = property(lambda self: 7)  # noqa: ARG005

    def run(self):
        return self


@pytest.mark.parametrize("name", ["speed", "serial", "run"])
def test_one_target_for_all_laws_is_refused(name):
    """What one law puts on it would be held against the wrapper by the next."""
    motor = Motor()

    with pytest.raises(ValueError, match="returned one Motor twice"):
        judge(Front, lambda: motor, [name], settings=FEW)
    assert (motor.speed, motor.serial, motor.run()) == (0, 7, motor)


class Gear(enum.Enum):
    FIRST = 1


@pytest.mark.parametrize(
    ("target", "name", "law"),
    [
        (Gear.FIRST, "value", "get"),
        (re.compile("a"), "pattern", "get"),
        (re.compile("a"), "match", "async"),
        (3, "real", "get"),
    ],
)
def test_one_target_that_no_law_can_change_will_do(target, name, law):
    """A member of an Enum, or a constant, is never made anew."""
    report = judge(Front, lambda: target, [name], depth=1, settings=FEW)

    assert report[law].status == "holds"


class Front(Wrapper, forward="speed serial run value pattern match real"): ...
