"""A declared attribute lives on its owner, however many layers are above it."""

import dis
import inspect
import linecache
import sys
import traceback
from functools import cached_property, lru_cache, partialmethod, wraps

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Spec,
    Wrapper,
    forwarded_attributes,
    target,
)


class Owner:
    """Anything with attributes."""

    def __init__(self, x=None):
        self.x = x
        self.calls = []

    def method(self, first, *rest, key=None):
        """Say what was passed."""
        self.calls.append((first, rest, key))
        return self, first, rest, key


class Layer:
    x = Forwarded(to="inner")
    method = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner


class Copies:
    """A wrapper gone wrong: it stores what it should forward."""

    def __init__(self, inner):
        self.inner = inner
        self.x = inner.x


values = st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers()))
depths = st.integers(min_value=1, max_value=8)


def stack(owner, depth, layer=Layer):
    layers = []
    for _ in range(depth):
        layers.append(layer(layers[-1] if layers else owner))
    return layers


def read(thing):
    return getattr(thing, "x", AttributeError)


def stored(layers):
    return [layer for layer in layers if "x" in vars(layer)]


operations = st.lists(
    st.tuples(st.sampled_from(["set", "delete", "set on owner"]), depths, values)
)


@given(depths, operations)
def test_every_layer_agrees_with_the_owner_whatever_is_done(depth, operations):
    """After any sets and deletes at any layer, all layers read the owner's object."""
    owner = Owner([])
    layers = stack(owner, depth)
    for operation, at, value in operations:
        layer = layers[min(at, depth) - 1]
        if operation == "delete":
            if hasattr(owner, "x"):
                del layer.x
            else:
                with pytest.raises(AttributeError):
                    del layer.x
        else:
            (owner if operation == "set on owner" else layer).x = value

        assert all(read(layer) is read(owner) for layer in layers)
        assert stored(layers) == []


def test_a_copying_wrapper_is_seen_to_store_and_to_go_stale():
    """The two checks above can fail: a wrapper of copied references fails both."""
    owner = Owner([])
    layers = stack(owner, 2, Copies)
    owner.x = [1]

    assert stored(layers) == layers
    assert all(read(layer) is not read(owner) for layer in layers)


@given(depths, st.integers(), st.integers())
def test_augmented_assignment_reaches_the_owner(depth, start, step):
    """``w.x += n`` ends as ``owner.x += n`` would."""
    owner = Owner(start)
    top = stack(owner, depth)[-1]
    top.x += step

    assert owner.x == start + step


def test_an_in_place_operator_keeps_the_owners_object():
    """``w.x += [1]`` extends the owner's own list."""
    owner = Owner([0])
    items = owner.x
    stack(owner, 3)[-1].x += [1]

    assert owner.x is items
    assert items == [0, 1]


def test_a_new_target_is_followed_at_once():
    """The owner is read at every access, so a wrapper can be re-targeted."""
    layer = Layer(Owner(1))
    layer.inner = Owner(2)

    assert layer.x == 2


def test_data_becomes_an_exact_property_with_its_spec():
    """Only an exact property with a Python getter is read at full speed."""
    spec = Layer.x.fget.__forwarded__

    assert type(Layer.x) is property
    assert spec == Spec(("inner", "x"))
    assert (spec.owner, spec.name, str(spec)) == ("inner", "x", "inner.x")


def test_one_name_is_a_target_and_a_dotted_path_ends_in_the_attribute():
    """Rename and nesting are just the path."""

    class Car:
        rpm = Forwarded(to="engine")
        speed = Forwarded(path="engine.x.x")

    assert str(forwarded_attributes(Car)["rpm"]) == "engine.rpm"
    assert str(forwarded_attributes(Car)["speed"]) == "engine.x.x"
    car = Car()
    car.engine = Owner(Owner(3))
    car.speed = 4
    assert car.engine.x.x == 4


@pytest.mark.parametrize("length", [2, 5, 30])
def test_a_path_may_be_long(length):
    """There is no limit that a real path could reach."""
    owner = Owner()
    root = owner
    for _ in range(length):
        root = Owner(root)
    path = ".".join(["inner", *["x"] * (length + 1)])
    top = type("Top", (), {"far": Forwarded(path=path)})()
    top.inner = root
    top.far = 1

    assert owner.x == 1


