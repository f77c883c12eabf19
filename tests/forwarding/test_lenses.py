"""Items, conversions, defaults, several owners, and the level of the class."""

import copy
import functools
import pickle
import weakref
from types import SimpleNamespace as Namespace

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    SlottedWrapper,
    Wrapper,
    forwarded,
    forwarded_attributes,
    owner_of,
    target,
)
from forwarding.proxy import around


class Inner:
    def __init__(self):
        self.param_groups = [{"lr": 0.1, "a.b": 1}, {"lr": 0.2}]
        self.celsius = 20


class Rates(Forwarding):
    inner = target(Inner)
    lr = forwarded(inner.param_groups[0]["lr"])
    last = Forwarded(path="inner.param_groups[-1]['lr']")
    dotted = Forwarded(path='inner.param_groups[0]["a.b"]')
    missing = Forwarded(path="inner.param_groups[0]['momentum']")
    far = Forwarded(path="inner.param_groups[9]['lr']")

    def __init__(self, inner):
        self.inner = inner


def test_an_item_is_got_set_and_deleted_on_its_container():
    """``scheduler.lr`` for what everybody spells ``param_groups[0]['lr']``."""
    inner = Inner()
    rates = Rates(inner)
    rates.lr = 0.5
    rates.last += 1

    assert inner.param_groups == [{"lr": 0.5, "a.b": 1}, {"lr": 1.2}]
    assert rates.dotted == 1
    del rates.lr
    assert "lr" not in inner.param_groups[0]
    rates.lr = 1
    assert rates.lr == 1


@pytest.mark.parametrize("name", ["missing", "far"])
def test_an_item_that_is_not_there_is_no_attribute(name):
    """Hasattr answers; the error names the path and the reason."""
    rates = Rates(Inner())

    assert not hasattr(rates, name)
    with pytest.raises(
        AttributeError, match=rf"Rates.{name} is forwarded to inner.param_g"
    ):
        getattr(rates, name)
    with pytest.raises(AttributeError, match="which is not there"):
        delattr(rates, name)


def test_an_item_can_be_created():
    """As on a dict."""
    inner = Inner()
    Rates(inner).missing = 0.9

    assert inner.param_groups[0]["momentum"] == 0.9


def test_the_owner_of_an_item_is_its_container():
    """Introspection follows the path."""
    inner = Inner()
    owner, name = owner_of(Rates(inner), "lr")

    assert owner is inner.param_groups[0]
    assert name == "['lr']"
    assert str(forwarded_attributes(Rates)["lr"]) == "inner.param_groups[0]['lr']"


def test_a_path_is_not_iterated_over():
    """Only items are recorded."""
    inner = target(Inner)

    with pytest.raises(TypeError):
        list(inner.param_groups)
    with pytest.raises(ForwardingError, match="an int or a str"):
        inner.param_groups[0:1]


class Thermometer(Wrapper[Inner]):
    fahrenheit = Forwarded(
        path="__wrapped__.celsius",
        get=lambda celsius: celsius * 9 / 5 + 32,
        set=lambda fahrenheit: (fahrenheit - 32) * 5 / 9,
    )
    celsius: float = Forwarded(set=float)
    text = Forwarded(path="__wrapped__.celsius", get=str, set=False, delete=False)


def test_values_are_converted_on_their_way():
    """The owner has its own units; each direction has its function."""
    thermometer = Thermometer(Inner())
    thermometer.fahrenheit = 212

    assert (thermometer.celsius, thermometer.fahrenheit) == (100, 212)
    thermometer.celsius = "37"
    assert thermometer.__wrapped__.celsius == 37.0
    assert thermometer.text == "37.0"
    with pytest.raises(AttributeError, match="no setter"):
        thermometer.text = "1"


def test_a_value_that_cannot_be_converted_changes_nothing():
    """The error is the function's own."""
    thermometer = Thermometer(Inner())
    with pytest.raises(ValueError, match="warm"):
        thermometer.celsius = "warm"

    assert thermometer.__wrapped__.celsius == 20


class Lenient(Wrapper):
    mode = Forwarded(default="plain")
    nothing = Forwarded(default=None)


class Failing:
    @property
    def mode(self):
        return self.absent


class Refusing:
    @property
    def mode(self):
        raise AttributeError("no attribute 'absent' today")


class Late:
    @functools.cached_property
    def mode(self):
        raise AttributeError("no attribute 'absent' yet")


class Reads:
    def __get__(self, owner, cls=None):
        return owner.absent


class Descriptive:
    mode = Reads()


fails = pytest.mark.parametrize("failing", [Failing, Refusing, Late])


