"""The state machine passes faithful wrappers, and catches those that only seem so."""

import copy

import pytest
from hypothesis import Phase, settings, strategies as st
from hypothesis.stateful import run_state_machine_as_test

from forwarding import Forwarded, Wrapper
from forwarding.testing import machine_for


SEARCH = settings(
    max_examples=60,
    stateful_step_count=12,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = [1]

    @property
    def serial(self):
        return "M-7"


class Car(Wrapper):
    rpm = Forwarded()
    note = Forwarded()
    serial = Forwarded()


NAMES = ["rpm", "note", "serial"]


def search(wrapper, make_target=Engine, names=NAMES, **options):
    run_state_machine_as_test(
        machine_for(wrapper, make_target, names, **options), settings=SEARCH
    )


@pytest.mark.slow
def test_a_faithful_wrapper_survives_every_mixture():
    """At one to three layers, on two names that can be set and one that cannot."""
    search(Car)


TestCar = machine_for(Car, Engine, NAMES).TestCase
TestCar.settings = settings(SEARCH, max_examples=5)


def test_a_machine_is_named_after_its_wrapper():
    """A test report shows which one failed."""
    assert machine_for(Car, Engine, NAMES).__name__ == "CarMachine"


@pytest.mark.slow
def test_a_target_that_makes_its_values_anew_is_compared_by_equality():
    """Identity would fail although nothing is wrong."""

    class Fresh:
        _points = ()

        @property
        def points(self):
            return list(self._points)

        @points.setter
        def points(self, value):
            self._points = tuple(value)

    class Reader(Wrapper):
        points = Forwarded()

    values = st.lists(st.integers(), max_size=2)
    search(Reader, Fresh, ["points"], values=values)


class KeepsAShadow(Car):
    def put(self, value):
        self.__wrapped__.rpm = vars(self)["rpm"] = value

    rpm = property(Car.rpm.fget, put, Car.rpm.fdel)


class AnswersFromMemory(Car):
    """Right until somebody else assigns."""

    memory = None

    def get(self):
        return self.__wrapped__.rpm if self.memory is None else self.memory[0]

    def put(self, value):
        self.memory = [value]
        self.__wrapped__.rpm = value

    def delete(self):
        self.memory = None
        del self.__wrapped__.rpm

    rpm = property(get, put, delete)


class DeletesInVain(Car):
    rpm = property(Car.rpm.fget, Car.rpm.fset, lambda _: None)


class SharesItsTarget(Car):
    def __deepcopy__(self, memo):
        return type(self)(self.__wrapped__)


class CopiesToABareCar(Car):
    def __deepcopy__(self, memo):
        return Car(copy.deepcopy(self.__wrapped__, memo))


class CopiesToAFreshTarget(Car):
    def __deepcopy__(self, memo):
        return type(self)(Engine())


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (KeepsAShadow, "keep a rpm of their own"),
        (AnswersFromMemory, "AnswersFromMemory.rpm is "),
        (DeletesInVain, "has {.*}, not {.*}"),
        (SharesItsTarget, r"Engine(\.(rpm|note) is| has) .*, not "),
        (CopiesToABareCar, "a copy is a Car"),
        (CopiesToAFreshTarget, "a copy holds .*, not "),
    ],
)
def test_a_wrapper_that_seems_faithful_is_caught(wrapper, message):
    """Each fails after some mixture of operations, and the message says how."""
    with pytest.raises(AssertionError, match=message):
        search(wrapper, depth=1)


class CannotBePickled(Car):
    def __deepcopy__(self, memo):
        return type(self)(copy.deepcopy(self.__wrapped__, memo))

    def __reduce__(self):
        raise TypeError("not this one")


class Captured(Car):
    """Looks its target up once."""

    def __init__(self, wrapped):
        super().__init__(wrapped)
        self.rpm_of = wrapped

    rpm = Forwarded(to="rpm_of")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "wrapper"),
    [
        ("delete", DeletesInVain),
        ("deepcopy", SharesItsTarget),
        ("pickle", CannotBePickled),
        ("re-target", Captured),
    ],
)
def test_a_waived_law_leaves_its_operation_out(law, wrapper):
    """A wrapper that does not promise it is not asked to do it."""
    with pytest.raises((AssertionError, TypeError)):
        search(wrapper)

    search(wrapper, waive={law})
