"""Forwarding beside the class builders that people use."""

import dataclasses
import enum
import inspect
import io
import sys
from typing import ClassVar

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingABCMeta,
    ForwardingError,
    ForwardingMeta,
    forwarded_attributes,
    verify,
)


class Engine:
    def __init__(self):
        self.rpm = 900
        self.note = "hum"

    def start(self):
        return self

    def __eq__(self, other):
        return isinstance(other, Engine) and vars(self) == vars(other)

    __hash__ = None


class DataPlain:
    engine: Engine
    rpm = Forwarded(to="engine")
    note: str = Forwarded(path="engine.note", set=False)
    start: "ClassVar[object]" = Forwarded(to="engine", kind="method")


class DataChecked(Forwarding, to="engine", forward="rpm"):
    engine: Engine
    note: Forwarded[str] = Forwarded(path="engine.note", set=False)
    start: ClassVar = Forwarded(to="engine", kind="method")


class DataByMeta(metaclass=ForwardingMeta, to="engine", forward="rpm"):
    engine: Engine
    note: str = Forwarded(to="engine", set=False)
    start = Forwarded(to="engine", kind="method")


BODIES = [DataPlain, DataChecked, DataByMeta]
each_body = pytest.mark.parametrize("body", BODIES)


def rebuilt(body):
    """A fresh class with the same body, for a decorator to change."""
    namespace = {
        name: value
        for name, value in vars(body).items()
        if name not in ("__dict__", "__weakref__")
    }
    namespace["__annotations__"] = dict(body.__annotations__)
    return type(body.__name__, body.__bases__, namespace)


def check(cls):
    made = cls(Engine())
    made.rpm = 1000

    assert made.engine.rpm == made.rpm == 1000
    assert made.start() is made.engine
    assert made.note == "hum"
    with pytest.raises(AttributeError, match="no setter"):
        made.note = "roar"
    assert forwarded_attributes(cls).keys() == {"rpm", "note", "start"}
    verify(made)
    return made


@each_body
@pytest.mark.parametrize("slots", [False, True])
def test_declarations_are_no_dataclass_fields(body, slots):
    """Annotated or not, and when ``slots=True`` makes the class anew."""
    cls = dataclasses.dataclass(slots=slots)(rebuilt(body))
    made = check(cls)

    assert [field.name for field in dataclasses.fields(cls)] == ["engine"]
    assert hasattr(made, "__dict__") is not slots
    assert dataclasses.replace(made) == made


def test_a_property_that_is_annotated_does_become_a_field():
    """The test above can fail: for a plain property an annotation makes a field."""

    @dataclasses.dataclass
    class Plain:
        engine: Engine
        rpm: int = property(lambda self: self.engine.rpm)

    assert [field.name for field in dataclasses.fields(Plain)] == ["engine", "rpm"]


@each_body
def test_the_type_moves_from_the_annotation_to_the_getter(body):
    """Documentation still knows it; what makes fields does not."""
    annotations = inspect.get_annotations(body)

    assert body.note.fget.__annotations__ == {"return": str}
    assert annotations.keys() <= {"engine", "start"}


def test_a_frozen_dataclass_refuses_writes_and_reads_through():
    """Frozen means that no attribute can be set, forwarded or not."""
    frozen = dataclasses.dataclass(frozen=True)(rebuilt(DataPlain))(Engine())
    frozen.engine.rpm = 1

    assert frozen.rpm == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.rpm = 2


@each_body
@pytest.mark.parametrize("slots", [False, True])
def test_declarations_are_no_attrs_fields(body, slots):
    """The attrs package makes slotted classes anew."""
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")
    cls = attrs.define(slots=slots)(rebuilt(body))
    check(cls)

    assert [field.name for field in attrs.fields(cls)] == ["engine"]


