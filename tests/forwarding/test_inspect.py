"""What can be found out about a wrapper, by a program and by a reader."""

import inspect
import io
import pydoc
import typing
from contextlib import redirect_stdout

import pytest
import wrapt
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    chain,
    forwarded,
    forwarded_attributes,
    owner_of,
    target,
    unwrap,
    verify,
)


class Engine:
    """An engine."""

    rpm: int = 900
    note: "NoSuchName" = 1  # noqa: F821
    gearbox: "Gearbox"
    plain_doc = object()

    def __init__(self):
        self.gearbox = Gearbox()

    @property
    def load(self) -> float:
        """Load in percent."""
        return 1.0

    def start(self, key: str, *, cold: bool = False) -> bool:
        """Start it."""

    async def warm(self, seconds: float) -> None:
        """Warm up."""

    @classmethod
    def build(cls, size: int) -> "Engine":
        """Build one."""

    @staticmethod
    def convert(value: float, unit: str = "rpm") -> float:
        """Convert."""


class Gearbox:
    ratio = 1.0

    def shift(self):
        """Change gear."""
        return self


class Car(Forwarding):
    """A car."""

    engine = target(Engine)
    rpm = forwarded(engine.rpm)
    note = forwarded(engine.note)
    load = forwarded(engine.load)
    speed = forwarded(engine.gearbox.ratio, doc="Speed in m/s.")
    shift = forwarded(engine.gearbox.shift)
    start = forwarded(engine.start)
    warm = forwarded(engine.warm)
    build = forwarded(engine.build)
    convert = forwarded(engine.convert)
    plain_doc = forwarded(engine.plain_doc)

    def __init__(self, engine):
        self.engine = engine


class Node:
    x = Forwarded(to="inner")

    def __init__(self, inner=None):
        self.inner = inner


@pytest.mark.parametrize(
    ("name", "unbound", "bound"),
    [
        (
            "start",
            "(self, key: str, *, cold: bool = False) -> bool",
            "(key: str, *, cold: bool = False) -> bool",
        ),
        ("warm", "(self, seconds: float) -> None", "(seconds: float) -> None"),
        ("build", "(cls, size: int) -> 'Engine'", "(size: int) -> 'Engine'"),
        (
            "convert",
            "(self, /, value: float, unit: str = 'rpm') -> float",
            "(value: float, unit: str = 'rpm') -> float",
        ),
    ],
)
def test_signatures_are_the_targets(name, unbound, bound):
    """inspect.signature shows what may be passed, not ``*args``."""
    assert str(inspect.signature(getattr(Car, name))) == unbound
    assert str(inspect.signature(getattr(Car(Engine()), name))) == bound


def test_a_builtin_without_a_signature_gets_the_generic_one():
    """Not every builtin has a signature; none is invented."""

    class OnDict(Wrapper[dict]):
        update = Forwarded()

    class OnList(Wrapper[list]):
        append = Forwarded()

    assert str(inspect.signature(OnDict.update)) == "(self, /, *args, **kwargs)"
    assert str(inspect.signature(OnList.append)) == "(self, object, /)"


def test_names_and_types_are_where_tools_look():
    """Names, module, docs and return types are those of a hand-written class."""
    assert Car.start.__qualname__ == "Car.start"
    assert Car.rpm.fget.__qualname__ == "Car.rpm"
    assert Car.rpm.fget.__name__ == Car.rpm.fset.__name__ == "rpm"
    assert Car.start.__module__ == Car.rpm.fget.__module__ == __name__
    assert typing.get_type_hints(Car.rpm.fget) == {"return": int}
    assert typing.get_type_hints(Car.load.fget) == {"return": float}
    assert typing.get_type_hints(Car.start)["key"] is str
    assert typing.get_type_hints(Car.note.fget) == {}


@pytest.mark.parametrize(
    ("name", "doc"),
    [
        ("rpm", "Forwarded to ``engine.rpm``."),
        ("plain_doc", "Forwarded to ``engine.plain_doc``."),
        ("load", "Load in percent."),
        ("speed", "Speed in m/s."),
        ("start", "Start it."),
        ("shift", "Change gear."),
        ("convert", "Convert."),
    ],
)
def test_docstrings_come_from_the_declaration_then_from_the_target(name, doc):
    """A value's own docstring (``int``'s, say) is not the attribute's."""
    assert inspect.getdoc(getattr(Car, name)) == doc


def test_help_shows_forwarded_attributes_as_a_persons():
    """Data are data descriptors with their doc; methods have signatures."""
    out = io.StringIO()
    with redirect_stdout(out):
        pydoc.help(Car)
    text = out.getvalue()

    assert "start(self, key: str, *, cold: bool = False) -> bool" in text
    assert "load\n |      Load in percent." in text
    kinds = {a.name: a.kind for a in inspect.classify_class_attrs(Car)}
    assert (kinds["rpm"], kinds["start"]) == ("property", "method")
    assert isinstance(inspect.getattr_static(Car(None), "rpm"), property)
    assert inspect.isdatadescriptor(Car.rpm)


