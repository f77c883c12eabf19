"""Replace a declaration by the attribute that it declares."""

import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final, NoReturn, Protocol

from forwarding._annotations import annotations_of, remove_annotation
from forwarding._build import build
from forwarding._class_level import ClassLevelData, ClassLevelMethod
from forwarding._describe import describe
from forwarding._kind import annotation_of, attribute_types, kind_in, kind_of
from forwarding._path import Item, Part, spelled_path
from forwarding._record import Kind, Lens, Spec, record_of, spec_of
from forwarding._specials import SPECIALS, refusal
from forwarding._static import static_attribute
from forwarding._targets import (
    Path,
    recorded,
    register,
    target_names,
    target_types,
)
from forwarding.exceptions import ForwardingError


__all__ = ("Declaration", "install", "only_target", "refuse_in_place")


_SAY_NOTHING: Final[tuple[Any, ...]] = (object, typing.Generic, Protocol)


class Declaration(Protocol):
    """What a class body says about one attribute: a :class:`Forwarded`."""

    recorded: Path | None
    places: tuple[tuple[Part, ...], ...]
    ends_in_owner: bool
    set: bool
    delete: bool
    doc: str | None
    kind: Kind | None
    lens: Lens | None
    accessors: dict[str, Callable[..., Any]]


class _Knowledge(typing.NamedTuple):
    """What is known about an attribute before any instance exists."""

    owners: tuple[type, ...]
    model: Any
    kind: Kind | None


def install(cls: type, name: str, declaration: Declaration, model: Any = None) -> None:
    """Replace ``cls.name`` by the code that forwards it.

    Args:
        cls: The class that is being made.
        name: Name of the attribute on it.
        declaration: What was declared.
        model: The attribute in an interface, where the target's class is unknown.

    Raises:
        ForwardingError: The attribute cannot be forwarded as declared.
    """
    # Everything that can be wrong is found before the class is changed.
    path, others = _resolved(cls, name, declaration)
    _check(cls, name, path)
    known = _known(cls, name, path, declaration, model)
    refuse_in_place(cls, name, known.owners)
    spec = _spec(cls, name, path, declaration, known)
    if others:
        spec = spec._replace(lens=(spec.lens or Lens())._replace(others=others))
    _check_lens(cls, name, spec, declaration)
    is_undecided = known.kind is None and spec.kind == "data" and _may_turn(spec)
    attribute = build(cls, name, spec, model=known.model, is_undecided=is_undecided)
    annotation = _type_of_value(cls, name, spec, declaration, known)
    describe(
        attribute, spec, doc=declaration.doc, model=known.model, annotation=annotation
    )
    record = record_of(cls)
    record.specs[name] = spec
    # Data for now: its setter asks the living target once (see forwarding._build).
    if is_undecided:
        record.undecided.add(name)
    if declaration.kind == "data":
        record.said_data.add(name)
    type.__setattr__(cls, name, _finished(cls, name, attribute, declaration, known))


def refuse_in_place(cls: type, name: str, owners: tuple[type, ...]) -> None:
    """Make ``wrapper += x`` an error where ``+`` is forwarded and ``+=`` changes the owner.

    Without a ``__iadd__``, Python would bind the result of ``+``: the wrapper would be
    lost, and the owner not changed.
    """
    in_place = f"__i{name[2:]}"
    reason = refusal(in_place, wrapper=cls.__name__.lower())
    if reason is None or hasattr(cls, in_place):
        return
    if not any(hasattr(owner, in_place) for owner in owners):
        return

    def refuse(self: object, _other: object) -> NoReturn:
        raise ForwardingError(f"{type(self).__name__}.{in_place} is refused: {reason}")

    refuse.__name__, refuse.__qualname__ = in_place, f"{cls.__qualname__}.{in_place}"
    refuse.__doc__ = f"Refused: {reason}."
    type.__setattr__(cls, in_place, refuse)


def _resolved(
    cls: type, name: str, declaration: Declaration
) -> tuple[tuple[Part, ...], tuple[tuple[Part, ...], ...]]:
    """Return the path of an attribute, and those to fall back to."""
    if declaration.recorded is not None:
        path, root = recorded(declaration.recorded)
        if path[0] == "":
            raise ForwardingError(
                f"{cls.__name__}.{name}: its target was not declared in the class body; "
                "write inner = target(...) there"
            )
        register(cls, root)
        return path, ()
    places = declaration.places or ((only_target(cls, name),),)
    end = (name,) if declaration.ends_in_owner else ()
    first, *others = (_mangled(cls, place) + end for place in places)
    return first, tuple(others)


