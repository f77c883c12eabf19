"""Type checkers are told which names a class forwards in bulk."""

import importlib
import re
import subprocess
import sys
import textwrap

import pytest

from forwarding import ForwardingError
from forwarding.__main__ import main
from forwarding._stub import stub


CARS = '''
"""Cars."""

from typing import overload

from forwarding import Forwarded, Forwarding, Wrapper, target


class Engine:
    def __init__(self) -> None:
        self.rpm = 900
        self.parts: list[str] = []

    @overload
    def start(self, key: str) -> bool: ...
    @overload
    def start(self, key: int) -> str: ...
    def start(self, key: str | int) -> bool | str:
        return True

    async def warm(self, seconds: float = 1.0) -> int:
        return 3


class Car(Wrapper[Engine], forward=Engine):
    """By the argument of Wrapper."""

    extra = Forwarded(path="__wrapped__.rpm")


class Quoted(Wrapper["Engine"], forward="rpm"):
    pass


class Bus(Forwarding, to="engine", forward="rpm", methods="start"):
    def __init__(self, engine: Engine) -> None:
        self.engine = engine


class Field(Forwarding, to="engine", forward="rpm"):
    engine: Engine


class Van(Forwarding, to="engine", forward=Engine):
    def __init__(self, *engines: Engine) -> None:
        (self.engine,) = engines


class Typed(Forwarding, forward="rpm start"):
    engine = target(Engine)


class Unknown(Forwarding, to="engine", forward="rpm"):
    pass


class Outer:
    class Inner(Wrapper[Engine], forward="rpm"):
        pass


class Plain:
    rpm = 3


class Special(Wrapper[Engine], forward="__len__"):
    pass


class Gone(Wrapper[Engine], forward="rpm"):
    pass


del Gone
'''


