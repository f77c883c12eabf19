"""What of a target a wrapper does not cover, and what it hides."""

from functools import cached_property

import pytest

from forwarding import (
    Coverage,
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    coverage,
    forwarded,
    target,
    verify,
)
from forwarding.proxy import TransparentProxy


class Base:
    """Shared by the target and some wrappers, as Optimizer is."""

    limit = 5

    def __init__(self):
        self.groups = []

    def step(self):
        return self

    def reset(self):
        return self


class Target(Base):
    unit = "kg"
    __private = 1

    def __init__(self):
        super().__init__()
        self.rate = 0.1
        self._hidden = 1

    def weigh(self, load):
        return min(load, self.limit)

    @property
    def summary(self):
        raise ValueError("not trained yet")

    def audit(self):
        return self


class Sorted(Forwarding, Base, to="inner", forward="rate unit groups summary"):
    """One name of each kind."""

    limit: int

    def __init__(self, inner):
        self.inner = inner
        self.limit = 3

    def weigh(self, load):
        return 1000 * self.inner.weigh(load)

    def audit(self):
        raise NotImplementedError("would show what is private")

    reset = None


EXPECTED = {
    "forwarded": ("groups", "rate", "summary", "unit"),
    "own": ("limit",),
    "composed": ("weigh",),
    "refused": ("audit", "reset"),
    "missing": (),
    "shadowed": ("step",),
}


@pytest.mark.parametrize("wrapper", [Sorted, Sorted(Target())], ids=["class", "object"])
@pytest.mark.parametrize("inner", [Target, Target()], ids=["class", "object"])
def test_every_public_name_is_sorted(wrapper, inner):
    """Classes tell the same as objects, and no property is run."""
    found = coverage(wrapper, inner)

    assert {kind: getattr(found, kind) for kind in EXPECTED} == EXPECTED
    assert not found.complete


def test_a_new_name_of_the_target_is_missing():
    """SQLAlchemy#7103: a release that brings a name must turn a test red."""

    class Newer(Target):
        def __init__(self):
            super().__init__()
            self.momentum = 0.9

        def compile(self):
            pass

    class Whole(Wrapper[Target], forward=Target):
        pass

    assert coverage(Whole, Target).complete
    assert coverage(Whole, Newer).missing == ("compile", "momentum")
    assert coverage(Whole(Newer()), Newer()).missing == ("compile", "momentum")


def test_names_can_be_left_out():
    """An explicit list; what it names must exist, or it would outlive its reason."""

    class Part(Wrapper[Target], forward="rate"):
        pass

    names = ("audit", "groups", "limit", "reset", "step", "summary", "unit", "weigh")

    assert coverage(Part, Target).missing == names
    assert coverage(Part, Target, leave_out=names).complete
    with pytest.raises(ForwardingError, match=r"names gone, which Target lacks$"):
        coverage(Part, Target, leave_out=["gone"])


def test_names_that_only_a_live_target_has_are_seen():
    """Assigned from outside, or by an instance's own ``__dir__``."""

    class Odd(Base):
        def __dir__(self):
            return [*super().__dir__(), "computed"]

        def __getattr__(self, name):
            if name == "computed":
                return 1
            raise AttributeError(name)

    class Whole(Wrapper[Odd], forward=Odd):
        pass

    odd = Odd()
    odd.late = 1

    assert coverage(Whole, Odd).complete
    assert coverage(Whole(odd), odd).missing == ("computed", "late")


def test_a_name_that_another_instance_may_have_is_not_missed():
    """A branch of __init__ that this target did not take."""

    class Maybe:
        def __init__(self, *, fused=False):
            self.rate = 1
            if fused:
                self.kernel = 2

    class Part(Wrapper[Maybe], forward="rate"):
        pass

    assert coverage(Part, Maybe()).complete
    assert coverage(Part, Maybe).missing == ("kernel",)


