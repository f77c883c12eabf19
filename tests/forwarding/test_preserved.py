"""A base ``__init__`` that writes forwarded names does not overwrite the owner."""

import dataclasses
import gc
import threading
import weakref

import pytest
from hypothesis import given, strategies as st

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    forwarded_attributes,
    lazy,
    preserved,
    target,
)


class Base:
    def __init__(self, **values):
        vars(self).update(values)
        self.lr = 0.0
        self.state = {}
        del self.groups
        self.made = "by init"


class Owner:
    def __init__(self, **values):
        vars(self).update(values)


class Layer(Forwarding, Base):
    lr = Forwarded(to="inner")
    state = Forwarded(to="inner")
    groups = Forwarded(to="inner")
    made = Forwarded(to="inner")
    fixed = Forwarded(to="inner", set=False)
    step = Forwarded(to="inner", kind="method")

    def __init__(self, inner):
        self.inner = inner
        with preserved(self):
            super().__init__()


class Unprotected(Layer):
    def __init__(self, inner):
        self.inner = inner
        Base.__init__(self)


@given(st.fixed_dictionaries({n: st.lists(st.integers()) for n in ("lr", "state")}))
def test_the_owner_keeps_its_own_objects(values):
    """Set, replaced, deleted or added: all is as it was, at every depth."""
    owner = Owner(groups=[1], fixed=1, **values)
    before = dict(vars(owner))
    Layer(Layer(owner))

    assert vars(owner).keys() == before.keys()
    assert all(vars(owner)[name] is value for name, value in before.items())


def test_without_it_the_owner_is_overwritten():
    """The test above can fail: the base does write through."""
    owner = Owner(groups=[1], lr=1)
    Unprotected(owner)

    assert vars(owner) == {"lr": 0.0, "state": {}, "made": "by init"}


def test_the_owner_is_restored_when_the_block_raises():
    """An error inside is not swallowed either."""
    owner = Owner(lr=1, groups=[])
    layer = Layer(owner)

    def fails():
        with preserved(layer):
            layer.lr = 2
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()

    assert owner.lr == 1


def test_the_former_owner_is_restored_when_the_target_changes():
    """Values go back to the object that they were taken from."""
    first, second = Owner(lr=1, groups=[]), Owner(lr=5)
    layer = Layer(first)
    with preserved(layer):
        layer.lr = 2
        layer.inner = second

    assert (first.lr, second.lr) == (1, 5)


def test_an_unbound_target_is_reported_on_entering():
    """Bind the target before the block."""
    half = Layer.__new__(Layer)
    with pytest.raises(AttributeError, match="no attribute 'inner'"), preserved(half):
        pytest.fail("the block was entered")


class Computed:
    """A target whose names are properties of every sort."""

    def __init__(self):
        self.log = []
        self.lr = 0.5

    @property
    def view(self):
        self.log.append("get view")
        return [self.lr]

    @property
    def broken(self):
        self.log.append("get broken")
        raise ValueError("not trained yet")

    @broken.setter
    def broken(self, value):
        self.log.append(value)

    @property
    def percent(self):
        self.log.append("get percent")
        return 100 * self.lr

    @percent.setter
    def percent(self, value):
        self.log.append("set percent")
        self.lr = value / 100

    secret = property(fset=lambda self, value: self.log.append(value))


NAMES = "view broken percent secret lr"


def wrapping(names, init):
    class Outer(Forwarding, to="inner", forward=names):
        def __init__(self, inner):
            self.inner = inner
            with preserved(self):
                init(self)

    return Outer


def test_what_is_not_written_is_neither_read_nor_written():
    """Computed, raising, read-only and write-only properties stay untouched."""
    computed = Computed()
    wrapping(NAMES, lambda self: setattr(self, "lr", 0.0))(computed)

    assert computed.log == []
    assert computed.lr == 0.5


def test_a_computed_name_that_is_written_is_put_back_by_its_setter():
    """Its former value is read before the first write, and not after others."""
    computed = Computed()

    def init(self):
        self.percent = 1
        self.percent = 2

    wrapping(NAMES, init)(computed)

    assert computed.lr == 0.5
    assert computed.log[:3] == ["get percent", "set percent", "set percent"]


@pytest.mark.parametrize("order", ["lr secret", "secret lr"])
def test_what_cannot_be_put_back_is_told_after_all_the_rest(order):
    """A write-only property has no former value to return to."""
    computed = Computed()

    def init(self):
        for name in order.split():
            setattr(self, name, 0.0)

    with pytest.raises(
        ForwardingError, match=r"could not put back Computed\.secret, w"
    ):
        wrapping(NAMES, init)(computed)

    assert computed.lr == 0.5


def test_a_property_that_raises_and_is_written_is_told():
    """Its former value cannot be known."""
    with pytest.raises(
        ForwardingError, match=r"Computed.broken.*ValueError\('not trai"
    ):
        wrapping("broken", lambda self: setattr(self, "broken", 1))(Computed())


