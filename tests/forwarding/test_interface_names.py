"""A class that is forwarded as a whole is what its instances have."""

import dataclasses
import sys
import types

import pytest

from forwarding import Forwarding, Wrapper, forwarded_attributes
from forwarding._instance_names import instance_names


class Shared:
    count = 0


class ByHand:
    def __init__(self, a, *more):
        self.a = a
        self.b: int = 2
        self.c, (self.d, *self.e) = more[0], more
        for self.f in (1, 2):
            pass
        with open(__file__) as self.g:  # noqa: PTH123
            pass
        self.h = self.i = self.a
        a.not_mine = 1
        Shared.count = 1


class BySetattr:
    def __init__(self):
        setattr(self, "a", 1)  # noqa: B010
        object.__setattr__(self, "b", 2)
        super().__setattr__("c", 3)
        self.__dict__["d"] = 4
        vars(self)["e"] = 5


class ByMethods:
    def __init__(self):
        self._build()
        self.c = lambda: self.reset()  # noqa: PLW0108

    def _build(self):
        self.a = 1
        self.reset()

    def reset(self):
        self.b = 1

    def unused(self):
        self.not_built = 1


class InNew:
    def __new__(cls, *_):
        made = super().__new__(cls)
        made.a = 1
        cls.not_of_instances = 1
        return made


class Inherits(ByMethods, InNew):
    def __init__(self):
        super().__init__()
        self.d = 1


class InClosure:
    def __init__(self):
        def later():
            self.b = 1

        self.a = later


def announced(init):
    def wrapper(self, *args):
        self.outside = True
        return init(self, *args)

    wrapper.__wrapped__ = init
    return wrapper


class Decorated:
    @announced
    def __init__(self):
        self.inside = True


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a = 1


@dataclasses.dataclass
class Fields:
    a: int
    c: dataclasses.InitVar[int]
    b: list = dataclasses.field(default_factory=list)
    d: "int" = dataclasses.field(init=False)

    def __post_init__(self, c):
        self.e = c


@dataclasses.dataclass(slots=True)
class SlottedFields:
    a: int
    b: int = 0


NAMES = {
    ByHand: "a b c d e f g h i",
    BySetattr: "a b c d e",
    ByMethods: "a b c",
    InNew: "a",
    Inherits: "a b c d",
    InClosure: "a b",
    Decorated: "inside outside",
    Fields: "a b d e",
}


@pytest.mark.parametrize("cls", NAMES, ids=lambda cls: cls.__name__)
def test_what_building_an_instance_assigns_is_known(cls):
    """In any statement, in any class above, by any way that a literal name is set."""
    assert sorted(instance_names(cls)) == NAMES[cls].split()


def around(interface):
    class Outer(Forwarding, to="inner", forward=interface):
        def __init__(self, inner):
            self.inner = inner

    return Outer


MADE = {
    ByHand: lambda: ByHand(types.SimpleNamespace(), 1),
    Slots: Slots,
    Fields: lambda: Fields(1, 2),
    SlottedFields: lambda: SlottedFields(1),
    Inherits: Inherits,
    BySetattr: BySetattr,
}


@pytest.mark.parametrize("cls", MADE, ids=lambda cls: cls.__name__)
def test_every_such_name_is_set_on_the_target(cls):
    """Nothing that an instance has stays on the wrapper when it is assigned."""
    inner = MADE[cls]()
    outer = around(cls)(inner)
    names = forwarded_attributes(type(outer))
    for name in ("a", "b"):
        setattr(outer, name, "new")

        assert names[name].kind == "data"
        assert getattr(inner, name) == getattr(outer, name) == "new"
    assert vars(outer) == {"inner": inner}


def test_an_argument_of_a_dataclass_is_no_attribute():
    """An InitVar is gone once the instance is built."""
    assert "c" not in forwarded_attributes(around(Fields))


