"""What type checkers know of forwarded attributes; checked, never run.

Each line that must be refused says so to mypy and pyright (``type: ignore``) and
to ty; all three report an ignore that is not needed, ty with
``--error unused-ignore-comment``.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from abc import ABC
from collections import defaultdict
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar, assert_type

from torch import Tensor
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import Linear, Module
from torch.optim import Optimizer

from forwarding import (
    Forwarded,
    Forwarding,
    ForwardingABCMeta,
    ForwardingMeta,
    ModuleForwarding,
    SlottedWrapper,
    Wrapper,
    coverage,
    forwarded,
    lazy,
    owner_of,
    preserved,
    target,
    verify,
)


T = TypeVar("T")


class Gearbox:
    ratio: float = 1.0


class Engine:
    gearbox: Gearbox
    rpm: int = 900

    def start(self, *, cold: bool) -> str:
        return f"{cold}"


current_engine: ContextVar[Engine] = ContextVar("current_engine")


class Car:
    engine = target(Engine)
    rpm = forwarded(engine.rpm)
    speed = forwarded(engine.gearbox.ratio, doc="Ratio.")
    start = forwarded(engine.start)
    serial = Forwarded(path="engine.serial", set=False)
    weight = Forwarded[float](path="engine.weight")
    typo = forwarded(engine.rmp)  # type: ignore[attr-defined]  # ty: ignore[missing-attribute]

    def __init__(self, engine: Engine) -> None:
        self.engine = engine


def toy(car: Car) -> None:
    assert_type(car.engine, Engine)
    assert_type(car.rpm, int)
    assert_type(car.speed, float)
    assert_type(car.start(cold=True), str)
    assert_type(car.serial, Any)
    assert_type(car.weight, float)
    assert_type(Car.weight, Forwarded[float])
    car.rpm = 3
    car.speed = 1.5
    car.weight = 2.5
    car.rpm = "fast"  # type: ignore[assignment]  # ty: ignore[invalid-assignment]
    car.weight = "heavy"  # type: ignore[assignment]  # ty: ignore[invalid-assignment]
    car.start(warm=True)  # type: ignore[call-arg]  # ty: ignore[missing-argument, unknown-argument]
    car.rmp  # type: ignore[attr-defined]  # ty: ignore[missing-attribute]


class Outer(Optimizer, metaclass=ForwardingMeta):
    original_optimizer = target(Optimizer)
    param_groups = forwarded(original_optimizer.param_groups)
    state = forwarded(original_optimizer.state)
    defaults = forwarded(original_optimizer.defaults)
    typo = forwarded(original_optimizer.param_group)  # type: ignore[attr-defined]  # ty: ignore[missing-attribute]

    def __init__(self, optimizer: Optimizer) -> None:
        self.original_optimizer = optimizer
        with preserved(self):
            super().__init__(optimizer.param_groups, optimizer.defaults)


def optimizers(outer: Outer) -> None:
    assert_type(outer.param_groups, list[dict[str, Any]])
    assert_type(outer.state, defaultdict[Tensor, Any])
    assert_type(outer.defaults, dict[str, Any])
    assert_type(outer.original_optimizer, Optimizer)
    outer.param_groups = []
    outer.param_groups = {}  # type: ignore[assignment]  # ty: ignore[invalid-assignment]
    outer.original_optimizer = 3  # type: ignore[assignment]  # ty: ignore[invalid-assignment]


class AlsoStateful(Outer, Stateful): ...


class AlsoAbstract(Outer, ABC): ...


class AlsoGeneric(Outer, Generic[T]): ...


class Drives(Protocol):
    rpm: int


class AlsoProtocol(Car, Drives): ...


class Bulk(Optimizer, Forwarding, to="inner", forward=("step", Engine), but="rpm"): ...


class BulkByMeta(metaclass=ForwardingMeta, to="inner", forward=Drives): ...


class Guarded(metaclass=ForwardingABCMeta, forward="rpm", to="inner"): ...


class GuardedAbstract(Guarded, ABC): ...


class Loud(Wrapper[list[int]]):
    count: Forwarded[int] = Forwarded()


def wrappers(loud: Loud) -> None:
    assert_type(loud.__wrapped__, list[int])
    assert_type(loud.count, int)
    assert_type(owner_of(loud, "count"), tuple[object, str])
    verify(loud)
    Loud("text")  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]


class Scoped(Forwarding):
    engine = target(Engine, via=current_engine)
    rpm = forwarded(engine.rpm, default=0)
    start = forwarded(engine.start, returns="wrapper")
    level = forwarded(engine.gearbox.ratio, get=float, set=float)


def dynamic(scoped: Scoped) -> None:
    assert_type(scoped.rpm, int)
    assert_type(scoped.start(cold=True), str)
    assert_type(scoped.engine, Engine)
    forwarded(scoped.rpm, returns="target")  # type: ignore[arg-type]  # ty: ignore[invalid-argument-type]


class Lazy(Forwarding):
    engine = target(Engine, via=lazy(lambda _: Engine()))
    rpm = forwarded(engine.rpm)


class Halved(ModuleForwarding[Linear], Module):
    factor: float

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.__wrapped__(x)
        return self.factor * out


def modules(halved: Halved) -> None:
    assert_type(halved.__wrapped__, Linear)
    assert_type(halved.training, bool)
    assert_type(halved.train(), Halved)
    halved.state_dict()


class Small(SlottedWrapper[Engine]):
    __slots__ = ()
    rpm: Forwarded[int] = Forwarded()


def covered(small: Small) -> None:
    assert_type(small.__wrapped__, Engine)
    found = coverage(Small, Engine, leave_out=["start"])
    assert_type(found.missing, tuple[str, ...])
    assert_type(found.complete, bool)