def test_what_the_block_creates_and_takes_away_is_gone():
    """There is nothing left to delete."""
    inner = Owner()

    def init(self):
        self.lr = 1
        del self.lr

    wrapping("lr", init)(inner)

    assert vars(inner) == {}


def test_an_alias_of_another_class_is_recorded():
    """It runs the code of that class under its own name."""

    class Other(Forwarding):
        rate = Layer.lr

    other, inner = Other(), Owner(lr=1)
    other.inner = inner
    with preserved(other):
        other.rate = 2

    assert inner.lr == 1


def test_an_error_of_the_block_is_not_hidden_by_another():
    """What could not be put back is a note on it."""
    layer = wrapping("secret", lambda _: None)(Computed())

    def fails():
        with preserved(layer):
            layer.secret = 1
            raise OSError("inside")

    with pytest.raises(OSError, match="inside") as caught:
        fails()

    assert "could not put back Computed.secret" in caught.value.__notes__[0]


def test_an_owner_that_refuses_to_take_it_back_is_told():
    """And the other values are put back."""

    class Closing:
        def __init__(self):
            self.sealed = False
            self.lr = 1

        def __setattr__(self, name, value):
            if name == "lr" and vars(self).get("sealed"):
                raise PermissionError("sealed")
            super().__setattr__(name, value)

    inner = Closing()

    def init(self):
        self.other = self.lr = 2
        self.sealed = True

    inner.other = 1
    with pytest.raises(ForwardingError, match=r"Closing.lr: PermissionError"):
        wrapping("lr sealed other", lambda self: init(self) or seal(inner))(inner)

    assert inner.other == 1


def seal(inner):
    """Close it behind the wrapper's back, so that the block does not reopen it."""
    vars(inner)["sealed"] = True
    type(inner).sealed = property(lambda _: True, lambda *_: None)


def test_blocks_may_be_nested_and_repeated():
    """The inner block returns to what the outer one wrote."""
    layer = wrapping("lr", lambda _: None)(Computed())
    block = preserved(layer)
    for _ in range(2):
        with block:
            layer.lr = 1
            with preserved(layer):
                layer.lr = 2
            assert layer.lr == 1
        assert layer.lr == 0.5


def test_other_wrappers_of_the_class_are_not_recorded():
    """Only what is written through this one is undone."""
    first, second = Computed(), Computed()
    cls = wrapping("lr", lambda _: None)
    layer, other = cls(first), cls(second)
    with preserved(layer):
        layer.lr = 1
        other.lr = 2

    assert (first.lr, second.lr) == (0.5, 2)


def test_items_and_collections_of_owners_are_put_back():
    """Whatever the path ends in, and however many owners there are."""

    class Outer(Forwarding):
        rate = Forwarded(path="inner.groups[0]['lr']")
        momentum = Forwarded(path="inner.groups[0]['momentum']")
        seed = Forwarded(each="envs")

    class Inner:
        pass

    outer, inner = Outer(), Inner()
    inner.groups = [{"lr": 0.5}]
    outer.inner, outer.envs = inner, [Inner(), Inner()]
    outer.envs[0].seed = 1
    with preserved(outer):
        outer.rate = outer.momentum = 0.1
        outer.seed = 7

    assert inner.groups == [{"lr": 0.5}]
    assert [vars(env) for env in outer.envs] == [{"seed": 1}, {}]


def test_an_alias_and_an_inherited_name_are_recorded_too():
    """The setter is one function, wherever it stands."""

    class Base(Forwarding):
        lr = Forwarded(to="inner")

    class Below(Base):
        rate = Base.lr

    below, inner = Below(), Owner(lr=1)
    below.inner = inner
    with preserved(below):
        below.rate = 2
        below.lr = 3

    assert inner.lr == 1


def test_setters_report_only_while_a_block_runs():
    """A question in every setter would cost a tenth of it."""

    class Never(Forwarding):
        lr = Forwarded(to="inner", kind="data")

    class Does(Never):
        rate = Forwarded(to="inner", kind="data")

    assert Never.lr.fset.__code__.co_names == ("inner", "lr")
    does = Does()
    does.inner = Owner(rate=1)
    getter = Does.rate.fget.__code__
    plain = Does.rate.fset.__code__
    with preserved(does), preserved(does):
        assert "recorders" in Does.rate.fset.__code__.co_names

    assert Does.rate.fset.__code__ is plain
    assert Does.rate.fget.__code__ is getter


def test_a_lazy_target_is_not_made_by_the_block():
    """Only by a write."""
    made = []

    class Outer(Forwarding):
        inner = target(Owner, via=lazy(lambda _: made.append(1) or Owner(lr=1)))
        lr = Forwarded()

    outer = Outer()
    with preserved(outer):
        assert made == []
        outer.lr = 2

    assert (made, outer.lr) == ([1], 1)


