"""Follow forwarding through the layers of a wrapped object."""

from forwarding._record import forwarded_attributes
from forwarding._targets import targets_of
from forwarding.exceptions import ForwardingError


__all__ = ("chain", "owner_of", "unwrap")


def chain(wrapper: object, /) -> tuple[object, ...]:
    """Return the wrapper, what it wraps, what that wraps, and so on.

    Each object is listed once, so the answer is finite even for a cycle.

    >>> from forwarding import Wrapper
    >>> len(chain(Wrapper(Wrapper([]))))
    3

    Raises:
        ForwardingError: An object on the way forwards to several targets.
        AttributeError: An object on the way has no target yet.
    """
    layers, _ = _layers(wrapper)
    return layers


def unwrap(wrapper: object, /) -> object:
    """Return the innermost object.

    >>> from forwarding import Wrapper
    >>> unwrap(Wrapper(Wrapper([])))
    []

    Raises:
        ForwardingError: The wrappers form a cycle, or one has several targets.
        AttributeError: An object on the way has no target yet.
    """
    layers, is_cycle = _layers(wrapper)
    if is_cycle:
        raise ForwardingError(
            f"{type(wrapper).__name__} wraps itself through {len(layers)} layers; "
            "there is no innermost object"
        )
    return layers[-1]


def owner_of(wrapper: object, name: str, /) -> tuple[object, str]:
    """Return the object that owns an attribute in the end, and its name there.

    >>> from forwarding import Forwarded, Wrapper
    >>> class Car(Wrapper):
    ...     speed = Forwarded("__wrapped__.rpm")
    >>> class Engine:
    ...     rpm = 900
    >>> owner, name = owner_of(Car(Car(Engine())), "rpm")
    >>> type(owner).__name__, name
    ('Car', 'rpm')

    Raises:
        ForwardingError: The attribute is forwarded in a circle.
        AttributeError: An object on the way is missing.
    """
    owner = wrapper
    seen: set[tuple[int, str]] = set()
    while (spec := forwarded_attributes(type(owner)).get(name)) is not None:
        if (id(owner), name) in seen:
            raise ForwardingError(
                f"{type(wrapper).__name__}.{name} is forwarded in a circle"
            )
        seen.add((id(owner), name))
        for part in spec.path[:-1]:
            owner = getattr(owner, part)
        name = spec.name
    return owner, name


def _layers(wrapper: object) -> tuple[tuple[object, ...], bool]:
    layers = [wrapper]
    while (root := _root(type(layers[-1]))) is not None:
        inner = getattr(layers[-1], root)
        if any(inner is layer for layer in layers):
            return tuple(layers), True
        layers.append(inner)
    return tuple(layers), False


def _root(cls: type) -> str | None:
    paths = (spec.path[0] for spec in forwarded_attributes(cls).values())
    roots = dict.fromkeys((*targets_of(cls), *paths))
    if len(roots) > 1:
        raise ForwardingError(
            f"{cls.__name__} forwards to {', '.join(roots)}; follow one attribute "
            "with owner_of"
        )
    return next(iter(roots), None)
