"""Fallbacks of generated code for attributes and items that an owner lacks."""

from functools import cached_property
from typing import Any

from forwarding._path import Item, Part, step
from forwarding._record import Lens, Spec, inherited_spec, spec_of
from forwarding._static import static_attribute


__all__ = ("first", "instead", "no_item")


def instead(wrapper: Any, name: str, error: Exception) -> Any:
    """Return what is read where the first owner raised ``error``.

    Raises:
        Exception: ``error`` itself, where the owner has the attribute and that is what
            failed, or where nothing else has it either.
    """
    spec = inherited_spec(type(wrapper), name)
    lens = spec.lens or Lens()
    if not _lacks(spec.find_owner(wrapper), spec.path[-1], error):
        raise error
    for path in lens.others:
        owner = Spec(path).find_owner(wrapper)
        try:
            value = step(owner, path[-1])
        except AttributeError as another:
            if not _lacks(owner, path[-1], another):
                raise
        else:
            return value if lens.get is None else lens.get(value)
    if lens.default:
        return lens.default[0]
    raise error


def first(wrapper: Any, name: str) -> Any:
    """Return the bound method of the first owner that has it."""
    spec = inherited_spec(type(wrapper), name)
    try:
        return step(spec.find_owner(wrapper), spec.path[-1])
    except AttributeError as error:
        return instead(wrapper, name, error)


def no_item(wrapper: object, name: str, error: Exception) -> AttributeError:
    """Return the error for an item that is not there.

    hasattr() and getattr() with a default must answer, so it is an AttributeError.
    """
    return AttributeError(
        f"{type(wrapper).__name__}.{name} is forwarded to "
        f"{inherited_spec(type(wrapper), name)}, which is not there: {error!r}",
        name=name,
        obj=wrapper,
    )


def _lacks(owner: Any, part: Part, error: Exception) -> bool:
    """Whether ``error`` says that the owner has no such attribute.

    An AttributeError out of the attribute's own code must not be taken for it:
    wrapt#101, pytorch#83884.
    """
    if isinstance(part, Item):
        return True
    attribute = static_attribute(type(owner), part)
    spec = spec_of(attribute)
    if spec is not None:
        return _lacks(spec.find_owner(owner), spec.path[-1], error)
    # CPython fills in name and object of any AttributeError that passes by, so those of
    # one that a property raised itself say nothing.
    if isinstance(attribute, property | cached_property):
        return False
    # A __getattr__ written by hand asks further objects, of which the error then tells.
    if attribute is None:
        return part not in getattr(owner, "__dict__", {})
    # An empty slot.
    told = getattr(error, "name", None), getattr(error, "obj", None)
    return told[0] == part and told[1] is owner
