"""Records of what classes declare: one :class:`Spec` per forwarded attribute.

The record of a class, in ``__forwarding__``, is what says which names it forwards.
Generated functions carry their spec besides, in ``__forwarded__``, so that an alias
(``y = Base.x``) is recognised without a record. Neither depends on where a class
came from: both survive ``dataclass(slots=True)``, attrs, cloudpickle, dill and a
reload, where a registry keyed by class, or code recognised by its file name, do not.
"""

import functools
from collections.abc import Iterator, Mapping
from operator import is_
from types import FunctionType, MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from forwarding._path import Part, spelled_path, step
from forwarding.exceptions import ForwardingError


__all__ = (
    "Kind",
    "Lens",
    "Record",
    "Spec",
    "declared_spec",
    "forwarded_attributes",
    "inherited_spec",
    "mark",
    "record_in",
    "record_of",
    "spec_in",
    "spec_of",
    "undecided_names",
    "undecorated",
)

_Snapshot: TypeAlias = tuple[tuple[str, ...], tuple[Any, ...]]

Kind: TypeAlias = Literal[
    "data",
    "method",
    "async method",
    "generator method",
    "async generator method",
]


class Lens(NamedTuple):
    """What happens to a value on its way between the layer and the owner."""

    get: Any = None
    """Called with the owner's value, and its result is read; None for the value itself."""
    set: Any = None
    """Called with the assigned value, and its result reaches the owner."""
    default: tuple[Any, ...] = ()
    """The value, alone in a tuple, of an attribute that the owner lacks."""
    returns_wrapper: bool = False
    """Whether a method that returns its owner returns the layer instead."""
    others: tuple[tuple[Part, ...], ...] = ()
    """Paths to read from, in this order, where the first owner lacks the name."""
    each: bool = False
    """Whether the object before the attribute is a collection of owners."""
    on_class: bool = False
    """Whether ``W.x`` on the class is the target class's own ``x``."""
    exact: bool = False
    """Whether a method has the target's signature instead of ``*args, **kwargs``."""


class Spec(NamedTuple):
    """Where one attribute is forwarded, and how.

    >>> spec = Spec(("engine", "gearbox", "rpm"))
    >>> spec.owner, spec.name, str(spec)
    ('engine.gearbox', 'rpm', 'engine.gearbox.rpm')
    """

    path: tuple[Part, ...]
    """Parts from the wrapper to the attribute, both ends included."""
    kind: Kind = "data"
    """``"data"`` belongs to the owner; a method is bound to, and set on, the layer."""
    set: bool = True
    """Whether assignment reaches the owner."""
    delete: bool = True
    """Whether deletion reaches the owner."""
    lens: Lens | None = None
    """Conversions, defaults and several owners; None where there are none."""

    @property
    def owner(self) -> str:
        """Path from the wrapper to the object that owns the attribute."""
        return spelled_path(self.path[:-1])

    @property
    def name(self) -> str:
        """Name of the attribute on its owner, or the item in brackets."""
        return str(self.path[-1])

    def find_owner(self, wrapper: object) -> Any:
        """Follow the path from an instance to the object that owns the attribute.

        Raises:
            AttributeError: An object on the way is missing.
        """
        return functools.reduce(step, self.path[:-1], wrapper)

    def __str__(self) -> str:
        return spelled_path(self.path)