def _mangled(cls: type, path: tuple[Part, ...]) -> tuple[Part, ...]:
    root = str(path[0])
    if root.startswith("__") and not root.endswith("__"):
        root = f"_{cls.__name__.lstrip('_')}{root}"  # As Python does in the body.
    return (root, *path[1:])


def only_target(cls: type, name: str) -> str:
    """Return the target of a declaration that names none."""
    names = target_names(cls)
    if len(names) != 1:
        raise ForwardingError(
            f"{cls.__name__}.{name} names no target, and {cls.__name__} declares "
            f"{' and '.join(names) or 'none'}; say which, as in Forwarded(to='inner')"
        )
    return names[0]


def _check(cls: type, name: str, path: tuple[Part, ...]) -> None:
    if not name.isidentifier():
        raise ForwardingError(f"{cls.__name__} cannot forward {name!r}: it is no name")
    # x -> y.a, y -> z.b, z -> x.c would recurse at the first access.
    root: Part | None = path[0]
    while root is not None:
        if root == name:
            raise ForwardingError(
                f"{cls.__name__}.{name} is forwarded to {spelled_path(path)!r}, "
                "which leads back to the attribute itself"
            )
        spec = spec_of(static_attribute(cls, str(root)))
        root = spec.path[0] if spec else None
    owner = str(path[-2])
    reason = refusal(
        name,
        wrapper=cls.__name__.lower(),
        target="target" if owner.startswith("__") else owner,
    )
    if reason is not None:
        raise ForwardingError(f"{cls.__name__}.{name} cannot be forwarded: {reason}")


def _known(
    cls: type, name: str, path: tuple[Part, ...], declaration: Declaration, model: Any
) -> _Knowledge:
    """Gather what the target's class, an interface and the wrapper's bases tell."""
    owners = _owner_types(cls, path)
    last = path[-1]
    if isinstance(last, Item) or (declaration.lens and declaration.lens.each):
        return _Knowledge((), model, declaration.kind or (model and kind_of(model)))
    models = (static_attribute(owner, last) for owner in owners)
    found = next((known for known in models if known is not None), model)
    kind = declaration.kind or _kind_in_owners(cls, name, last, owners, model)
    return _Knowledge(owners, found, kind)


def _kind_in_owners(
    cls: type, name: str, last: str, owners: tuple[type, ...], model: Any
) -> Kind | None:
    kind = kind_in(owners, last)
    # Where owners disagree, nothing else may decide; where none knows the name, it may.
    if kind is None and not any(kind_in((owner,), last) for owner in owners):
        return _kind_elsewhere(cls, name, last, model)
    return kind


def _kind_elsewhere(cls: type, name: str, last: str, model: Any) -> Kind | None:
    if model is not None:
        return kind_of(model)
    if last in SPECIALS:
        return "method"
    # The wrapper's own bases: Optimizer.step is a method, whatever is wrapped.
    return next((k for b in _bases(cls) if (k := kind_in((b,), name))), None)


def _bases(cls: type) -> Iterator[type]:
    """Yield the bases that tell something: not those for declaring, and not object."""
    for base in cls.__mro__[1:]:
        is_ours = str(base.__module__).startswith("forwarding.")
        if not is_ours and base not in _SAY_NOTHING:
            yield base


def _owner_types(cls: type, path: tuple[Part, ...]) -> tuple[type, ...]:
    if any(isinstance(part, Item) for part in path[:-1]):
        return ()  # What a container holds is annotated nowhere that could be relied on.
    # Once a class: 50 declarations on one target would read its annotation 50 times.
    known, root = record_of(cls).known_types, str(path[0])
    if root not in known:
        known[root] = target_types(cls, root)
    types = known[root]
    return functools.reduce(attribute_types, map(str, path[1:-1]), types)


def _spec(
    cls: type,
    name: str,
    path: tuple[Part, ...],
    declaration: Declaration,
    known: _Knowledge,
) -> Spec:
    kind: Kind = known.kind or "data"
    if known.kind is None and declaration.lens and _is_for_methods(declaration.lens):
        kind = "method"
    if kind == "data":
        return Spec(path, kind, declaration.set, declaration.delete, declaration.lens)
    if not (declaration.set and declaration.delete):
        raise ForwardingError(
            f"{cls.__name__}.{name} is a method, which is set and deleted on "
            f"{cls.__name__} itself; set= and delete= are for data"
        )
    return Spec(path, kind, set=False, delete=False, lens=declaration.lens)