def test_the_kind_of_a_nested_attribute_follows_annotations():
    """``engine.gearbox`` is annotated, so ``shift`` is known to be a method."""
    specs = forwarded_attributes(Car)

    assert (specs["shift"].kind, specs["speed"].kind) == ("method", "data")


def test_what_cannot_be_known_is_data():
    """An annotation that names nothing tells nothing; nor does none at all."""

    class Unknown(Forwarding):
        engine = target(Engine)
        a = forwarded(engine.note.start)
        b = forwarded(engine.missing.start)
        c = forwarded(engine.missing.more.start)
        d = forwarded(engine.load.is_integer)

    kinds = [spec.kind for spec in forwarded_attributes(Unknown).values()]
    assert kinds == ["data", "data", "data", "method"]


def test_the_chain_ends_in_what_forwards_nothing():
    """The chain lists every layer, unwrap the last one."""
    engine = Engine()
    car = Car(engine)
    outer = Wrapper(car)

    assert chain(outer) == (outer, car, engine)
    assert unwrap(outer) is engine
    assert chain(engine) == (engine,)
    assert unwrap(None) is None


def test_a_wrapt_proxy_is_a_layer():
    """So is any wrapt proxy; a function that was wrapped is none."""
    engine = Engine()
    proxy = wrapt.BaseObjectProxy(engine)
    layers = chain(Wrapper(proxy))

    assert layers[1] is proxy
    assert layers[2] is engine
    assert chain(test_a_wrapt_proxy_is_a_layer) == (test_a_wrapt_proxy_is_a_layer,)


def test_a_half_built_layer_has_no_chain():
    """Its target is missing, which is not the same as wrapping nothing."""
    with pytest.raises(AttributeError, match="has no attribute 'engine'"):
        chain(Car.__new__(Car))


@pytest.mark.slow
@given(st.lists(st.integers(0, 4), min_size=5, max_size=5))
def test_the_chain_is_finite_whatever_wraps_what(edges):
    """Any graph of five wrappers: each is listed once, and cycles are found."""
    nodes = [Node() for _ in edges]
    for node, edge in zip(nodes, edges, strict=True):
        node.inner = nodes[edge]
    layers = chain(nodes[0])

    assert len({id(layer) for layer in layers}) == len(layers) <= 5
    with pytest.raises(ForwardingError, match="Node wraps itself after"):
        unwrap(nodes[0])
    with pytest.raises(ForwardingError, match=r"Node\.x is forwarded in a circle"):
        owner_of(nodes[0], "x")
    with pytest.raises(RecursionError):
        nodes[0].x  # noqa: B018


class TwoTargets(Forwarding):
    engine = target(Engine)
    radio = target(Engine)
    rpm = forwarded(radio.rpm)

    def __init__(self, engine, radio):
        self.engine, self.radio = engine, radio


class TwoPaths:
    x = Forwarded(to="left")
    y = Forwarded(to="right")


class Shortcut:
    inner = Forwarded(path="outer.inner")
    x = Forwarded(to="inner")

    def __init__(self, outer):
        self.outer = outer


def test_of_several_targets_the_first_declared_is_the_one_wrapped():
    """A subclass may add targets without changing what the class wraps."""

    class More(TwoTargets):
        extra = target(Engine)

    engine = Engine()

    assert unwrap(More(engine, Engine())) is engine


def test_of_several_undeclared_targets_none_is_chosen():
    """The message says how to choose."""
    with pytest.raises(ForwardingError) as caught:
        unwrap(TwoPaths())

    assert str(caught.value) == (
        "TwoPaths forwards to left and right, so it has no single next layer; "
        "declare the one it wraps with target(), or follow one attribute with "
        "owner_of()"
    )


def test_a_target_that_is_itself_forwarded_is_no_layer_of_its_own():
    """``inner`` is found through ``outer``, which is what is wrapped."""
    node = Node(Engine())

    assert chain(Shortcut(node))[1] is node


def test_the_owner_and_its_name_are_found_through_renames():
    """owner_of follows each attribute on its own path."""
    engine = Engine()
    outer = Wrapper(None)

    class Fast(Wrapper):
        velocity = Forwarded(path="__wrapped__.speed")

    outer = Fast(Car(engine))

    assert owner_of(outer, "velocity") == (engine.gearbox, "ratio")
    assert owner_of(outer, "own") == (outer, "own")
    radio = Engine()
    assert owner_of(TwoTargets(engine, radio), "rpm") == (radio, "rpm")


def test_a_missing_layer_has_no_owner():
    """The natural error says what is missing."""
    with pytest.raises(AttributeError, match=r"'NoneType' .* 'gearbox'"):
        owner_of(Car(None), "speed")


