"""A declaration is known by its class's record, wherever the class has been."""

import gc
import importlib
import inspect
import linecache
import pickle
import subprocess
import sys
import textwrap
import traceback
from functools import wraps

import pytest

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingError,
    Wrapper,
    forwarded_attributes,
    preserved,
    unwrap,
    verify,
)


class Owner:
    def __init__(self, lr=0.5):
        self.lr = lr

    def step(self):
        return self.lr


class Writer:
    def __init__(self):
        self.lr = 0.0


def fresh():
    class Outer(Forwarding, Writer, to="inner", forward="lr", methods="step"):
        rate = Forwarded(path="inner.lr")

        def __init__(self, inner):
            self.inner = inner
            with preserved(self):
                Writer.__init__(self)

    return Outer


def by_cloudpickle(cls):
    cloudpickle = pytest.importorskip("cloudpickle", reason="it is not installed")
    return cloudpickle.loads(cloudpickle.dumps(cls))


def by_dill(cls):
    dill = pytest.importorskip("dill", reason="it is not installed")
    return dill.loads(dill.dumps(cls, byref=False, recurse=True))


def by_dill_with_globals(cls):
    dill = pytest.importorskip("dill", reason="it is not installed")
    return dill.loads(dill.dumps(cls, byref=False))


def by_type(cls):
    body = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, cls.__bases__, body)


def by_attrs(cls):
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")
    return attrs.define(slots=True, init=False)(cls)


def by_subclass(cls):
    return type("Below", (cls,), {})


def by_checking_decorator(cls):
    """As beartype and typeguard do: each accessor is wrapped."""

    def checked(function):
        @wraps(function)
        def wrapper(*args):
            return function(*args)

        return wrapper

    for name in ("lr", "rate"):
        attribute = vars(cls)[name]
        accessors = (attribute.fget, attribute.fset, attribute.fdel)
        setattr(cls, name, property(*map(checked, accessors)))
    cls.step = checked(vars(cls)["step"])
    return cls


def twice(cls):
    return by_cloudpickle(by_cloudpickle(cls))


JOURNEYS = [
    by_cloudpickle,
    by_dill,
    by_dill_with_globals,
    by_type,
    by_attrs,
    by_subclass,
    by_checking_decorator,
    twice,
]


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_class_still_says_what_it_forwards(journey):
    """The class that comes back, and the one that went."""
    cls = fresh()
    before = dict(forwarded_attributes(cls))
    other = journey(cls)

    assert before.keys() == {"lr", "rate", "step"}
    assert dict(forwarded_attributes(other)) == before
    assert dict(forwarded_attributes(cls)) == before


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_class_still_preserves_verifies_and_unwraps(journey):
    """All that asks for declarations goes on asking."""
    cls = journey(fresh())
    owner = Owner()
    outer = cls(owner)
    assert owner.lr == 0.5
    outer.lr = 1

    assert (owner.lr, outer.rate, outer.step()) == (1, 1, 1)
    assert unwrap(outer) is owner
    verify(outer)
    del owner.lr
    with pytest.raises(ForwardingError, match="'lr', 'lr' do not exist on Owner"):
        verify(outer)


PROGRAM = """
    import sys
    import cloudpickle
    from forwarding import forwarded_attributes, verify, ForwardingError

    Outer, Owner = cloudpickle.load(sys.stdin.buffer)
    owner = Owner()
    outer = Outer(owner)
    outer.rate = 3
    print(sorted(forwarded_attributes(Outer)), owner.lr, outer.step())
"""


def test_a_class_goes_to_another_process():
    """As joblib, Ray and Dask send classes of a notebook."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="it is not installed")
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        sent = cloudpickle.dumps((fresh(), Owner))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    run = subprocess.run(command, input=sent, capture_output=True, check=True)

    assert run.stdout.decode().strip() == "['lr', 'rate', 'step'] 3 3"


def test_an_instance_of_a_travelling_class_is_pickled_with_it():
    """The record is data, so it goes along."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="it is not installed")
    outer = cloudpickle.loads(cloudpickle.dumps(fresh()(Owner(0.25))))

    assert outer.lr == 0.25
    assert pickle.loads(pickle.dumps(forwarded_attributes(type(outer))["lr"]))  # noqa: S301


