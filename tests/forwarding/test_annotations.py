"""Annotations may be evaluated, in quotes, or deferred as from Python 3.14 on."""

import dataclasses
import inspect
import sys
from typing import ClassVar, Generic, TypeVar

import pytest

import forwarding
from forwarding import Forwarded, ForwardingError, forwarded_attributes
from forwarding._annotations import type_argument
from forwarding.proxy import TransparentProxy


class Engine:
    rpm: int

    def __init__(self):
        self.rpm = 900


SPACE = {
    **{name: getattr(forwarding, name) for name in forwarding.__all__},
    "TransparentProxy": TransparentProxy,
    "Engine": Engine,
    "dataclasses": dataclasses,
    "__name__": __name__,
}
T = TypeVar("T")
LATER = "from __future__ import annotations\n"
deferred = pytest.mark.skipif(sys.version_info < (3, 14), reason="deferred since 3.14")


def run(source):
    space = dict(SPACE)
    exec(source, space)  # noqa: S102
    return space


each_time = pytest.mark.parametrize("future", ["", LATER], ids=["now", "later"])

FORGOTTEN = [
    "class Car(Wrapper[Engine]):\n    rpm: {}\n",
    "class Car(Forwarding):\n    rpm: {}\n",
    "class Car(metaclass=ForwardingMeta):\n    rpm: {}\n",
]
SPELLINGS = [
    "Forwarded[int]",
    "Forwarded",
    "'Forwarded[int]'",
    "'Forwarded[Missing]'",
    "Forwarded['Missing']",
]


@each_time
@pytest.mark.parametrize("body", FORGOTTEN)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_forgotten_declaration_is_found(future, body, spelling):
    """However the annotation is written, and whether it can be evaluated."""
    with pytest.raises(ForwardingError, match=r"Car.rpm is annotated and not declared"):
        run(future + body.format(spelling))


def test_a_qualified_name_in_quotes_is_found_too():
    """``forwarding.Forwarded[int]``, where the package is imported as a whole."""
    with pytest.raises(ForwardingError, match="annotated and not declared"):
        run(LATER + "class Car(Wrapper):\n    rpm: forwarding.Forwarded[int]\n")


@each_time
@pytest.mark.parametrize("annotation", ["int", "'int'", "list['Missing']", "'Missing'"])
def test_what_is_annotated_otherwise_is_no_declaration(future, annotation):
    """An attribute of the wrapper itself."""
    space = run(future + f"class Car(Wrapper):\n    rpm: {annotation}\n")

    assert dict(forwarded_attributes(space["Car"])) == {}


@each_time
def test_annotated_names_stay_on_a_proxy(future):
    """And two proxies of one target do not share them."""
    cls = run(f"{future}class Car(TransparentProxy):\n    label: str\n")["Car"]
    engine = Engine()
    first, second = cls(engine), cls(engine)
    first.label, second.label = "first", "second"

    assert (first.label, second.label) == ("first", "second")
    assert not hasattr(engine, "label")


@each_time
def test_a_declaration_is_no_field_of_a_dataclass(future):
    """Its annotation is taken away, the others stay."""
    cls = run(
        f"{future}@dataclasses.dataclass\nclass Car:\n    engine: Engine\n"
        "    rpm: int = Forwarded(to='engine')\n    colour: str = 'red'\n"
    )["Car"]
    car = cls(Engine())
    car.rpm = 5

    assert [field.name for field in dataclasses.fields(cls)] == ["engine", "colour"]
    assert inspect.get_annotations(cls).keys() == {"engine", "colour"}
    assert (car.engine.rpm, car.colour) == (5, "red")


@deferred
def test_a_class_may_refer_to_itself_and_to_later_ones():
    """Where a plain class may, so may one that declares."""
    cls = run(
        "class Node(Forwarding):\n    parent: Node\n    engine = target(Engine)\n"
        "    rpm = forwarded(engine.rpm)\n    start: Later = Forwarded(to='engine')\n"
        "class Later: pass\n"
    )["Node"]

    assert forwarded_attributes(cls).keys() == {"rpm", "start"}
    assert inspect.get_annotations(cls) == {"parent": cls}


@deferred
def test_a_dataclass_may_refer_to_later_classes():
    """The annotations are evaluated when they are asked for, and not before."""
    space = run(
        "@dataclasses.dataclass\nclass Car:\n    next: Later\n    engine: Engine\n"
        "    rpm: Later = Forwarded(to='engine')\nclass Later: pass\n"
    )

    assert inspect.get_annotations(space["Car"]) == {
        "next": space["Later"],
        "engine": Engine,
    }


@deferred
def test_an_interface_may_refer_to_later_classes():
    """Its names are known, its types need not be."""
    space = run(
        "class Says:\n    rpm: Later\n    def start(self, key: Later) -> Later: ...\n"
        "class Car(Forwarding, to='engine', forward=Says): pass\n"
        "class Later: pass\n"
    )

    assert forwarded_attributes(space["Car"]).keys() == {"rpm", "start"}
    assert list(inspect.signature(space["Car"].start).parameters) == ["self", "key"]


def test_a_class_variable_keeps_its_annotation():
    """It makes no field, so nothing is taken away."""

    class Car:
        rpm: ClassVar[int] = Forwarded(to="engine")

    assert "rpm" in inspect.get_annotations(Car)


def test_a_generic_class_gives_itself_no_argument():
    """Only what derives from it does."""

    class Box(Generic[T]): ...

    assert type_argument(Box, Box) == (None, "")