def test_a_default_is_read_where_the_owner_lacks_the_name():
    """At any depth, and only for reading."""
    inner = Inner()
    lenient = Lenient(Lenient(inner))
    assert (lenient.mode, lenient.nothing) == ("plain", None)
    lenient.mode = "eco"
    assert (lenient.mode, inner.mode) == ("eco", "eco")
    del lenient.mode
    assert lenient.mode == "plain"
    with pytest.raises(AttributeError):
        del lenient.mode


class Plain(Wrapper):
    mode = Forwarded()


@fails
def test_a_default_is_found_missing_through_layers_and_items(failing):
    """The innermost owner lacks it; or the container lacks the item."""

    class Rate(Wrapper):
        momentum = Forwarded(
            path="__wrapped__.param_groups[0]['momentum']", default=0.9
        )

    assert Lenient(Plain(Plain(Inner()))).mode == "plain"
    assert Rate(Inner()).momentum == 0.9
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        Lenient(Plain(failing())).mode  # noqa: B018


class AsksFurther:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(vars(self)["inner"], name)


class Slotted:
    __slots__ = ("mode",)


@pytest.mark.parametrize(
    "owner", [AsksFurther(Inner()), AsksFurther(AsksFurther(Inner())), Slotted()]
)
def test_a_default_is_found_missing_behind_other_peoples_wrappers(owner):
    """Python then names the innermost object; or the name is a slot, and empty."""
    assert Lenient(owner).mode == "plain"
    assert Lenient(Plain(owner)).mode == "plain"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        Lenient(Descriptive()).mode  # noqa: B018


def test_specs_can_be_compared_and_collected():
    """Those with items, too."""
    specs = forwarded_attributes(Rates)

    assert len({*specs.values(), *specs.values()}) == len(specs)
    assert specs["lr"].path[-1] == specs["last"].path[-1] != specs["dotted"].path[-1]


@fails
def test_a_default_does_not_hide_an_error_of_the_owner(failing):
    """An AttributeError out of its property is not the absence of the name."""
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        Lenient(failing()).mode  # noqa: B018


def test_a_default_does_not_hide_a_missing_target():
    """A half-built wrapper says what it lacks."""
    half = Lenient.__new__(Lenient)

    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        half.mode  # noqa: B018


class Chain(Forwarding):
    colour = Forwarded(to=("user", "site", "factory"), set=False, delete=False)
    size = Forwarded(to=("user", "site"), get=int, default=0, set=False, delete=False)
    paint = Forwarded(to=("user", "factory"), kind="method")

    def __init__(self, user, site, factory):
        self.user, self.site, self.factory = user, site, factory


def test_the_first_owner_that_has_a_name_is_read():
    """A chain of settings, with a default at its end."""
    factory = Namespace(colour="grey", paint=lambda hue: f"factory {hue}")
    chain = Chain(Namespace(), Namespace(size="3"), factory)

    assert (chain.colour, chain.size, chain.paint("red")) == ("grey", 3, "factory red")
    chain.site.colour = "green"
    chain.user.paint = lambda hue: f"user {hue}"
    assert (chain.colour, chain.paint("red")) == ("green", "user red")
    del chain.site.size
    assert chain.size == 0
    del factory.colour, chain.site.colour
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        chain.colour  # noqa: B018


@fails
def test_an_error_of_an_owner_ends_the_chain(failing):
    """It has the name; it failed."""

    class Two(Forwarding):
        mode = Forwarded(to=("first", "second"), set=False, delete=False)

    two = Two()
    two.first, two.second = Namespace(), failing()
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        two.mode  # noqa: B018


def test_writing_to_one_of_several_owners_is_refused():
    """Nothing says to which."""
    with pytest.raises(ForwardingError, match="none is the one to write to"):

        class Two(Forwarding):
            mode = Forwarded(to=("first", "second"))


class Env:
    def __init__(self, seed):
        self.seed = seed

    def step(self, action, *, times=1):
        return (self.seed, action, times)

    async def close(self):
        return self.seed


class Vector(Forwarding):
    seed = Forwarded(each="envs")
    level = Forwarded(each="envs", get=str, set=int)
    step = Forwarded(each="envs", kind="method")
    close = Forwarded(each="envs", kind="async method")

    def __init__(self, envs):
        self.envs = envs


def test_values_are_gathered_and_broadcast():
    """Of vectorised environments, or several optimizers."""
    vector = Vector([Env(1), Env(2)])
    assert vector.seed == [1, 2]
    vector.seed = 7
    vector.level = "3"

    assert [vars(env) for env in vector.envs] == [{"seed": 7, "level": 3}] * 2
    assert vector.level == ["3", "3"]
    assert vector.step("up", times=2) == [(7, "up", 2)] * 2
    del vector.seed
    assert not hasattr(vector.envs[0], "seed")


