"""Spellings, layouts and bases that are seldom seen, and must not fail in silence."""

import types
import weakref

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    forwarded,
    lazy,
    target,
    verify,
)


class Engine:
    def __init__(self):
        self.rpm = 900


@pytest.mark.parametrize("length", [2, 26, 27, 60])
@pytest.mark.parametrize("digits", [1, 3])
def test_a_path_may_have_any_number_of_names(length, digits):
    """More than there are letters, of one length or of several."""
    names = [f"n{at:0{digits}}" for at in range(length)]

    class Deep(Forwarding):
        x = Forwarded(path=".".join(names))

    deep = Deep()
    owner = deep
    for name in names[:-1]:
        setattr(owner, name, types.SimpleNamespace())
        owner = getattr(owner, name)
    deep.x = 7

    assert getattr(owner, names[-1]) == deep.x == 7
    del deep.x
    assert not hasattr(owner, names[-1])


def test_a_name_is_spelled_as_python_spells_it():
    """In the source of a program, the ligature in ``ﬁle`` is two letters."""

    class Bulk(Wrapper, forward="ﬁle"):
        other = Forwarded(path="__wrapped__.ﬁle")

    owner = types.SimpleNamespace(file=1)
    bulk = Bulk(owner)
    bulk.file += 1

    assert bulk.other == bulk.file == owner.file == 2


class NoDictionary(Forwarding):
    __slots__ = ()
    made = target(Engine, via=lazy(lambda _: Engine()))
    weak = target(Engine, via=weakref.ref)
    rpm = forwarded(made.rpm)


class Places(NoDictionary):
    __slots__ = ("__dict__", "_weak_ref")


def test_a_target_that_has_no_place_says_what_to_add():
    """A slotted class can keep neither a late target nor a weak one by itself."""
    bare = NoDictionary()

    with pytest.raises(ForwardingError, match="add '__dict__' to its __slots__"):
        bare.rpm  # noqa: B018
    with pytest.raises(ForwardingError, match="add '_weak_ref' to its __slots__"):
        bare.weak = Engine()


def test_a_subclass_may_add_the_place():
    """So a base without places is no mistake."""
    places, engine = Places(), Engine()
    places.weak = engine

    assert places.weak is engine
    assert places.rpm == 900


class Swallows:
    def __init_subclass__(cls, **kwargs): ...


class Unheard(Swallows, Forwarding, to="engine", forward="rpm"):
    def __init__(self, engine):
        self.engine = engine


class Heard(Forwarding, Swallows, to="engine", forward="rpm"):
    def __init__(self, engine):
        self.engine = engine


class Below(Unheard, to="engine", forward="rpm"): ...


@pytest.mark.parametrize("cls", [Unheard, Below])
def test_verify_says_that_a_base_swallowed_the_class_keywords(cls):
    """Nothing of ours ran when the class was made, so nothing else can tell."""
    with pytest.raises(ForwardingError, match="put Forwarding first"):
        verify(cls(Engine()))


def test_a_base_behind_forwarding_may_swallow_what_is_left():
    """The keywords are read by then."""
    heard = Heard(Engine())
    heard.rpm = 1

    verify(heard)
    assert heard.engine.rpm == 1
