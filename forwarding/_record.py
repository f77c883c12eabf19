"""What a class declares: one :class:`Spec` per forwarded attribute.

The specs live on the class, in ``__forwarding__``, and on the functions that
were generated from them, in ``__forwarded__``. A registry keyed by class would
lose them when ``dataclass(slots=True)`` or attrs makes the class anew.
"""

import functools
from collections.abc import Mapping
from types import FunctionType, MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from forwarding.exceptions import ForwardingError


__all__ = ("Kind", "Record", "Spec", "forwarded_attributes", "record_of", "spec_of")

Kind: TypeAlias = Literal["data", "method", "async method"]


class Spec(NamedTuple):
    """Where one attribute is forwarded, and how.

    >>> spec = Spec(("engine", "gearbox", "rpm"))
    >>> spec.owner, spec.name, str(spec)
    ('engine.gearbox', 'rpm', 'engine.gearbox.rpm')
    """

    path: tuple[str, ...]
    """Attribute names from the wrapper to the attribute, both ends included."""
    kind: Kind = "data"
    """``"data"`` belongs to the owner; a method is bound to, and set on, the layer."""
    set: bool = True
    """Whether assignment reaches the owner."""
    delete: bool = True
    """Whether deletion reaches the owner."""

    @property
    def owner(self) -> str:
        """Path from the wrapper to the object that owns the attribute."""
        return ".".join(self.path[:-1])

    @property
    def name(self) -> str:
        """Name of the attribute on its owner."""
        return self.path[-1]

    def find_owner(self, wrapper: object) -> Any:
        """Follow the path from an instance to the object that owns the attribute.

        Raises:
            AttributeError: An object on the way is missing.
        """
        return functools.reduce(getattr, self.path[:-1], wrapper)

    def __str__(self) -> str:
        return ".".join(self.path)


class Record:
    """What one class body declared, including what was cut off later."""

    __slots__ = ("error", "specs", "targets")

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}
        self.targets: dict[str, type | None] = {}
        self.error: Exception | None = None  # Raised once the class is complete.


def record_of(cls: type) -> Record:
    """Return the record of this very class, made at first use."""
    record = cls.__dict__.get("__forwarding__")
    if not isinstance(record, Record):
        record = Record()
        type.__setattr__(cls, "__forwarding__", record)
    return record


def spec_of(attribute: object) -> Spec | None:
    """Return the spec of a generated attribute, None for any other object.

    A property whose setter was replaced (``@W.x.setter``) is an override, and
    so is a function that copied the generated one's attributes.
    """
    if type(attribute) is not property:
        return _spec_of_function(attribute)
    specs = {_spec_of_function(f) for f in (attribute.fset, attribute.fdel) if f}
    spec = _spec_of_function(attribute.fget)
    return spec if specs <= {spec} else None


def _spec_of_function(function: object) -> Spec | None:
    if not isinstance(function, FunctionType):
        return None
    if not function.__code__.co_filename.startswith("<forwarded "):
        return None
    spec: Spec | None = getattr(function, "__forwarded__", None)
    return spec


def forwarded_attributes(cls: type) -> Mapping[str, Spec]:
    """Return what instances of ``cls`` forward, by attribute name.

    Follows the method resolution order: a name that a subclass overrides with
    something else is not forwarded, and is not listed.

    >>> from forwarding import Forwarded
    >>> class Car:
    ...     rpm = Forwarded("engine.rpm")
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
    found: dict[str, Spec] = {}
    for base in reversed(cls.__mro__):
        for name, attribute in vars(base).items():
            spec = spec_of(attribute)
            if spec is not None:
                found[name] = spec
            else:
                found.pop(name, None)
    return MappingProxyType(found)