def test_an_accessor_of_ones_own_is_not_undone():
    """What it writes is the wrapper's own doing."""

    class Outer(Wrapper):
        lr = Forwarded()

        @lr.setter
        def lr(self, value):
            self.__wrapped__.lr = value + 1

    inner = Owner(lr=1)
    outer = Outer(inner)
    with preserved(outer):
        outer.lr = 2

    assert inner.lr == 3


def test_threads_that_build_wrappers_do_not_mix_up_their_targets():
    """Each block records its own wrapper."""
    cls = wrapping("lr", lambda self: [setattr(self, "lr", n) for n in range(50)])
    owners = [Owner(lr=n) for n in range(8)]
    threads = [threading.Thread(target=cls, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [owner.lr for owner in owners] == list(range(8))


def test_a_class_that_preserved_can_be_freed():
    """Nothing that is kept about its setters keeps it."""
    cls = wrapping("lr", lambda _: None)
    cls(Computed())
    reference = weakref.ref(cls)
    del cls
    gc.collect()

    assert reference() is None


def test_an_alias_of_a_setter_is_switched_once_more():
    """Two names, one function: the plain code comes back when the last block ends."""

    class Twice(Forwarding):
        lr = Forwarded(to="inner", kind="data")
        rate = None

    Twice.rate = Twice.lr
    twice = Twice()
    twice.inner = Owner(lr=1)
    plain = Twice.lr.fset.__code__
    with preserved(twice):
        twice.rate = 2

    assert twice.inner.lr == 1
    assert Twice.lr.fset.__code__ is plain


@dataclasses.dataclass(frozen=True)
class Frozen:
    fixed: int = 1


class Derived:
    @property
    def fixed(self):
        return 1


class ReadOnly(Forwarding):
    fixed = Forwarded(to="inner", set=False, delete=False)


class Half(Forwarding):
    fixed = Forwarded(to="inner", delete=False)


class OnClass(Forwarding):
    inner = target(Derived)
    fixed = Forwarded(on_class=True, set=False, delete=False)


class Free(Forwarding):
    fixed = Forwarded(to="inner")


def around(cls, inner):
    layer = cls()
    layer.inner = inner
    return layer


READ_ONLY = {
    "declared": lambda: around(ReadOnly, Owner(fixed=1)),
    "half declared": lambda: around(Half, Derived()),
    "on the class": lambda: around(OnClass, Derived()),
    "the owner's property": lambda: around(Free, Derived()),
    "a frozen owner": lambda: around(Free, Frozen()),
    "an inner layer": lambda: around(Free, around(ReadOnly, Owner(fixed=1))),
    "layers": lambda: around(ReadOnly, around(ReadOnly, Owner(fixed=1))),
}


@pytest.mark.parametrize("make", READ_ONLY.values(), ids=READ_ONLY)
def test_a_write_to_a_read_only_name_is_dropped_in_a_block_and_refused_elsewhere(make):
    """It would be undone, so that it is not done does not matter."""
    layer, other = make(), make()
    plain = vars(type(layer))["fixed"]
    with preserved(layer), preserved(layer):
        layer.fixed = 2
        del layer.fixed
        assert layer.fixed == 1
        assert "fixed" in forwarded_attributes(type(layer))
        with pytest.raises(AttributeError, match=r"no setter|cannot assign"):
            other.fixed = 2
        with pytest.raises(AttributeError, match=r"no deleter|cannot delete"):
            del other.fixed

    assert layer.fixed == 1
    assert vars(type(layer))["fixed"] is plain
    with pytest.raises(AttributeError):
        del layer.fixed


def frozen_by_attrs():
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")
    return attrs.make_class("Frozen", {"fixed": attrs.field(default=1)}, frozen=True)()


def frozen_by_pydantic():
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
    config = pydantic.ConfigDict(frozen=True)
    return pydantic.create_model("Frozen", fixed=(int, 1), __config__=config)()


@pytest.mark.parametrize("make", [frozen_by_attrs, frozen_by_pydantic])
def test_a_write_to_a_frozen_owner_is_dropped_whoever_froze_it(make):
    layer = around(Free, make())
    with preserved(layer):
        layer.fixed = 2
        del layer.fixed

    assert layer.fixed == 1
    with pytest.raises((AttributeError, ValueError)):
        layer.fixed = 2


def test_what_replaces_a_read_only_name_inside_a_block_stays():
    """The block puts back what it took away itself, and nothing else."""

    class Changing(Forwarding):
        fixed = Forwarded(to="inner", set=False)

    layer = around(Changing, Owner(fixed=1))
    with preserved(layer):
        Changing.fixed = property(lambda _: 5)
    assert layer.fixed == 5

    Changing.fixed = ReadOnly.fixed
    with preserved(layer):
        layer.fixed = 2
    assert layer.fixed == 1


def test_a_class_with_read_only_names_can_be_freed():
    """Its gate is kept by the class alone."""

    class Short(Forwarding):
        fixed = Forwarded(to="inner", set=False)

    with preserved(around(Short, Owner(fixed=1))):
        pass
    reference = weakref.ref(Short)
    del Short
    gc.collect()

    assert reference() is None
