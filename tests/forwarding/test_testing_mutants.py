"""Every law has a wrapper that breaks it and no other, and the kit finds it."""

import contextlib
import contextvars
import copy
import threading
import types
import weakref
from typing import Any

import pytest
from hypothesis import settings

from forwarding.testing import LAWS, judge


pytestmark = pytest.mark.slow


NAMES = ["a", "b", "serial", "m", "co", "gen", "me"]
FEW = settings(max_examples=6, derandomize=True)


class Groups(list[int]):
    """What a target starts with, told apart from every value that is put."""


class Target:
    def __init__(self):
        self.a = Groups([1])
        self.b = "b"
        self.serial = 7
        self.spare = "spare"

    def m(self, x, k=1):
        return self, x, k

    async def co(self, x):
        return self, x

    def gen(self, x):
        yield self, x

    def me(self, x):
        return self if x else None


def through(name: str) -> property:
    def fget(self):
        return getattr(self.inner, name)

    def fset(self, value):
        setattr(self.inner, name, value)

    def fdel(self):
        delattr(self.inner, name)

    return property(fget, fset, fdel)


class AllButA:
    b = through("b")

    def __init__(self, inner: Any):
        self.inner = inner

    @property
    def serial(self):
        return self.inner.serial

    def m(self, x, k=1):
        return self.inner.m(x, k=k)

    async def co(self, x):
        return await self.inner.co(x)

    def gen(self, x):
        yield from self.inner.gen(x)

    def me(self, x):
        found = self.inner.me(x)
        return self if found is self.inner else found


class NoSpare(AllButA):
    a = through("a")


class Faithful(NoSpare):
    spare = through("spare")


class Late(Faithful):
    """Its target is made at the first access, and once."""

    def __init__(self, make):
        self.make, self.made, self.lock = make, None, threading.Lock()

    @property
    def inner(self):
        with self.lock:
            self.made = self.made or self.make()
        return self.made


class Bound(Faithful):
    """Its target is that of the current context."""

    current = contextvars.ContextVar("current")
    inner = property(lambda self: self.current.get())

    def __init__(self):
        pass

    @classmethod
    def to(cls, target):
        cls.current.set(target)
        return cls()


class ShowsAView(Faithful):
    def __init__(self, inner):
        super().__init__(inner)
        self.viewed, self.view = inner.a, Groups([1])

    def fget(self):
        value = self.inner.a
        return self.view if value is self.viewed else value

    def fset(self, value):
        self.inner.a = self.viewed if value is self.view else value

    a = property(fget, fset, Faithful.a.fdel)


class ReadsBackACopy(Faithful):
    last_put = None

    def fget(self):
        value = self.inner.a
        return copy.copy(value) if value is self.last_put else value

    def fset(self, value):
        self.inner.a = self.last_put = value

    a = property(fget, fset, Faithful.a.fdel)


class PutsBackACopy(Faithful):
    def fset(self, value):
        same = isinstance(value, Groups) and value is vars(self.inner).get("a")
        self.inner.a = Groups(value) if same else value

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class PutsOnce(Faithful):
    puts = 0

    def fset(self, value):
        if not self.puts:
            self.inner.a = value
        self.puts += 1

    def fdel(self):
        del self.inner.a
        self.puts = 0

    a = property(Faithful.a.fget, fset, fdel)


class Remembers(Faithful):
    remembered = None

    def fget(self):
        value = self.inner.a
        if self.remembered is not None:
            return self.remembered
        if isinstance(value, Groups):
            self.remembered = value
        return value

    def fset(self, value):
        self.remembered, self.inner.a = None, value

    a = property(fget, fset, Faithful.a.fdel)


class HidesInsteadOfDeleting(Faithful):
    hidden = False

    def fget(self):
        if self.hidden:
            raise AttributeError("a")
        return self.inner.a

    def fset(self, value):
        self.hidden, self.inner.a = False, value

    def fdel(self):
        self.hidden = True

    a = property(fget, fset, fdel)


class PutsTwoNames(Faithful):
    def fset(self, value):
        self.inner.a = value
        self.inner.b = "overwritten"

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class LetsDelete(Faithful):
    serial = property(Faithful.serial.fget, None, through("serial").fdel)


class KeepsAShadow(Faithful):
    def fset(self, value):
        self.inner.a = vars(self)["a"] = value

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class GoesStraightToTheOwner(Faithful):
    @property
    def inner(self):
        return self.held

    @inner.setter
    def inner(self, inner):
        self.held, self.owner = inner, getattr(inner, "owner", inner)

    def fget(self):
        return self.owner.a

    def fset(self, value):
        self.owner.a = value

    a = property(fget, fset, Faithful.a.fdel)


class DoubtsOthers(Faithful):
    def fget(self):
        value = self.inner.a
        writer, written = vars(self.inner).get("last_put", (None, None))
        foreign = writer not in {None, id(self)} and value is written
        return object() if foreign else value

    def fset(self, value):
        self.inner.a = value
        vars(self.inner)["last_put"] = (id(self), value)

    a = property(fget, fset, Faithful.a.fdel)