@pytest.mark.parametrize("name", ["self", "value", "property", "A", "B", "π", "args"])
def test_any_identifier_can_be_forwarded(name):
    """Names that the generated code uses itself are not special."""
    cls = type("Odd", (), {name: Forwarded(to="C"), "run": Forwarded(path=f"C.{name}")})
    odd = cls()
    odd.C = Owner()
    setattr(odd, name, 5)

    assert getattr(odd.C, name) == getattr(odd, name) == odd.run == 5
    delattr(odd, name)
    assert not hasattr(odd.C, name)


def test_read_only_and_undeletable_attributes_refuse_by_name():
    """``set=False`` and ``delete=False`` give the message of a property."""

    class Car:
        serial = Forwarded(to="engine", set=False, delete=False)

    car = Car()
    car.engine = Owner()
    car.engine.serial = 7

    assert car.serial == 7
    with pytest.raises(AttributeError, match=r"property 'serial' of .*Car.* no setter"):
        car.serial = 8
    with pytest.raises(
        AttributeError, match=r"property 'serial' of .*Car.* no deleter"
    ):
        del car.serial
    assert car.engine.serial == 7


def test_settable_but_undeletable():
    """The two options are independent."""

    class Car:
        x = Forwarded(to="engine", delete=False)
        y = Forwarded(path="engine.x", set=False)

    car = Car()
    car.engine = Owner(1)
    car.x = 2
    with pytest.raises(AttributeError, match="no deleter"):
        del car.x
    with pytest.raises(AttributeError, match="no setter"):
        car.y = 3
    del car.y

    assert not hasattr(car.engine, "x")


class Rich(Owner):
    """Every kind of attribute that a class can have."""

    default = 3
    hook = print
    __slots__ = ("slot",)

    def __init__(self):
        super().__init__(1)
        self.slot = 2
        self.reads = 0
        self.level = 0

    @property
    def checked(self) -> int:
        """A level of at least 0."""
        return self.level

    @checked.setter
    def checked(self, value):
        if value < 0:
            raise ValueError("negative")
        self.level = value

    @cached_property
    def costly(self):
        """Made once."""
        self.reads += 1
        return object()

    @classmethod
    def made(cls, size):
        """Make one."""
        return cls, size

    @staticmethod
    def plain(size, *, key=1):
        """Need no instance."""
        return size, key

    async def later(self, value):
        """Give it back."""
        return value

    @lru_cache  # noqa: B019
    def memoized(self, value):
        return value

    ready = partialmethod(Owner.method, "first")


class OnRich(Wrapper[Rich]):
    default = Forwarded()
    slot = Forwarded()
    checked = Forwarded()
    costly = Forwarded()
    made = Forwarded()
    plain = Forwarded()
    later = Forwarded()
    memoized = Forwarded()
    ready = Forwarded()
    method = Forwarded()
    hook = Forwarded()


KINDS = {
    "default": "data",
    "slot": "data",
    "checked": "data",
    "costly": "data",
    "made": "method",
    "plain": "method",
    "later": "async method",
    "memoized": "method",
    "ready": "method",
    "method": "method",
    "hook": "data",
}


def test_the_kind_is_read_from_the_targets_class():
    """Methods are told from data where the class of the target is known."""
    specs = forwarded_attributes(OnRich)

    assert {name: spec.kind for name, spec in specs.items()} == KINDS


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_kind_behaves_as_on_the_target(depth):
    """Properties, cached properties, slots, class-, static- and plain methods."""
    rich = Rich()
    top = stack(rich, depth, OnRich)[-1]
    top.slot = 5
    top.checked = 4
    with pytest.raises(ValueError, match="negative"):
        top.checked = -1

    assert (rich.slot, rich.level) == (5, 4)
    assert top.costly is top.costly is rich.costly
    assert rich.reads == 1
    assert top.made(3) == (Rich, 3)
    assert top.plain(3, key=2) == (3, 2)
    assert top.memoized(4) == 4
    assert top.ready("second")[:3] == (rich, "first", ("second",))