class Odd:
    """Whose names are easily taken for absent."""

    spec = None
    __slots__ = ("__dict__", "slot")

    def __init__(self):
        self.made = None
        self.gone = 1
        del self.gone
        if self.made:
            self.never = 1

    @property
    def nothing(self):
        return None

    @property
    def failing(self):
        raise AttributeError("not yet")

    written = property(fset=lambda _self, _: None)


class Listed(Odd):
    """Its ``__dir__`` hides what it has, and lists what is answered otherwise."""

    def __dir__(self):
        return ["extra", "never"]


ODD = {"failing", "made", "nothing", "slot", "spec", "written"}


@pytest.mark.parametrize(
    ("make", "names"), [(Odd, ODD), (Listed, ODD | {"extra", "never"})]
)
def test_an_attribute_counts_whatever_its_value(make, names):
    """None, an empty slot, a property that fails or cannot be read."""

    class Around(Wrapper): ...

    class Early(Wrapper[Odd], forward="made"): ...

    assert set(coverage(Around, make()).missing) == names
    assert set(coverage(Early(make()), make()).missing) == names - {"made"}
    assert set(coverage(Around, make).missing) >= ODD


def test_renamed_names_are_forwarded():
    """Whatever they are called on the wrapper."""

    class Renamed(Forwarding):
        inner = target(Base)
        items = forwarded(inner.groups)
        maximum = Forwarded(path="inner.limit")

    assert coverage(Renamed, Base).forwarded == ("groups", "limit")


def test_an_accessor_of_its_own_is_composed():
    """The getter asks the target, the setter does more."""

    class Checked(Wrapper[Target]):
        rate = Forwarded()

        @rate.setter
        def rate(self, value):
            self.__wrapped__.rate = max(value, 0.0)

    assert coverage(Checked, Target).composed == ("rate",)


def test_what_passes_unknown_names_covers_them():
    """A wrapper that is not ours: it forwards by ``__getattr__``."""

    class Asking:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

    assert coverage(Asking, Target).missing == ()
    assert coverage(Asking(Target()), Target()).missing == ()
    shadowing = Asking(Target())
    shadowing.rate = 3
    assert coverage(shadowing, Target()).shadowed == ("rate",)
    assert coverage(TransparentProxy(Target()), Target()).complete


def test_layers_may_have_their_own():
    """The outer counter is not the inner one, by design."""

    class Counted(Wrapper[Base], forward="groups limit step reset"):
        def __init__(self, wrapped):
            super().__init__(wrapped)
            self.count = 0

        def plus(self):
            self.count += 1

    stack = Counted(Counted(Base()))

    assert coverage(stack, stack.__wrapped__).complete
    verify(stack)


def test_a_coverage_reads_as_a_report():
    """The kinds that have names, with their number."""
    assert str(coverage(Sorted, Target)) == (
        "Sorted around Target: incomplete\n"
        "  forwarded (4): groups, rate, summary, unit\n"
        "  own (1): limit\n"
        "  composed (1): weigh\n"
        "  refused (2): audit, reset\n"
        "  shadowed (1): step"
    )
    assert str(Coverage("A around B")) == "A around B: complete"


def hidden(wrapper):
    with pytest.raises(ForwardingError) as caught:
        verify(wrapper)
    return str(caught.value)


def test_verify_asks_after_names_that_were_meant():
    """Of the target, and of the owner on the way to it."""

    class Part(Forwarding):
        rte = Forwarded(to="base")
        colour = Forwarded(to="base")
        unit = Forwarded(path="bse.unit")

        def __init__(self):
            self.base = Target()

    assert hidden(Part()).endswith(
        "'rte' (did you mean 'rate'?), 'colour' do not exist on Target; 'bse.unit' is "
        "out of reach: 'Part' object has no attribute 'bse' (did you mean 'base'?)"
    )