class CapturesAtFirstGet(Faithful):
    captured = None

    def fget(self):
        self.captured = self.captured or self.inner
        return self.captured.a

    def fset(self, value):
        (self.captured or self.inner).a = value

    a = property(fget, fset, Faithful.a.fdel)


class BornWithATarget(Faithful):
    def __new__(cls, *_):
        self = super().__new__(cls)
        self.inner = type("Nothing", (), {})()
        return self


class Dynamic(AllButA):
    spare = through("spare")

    def __getattribute__(self, name):
        if name == "a" and not hasattr(type(self), "a"):
            return self.inner.a
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        if name == "a":
            self.inner.a = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name):
        if name == "a":
            del self.inner.a
        else:
            super().__delattr__(name)

    def __dir__(self):
        return [*super().__dir__(), "a"]


class HidesItsNames(Faithful):
    def __dir__(self):
        return ["inner"]


class InstallsAgain(Faithful):
    def __init_subclass__(cls):
        cls.a = through("a")


class CopiesWhatItChanged(Faithful):
    def fset(self, value):
        same = type(value) is list and value is vars(self.inner).get("a")
        self.inner.a = list(value) if same else value

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class RewordsExceptions(Faithful):
    def fset(self, value):
        try:
            self.inner.a = value
        except RuntimeError as error:
            raise RuntimeError("could not put a") from error

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class MasksInnerErrors(Faithful):
    def fget(self):
        try:
            return self.inner.a
        except AttributeError as error:
            if "object has no attribute" in str(error):
                raise
            raise AttributeError("no attribute 'a'") from None

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


class MasksItsOwnErrors(Faithful):
    def __getattr__(self, name):
        if name in NAMES:
            return getattr(self.inner, name)
        raise AttributeError(name)


class ForgetsWhoLacksIt(Faithful):
    def fget(self):
        try:
            return self.inner.a
        except AttributeError as error:
            if "object has no attribute" in str(error):
                raise AttributeError("a") from None
            raise

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


class InventsAValue(Faithful):
    was_read = False

    def fget(self):
        try:
            value = self.inner.a
        except AttributeError:
            if self.was_read:
                return None
            raise
        self.was_read = True
        return value

    def fdel(self):
        self.was_read = False
        del self.inner.a

    a = property(fget, Faithful.a.fset, fdel)


class DropsKeywords(Faithful):
    def m(self, x, k=1):  # noqa: ARG002
        return self.inner.m(x)


class RewordsMethodErrors(Faithful):
    def m(self, x, k=1):
        try:
            return self.inner.m(x, k=k)
        except RuntimeError as error:
            raise RuntimeError("m failed") from error


class HidesTheCoroutine(Faithful):
    def co(self, x):
        return self.inner.co(x)


class LooksBeforeItPuts(Faithful):
    def fset(self, value):
        getattr(self.inner, "a", None)
        self.inner.a = value

    a = property(Faithful.a.fget, fset, Faithful.a.fdel)


class GuardsAgainstReentry(Faithful):
    busy = False

    def fget(self):
        if self.busy:
            return None
        self.busy = True
        try:
            return self.inner.a
        finally:
            self.busy = False

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


class ResetsItsTarget(Faithful):
    def __init__(self, inner):
        super().__init__(inner)
        if isinstance(inner.a, Groups):
            with contextlib.suppress(AttributeError):
                inner.a = Groups(inner.a)


class CopiesTheTarget(Faithful):
    def __copy__(self):
        return type(self)(copy.copy(self.inner))


class Other(Faithful):
    pass


class DeepcopiesToAnotherType(Faithful):
    def __deepcopy__(self, memo):
        twin = memo[id(self)] = object.__new__(Other)
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


class PicklesToAnotherType(Faithful):
    def __copy__(self):
        return type(self)(self.inner)

    def __deepcopy__(self, memo):
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce__(self):
        return object.__new__, (Other,), vars(self)


class PatchesItsClass(Faithful):
    def __copy__(self):
        type(self).copies = object()
        return type(self)(self.inner)


class ForgetsItsMemo(Faithful):
    def __deepcopy__(self, memo):
        return type(self)(copy.deepcopy(self.inner, memo))


class HoldsItself(Faithful):
    def __init__(self, inner):
        super().__init__(inner)
        self.myself = self


class StaysDeleted(Faithful):
    deleted = False

    def fset(self, value):
        if not self.deleted:
            self.inner.a = value

    def fdel(self):
        self.deleted = True
        del self.inner.a

    a = property(Faithful.a.fget, fset, fdel)


class PatchesItsTarget(Faithful):
    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "m" and not hasattr(value, "__self__"):
            self.inner.m = value


class HandsOutTheBoundMethod(Faithful):
    patch = None

    def fget(self):
        return self.patch or self.inner.m

    def fset(self, value):
        self.patch = value

    def fdel(self):
        self.patch = None

    m = property(fget, fset, fdel)


class StaysPatched(type):
    def __delattr__(cls, name):
        pass


class KeepsPatches(Faithful, metaclass=StaysPatched):
    pass


class PrefersTheDictionary(Faithful):
    def fget(self):
        value = self.inner.a
        return vars(self.inner).get("a", value) if type(value) is object else value

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