def test_declarations_are_no_pydantic_fields():
    """Annotated or not; every base of Forwarding goes with BaseModel."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    class Model(Forwarding, pydantic.BaseModel, to="engine", forward="rpm"):
        model_config = config
        engine: Engine
        note: str = Forwarded(to="engine", set=False)
        start = Forwarded(to="engine", kind="method")

    class Bare(pydantic.BaseModel):
        model_config = config
        engine: Engine
        rpm = Forwarded(to="engine")

    made = Model(engine=Engine())
    made.rpm = 5
    bare = Bare(engine=made.engine)

    assert set(Model.model_fields) == set(Bare.model_fields) == {"engine"}
    assert (bare.rpm, made.note, made.start()) == (5, "hum", made.engine)
    with pytest.raises(AttributeError, match="no setter"):
        made.note = "roar"


def test_the_leaving_metaclass_goes_with_every_family():
    """Pydantic and Enum have metaclasses of their own, which make the class."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Model(
        pydantic.BaseModel, metaclass=ForwardingMeta, to="engine", forward="rpm"
    ):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        engine: Engine

    class Level(enum.Enum, metaclass=ForwardingMeta, to="value", forward="real"):
        LOW = 1
        HIGH = enum.auto()

    assert type(Model) is type(pydantic.BaseModel)
    assert Model(engine=Engine()).rpm == 900
    assert [level.real for level in Level] == [1, 2]


def test_the_guarding_metaclass_does_not():
    """It stays, so Python finds a conflict with another family."""
    for base in (enum.Enum, Traited):
        with pytest.raises(TypeError, match="metaclass conflict"):

            class Both(base, metaclass=ForwardingABCMeta):
                pass


class Traited(metaclass=type("MetaTraited", (type,), {})):
    """A class of a family of its own, whose metaclass takes no keywords."""


def test_declarations_are_no_traits():
    """Its metaclass takes no class keywords, so names are declared singly."""
    traits = pytest.importorskip("traits.api", reason="traits is not installed")

    class Traited(traits.HasTraits, metaclass=ForwardingMeta):
        size = traits.Int(3)
        rpm = Forwarded(to="engine")

        def __init__(self, engine):
            super().__init__()
            self.engine = engine

    traited = Traited(Engine())
    traited.rpm = 5

    assert (traited.engine.rpm, traited.size) == (5, 3)


def test_exceptions_can_be_wrappers():
    """Built-in bases with a layout of their own work too."""

    class BrokenError(Forwarding, Exception, to="engine", forward="rpm"):
        engine = None

    failure = BrokenError("broken")
    failure.engine = Engine()

    assert failure.rpm == 900


@pytest.mark.slow
def test_sphinx_documents_forwarded_attributes_with_types_and_docs(tmp_path):
    """Autodoc shows a property with its type, and a method with its signature."""
    application = pytest.importorskip(
        "sphinx.application", reason="Sphinx is not installed"
    )
    (tmp_path / "index.rst").write_text(
        ".. automodule:: documented\n   :members:\n", encoding="utf-8"
    )
    (tmp_path / "documented.py").write_text(DOCUMENTED, encoding="utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        application.Sphinx(
            tmp_path,
            None,
            tmp_path / "out",
            tmp_path / "doctrees",
            "text",
            {"extensions": "sphinx.ext.autodoc"},
            status=None,
            warning=io.StringIO(),
        ).build()
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("documented", None)
    text = (tmp_path / "out" / "index.txt").read_text(encoding="utf-8")

    assert "property rpm: int" in text
    assert "Revolutions per minute." in text
    assert "start(key: str) -> bool" in text


DOCUMENTED = '''
"""A page."""
from forwarding import forwarded, target

class Engine:
    rpm: int
    def start(self, key: str) -> bool:
        """Start it."""

class Car:
    """A car."""
    engine = target(Engine)
    rpm = forwarded(engine.rpm, doc="Revolutions per minute.")
    start = forwarded(engine.start)
'''


def test_a_plain_attribute_of_an_earlier_base_does_not_hide_a_forwarding():
    """The wrapper would keep what is assigned, and the engine never see it."""

    class Mixin:
        rpm = 7

    class Car(Forwarding, to="engine", forward="rpm"): ...

    with pytest.raises(
        ForwardingError, match=r"Mixin\.rpm = 7 would hide .* declared in Car;"
    ):

        class Tuned(Mixin, Car): ...

    class Fine(Car, Mixin): ...

    assert "rpm" in forwarded_attributes(Fine)


def test_a_slot_does_not_hide_a_forwarding():
    """It is a place on the wrapper, as a plain attribute is."""

    class Car(Forwarding, to="engine", forward="rpm"): ...

    with pytest.raises(ForwardingError, match=r"Tuned\.rpm = <member .* would hide"):

        class Tuned(Car):
            __slots__ = ("rpm",)
