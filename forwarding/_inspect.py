"""Follow forwarding through the layers of a wrapped object."""

from forwarding._path import Item
from forwarding._record import declared_spec, forwarded_attributes
from forwarding._static import static_attribute
from forwarding._targets import target_names
from forwarding.exceptions import ForwardingError


__all__ = ("chain", "owner_of", "unwrap")


def chain(wrapper: object, /) -> tuple[object, ...]:
    """Return the wrapper, what it wraps, what that wraps, and so on.

    Of several targets, a class wraps the one that it declares first with
    :func:`target`. Each object is listed once, so the answer is finite even for
    a cycle.

    >>> from forwarding import Wrapper
    >>> len(chain(Wrapper(Wrapper([]))))
    3

    Raises:
        ForwardingError: An object on the way has several targets, none declared.
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
        ForwardingError: The wrappers form a cycle, or one has several targets,
            none declared.
        AttributeError: An object on the way has no target yet.
    """
    layers, is_cycle = _layers(wrapper)
    if is_cycle:
        raise ForwardingError(
            f"{type(wrapper).__name__} wraps itself after {len(layers)} "
            f"layer{'s' * (len(layers) > 1)}; there is no innermost object"
        )
    return layers[-1]


def owner_of(wrapper: object, name: str, /) -> tuple[object, str]:
    """Return the object that owns an attribute in the end, and its name there.

    >>> from forwarding import Forwarded, Wrapper
    >>> class Car(Wrapper):
    ...     speed = Forwarded(path="__wrapped__.rpm")
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
    while (spec := declared_spec(type(owner), name)) is not None:
        if (id(owner), name) in seen:
            raise ForwardingError(
                f"{type(wrapper).__name__}.{name} is forwarded in a circle"
            )
        seen.add((id(owner), name))
        owner, name = spec.find_owner(owner), spec.name
        if isinstance(spec.path[-1], Item):
            break  # The owner is a container, and the name one of its items.
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
    """Return the attribute that holds what a class wraps, None if it wraps nothing."""
    declared = target_names(cls)
    if declared:
        return declared[0]
    specs = forwarded_attributes(cls)
    roots = {str(s.path[0]): None for s in specs.values()}
    roots = {root: None for root in roots if root not in specs}
    if not roots and static_attribute(cls, "__self_setattr__") is not None:
        return "__wrapped__"  # A wrapt proxy, with its C extension or without.
    if len(roots) > 1:
        raise ForwardingError(
            f"{cls.__name__} forwards to {' and '.join(roots)}, so it has no single "
            "next layer; declare the one it wraps with target(), or follow one "
            "attribute with owner_of()"
        )
    return next(iter(roots), None)