def test_every_owner_is_awaited():
    """One after the other, in order."""
    closing = Vector([Env(1), Env(2)]).close()
    with pytest.raises(StopIteration) as stop:
        closing.send(None)

    assert stop.value.value == [1, 2]


def test_a_broken_collection_changes_no_owner():
    """The owners are found before the first is written to."""
    env = Env(1)

    def envs():
        yield env
        raise OSError("disconnected")

    vector = Vector(None)
    vector.envs = envs()
    with pytest.raises(OSError, match="disconnected"):
        vector.seed = 7

    assert env.seed == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"each": "envs", "default": 0}, "each= gathers a list"),
        ({"each": "envs", "returns": "wrapper", "kind": "method"}, "each= gathers"),
        (
            {"each": "a", "to": "b"},
            "takes one of to=, path= and each=, got to and each",
        ),
        ({"path": "a.b", "to": "b"}, "got to and path"),
        ({"path": "engine"}, r"an attribute of the wrapper itself; .*\(to='engine'\)"),
        ({"path": "engine..rpm"}, "attribute names joined by dots"),
    ],
)
def test_what_could_mean_two_things_is_refused(options, message):
    """With what to write instead."""
    with pytest.raises(ForwardingError, match=message):
        type("Car", (Forwarding,), {"x": Forwarded(**options)})


class Engine:
    LIMIT = 9

    def __init__(self, rpm):
        self.rpm = rpm

    @classmethod
    def make(cls, rpm=5):
        return cls(rpm)

    @staticmethod
    def check(rpm):
        return rpm < 9


class OnClass(Wrapper[Engine]):
    make = Forwarded(on_class=True)
    check = Forwarded(on_class=True)
    LIMIT = Forwarded(on_class=True)
    rpm = Forwarded()


class Special(Engine):
    LIMIT = 11


def test_the_class_of_the_wrapper_has_what_the_class_of_the_target_has():
    """Class methods, static methods and constants; instances ask their target."""
    special = OnClass(Special(1))

    assert type(OnClass.make(3)) is Engine
    assert type(special.make(3)) is Special
    assert OnClass.check(3) is special.check(3) is True
    assert (OnClass.LIMIT, special.LIMIT) == (9, 11)
    special.LIMIT = 12
    assert (special.__wrapped__.LIMIT, Engine.LIMIT) == (12, 9)
    assert forwarded_attributes(OnClass)["LIMIT"].kind == "data"


def test_the_level_of_the_class_needs_a_known_class():
    """There is no target to ask."""
    with pytest.raises(
        ForwardingError, match="on_class= needs the class of the target"
    ):

        class Car(Wrapper):
            make = Forwarded(on_class=True)


class Small(SlottedWrapper[Engine]):
    __slots__ = ()
    rpm = Forwarded()
    make = Forwarded()


def test_a_slotted_wrapper_has_no_dict():
    """And copies, pickles and is referred to as any other."""
    small = Small(Small(Engine(3)))
    small.rpm = 4

    assert not hasattr(small, "__dict__")
    assert forwarded_attributes(Small)["make"].kind == "method"
    pickled = pickle.loads(pickle.dumps(small))  # noqa: S301
    for twin in (copy.copy(small), copy.deepcopy(small), pickled):
        assert (type(twin), twin.rpm) == (Small, 4)
    assert weakref.ref(small)() is small
    assert repr(Small(3)) == "Small(3)"
    with pytest.raises(AttributeError):
        small.other = 1


def test_what_is_not_used_costs_nothing():
    """A plain declaration is one line, whatever else could have been said."""
    code = OnClass.rpm.fget.__code__

    assert code.co_names == ("__wrapped__", "rpm")
    assert type(OnClass.rpm) is property


@pytest.mark.parametrize(
    ("place", "word"), [("engine", "to"), ("engine.gearbox.rpm", "path")]
)
def test_the_old_spelling_warns_and_means_what_it_meant(place, word):
    """One dot decided; the warning says what to write."""
    with pytest.warns(
        DeprecationWarning, match=rf"write Forwarded\({word}='{place}'\)"
    ):
        declaration = Forwarded(place)
    old = type("Old", (), {"rpm": declaration})
    new = type("New", (), {"rpm": Forwarded(**{word: place})})

    assert forwarded_attributes(old) == forwarded_attributes(new)


def test_advice_has_the_same_spelling_and_warns_too():
    """``around`` takes ``to`` and ``path`` as a declaration does."""

    def advice(_self, proceed, *args):
        return proceed(*args)

    with pytest.warns(DeprecationWarning, match=r"write around\(path='engine.make'\)"):
        old = around("engine.make")
    car = type("Car", (), {"go": old(advice), "engine": Engine})()

    assert car.go(3).rpm == 3