def test_deleting_a_cached_value_makes_the_target_compute_it_again():
    """The cache is the owner's."""
    top = OnRich(Rich())
    first = top.costly
    del top.costly

    assert top.costly is not first


@given(depths, st.lists(st.integers(), min_size=1), st.text())
def test_a_method_runs_on_the_owner_with_its_arguments(depth, arguments, key):
    """The call runs with the owner's own self, once."""
    owner = Owner()
    result = stack(owner, depth)[-1].method(*arguments, key=key)

    assert result == (owner, arguments[0], tuple(arguments[1:]), key)
    assert len(owner.calls) == 1


def test_a_method_takes_any_keyword():
    """No parameter name of the generated code gets in the way."""
    owner = Owner()
    owner.method = lambda **kwargs: kwargs
    keywords = {"self": 1, "args": 2, "kwargs": 3}

    assert Layer(owner).method(**keywords) == keywords


def test_a_method_is_set_and_deleted_on_its_layer():
    """A method patched on the outside stays where it was set."""
    owner = Owner()
    inner, outer = stack(owner, 2)
    outer.method = lambda: "patched"

    assert outer.method() == "patched"
    assert "method" not in vars(inner) | vars(owner)
    del outer.method
    assert outer.method(1) == (owner, 1, (), None)


def test_a_method_replaced_on_the_target_is_called():
    """The forwarder calls what the owner has now, not what it was made from."""
    owner = Owner()
    top = stack(owner, 2)[-1]
    owner.method = lambda: "new"

    assert top.method() == "new"


def test_a_coroutine_method_is_one():
    """Frameworks ask iscoroutinefunction before they await."""
    later = OnRich(Rich()).later(3)

    assert inspect.iscoroutinefunction(OnRich.later)
    with pytest.raises(StopIteration) as stop:
        later.send(None)
    assert stop.value.value == 3


def test_an_async_method_can_be_declared_where_nothing_is_known():
    """``kind=`` says it where the class of the target is unknown."""

    class Client:
        later = Forwarded(to="inner", kind="async method")

    assert inspect.iscoroutinefunction(Client.later)


def test_exceptions_of_the_owner_pass_unchanged():
    """The same exception object arrives, AttributeError included."""
    error = AttributeError("deep inside")

    class Failing:
        @property
        def x(self):
            raise error

    for top in stack(Failing(), 3):
        with pytest.raises(AttributeError) as caught:
            top.x  # noqa: B018
        assert caught.value is error


def test_a_half_built_wrapper_says_what_it_lacks():
    """Nothing recurses, and nothing is stored on the wrapper."""
    half = Layer.__new__(Layer)

    assert not hasattr(half, "x")
    with pytest.raises(AttributeError, match="'Layer' object has no attribute 'inner'"):
        half.x = 1
    assert vars(half) == {}


def test_a_none_target_fails_as_none_does():
    """There is no silent None."""
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'x'"):
        Layer(None).x  # noqa: B018


def test_a_traceback_shows_the_forwarded_line_and_underlines_it():
    """A reader sees where a missing attribute was looked for."""
    with pytest.raises(AttributeError) as caught:
        Layer(object()).x  # noqa: B018
    text = "".join(traceback.format_exception(caught.value))

    assert 'File "<forwarded Layer.x -> inner.x>", line 3, in x' in text
    assert "    return self.inner.x\n           ^^^^^^^^^^^^" in text


def test_the_source_survives_a_check_of_the_line_cache():
    """Debuggers and pytest call linecache.checkcache."""
    linecache.checkcache()

    assert inspect.getsource(Layer.x.fset) == (
        "@x.setter\ndef x(self, value):\n    self.inner.x = value\n"
    )


def test_a_private_target_is_mangled_as_in_the_class_body():
    """``Forwarded(path="__inner.x")`` means what ``self.__inner.x`` means there."""

    class _Private:
        x = Forwarded(path="__inner.x")

        def __init__(self, inner):
            self.__inner = inner

    assert _Private(Owner(3)).x == 3


def test_special_methods_are_found_by_the_language():
    """len(), [] and calls go to the target through the class."""

    class Sequence:
        __len__ = Forwarded(to="items")
        __getitem__ = Forwarded(to="items")

        def __init__(self, items):
            self.items = items

    sequence = Sequence([1, 2])

    assert (len(sequence), list(sequence), sequence[1]) == (2, [1, 2], 2)


