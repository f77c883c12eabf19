"""What a function names: modules, generators, and places where it may keep something.

Functions keep state in closures, in globals, in default values, in attributes of
functions, objects and classes, and in modules, of torch and of Python. What lies further
away (files, loggers, trackers, installed packages, caches of functools) is not found.
"""

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from dp.evidence._namespaces import (
    ClassAttributes,
    Defaults,
    Entries,
    PartialArguments,
    Slots,
    Variables,
    is_programs_own,
)
from dp.evidence._random_state import GENERATORS


__all__ = ("Place", "Reach", "reach_of")

_DEEPEST: Final = 6  # Objects inside of objects.
_LONGEST: Final = 64  # Entries of a container that are looked into.
_MOST: Final = 5_000  # Objects altogether.
_MOST_FROZEN: Final = 1 << 24  # Bytes of frozen weights, which every evaluation copies.
_MOST_CONTAINED: Final = 1 << 24  # Bytes of the tensors of a container; likewise.
# What torch keeps in every module. `training` is state like any attribute.
_TORCHS_OWN: Final = frozenset(vars(nn.Module())) - {"training"}
# Objects of these are not the program's own, or are large and no state of a loss.
_NOT_LOOKED_INTO: Final = frozenset(
    [
        "torch",
        "numpy",
        "builtins",
        "logging",
        "threading",
        "functools",
        "typing",
        "abc",
        "multiprocessing",
        "asyncio",
        "importlib",
        "weakref",
        "_thread",
        "io",
    ]
)
# Not state of a loss, or the data themselves.
_NEVER: Final = (Tensor, Optimizer, Dataset, DataLoader, types.ModuleType)


@final
@dataclass(frozen=True, slots=True)
class Place:
    """A mapping of names, in which a function may keep something.

    Attributes:
        owner: What has these names, in words.
        namespace: The mapping.
        names: Which of its names count; None for all.
        holds_buffers: Whether its tensors are a module's buffers or frozen weights,
            which are saved with it.
    """

    owner: str
    namespace: MutableMapping[Any, Any]
    names: frozenset[str] | None = None
    holds_buffers: bool = False

    def current_names(self) -> list[Any]:
        """Return the names that count and exist."""
        names = self.namespace if self.names is None else self.names
        return [n for n in names if n in self.namespace and n not in _TORCHS_OWN]


@final
@dataclass(slots=True)
class Reach:
    """What a function names, each thing once.

    Attributes:
        modules: Every module, those inside of others included.
        generators: Random number generators of the program's own.
        places: Attributes of objects, buffers of modules, variables, and globals.
        devices: The accelerators that hold parameters or buffers.
    """

    modules: list[nn.Module] = field(default_factory=list)
    generators: list[Any] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    devices: set[torch.device] = field(default_factory=set)

    @property
    def is_compiled(self) -> bool:
        """Whether a module is compiled: another size of batch may compile it anew."""
        return any(
            hasattr(module, "_orig_mod") or module._compiled_call_impl is not None  # noqa: SLF001 -- torch has no public name for it
            for module in self.modules
        )


def reach_of(function: Any) -> Reach:
    """Return what *function* names, directly or by functions and objects that it names."""
    # Example: loss_fn(batch) names model, F and step, and closes over weights. The
    # model's attributes and buffers are places, as are the globals by these three
    # names, the variable weights is a cell, and F, a Python module, is not looked into.
    reach = Reach()
    seen: set[int] = set()
    queue: deque[tuple[Any, int]] = deque([(function, 0)])
    while queue and len(seen) < _MOST:
        item, depth = queue.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if depth <= _DEEPEST:
            queue.extend((inner, depth + 1) for inner in _inside(item, reach))
    if not reach.is_compiled:
        reach.places.extend(_of_frozen_weights(reach.modules))
    return reach


def _of_frozen_weights(modules: Sequence[nn.Module]) -> list[Place]:
    """Return places of weights that no gradient trains: a function may write to them.

    Centres of classes, codebooks and a teacher's weights are often such parameters.
    """
    names = [
        frozenset(
            name
            for name, weight in module._parameters.items()  # noqa: SLF001 -- torch has no public table
            # Of a shard, a copy would be another kind of tensor.
            if type(weight) is nn.Parameter and not weight.requires_grad
        )
        for module in modules
    ]
    places = [
        Place(type(module).__name__, module._parameters, some, holds_buffers=True)  # noqa: SLF001
        for module, some in zip(modules, names, strict=True)
        if some
    ]
    size = sum(p.namespace[n].nbytes for p in places for n in p.current_names())
    return places if size <= _MOST_FROZEN else []


def _inside(item: Any, reach: Reach) -> Iterable[Any]:
    """Note what *item* is in *reach*, and return what it refers to."""
    if isinstance(item, _NEVER):
        return ()
    for kinds, read in _READERS:
        if isinstance(item, kinds):
            return read(item, reach)
    return _of_object(item, reach) if _is_of_program(item) else ()