def test_verify_reports_a_name_that_hides_the_targets():
    """It was assigned, and nothing said that it is the wrapper's own."""

    class Part(Wrapper[Target], forward="groups"):
        pass

    part = Part(Target())
    verify(part)
    part.rate = 0.5

    assert "'rate' in the wrapper's __dict__ hides Target's" in hidden(part)


@pytest.mark.parametrize("way", ["annotated", "excepted", "defined"])
def test_verify_lets_be_what_is_said_to_be_the_wrappers(way):
    """The class says so in one of three ways."""

    class Annotated(Wrapper[Target], forward="groups"):
        rate: float

    class Excepted(Wrapper[Target], forward="groups rate", but="rate"):
        pass

    class Defined(Wrapper[Target], forward="groups"):
        rate = 0.0

    cls = {"annotated": Annotated, "excepted": Excepted, "defined": Defined}[way]
    wrapper = cls(Target())
    wrapper.rate = 0.5

    verify(wrapper)
    assert "rate" in coverage(wrapper, Target()).own


def test_verify_reports_what_a_whole_class_has_beyond_what_could_be_foreseen():
    """A name that no source shows, assigned by a loop."""

    class Loops:
        def __init__(self):
            for name in ("alpha", "beta"):
                setattr(self, name, 1)

    class Whole(Wrapper[Loops], forward=Loops):
        pass

    class Below(Loops):
        pass

    message = hidden(Whole(Loops()))
    assert "'alpha', 'beta' of Loops are not forwarded" in message
    verify(Whole(Below()))  # Which has more than was promised.


def test_verify_reports_a_property_that_cannot_be_read():
    """In its own words, together with the rest."""

    class Part(Wrapper[Target], forward="rate summary nowhere"):
        pass

    message = hidden(Part(Target()))

    assert "'nowhere' does not exist on Target" in message
    assert (
        "'summary' cannot be read on Target now: ValueError('not trained yet')"
        in message
    )


def test_verify_does_not_say_that_a_property_is_missing_which_cannot_be_read():
    """Not even where it raises what a missing attribute raises."""

    class Motor:
        @property
        def power(self):
            return self._power

    class Driven(Wrapper[Motor], forward="power"): ...

    assert "'power' cannot be read on Motor now: AttributeError" in hidden(
        Driven(Motor())
    )


def test_verify_does_not_mix_up_two_targets():
    """What one target shares with the other is not hidden by having it."""

    class Engine:
        def __init__(self):
            self.radio = "hum"

    class Two(Forwarding, to="engine", forward="rpm"):
        def __init__(self, engine, radio):
            self.engine = engine
            self.radio = radio

        volume = Forwarded(to="radio")

    class Radio:
        volume = 3
        radio = None

    engine = Engine()
    engine.rpm = 1

    verify(Two(engine, Radio()))


def test_whatever_asks_the_target_is_composed():
    """Within an inner function, a class method's twin, or a cached property."""

    class Composing(Wrapper[Target]):
        @cached_property
        def unit(self):
            return [*(self.__wrapped__.unit for _ in "12")]

        def weigh(self, load):
            def later():
                return self.__wrapped__.weigh(load)

            return later()

        @property
        def rate(self):
            return 1

        @staticmethod
        def step():
            return 2

    found = coverage(Composing, Target)

    assert found.composed == ("unit", "weigh")
    assert found.own == ("rate", "step")


def test_verify_lets_a_default_stand_for_what_is_missing():
    """It was declared that the owner may lack it."""

    class Lenient(Wrapper[Target]):
        mode = Forwarded(default="plain")

    verify(Lenient(Target()))


def test_each_of_several_targets_is_covered_by_itself():
    """A name that leads to the engine does not cover the radio's."""

    class Engine:
        level = 1

    class Radio:
        level = volume = 2

    class Car(Forwarding):
        engine = target(Engine)
        radio = target(Radio)
        level = forwarded(engine.level)

    assert coverage(Car, Engine).forwarded == ("level",)
    assert coverage(Car, Radio).own == ("level",)
    assert coverage(Car, Radio).missing == ("volume",)