def test_fields_of_attrs_are_names_of_instances():
    """Its __init__ is generated, and sets a frozen or slotted instance its own way."""
    attrs = pytest.importorskip("attrs", reason="attrs is not installed")

    @attrs.frozen
    class Frozen:
        a: int
        b: list = attrs.field(factory=list)

    @attrs.define(slots=False)
    class Open:
        a: int = attrs.field(init=False)
        b: int = 0

    assert {"a", "b"} <= forwarded_attributes(around(Frozen)).keys()
    assert {"a", "b"} <= forwarded_attributes(around(Open)).keys()


def test_fields_of_pydantic_are_names_of_instances():
    """They are annotated in the class body, and nowhere else."""
    pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")

    class Model(pydantic.BaseModel):
        a: int = 1

    inner = Model()
    outer = around(Model)(inner)
    outer.a = 2

    assert inner.a == 2


def test_a_class_in_c_has_the_names_of_its_body():
    """There is no code to read, and none is needed."""
    assert "append" in forwarded_attributes(around(list))
    assert instance_names(list) == ()


class Scheduler:
    def __init__(self):
        self.step = self.step
        self.last = 0

    def step(self):
        """Advance."""


def test_a_method_that_init_rebinds_is_a_method():
    """As ``step`` of a scheduler: the class body knows better."""
    specs = forwarded_attributes(around(Scheduler))

    assert (specs["step"].kind, specs["last"].kind) == ("method", "data")


class Linked:
    def __init__(self, inner):
        self.inner = inner
        self.value = 1


def test_the_wrappers_own_target_is_not_forwarded():
    """A class that is wrapped in its like has a target of the same name."""
    outer = around(Linked)(Linked(None))
    outer.value = 2

    assert isinstance(outer.inner, Linked)
    assert outer.inner.value == 2


class Kept(Forwarding, to="inner", forward=Linked, but="value"):
    def __init__(self, inner):
        self.inner = inner
        self.value = 3


def test_a_name_of_init_can_be_excepted():
    """Then it is the wrapper's own."""
    kept = Kept(Linked(None))

    assert (kept.value, kept.inner.value) == (3, 1)


class Motor:
    def __init__(self):
        self.rpm = 900


class OnMotor(Wrapper[Motor], forward="rpm start"):
    pass


def test_the_class_of_the_target_tells_that_a_name_is_data():
    """So a single name is known too, and its setter asks nothing."""
    assert "stays" not in OnMotor.rpm.fset.__code__.co_names
    assert "stays" in OnMotor.start.fset.__code__.co_names


def test_a_dropped_class_is_not_kept_by_what_is_known_of_it():
    """The names are found once, and forgotten with the class."""
    import gc  # noqa: PLC0415
    import weakref  # noqa: PLC0415

    class Gone(Motor):
        pass

    assert instance_names(Gone) == ("rpm",)
    reference = weakref.ref(Gone)
    del Gone
    gc.collect()

    assert reference() is None


def test_a_whole_optimizer_is_its_groups_state_and_defaults():
    """The bug that the package is for: a learning rate that stays on the wrapper."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)

    class Outer(
        Forwarding, torch.optim.Optimizer, to="inner", forward=torch.optim.Optimizer
    ):
        def __init__(self, inner):
            self.inner = inner

    outer = Outer(Outer(sgd))
    outer.param_groups = [{**sgd.param_groups[0], "lr": 0.025}]

    assert sgd.param_groups[0]["lr"] == 0.025
    assert {"param_groups", "state", "defaults"} <= forwarded_attributes(Outer).keys()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of 3.12")
def test_type_parameters_are_no_names_of_instances():
    """A generic class of the new syntax has cells in its __init__."""
    space = {}
    exec(  # noqa: S102
        "class Box[T]:\n def __init__(self, x: T) -> None:\n  self.x: T = x\n", space
    )

    assert instance_names(space["Box"]) == ("x",)