def _of_module(root: nn.Module, reach: Reach) -> Iterator[Any]:
    known = set(map(id, reach.modules))
    for module in root.modules():
        if id(module) in known:
            continue
        reach.modules.append(module)
        kind = type(module).__name__
        reach.places.append(Place(kind, vars(module)))
        buffers, parameters = module._buffers, module._parameters  # noqa: SLF001 -- torch has no public tables
        if buffers:
            reach.places.append(Place(kind, buffers, holds_buffers=True))
        for tensor in (*buffers.values(), *parameters.values()):
            if tensor is not None and tensor.device.type not in ("cpu", "meta"):
                reach.devices.add(tensor.device)
        yield from (v for k, v in vars(module).items() if k not in _TORCHS_OWN)
        # A hook may keep the activations of the batch before.
        yield from module._forward_pre_hooks.values()  # noqa: SLF001
        yield from module._forward_hooks.values()  # noqa: SLF001
        yield type(module)


def _of_function(function: types.FunctionType, reach: Reach) -> Iterator[Any]:
    compiled = getattr(function, "_torchdynamo_orig_callable", None)
    # torch.compile puts a wrapper around a function, which names nothing of it.
    if compiled is not None:
        yield compiled
        return
    if _is_library(function.__module__):
        return
    for place in (
        Variables(function),
        Defaults(function),
        function.__kwdefaults__ or {},
        vars(function),
    ):
        reach.places.append(Place(f"{function.__name__}()", place))
        yield from place.values()
    yield from _of_globals(function, reach)


def _of_globals(function: types.FunctionType, reach: Reach) -> Iterator[Any]:
    known = function.__globals__
    # The code names attributes and methods as well, which are no globals.
    names = frozenset(name for name in _names(function.__code__) if name in known)
    if names:
        reach.places.append(Place(str(known.get("__name__")), known, names))
    for name in names:
        yield known[name]
        if isinstance(known[name], types.ModuleType):
            yield from _of_python_module(known[name], function, reach)


def _of_python_module(
    module: types.ModuleType, function: types.FunctionType, reach: Reach
) -> Iterator[Any]:
    """Yield what a function names of one of the program's own modules."""
    if is_programs_own(module.__name__):
        known = vars(module)
        names = frozenset(name for name in _names(function.__code__) if name in known)
        reach.places.append(Place(module.__name__, known, names))
        yield from (known[name] for name in names)


def _of_class(kind: type, reach: Reach) -> Iterator[Any]:
    """Yield the values and methods of a class of the program's own, and its bases."""
    if not is_programs_own(kind.__module__):
        return
    values = ClassAttributes(kind)
    reach.places.append(Place(kind.__name__, values))
    yield from values.values()
    yield from kind.__bases__
    for value in list(vars(kind).values()):
        yield getattr(value, "__func__", getattr(value, "fget", value))


def _of_generator(generator: Any, reach: Reach) -> Iterable[Any]:
    reach.generators.append(generator)
    return ()


def _of_container(container: Any, reach: Reach) -> Iterable[Any]:
    # A long list is data; where the loss keeps its own past, that is found while it is
    # short.
    if len(container) > _LONGEST:
        return ()
    values = list(container.values() if isinstance(container, dict) else container)
    kind = type(container)
    if kind in (list, set, deque):  # What is in them; and then tensors, written to.
        reach.places.append(Place(kind.__name__, {0: container}))
    size = sum(value.nbytes for value in values if isinstance(value, Tensor))
    if kind in (list, dict) and size <= _MOST_CONTAINED:
        entries = Entries(container) if isinstance(container, list) else container
        reach.places.append(Place(kind.__name__, entries))
    return values


def _of_method(method: types.MethodType, _reach: Reach) -> Iterable[Any]:
    return method.__func__, method.__self__


def _of_partial(partial: functools.partial[Any], reach: Reach) -> Iterable[Any]:
    reach.places.append(Place("partial", partial.keywords))
    reach.places.append(Place("partial", PartialArguments(partial)))
    return partial.func, *partial.args, *partial.keywords.values()


def _of_object(item: Any, reach: Reach) -> Iterable[Any]:
    values = vars(item) if hasattr(item, "__dict__") else Slots(item)
    reach.places.append(Place(type(item).__name__, values))
    call = [type(item).__call__] if callable(item) else []
    return [*call, *values.values(), type(item)]


_READERS: Final[tuple[tuple[Any, Callable[[Any, Reach], Iterable[Any]]], ...]] = (
    (GENERATORS, _of_generator),
    (nn.Module, _of_module),
    (types.FunctionType, _of_function),
    (types.MethodType, _of_method),
    (functools.partial, _of_partial),
    (Distribution, _of_object),
    (type, _of_class),
    ((list, tuple, set, frozenset, deque, dict), _of_container),
)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # Functions inside of it.
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_of_program(item: Any) -> bool:
    if not hasattr(item, "__dict__") and not hasattr(item, "__slots__"):
        return False
    return not _is_library(type(item).__module__)


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _NOT_LOOKED_INTO