class RaisesAnew(Faithful):
    def fget(self):
        try:
            return self.inner.a
        except RuntimeError as error:
            raise error.with_traceback(None)  # noqa: B904

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


class HidesTheGenerator(Faithful):
    def gen(self, x):
        return self.inner.gen(x)


class TakesAnything(Faithful):
    def m(self, *args, **keywords):
        return self.inner.m(*args, **keywords)


class WeakMethod:
    def __init__(self, function):
        self.function = function

    def __get__(self, instance, owner):
        if instance is None:
            return self.function
        return types.MethodType(self.function, weakref.proxy(instance))


class HoldsItselfWeakly(Faithful):
    m = WeakMethod(Faithful.m)


class LetsTheTargetOut(Faithful):
    def me(self, x):
        return self.inner.me(x)


class WritesBackWhileItIsBuilt(Faithful):
    def __init__(self, inner):
        super().__init__(inner)
        inner.a = inner.a


class EqualButNotHashed(Faithful):
    def __eq__(self, other):
        return isinstance(other, EqualButNotHashed) and self.inner is other.inner

    __hash__ = object.__hash__


class MadeTwice(Late):
    @property
    def inner(self):
        self.made = self.made or self.make()
        return self.made


class Leaks(Bound):
    current = types.SimpleNamespace()
    current.get = lambda: Leaks.current.target
    current.set = lambda target: setattr(Leaks.current, "target", target)


class KnowsItsClasses(Faithful):
    known: set[int] = set()  # noqa: RUF012

    def fget(self):
        if not self.known & set(map(id, type(self).__mro__)):
            raise TypeError("a class that was never registered")
        return self.inner.a

    a = property(fget, Faithful.a.fset, Faithful.a.fdel)


KnowsItsClasses.known.add(id(KnowsItsClasses))

MUTANTS = {
    "get": ShowsAView,
    "put-get": ReadsBackACopy,
    "get-put": PutsBackACopy,
    "put-put": PutsOnce,
    "no stale read": Remembers,
    "delete": HidesInsteadOfDeleting,
    "frame": PutsTwoNames,
    "read-only": LetsDelete,
    "no shadow": KeepsAShadow,
    "layers": GoesStraightToTheOwner,
    "agreement": DoubtsOthers,
    "re-target": CapturesAtFirstGet,
    "half-built": BornWithATarget,
    "class access": Dynamic,
    "dir": HidesItsNames,
    "subclass": InstallsAgain,
    "augmented assignment": CopiesWhatItChanged,
    "exceptions": RewordsExceptions,
    "AttributeError in the target": MasksInnerErrors,
    "AttributeError in the wrapper": MasksItsOwnErrors,
    "missing": ForgetsWhoLacksIt,
    "hasattr": InventsAValue,
    "method": DropsKeywords,
    "method exceptions": RewordsMethodErrors,
    "async": HidesTheCoroutine,
    "once": LooksBeforeItPuts,
    "threads": GuardsAgainstReentry,
    "construction": ResetsItsTarget,
    "copy": CopiesTheTarget,
    "deepcopy": DeepcopiesToAnotherType,
    "pickle": PicklesToAnotherType,
    "class untouched": PatchesItsClass,
    "cycles": ForgetsItsMemo,
    "freed": HoldsItself,
    "patch": StaysDeleted,
    "patched method": PatchesItsTarget,
    "rebound method": HandsOutTheBoundMethod,
    "class writes": KeepsPatches,
    "complete": NoSpare,
    "probe bites": PrefersTheDictionary,
    "traceback": RaisesAnew,
    "callable kind": HidesTheGenerator,
    "signature": TakesAnything,
    "keep alive": HoldsItselfWeakly,
    "fluent": LetsTheTargetOut,
    "preserved": WritesBackWhileItIsBuilt,
    "eq and hash": EqualButNotHashed,
    "lazy": MadeTwice,
    "context": Leaks,
    "survives cloudpickle": KnowsItsClasses,
}


def verdicts(wrapper):
    """Judge a wrapper by all laws; those of another way to be built by that way."""
    late = issubclass(wrapper, Late)
    bound = issubclass(wrapper, Bound)
    return judge(
        Faithful if late or bound else wrapper,
        Target,
        NAMES,
        target="inner",
        read_only=["serial"],
        fluent=["me"],
        leave_out=[],
        lazy=wrapper if late else Late,
        bind=wrapper.to if bound else Bound.to,
        depth=2,
        settings=FEW,
    )


def test_every_law_has_a_mutant():
    """A law without a wrapper that breaks it could not be told from no law."""
    assert MUTANTS.keys() == LAWS.keys()


def test_a_faithful_wrapper_keeps_every_law():
    """No law is broken by a wrapper written by hand with care, and all apply."""
    assert verdicts(Faithful).named("holds") == tuple(LAWS)


@pytest.mark.parametrize("law", MUTANTS)
def test_the_mutant_of_a_law_breaks_it_and_no_other(law):
    """Each law finds its mutant, and no other law mistakes it for something else."""
    assert verdicts(MUTANTS[law]).named("broken") == (law,)