class LARC:
    param_groups = ()


class Layer(Forwarding):
    param_groups = Forwarded(to="inner")
    state = Forwarded(to="inner")
    defaults = Forwarded(to="inner")
    step = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner


def problems(wrapper):
    with pytest.raises(ForwardingError) as caught:
        verify(wrapper)
    return str(caught.value)


def test_verify_lists_everything_that_is_missing():
    """One error names all."""
    assert problems(Layer(LARC())) == (
        "Layer(inner=<LARC>) forwards 4 names; "
        "'state', 'defaults', 'step' do not exist on LARC"
    )


def test_verify_says_what_is_out_of_reach():
    """A target that is not set, or missing on the way."""
    assert problems(Node.__new__(Node)) == (
        "Node() forwards 1 name; 'inner.x' is out of reach: "
        "'Node' object has no attribute 'inner'"
    )


def test_verify_finds_what_is_cut_off_or_shadowed():
    """Class-level writes, and values that an ``__setstate__`` left behind."""

    class Cut(Layer):
        pass

    class Below(Cut):
        pass

    engine = LARC()
    engine.state = engine.step = engine.defaults = 1
    wrapper = Below(engine)
    verify(wrapper)
    Cut.state = {}
    vars(wrapper)["defaults"] = {}

    assert problems(wrapper) == (
        "Below(inner=<LARC>) forwards 3 names; "
        "'state' is cut off by Below.state = {}; "
        "'defaults' is also in the wrapper's __dict__, where nothing reads it"
    )


def test_verify_finds_what_was_deleted_from_the_class():
    """As a patch leaves it that was not undone."""

    class Deleted(Forwarding, to="inner", forward="state"):
        def __init__(self, inner):
            self.inner = inner

    del Deleted.state

    assert "'state' was deleted from Deleted" in problems(Deleted(LARC()))


def test_verify_accepts_overrides_and_methods_set_on_a_layer():
    """A descriptor is an override; an instance may replace a method."""

    class Own(Layer):
        state = property(lambda _: 1)

    engine = LARC()
    engine.defaults = engine.step = 1
    wrapper = Own(engine)
    wrapper.step = print

    verify(wrapper)


def test_verify_says_what_goes_round_in_a_circle():
    """Python itself would say only that it went too deep."""
    node = Node()
    node.inner = node

    with pytest.raises(ForwardingError, match=r"is forwarded in a circle$"):
        verify(node)


def test_an_instance_is_not_taken_for_its_class():
    """What a wrapper forwards is asked of its class."""
    with pytest.raises(ForwardingError, match=r"of Node; pass type\(wrapper\)$"):
        forwarded_attributes(Node())


def test_verify_needs_no_instance_dict():
    """Slotted wrappers cannot be shadowed."""

    class Slotted:
        __slots__ = ("inner",)
        x = Forwarded(to="inner")

    slotted = Slotted()
    slotted.inner = Node(1)
    slotted.inner.inner = Engine()
    slotted.inner.inner.x = 1

    verify(slotted)


class Transparent(wrapt.BaseObjectProxy):
    rpm = Forwarded(to="__wrapped__")


def test_verify_takes_no_proxys_target_for_its_own_dict():
    """A wrapt proxy shows its target's ``__dict__``; nothing is shadowed there."""
    engine = Engine()
    engine.rpm = 5
    proxy = Transparent(engine)

    assert vars(proxy) is vars(engine)
    verify(proxy)


def test_what_a_class_forwards_is_read_once_and_anew_after_a_write():
    """However the class is written to: replaced, deleted, renamed, given other bases."""

    class Base(Forwarding):
        rpm = Forwarded(to="engine")

    class Other(Forwarding):
        oil = Forwarded(to="engine")

    class Car(Base):
        fuel = Forwarded(to="engine")
        limit = 3

    assert forwarded_attributes(Car) is forwarded_attributes(Car)
    fuel = Car.fuel
    del Car.fuel
    assert set(forwarded_attributes(Car)) == {"rpm"}
    Car.diesel = fuel
    assert set(forwarded_attributes(Car)) == {"rpm", "diesel"}
    Base.rpm = property(lambda _: 1)
    assert set(forwarded_attributes(Car)) == {"diesel"}
    Car.__bases__ = (Other,)
    assert set(forwarded_attributes(Car)) == {"oil", "diesel"}


def test_attributes_of_a_class_are_not_compared():
    """Their ``__eq__`` may do anything, as that of an array does."""

    class Array:
        def __eq__(self, other):
            pytest.fail("it was compared")

        __hash__ = None

    class Car(Forwarding, to="engine", forward="rpm"):
        shape = Array()

    forwarded_attributes(Car)
    Car.shape = Array()

    assert set(forwarded_attributes(Car)) == {"rpm"}