def test_a_module_may_be_reloaded(tmp_path, monkeypatch):
    """The new class takes the place of the old one, which goes on."""
    source = "from forwarding import Wrapper\nclass Car(Wrapper, forward='rpm'): pass\n"
    (tmp_path / "reloaded_cars.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_cars")
    old = module.Car
    new = importlib.reload(module).Car

    assert old is not new
    for cls in (old, new):
        assert list(forwarded_attributes(cls)) == ["rpm"]
        assert "return self.__wrapped__.rpm" in inspect.getsource(cls.rpm.fget)


def namesakes():
    def make(**options):
        class Car:
            rpm = Forwarded(to="engine", **options)

        return Car

    return make(), make(set=False, delete=False), make()


def test_classes_of_one_name_have_sources_of_their_own():
    """A factory makes many; each traceback shows the line that ran."""
    first, second, third = namesakes()
    files = {cls.rpm.fget.__code__.co_filename for cls in (first, second, third)}

    assert len(files) == 3
    assert "self.engine.rpm = value" in inspect.getsource(first.rpm.fset)
    assert "setter" not in inspect.getsource(second.rpm.fget)
    with pytest.raises(AttributeError) as caught:
        del first().rpm
    text = "".join(traceback.format_exception(caught.value))
    assert "del self.engine.rpm" in text


def files_in_linecache():
    """The next class takes those out that are gone."""
    gc.collect()
    type("Next", (Wrapper,), {"rpm": Forwarded()})
    return len(linecache.cache)


def files_kept(make, count=100):
    before = files_in_linecache()
    for number in range(count):
        make(number)
    return files_in_linecache() - before


@pytest.mark.slow
def test_dropped_classes_leave_no_source_behind():
    """A server that makes classes does not grow."""

    def make(number):
        type(f"Car{number}", (Wrapper,), {"rpm": Forwarded(), "oil": Forwarded()})

    kept = []

    assert files_kept(make) == 0
    assert (
        files_kept(lambda n: kept.append(type(f"C{n}", (), {"a": Forwarded(to="b")})))
        == 100
    )


def test_a_class_may_be_collected_while_linecache_is_walked():
    """``linecache.checkcache`` lists the files and then looks each of them up."""
    cls = type("Car", (Wrapper,), {"rpm": Forwarded()})
    filename = cls.rpm.fget.__code__.co_filename
    del cls

    gc.collect()

    assert filename in linecache.cache
    type("Next", (Wrapper,), {"rpm": Forwarded()})
    assert filename not in linecache.cache


def test_the_source_lives_as_long_as_a_function():
    """A class may be rebuilt, and the first one dropped."""
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")

    @attrs.define
    class Car:
        engine: object
        rpm = Forwarded(to="engine")

    gc.collect()

    assert "self.engine.rpm" in inspect.getsource(Car.rpm.fget)


def test_the_attributes_of_a_class_share_their_globals():
    """One namespace a class; each further name costs no dict."""

    class Car(Wrapper, forward="a b c"):
        pass

    spaces = {id(getattr(Car, name).fget.__globals__) for name in "abc"}

    assert len(spaces) == 1


@pytest.mark.parametrize("name", ["property", "stays", "recorders", "setter", "self"])
def test_a_forwarded_name_hides_nothing_from_the_next(name):
    """What one source defines, another does not see."""
    cls = type("Odd", (), {name: Forwarded(to="inner"), "x": Forwarded(to="inner")})
    odd, owner = cls(), Owner()
    odd.inner = owner
    setattr(odd, name, 1)
    odd.x = 2

    assert (getattr(owner, name), owner.x) == (1, 2)


def test_a_function_that_copied_the_marks_is_not_forwarded():
    """In a subclass, it is an override."""
    cls = fresh()

    class Below(cls):
        @wraps(cls.step)
        def step(self):
            return "own"

    assert "step" not in forwarded_attributes(Below)
    assert Below(Owner()).step() == "own"