class Record:
    """What one class body declared, including what was cut off later."""

    __slots__ = (
        "composed",
        "excepted",
        "failure",
        "gates",
        "interfaces",
        "is_checked",
        "known_types",
        "namespace",
        "resolvers",
        "said_data",
        "seen",
        "specs",
        "targets",
        "undecided",
    )

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}
        self.targets: dict[str, type | None] = {}
        # How a dynamic target is found; see forwarding._dynamic.
        self.resolvers: dict[str, Any] = {}
        # Names declared as data for want of better knowledge; see forwarding._decide.
        self.undecided: set[str] = set()
        # Names of which the declaration says kind="data".
        self.said_data: set[str] = set()
        # What but= and forward= said, which coverage() and verify() ask.
        self.excepted: set[str] = set()
        self.interfaces: tuple[type, ...] = ()
        # Whether Forwarding has read the class keywords; see forwarding._verify.
        self.is_checked = False
        # Classes that a target may be of, so that it is found out once a class.
        self.known_types: dict[str, tuple[type, ...]] = {}
        # Names with an accessor of their own: @rpm.setter beside a declaration.
        self.composed: set[str] = set()
        # What the generated functions of the class share as their globals.
        self.namespace: dict[str, Any] = {}
        # What drops writes to its read-only names; see forwarding._read_only.
        self.gates: dict[str, Any] = {}
        # The answer of forwarded_attributes(), and the class as it was then.
        self.seen: tuple[_Snapshot, Mapping[str, Spec]] | None = None
        # Raised once the class is complete; CPython 3.11 would wrap it earlier.
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process only."""
        local = ("namespace", "failure", "gates", "known_types", "seen")
        return {
            name: getattr(self, name) for name in self.__slots__ if name not in local
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Record.__init__(self)
        for name, value in state.items():
            setattr(self, name, value)


def record_of(cls: type) -> Record:
    """Return the record of this very class, made at first use."""
    record = record_in(cls)
    if record is None:
        record = Record()
        type.__setattr__(cls, "__forwarding__", record)
    return record


def record_in(cls: type) -> Record | None:
    """Return the record of this very class, None if it declares nothing."""
    record = cls.__dict__.get("__forwarding__")
    return record if isinstance(record, Record) else None


def undecided_names(cls: type) -> set[str]:
    """Return the names that count as data for want of better knowledge."""
    records = filter(None, map(record_in, cls.__mro__))
    return {name for record in records for name in record.undecided}


def mark(function: FunctionType, spec: Spec) -> None:
    """Say on a generated function what it was generated from."""
    # functools.wraps copies both marks to a function that is then not the marked one.
    marks = vars(function)
    marks["__forwarded__"], marks["__forwarded_by__"] = spec, function


def spec_of(attribute: object) -> Spec | None:
    """Return the spec of a generated attribute, None for any other object.

    A property whose setter was replaced (``@W.x.setter``) is an override, and
    so is a function that copied the generated one's attributes.
    """
    if not isinstance(attribute, property):
        return _marked_spec(attribute)
    specs = {_marked_spec(f) for f in (attribute.fset, attribute.fdel) if f}
    spec = _marked_spec(attribute.fget)
    return spec if specs <= {spec} else None


def declared_spec(cls: type, name: str) -> Spec | None:
    """Return how ``cls`` forwards ``name``, None if it does not.

    Follows the method resolution order to the first class that has the name.
    """
    base = next((base for base in cls.__mro__ if name in vars(base)), cls)
    return spec_in(base, name)


def spec_in(cls: type, name: str) -> Spec | None:
    """Return how the body of this very class forwards ``name``, None if not at all."""
    return _spec_in(cls, name, vars(cls).get(name))


def inherited_spec(cls: type, name: str) -> Spec:
    """Return the nearest declaration of ``name``, whatever overrides it.

    For generated code, which may run under an override that calls ``Base.x.fset``.
    """
    for base in cls.__mro__:
        record = record_in(base)
        if record is not None and name in record.specs:
            return record.specs[name]
    # An alias, from a class that is no base: y = Other.x runs the code of x.
    return next(
        spec
        for base in cls.__mro__
        for attribute in vars(base).values()
        if (spec := spec_of(attribute)) and attribute.fget.__name__ == name
    )


def forwarded_attributes(cls: type) -> Mapping[str, Spec]:
    """Return what instances of ``cls`` forward, by attribute name.

    Follows the method resolution order: a name that a subclass overrides with
    something else is not forwarded, and is not listed.

    >>> from forwarding import Forwarded
    >>> class Car:
    ...     rpm = Forwarded(path="engine.rpm")
    >>> str(forwarded_attributes(Car)["rpm"])
    'engine.rpm'

    Raises:
        ForwardingError: ``cls`` is not a class.
    """
    if not isinstance(cls, type):
        raise ForwardingError(
            "forwarded_attributes() takes a class, got an instance of "
            f"{type(cls).__name__}; pass type(wrapper)"
        )
    record = record_in(cls)
    if record is None:
        return _forwarded(cls)
    now = _snapshot(cls)
    # A class that is written to is read anew, also where nothing could intercept it.
    if record.seen is None or not _are_same(record.seen[0], now):
        record.seen = (now, _forwarded(cls))
    return record.seen[1]


def _forwarded(cls: type) -> Mapping[str, Spec]:
    specs: dict[str, Spec] = {}
    for base in reversed(cls.__mro__):
        for name, attribute in vars(base).items():
            spec = _spec_in(base, name, attribute)
            if spec is not None:
                specs[name] = spec
            else:
                specs.pop(name, None)
    return MappingProxyType(specs)


def _snapshot(cls: type) -> _Snapshot:
    """Return all names and attributes of a class and its bases, and the bases."""
    names: list[str] = []
    attributes: list[Any] = [*cls.__mro__]
    for base in cls.__mro__:
        names += vars(base)
        attributes += vars(base).values()
    return tuple(names), tuple(attributes)


def _are_same(before: _Snapshot, now: _Snapshot) -> bool:
    # By identity: that attributes are equal is not asked, it could run their __eq__.
    (names, attributes), (names_now, attributes_now) = before, now
    return (
        names == names_now
        and len(attributes) == len(attributes_now)
        and all(map(is_, attributes, attributes_now))
    )


def _spec_in(cls: type, name: str, attribute: object) -> Spec | None:
    spec = spec_of(attribute)
    if spec is not None:
        return spec
    # A class decorator such as beartype's wraps each accessor in a checking one. The
    # name is still the class's own declaration, or preserved() would overlook it.
    record = record_in(cls)
    declared = record.specs.get(name) if record else None
    return declared if declared and _is_decorated(attribute, declared) else None


def _is_decorated(attribute: object, spec: Spec) -> bool:
    functions = list(_functions(attribute))
    return bool(functions) and all(
        (marked := undecorated(function)) and spec_of(marked) == spec
        for function in functions
    )


def _functions(attribute: object) -> Iterator[object]:
    if isinstance(attribute, property):
        yield from filter(None, (attribute.fget, attribute.fset, attribute.fdel))
    elif isinstance(attribute, FunctionType):
        yield attribute


def undecorated(function: object) -> FunctionType | None:
    """Return the generated function that others wrap, None if there is none."""
    seen: set[int] = set()
    while _marked_spec(function) is None and id(function) not in seen:
        seen.add(id(function))
        function = getattr(function, "__wrapped__", None)
    return function if isinstance(function, FunctionType) else None


def _marked_spec(function: object) -> Spec | None:
    if not isinstance(function, FunctionType):
        return None
    marks = vars(function)
    if marks.get("__forwarded_by__") is not function:
        return None
    spec: Spec | None = marks.get("__forwarded__")
    return spec