def _is_for_methods(lens: Lens) -> bool:
    return lens.returns_wrapper or lens.exact


def _may_turn(spec: Spec) -> bool:
    """Whether data may turn out to be a method: not if the declaration speaks of data."""
    return spec.set and spec.delete and spec.lens is None


def _check_lens(cls: type, name: str, spec: Spec, declaration: Declaration) -> None:
    """Refuse options that could mean two things, or nothing."""
    if spec.lens is None and not declaration.accessors:
        return
    lens = spec.lens or Lens()
    ambiguous = {
        **_of_other_kind(spec, lens, declaration),
        **_of_several_owners(spec, lens),
    }
    for reason, is_so in ambiguous.items():
        if is_so:
            raise ForwardingError(f"{cls.__name__}.{name}: {reason}")


def _of_other_kind(
    spec: Spec, lens: Lens, declaration: Declaration
) -> dict[str, object]:
    """Return what is wrong with options, by kind, and whether it is."""
    if spec.kind == "data":
        return {"returns= and exact= are for methods": _is_for_methods(lens)}
    is_converted = (lens.get, lens.set, lens.default) != (None, None, ())
    return {
        "get=, set= and default= are for data": is_converted,
        "a setter of its own is for data": declaration.accessors,
    }


def _of_several_owners(spec: Spec, lens: Lens) -> dict[str, object]:
    """Return what is wrong with options where owners are many, and whether it is."""
    is_written = spec.kind == "data" and (spec.set or spec.delete)
    return {
        "of several owners, none is the one to write to; pass set=False, delete=False": (
            lens.others and is_written
        ),
        "each= gathers a list, so returns=, default= and exact= do not apply": (
            lens.each and (lens.returns_wrapper or lens.default or lens.exact)
        ),
        "several owners have no single signature for exact=": lens.others
        and lens.exact,
    }


def _type_of_value(
    cls: type, name: str, spec: Spec, declaration: Declaration, known: _Knowledge
) -> Any:
    """Return the annotation of what is read, None if it is not known."""
    annotation = _annotation(cls, name, declaration)
    last = spec.path[-1]
    if annotation is None and known.owners and isinstance(last, str):
        annotation = annotation_of(known.owners[0], last)
    is_changed = spec.lens is not None and (spec.lens.get or spec.lens.each)
    return None if is_changed else annotation


def _finished(
    cls: type,
    name: str,
    attribute: property | FunctionType,
    declaration: Declaration,
    known: _Knowledge,
) -> Any:
    """Return what stands on the class: with own accessors, or for the class too."""
    if declaration.accessors:
        attribute = _with_accessors(attribute, declaration.accessors)
        record_of(cls).composed.add(name)
    if declaration.lens is not None and declaration.lens.on_class:
        attribute = _on_class(cls, name, attribute, known)
    if isinstance(attribute, property):
        # As Python would have done in the body; its error messages name the property.
        attribute.__set_name__(cls, name)  # type: ignore[attr-defined]
    return attribute


def _with_accessors(attribute: Any, accessors: Mapping[str, Any]) -> property:
    names = ("fget", "fset", "fdel")
    given = {name: accessors.get(name, getattr(attribute, name)) for name in names}
    return property(**given, doc=attribute.__doc__)


def _on_class(cls: type, name: str, attribute: Any, known: _Knowledge) -> Any:
    if len(known.owners) != 1 or known.model is None:
        raise ForwardingError(
            f"{cls.__name__}.{name}: on_class= needs the class of the target, which has "
            f"{name!r}; declare it by target() or Wrapper[...]"
        )
    spec = record_of(cls).specs[name]
    if isinstance(attribute, FunctionType):
        return ClassLevelMethod(attribute, known.owners[0], spec.name)
    both = ClassLevelData(
        attribute.fget, attribute.fset, attribute.fdel, attribute.__doc__
    )
    both.__forwarding_owner__ = (known.owners[0], spec.name)
    return both


def _annotation(cls: type, name: str, declaration: Declaration) -> Any:
    """Return the type of a declaration, and take its annotation from the class.

    It would make a field of it, in a dataclass, an attrs class or a pydantic
    model. An annotation as a ClassVar makes none, and stays.
    """
    annotation = annotations_of(cls).get(name)
    if annotation is not None and "ClassVar" not in str(annotation):
        remove_annotation(cls, name)
    argument = typing.get_args(getattr(declaration, "__orig_class__", None))
    if typing.get_origin(annotation) is type(declaration):
        argument = typing.get_args(annotation)
    return argument[0] if argument else annotation