def test_a_subclass_may_override_and_still_reach_the_forwarded_value():
    """An override survives, and ``super()`` reads through it."""

    class Doubled(Layer):
        @property
        def x(self):
            return super().x * 2

        @x.setter
        def x(self, value):
            Layer.x.fset(self, value)

    doubled = Doubled(Owner(2))
    doubled.x = 3

    assert doubled.x == 6
    assert "x" not in forwarded_attributes(Doubled)
    assert "method" in forwarded_attributes(Doubled)


def test_replacing_one_accessor_is_an_override():
    """A property with a setter of its own is no longer just forwarded."""

    class Checked(Layer):
        @Layer.x.setter
        def x(self, value):
            self.inner.x = value + 1

    checked = Checked(Owner(0))
    checked.x = 1

    assert checked.x == 2
    assert "x" not in forwarded_attributes(Checked)


def test_a_function_that_copies_a_forwarders_attributes_is_an_override():
    """functools.wraps must not make an override look forwarded."""

    class Counting(Layer):
        @wraps(Layer.method)
        def method(self, *args):
            return len(args)

    assert Counting.method.__forwarded__
    assert "method" not in forwarded_attributes(Counting)


def test_an_alias_is_forwarded_too():
    """The spec travels with the property."""

    class Aliased(Layer):
        y = Layer.x

    assert Aliased(Owner(3)).y == 3
    assert str(forwarded_attributes(Aliased)["y"]) == "inner.x"


BAD_PATHS = [
    None,
    3,
    pytest.param(target(Owner), id="target"),  # Its own address would be its name.
    "a b",
    "a..b",
    ".a",
    "a.",
    "1",
    "class",
    "a.import.b",
    "a[0",
    "a[x]",
    "a[0]]",
    "[0]",
    "f()",
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=repr)
def test_a_path_that_is_none_is_refused(path):
    """Paths are attribute names, checked before any code is generated."""
    with pytest.raises(ForwardingError, match="attribute names joined by dots"):
        Forwarded(path=path)


def test_an_unknown_kind_is_refused():
    """The message lists the kinds."""
    with pytest.raises(ForwardingError, match="'async generator method', got 'field'"):
        Forwarded(to="inner", kind="field")


def test_options_for_data_are_refused_on_methods():
    """An option that would be ignored is an error."""
    with pytest.raises(
        ForwardingError,
        match=r"Car\.go is a method, which is set and deleted on Car itself",
    ):

        class Car(Forwarding):
            go = Forwarded(to="engine", kind="method", set=False)


def test_a_declaration_added_to_a_finished_class_says_so():
    """It was never installed, so it raises instead of pretending."""

    class Late:
        pass

    Late.x = Forwarded(to="inner")

    assert isinstance(Late.x, Forwarded)
    for use in (lambda w: w.x, lambda w: setattr(w, "x", 1), lambda w: delattr(w, "x")):
        with pytest.raises(ForwardingError, match="declare it in the class body"):
            use(Late())


def test_an_object_bound_under_two_names_is_installed_under_both():
    """One declaration may serve two names; each is its own path."""
    shared = Forwarded(to="inner")
    cls = type("Two", (), {"x": shared, "y": shared})

    assert {n: str(s) for n, s in forwarded_attributes(cls).items()} == {
        "x": "inner.x",
        "y": "inner.y",
    }


def test_set_name_called_by_hand_for_another_attribute_does_nothing():
    """Only the class that holds the declaration is changed."""

    class Plain:
        x = 5

    Forwarded(to="inner").__set_name__(Plain, "x")

    assert Plain.x == 5


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="CPython 3.11 has no LOAD_ATTR_PROPERTY"
)
def test_the_interpreter_specializes_the_read():
    """A read of a forwarded attribute is as fast as of a hand-written property."""
    layer = Layer(Owner(1))

    def get(wrapper):
        return wrapper.x

    for _ in range(1000):
        get(layer)
    opnames = [i.opname for i in dis.get_instructions(get, adaptive=True)]

    assert "LOAD_ATTR_PROPERTY" in opnames
