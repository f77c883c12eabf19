"""Defects that show only where a wrapper is looked at closely, and who is not to blame."""

import contextlib
import copy
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from forwarding import Forwarded, Wrapper
from forwarding.proxy import TransparentProxy
from forwarding.testing import judge, probes
from forwarding.testing._special import special_call


FEW = settings(max_examples=8, derandomize=True)


class Engine:
    def __init__(self):
        self.rpm = 900
        self.log = [1]

    @property
    def serial(self):
        return "M-7"

    def start(self, key, *rest, gently=False, **options):
        return key, rest, gently, options

    def talk(self):
        yield (yield)

    async def flow(self):
        yield (yield)

    def __len__(self):
        return 4

    def __bool__(self):
        return True

    def __iter__(self):
        return iter([1])

    def __getitem__(self, key):
        return key

    def __setitem__(self, key, value): ...

    def __float__(self):
        return 1.5

    def __hash__(self):
        return 7

    def __eq__(self, other):
        return self is other

    def __format__(self, spec):
        return spec

    def __call__(self, key, *, gently=False):
        return key, gently

    def __enter__(self):
        return self

    def __exit__(self, *details): ...

    async def __aexit__(self, *details): ...


class Car:
    """Forwards by hand, with care."""

    def __init__(self, engine):
        self.engine = engine

    rpm = property(
        lambda self: self.engine.rpm,
        lambda self, value: setattr(self.engine, "rpm", value),
        lambda self: delattr(self.engine, "rpm"),
    )
    log = property(
        lambda self: self.engine.log,
        lambda self, value: setattr(self.engine, "log", value),
        lambda self: delattr(self.engine, "log"),
    )
    serial = property(lambda self: self.engine.serial)

    def start(self, key, *rest, gently=False, **options):
        return self.engine.start(key, *rest, gently=gently, **options)

    def talk(self):
        yield from self.engine.talk()

    def __len__(self):
        return len(self.engine)

    def __bool__(self):
        return bool(self.engine)

    def __call__(self, key, *, gently=False):
        return self.engine(key, gently=gently)


class DeletesInVain(Car):
    @Car.rpm.deleter
    def rpm(self):
        with contextlib.suppress(AttributeError):
            del self.engine.rpm


class SkipsWhatIsEqual(Car):
    @Car.log.setter
    def log(self, value):
        if vars(self.engine).get("log") != value:
            self.engine.log = value


class SharesItsDictionary(Car):
    def __copy__(self):
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__
        return twin


class EqualButWithoutHash(Car):
    def __eq__(self, other):
        return self.engine is getattr(other, "engine", other)

    __hash__ = None


class DropsFurtherArguments(Car):
    def start(self, key, *rest, gently=False, **options):  # noqa: ARG002
        return self.engine.start(key, gently=gently, **options)


class DropsFurtherKeywords(Car):
    def start(self, key, *rest, gently=False, **options):  # noqa: ARG002
        return self.engine.start(key, *rest, gently=gently)


class TakesErrorsForAbsence(Car):
    def start(self, key, *rest, gently=False, **options):
        try:
            return self.engine.start(key, *rest, gently=gently, **options)
        except AttributeError:
            return None


class TriesWithLess(Car):
    def start(self, key, *rest, gently=False, **options):
        try:
            return self.engine.start(key, *rest, gently=gently, **options)
        except TypeError:
            return self.engine.start(key)


class DropsWhatIsSent(Car):
    def talk(self):
        for item in self.engine.talk():  # noqa: UP028
            yield item


class DropsWhatIsSentLater(Car):
    async def flow(self):
        async for item in self.engine.flow():
            yield item


class CopiesToTheTarget(Car):
    def __copy__(self):
        return copy.copy(self.engine)

    def __deepcopy__(self, memo):
        return copy.deepcopy(self.engine, memo)

    def __reduce__(self):
        return Engine, ()


class AsksByName:
    def __init__(self, engine):
        self.engine = engine

    def __getattr__(self, name):
        return getattr(vars(self).get("engine"), name)


class ForwardsNothing:
    def __init__(self, engine):
        self.engine = engine


def roots(wrapper: Any, *names: str, **options: Any) -> tuple[str, ...]:
    return judge(wrapper, Engine, names, depth=1, settings=FEW, **options).roots


@pytest.mark.parametrize(
    ("wrapper", "name", "law"),
    [
        (DeletesInVain, "rpm", "delete"),
        (SkipsWhatIsEqual, "log", "put-get"),
        (SharesItsDictionary, "rpm", "copy"),
        (EqualButWithoutHash, "rpm", "eq and hash"),
        (DropsFurtherArguments, "start", "method"),
        (DropsFurtherKeywords, "start", "method"),
        (TakesErrorsForAbsence, "start", "method exceptions"),
        (TriesWithLess, "start", "method exceptions"),
        (DropsWhatIsSent, "talk", "callable kind"),
        (DropsWhatIsSentLater, "flow", "callable kind"),
    ],
)
def test_a_subtle_defect_is_one_broken_law(wrapper, name, law):
    """It is accused, and of nothing else."""
    assert roots(wrapper, name) == (law,)


@pytest.mark.parametrize("name", ["serial", "start"])
@pytest.mark.parametrize("law", ["copy", "deepcopy", "pickle"])
def test_copies_are_judged_without_a_name_that_can_be_set(name, law):
    """A wrapper that forwards methods, or what is read-only, is copied as well."""
    assert law in roots(CopiesToTheTarget, name)
    assert roots(Car, name) == ()