@pytest.fixture
def cars(tmp_path, monkeypatch):
    path = tmp_path / "stubbed_cars.py"
    path.write_text(textwrap.dedent(CARS).lstrip(), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield path
    sys.modules.pop("stubbed_cars", None)


def generated(path, name):
    """The lines that were written into one class."""
    body = path.read_text(encoding="utf-8").partition(f"class {name}(")[2]
    return body.partition("if TYPE_CHECKING:\n")[2].partition("# End")[0].split("\n")


EXPECTED = {
    "Car": [
        "_wrapped_target = target(Engine)",
        "rpm = forwarded(_wrapped_target.rpm)",
        "parts = forwarded(_wrapped_target.parts)",
        "start = forwarded(_wrapped_target.start)",
        "warm = forwarded(_wrapped_target.warm)",
    ],
    "Quoted": [
        "_wrapped_target = target(Engine)",
        "rpm = forwarded(_wrapped_target.rpm)",
    ],
    "Bus": [
        "_engine_target = target(Engine)",
        "rpm = forwarded(_engine_target.rpm)",
        "start = forwarded(_engine_target.start)",
    ],
    "Field": ["_engine_target = target(Engine)", "rpm = forwarded(_engine_target.rpm)"],
    "Van": [
        "_engine_target = target(Engine)",
        "rpm = forwarded(_engine_target.rpm)",
        "parts = forwarded(_engine_target.parts)",
        "start = forwarded(_engine_target.start)",
        "warm = forwarded(_engine_target.warm)",
    ],
    "Typed": ["rpm = forwarded(engine.rpm)", "start = forwarded(engine.start)"],
    "Unknown": ["rpm: Any"],
    "Inner": [
        "_wrapped_target = target(Engine)",
        "rpm = forwarded(_wrapped_target.rpm)",
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_name_gets_a_typed_declaration(cars, name):
    """From whatever says what the target is; as Any where nothing does."""
    assert stub("stubbed_cars", write=True) is False

    assert [line.strip() for line in generated(cars, name) if line.strip()] == (
        EXPECTED[name]
    )


def test_the_module_still_runs_and_is_up_to_date(cars):
    """Nothing of what was written runs; writing again changes nothing."""
    stub("stubbed_cars", write=True)
    once = cars.read_text(encoding="utf-8")
    sys.modules.pop("stubbed_cars")
    module = importlib.import_module("stubbed_cars")
    car = module.Car(module.Engine())
    car.rpm = 5

    assert (car.__wrapped__.rpm, car.start("key")) == (5, True)
    assert not hasattr(module.Car, "_wrapped_target")
    assert stub("stubbed_cars", write=True) is True
    assert cars.read_text(encoding="utf-8") == once


def test_a_formatter_may_space_it_out(cars):
    """Blank lines are no difference."""
    stub("stubbed_cars", write=True)
    text = cars.read_text(encoding="utf-8")
    spaced = re.sub("^( *# Generated)", r"\n\1", text, flags=re.MULTILINE)
    cars.write_text(spaced, encoding="utf-8")

    assert stub("stubbed_cars", write=False) is True


def test_the_check_fails_until_it_is_written(cars, capsys):
    """For CI: it writes nothing, and says what to run."""
    before = cars.read_text(encoding="utf-8")

    assert main(["stub", "stubbed_cars", "--check"]) == 1
    assert "run python -m forwarding stub stubbed_cars" in capsys.readouterr().out
    assert cars.read_text(encoding="utf-8") == before
    assert main(["stub", "stubbed_cars"]) == 0
    assert "was rewritten by" in capsys.readouterr().out
    assert main(["stub", "stubbed_cars", "--check"]) == 0


def test_a_name_that_the_target_gains_makes_the_check_fail(cars):
    """As after a new release of it."""
    stub("stubbed_cars", write=True)
    text = cars.read_text(encoding="utf-8")
    grown = text.replace(
        "        self.rpm = 900\n", "        self.rpm = self.oil = 9\n"
    )
    cars.write_text(grown, encoding="utf-8")
    sys.modules.pop("stubbed_cars")

    assert stub("stubbed_cars", write=False) is False


def test_a_class_that_no_longer_forwards_loses_what_was_written(cars):
    """The generated part is made anew each time."""
    stub("stubbed_cars", write=True)
    text = cars.read_text(encoding="utf-8")
    less = text.replace(
        'class Quoted(Wrapper["Engine"], forward="rpm")', "class Quoted"
    )
    cars.write_text(less, encoding="utf-8")
    sys.modules.pop("stubbed_cars")
    stub("stubbed_cars", write=True)

    body = cars.read_text(encoding="utf-8").partition("class Quoted")[2]
    assert "Generated" not in body.partition("class Bus")[0]


def test_a_module_without_bulk_declarations_is_left_alone(tmp_path, monkeypatch):
    """It needs no import either."""
    path = tmp_path / "plain_cars.py"
    path.write_text("class Car:\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    assert stub("plain_cars", write=True) is True
    assert path.read_text(encoding="utf-8") == "class Car:\n    pass\n"


def test_what_is_imported_already_is_not_imported_again(cars):
    """The module may use it itself."""
    text = cars.read_text(encoding="utf-8")
    imports = (
        "from typing import TYPE_CHECKING, Any\nfrom forwarding import forwarded\n"
    )
    cars.write_text(text.replace("class Engine", f"{imports}\nclass Engine", 1))
    stub("stubbed_cars", write=True)

    assert cars.read_text(encoding="utf-8").count("import TYPE_CHECKING") == 1


def test_a_module_without_source_is_refused():
    """There is nothing to write into."""
    with pytest.raises(ForwardingError, match="sys has no source file"):
        stub("sys", write=False)


USE = """
from typing import assert_type

from stubbed_cars import Bus, Car, Engine, Typed, Van

car = Car(Engine())
assert_type(car.rpm, int)
assert_type(car.parts, list[str])
assert_type(car.start("key"), bool)
assert_type(car.start(1), str)
assert_type(Bus(Engine()).rpm, int)
assert_type(Typed().start(1), str)
car.rpm = 3


async def warm() -> None:
    assert_type(await car.warm(seconds=2.0), int)
"""
WRONG = """
from stubbed_cars import Car, Engine

Car(Engine()).rpm = "fast"
"""
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--no-incremental"],
    "pyright": [sys.executable, "-m", "pyright"],
    "ty": [sys.executable, "-m", "ty", "check"],
}


def checked(command, path):
    run = subprocess.run(
        [*command, path.name],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_knows_each_name(cars, checker):
    """Overloads, inferred attributes and coroutines; and it rejects what is wrong."""
    pytest.importorskip(checker, reason=f"{checker} is not installed")
    stub("stubbed_cars", write=True)
    good, wrong = cars.with_name("use.py"), cars.with_name("wrong.py")
    good.write_text(USE, encoding="utf-8")
    wrong.write_text(WRONG, encoding="utf-8")
    status, output = checked(CHECKERS[checker], good)

    assert status == 0, output
    assert checked(CHECKERS[checker], wrong)[0] != 0


HEAD = "from forwarding import Wrapper\n\n\nclass Engine:\n    rpm: int = 900\n\n\n"
AROUND = 'Wrapper["Engine"], forward="rpm"'
SPELLINGS = {
    "one line": f"class Car({AROUND}): ...\n",
    "no end of line": f"class Car({AROUND}): ...",
    "statements in one line": f"class Car({AROUND}): x = 1; y = 2\n",
    "a list in one line": f"class Car({AROUND}): x = [\n  1,\n]\n",
    "a docstring in one line": f'class Car({AROUND}): """One.\n\nTwo."""\n',
    "a docstring alone": f'class Car({AROUND}):\n    """A car."""\n',
    "a comment behind the colon": f"class Car({AROUND}):  # C:\\\n    x = 1\n",
    "a continued line": f"class Car({AROUND}): \\\n    x = 1\n",
    "bases over lines": f"class Car(\n    {AROUND}\n): ...\n",
    "a type over lines": (
        'class Car(\n    Wrapper[  # An engine.\n        "Engine"\n    ],\n'
        '    forward="rpm",\n):\n    pass\n'
    ),
    "other letters": f"class Größe({AROUND}): x = 'ä'; y = 1\n\n\nCar = Größe\n",
    "a decorator": f"@(lambda cls: cls)\nclass Car({AROUND}): ...\n",
    "under an if": f"if True:\n    class Car({AROUND}): ...\n",
    "in a try": (
        f"try:\n    class Car({AROUND}):\n        x = 1\nexcept ImportError: raise\n"
    ),
    "a decorated body": (
        f"class Car({AROUND}):\n    @property\n    def x(self):\n        return 1\n"
    ),
    "two spaces": f"class Car({AROUND}):\n  x = 1\n",
    "tabs": f"class Car({AROUND}):\n\tx = 1\n",
    "a form feed": f"\f\nx = 'a\fb'\n\f\nclass Car({AROUND}): ...\n",
    "nested in one line": (
        f"class Outer:\n    class Inner({AROUND}): ...\n\n\nCar = Outer.Inner\n"
    ),
    "nested under tabs": (
        f"class Outer:\n\tclass Inner({AROUND}): ...\n\n\nCar = Outer.Inner\n"
    ),
    "nested in one that forwards": (
        f"class Car({AROUND}):\n    class Inner({AROUND}):\n        x = 1\n"
    ),
}


def rerun(path):
    """Import a stubbed module anew, and write once more."""
    sys.modules.pop("spelled", None)
    importlib.invalidate_caches()
    module = importlib.import_module("spelled")
    once = path.read_bytes()
    assert stub("spelled", write=True) is True
    assert path.read_bytes() == once
    return module, once


@pytest.fixture
def spelled(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "spelled.py"
    sys.modules.pop("spelled", None)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_written_is_python_however_a_class_is_spelled(spelled, spelling, ends):
    """It runs, keeps its ends of lines, and forwards as before."""
    text = (HEAD + SPELLINGS[spelling]).replace("\n", ends)
    spelled.write_bytes(text.encode())

    assert stub("spelled", write=True) is False
    module, once = rerun(spelled)
    car = module.Car(module.Engine())
    car.rpm = 5
    assert car.__wrapped__.rpm == 5
    assert b"forwarded(_wrapped_target.rpm)" in once
    rest = once.decode().replace(ends, "")
    assert "\r" not in rest
    assert "\n" not in rest
    if "x = 1" in text:
        assert module.Car.__dict__.get("x", 1) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_a_file_keeps_its_encoding(spelled, encoding):
    """And its mark of the order of bytes, if it has one."""
    cookie = "" if encoding == "utf-8-sig" else f"# coding: {encoding}\n"
    text = f"{cookie}{HEAD}class Car({AROUND}): x = 'ä'\n"
    spelled.write_bytes(text.encode(encoding))
    stub("spelled", write=True)
    module, once = rerun(spelled)

    assert module.Car.x == "ä"
    assert once.decode(encoding).encode(encoding) == once
    assert once.startswith(b"\xef\xbb\xbf") == (encoding == "utf-8-sig")


IN_A_TRY = (
    "try:\n    from forwarding import Wrapper\nexcept ImportError:\n    raise\n\n\n"
    "class Engine:\n    rpm: int = 900\n\n\n"
)


@pytest.mark.parametrize(
    "head",
    [
        f'#!/usr/bin/env python\n"""Cars."""\n\n{IN_A_TRY}',
        f"#!/usr/bin/env python\n\n{IN_A_TRY}",
        f"#!/usr/bin/env python\n@(lambda cls: cls)\nclass Early: ...\n\n\n{IN_A_TRY}",
    ],
)
def test_the_import_goes_where_a_module_may_have_one(spelled, head):
    """Behind the docstring, before the class that needs it, not at a late import."""
    tail = "\n\nfrom typing import TYPE_CHECKING\nimport this_is_late as _\n"
    spelled.with_name("this_is_late.py").write_text("")
    spelled.write_text(f"{head}class Car({AROUND}): ...\n{tail}")
    stub("spelled", write=True)
    module, once = rerun(spelled)

    assert once.startswith(b"#!/usr")
    assert module.__doc__ == ("Cars." if "Cars" in head else None)


def test_a_part_without_an_end_is_refused(spelled):
    """What follows would be lost."""
    spelled.write_text(f"{HEAD}class Car({AROUND}): ...\n")
    stub("spelled", write=True)
    text = spelled.read_text().rpartition("    # End of what is generated.")
    spelled.write_text(text[0] + text[2] + "\n\nPRECIOUS = 1\n")
    broken = spelled.read_bytes()

    with pytest.raises(ForwardingError, match="has no end; put back '# End of"):
        stub("spelled", write=True)
    assert spelled.read_bytes() == broken


def test_two_branches_with_one_class_each_are_left_alone(spelled):
    """The module shows the names of the one that ran, which the other may not have."""
    branches = f"if True:\n    class Car({AROUND}): ...\nelse:\n    class Car: ...\n"
    spelled.write_text(HEAD + branches)

    assert stub("spelled", write=True) is True
    assert spelled.read_text() == HEAD + branches


def test_a_name_that_python_reserves_is_left_out(spelled):
    """It is reached by getattr() alone, and cannot be declared."""
    spelled.write_text(f"{HEAD}class Car(Wrapper, forward='rpm class'): ...\n")
    stub("spelled", write=True)
    _, once = rerun(spelled)

    assert b"rpm: Any" in once


FEW = """
from typing import Annotated, Generic, Optional, TypeVar, Union
from forwarding import Forwarding, Wrapper
from elsewhere_cars import Far

class Engine:
    rpm: int = 900

class Other:
    rpm: int = 1

Any_ = TypeVar("Any_")
Bound = TypeVar("Bound", bound=Engine)

class Car({bases}, forward="rpm"{to}):
    def __init__(self, engine: {annotation}): ...
"""
ELSEWHERE = """
from typing import TypeVar

class Hidden: ...

Far = TypeVar("Far", bound=Hidden)
"""
TYPED = ["_engine_target = target(Engine)", "rpm = forwarded(_engine_target.rpm)"]
WRAPPED = [line.replace("engine", "wrapped") for line in TYPED]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("Engine | None", TYPED),
        ("None | Engine", TYPED),
        ("Optional[Engine]", TYPED),
        ("Union[Engine, None]", TYPED),
        ("Annotated[Engine | None, 'under the bonnet']", TYPED),
        ("'Optional[Engine]'", TYPED),
        ("list[Engine]", [TYPED[0].replace("Engine", "list[Engine]"), TYPED[1]]),
        ("Engine | Other", ["rpm: Any"]),
        ("Union[Engine, Other, None]", ["rpm: Any"]),
        ("'the engine, of whatever make'", ["rpm: Any"]),
    ],
)
def test_an_annotation_means_one_class_or_none(short_cars, annotation, expected):
    """``target()`` takes a class, so no checker accepts a union there."""
    words = {"bases": "Forwarding", "to": ', to="engine"', "annotation": annotation}

    assert short_cars(words) == expected


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("Any_", ["rpm: Any"]), ("Bound", WRAPPED), ("Far", ["rpm: Any"])],
)
def test_a_type_variable_means_its_bound(short_cars, variable, expected):
    """If it has one, and the module a name for it."""
    bases = f"Wrapper[{variable}], Generic[{variable}]"

    assert short_cars({"bases": bases, "to": "", "annotation": "object"}) == expected


@pytest.fixture
def short_cars(tmp_path, monkeypatch):
    """Write a module with one class, and return what is generated in it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere_cars.py").write_text(ELSEWHERE, encoding="utf-8")
    path = tmp_path / "short_cars.py"

    def run(words):
        path.write_text(FEW.format(**words), encoding="utf-8")
        importlib.invalidate_caches()
        stub("short_cars", write=True)
        lines = generated(path, "Car")
        return [line.strip() for line in lines if line.strip()]

    yield run
    for name in ("short_cars", "elsewhere_cars"):
        sys.modules.pop(name, None)