def test_a_wrapper_that_pickle_refuses_is_not_put_down_to_a_cycle():
    """The law that is named is the one to mend."""

    class Locked(Car):
        def __init__(self, engine):
            super().__init__(engine)
            self.on_start = lambda: None

    report = judge(Locked, Engine, ["start"], settings=FEW)

    assert report.roots == ("pickle",)
    assert report["cycles"].cause == "pickle"


def defined_in(module: str) -> Any:
    """Return a wrapper class of a module that does not have it."""
    body = {"__init__": Car.__init__, "start": Car.start, "__module__": module}
    return type("Elsewhere", (), body)


@pytest.mark.parametrize("module", ["__main__", "builtins", "a_module_that_is_not"])
def test_a_class_out_of_the_reach_of_pickle_is_pickled_all_the_same(module):
    """It was run by exec, in a doctest or in a notebook; that is no fault of the wrapper."""
    assert roots(defined_in(module), "start") == ()


def test_a_class_that_was_defined_again_is_pickled_all_the_same(monkeypatch):
    """As in a notebook's cell that was run twice."""
    earlier = defined_in("__main__")
    monkeypatch.setattr(
        sys.modules["__main__"], "Elsewhere", defined_in("__main__"), raising=False
    )

    assert roots(earlier, "start") == ()


def test_a_class_that_its_own_module_has_not_is_not_pickled(monkeypatch):
    """It could be pickled nowhere, as what a decorator leaves under another name."""
    monkeypatch.setitem(sys.modules, "some_module", ModuleType("some_module"))

    with pytest.raises(pickle.PicklingError):
        probes.pickled(defined_in("some_module")(Engine()))


TYPED = """
from forwarding.testing import judge
class Engine:
    def __init__(self): self.rpm = 1
class Car:
    def __init__(self, engine): self.engine = engine
    @property
    def rpm(self): return self.engine.rpm
    @rpm.setter
    def rpm(self, value): self.engine.rpm = value
    @rpm.deleter
    def rpm(self): del self.engine.rpm
print(judge(Car, Engine, ["rpm"]).roots)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [("-c", TYPED), ("-",)])
def test_a_wrapper_that_was_typed_has_no_source_to_show(how):
    """At a prompt, or after ``python -c``, no traceback shows its lines."""
    done = subprocess.run(
        [sys.executable, *how], input=TYPED, capture_output=True, text=True, check=True
    )

    assert done.stdout == "()\n"


SPECIAL = [
    name
    for name in vars(Engine)
    if name.startswith("__") and callable(vars(Engine)[name]) and name != "__init__"
]


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_method_is_called_as_python_calls_it(name):
    """On the class, where a ``__getattr__`` is not asked; with what proxies may return."""

    class Declared(Wrapper[Engine]):
        vars()[name] = Forwarded()
        vars().setdefault("__hash__", Forwarded())

    class Passing(TransparentProxy[Engine]): ...

    assert roots(Declared, name) == roots(Passing, name) == ()
    assert "method" in roots(AsksByName, name)


def test_a_special_method_without_a_signature_is_called_without_arguments():
    """Some of C tell none."""
    assert special_call({}.update) == ((), {})


def test_a_generator_that_never_ends_is_left_after_a_while():
    """A conversation has four words."""

    def forever():
        while True:
            with contextlib.suppress(RuntimeError):
                yield "more"

    assert probes.conversation(forever, (), {}) == ["'more'"] * 4


class Fluent(Car):
    def start(self, *args, **keywords):
        self.engine.start(*args, **keywords)
        return self

    def __enter__(self):
        self.engine.__enter__()
        return self


class Silent(Fluent):
    def start(self, *args, **keywords): ...

    def __enter__(self):
        return self


@pytest.mark.parametrize("name", ["start", "__enter__"])
def test_a_fluent_method_may_return_the_wrapper_in_any_case(name):
    """As nearly every ``__enter__`` does; it still has to run the target's."""
    waive = {"signature"}

    assert roots(Fluent, name, fluent=[name], waive=waive) == ()
    assert "method" in roots(Silent, name, fluent=[name], waive=waive)


def test_a_special_method_that_goes_elsewhere_is_found():
    """The counterexample shows the call as the operator makes it."""

    class Constant(Car):
        def __len__(self):
            return 4

    report = judge(Constant, Engine, ["__len__"], depth=1, settings=FEW)

    assert report.roots == ("method",)
    assert (
        "type(wrapper).__len__(wrapper, *args, **keywords)" in report["method"].detail
    )


def test_threads_that_fail_print_nothing_and_are_noticed(capsys):
    """Neither an unhandled exception in a thread, nor a law that holds by mistake."""
    calls = []

    def once():
        calls.append("called")
        if len(calls) > 1:
            raise RuntimeError("not twice")

    with pytest.raises(RuntimeError, match="not twice"):
        probes.together(once)
    report = judge(ForwardsNothing, Engine, ["rpm"], depth=1, settings=FEW)

    assert report["threads"].cause == "get"
    assert capsys.readouterr() == ("", "")


def test_the_name_whose_values_are_refused_is_named():
    """One of many names needs values=, and it is said which."""

    class Picky(Engine):
        rpm = property(lambda self: 1, lambda self, value: self.take(value))  # noqa: ARG005

        def __init__(self):
            self.log = [1]

        def take(self, value):
            if value != 1:
                raise ValueError(value)

    with pytest.raises(
        ValueError, match="none of the values tried for rpm as they are"
    ):
        judge(Car, Picky, ["log", "rpm"], settings=FEW)
