"""Turn a declaration into the attribute it stands for."""

import typing
from typing import TYPE_CHECKING, Any, NoReturn

from forwarding._describe import describe
from forwarding._generate import generated
from forwarding._kind import annotation_of, attribute_type, kind_of, static_attribute
from forwarding._record import Kind, Spec, record_of, spec_of
from forwarding._specials import SPECIALS, refusal
from forwarding._targets import Path, recorded, target_names, target_type
from forwarding.exceptions import ForwardingError


if TYPE_CHECKING:
    from forwarding._descriptor import Forwarded

__all__ = ("install", "refuse_in_place")


def install(
    cls: type, name: str, declaration: "Forwarded[Any]", model: Any = None
) -> None:
    """Replace ``cls.name`` by the code that forwards it.

    Args:
        cls: The class that is being made.
        name: Name of the attribute on it.
        declaration: What was declared.
        model: The attribute in an interface, where the target's class is unknown.

    Raises:
        ForwardingError: The attribute cannot be forwarded as declared.
    """
    path, root_type = _resolved(cls, name, declaration.path)
    _check(cls, name, path)
    owner = _owner_type(root_type, path[1:-1])
    refuse_in_place(cls, name, owner)
    known = None if owner is None else static_attribute(owner, path[-1])
    model = model if known is None else known
    spec = _spec(cls, name, path, declaration, model)
    attribute = generated(cls, name, spec)
    annotation = _annotation(cls, name, declaration)
    if annotation is None and owner is not None:
        annotation = annotation_of(owner, path[-1])
    describe(attribute, spec, doc=declaration.doc, model=model, annotation=annotation)
    type.__setattr__(cls, name, attribute)
    if isinstance(attribute, property):
        attribute.__set_name__(cls, name)  # type: ignore[attr-defined]
    record_of(cls).specs[name] = spec


def refuse_in_place(cls: type, name: str, owner: type | None) -> None:
    """Make ``wrapper += x`` an error where ``+`` is forwarded and ``+=`` changes the owner.

    Without a ``__iadd__``, Python would bind the result of ``+``: the wrapper would be
    lost, and the owner not changed.
    """
    in_place = f"__i{name[2:]}"
    reason = refusal(in_place, wrapper=cls.__name__.lower())
    if reason is None or hasattr(cls, in_place) or not hasattr(owner, in_place):
        return

    def refuse(self: object, _other: object) -> NoReturn:
        raise ForwardingError(f"{type(self).__name__}.{in_place} is refused: {reason}")

    refuse.__name__, refuse.__qualname__ = in_place, f"{cls.__qualname__}.{in_place}"
    refuse.__doc__ = f"Refused: {reason}."
    type.__setattr__(cls, in_place, refuse)


def _resolved(
    cls: type, name: str, path: Path | tuple[str, ...]
) -> tuple[tuple[str, ...], type | None]:
    if isinstance(path, Path):
        return recorded(path)
    if not path:
        path = (_only_target(cls, name),)
    root, *rest = path
    if root.startswith("__") and not root.endswith("__"):
        root = f"_{cls.__name__.lstrip('_')}{root}"  # As Python does in the body.
    return (root, *(rest or (name,))), target_type(cls, root)


def _only_target(cls: type, name: str) -> str:
    names = target_names(cls)
    if len(names) != 1:
        raise ForwardingError(
            f"{cls.__name__}.{name} names no target, and {cls.__name__} declares "
            f"{' and '.join(names) or 'none'}; say which, as in Forwarded('inner')"
        )
    return names[0]


def _check(cls: type, name: str, path: tuple[str, ...]) -> None:
    if not name.isidentifier():
        raise ForwardingError(f"{cls.__name__} cannot forward {name!r}: it is no name")
    root: str | None = path[0]
    while root is not None:
        if root == name:
            raise ForwardingError(
                f"{cls.__name__}.{name} is forwarded to {'.'.join(path)!r}, "
                "which leads back to the attribute itself"
            )
        spec = spec_of(static_attribute(cls, root))
        root = spec.path[0] if spec else None
    owner = "target" if path[-2].startswith("__") else path[-2]
    reason = refusal(name, wrapper=cls.__name__.lower(), target=owner)
    if reason is not None:
        raise ForwardingError(f"{cls.__name__}.{name} cannot be forwarded: {reason}")


def _owner_type(cls: type | None, path: tuple[str, ...]) -> type | None:
    for name in path:
        if cls is None:
            break
        cls = attribute_type(cls, name)
    return cls


def _spec(
    cls: type,
    name: str,
    path: tuple[str, ...],
    declaration: "Forwarded[Any]",
    model: Any,
) -> Spec:
    kind: Kind = declaration.kind or _kind(name, model)
    if kind == "data":
        return Spec(path, kind, declaration.set, declaration.delete)
    if not (declaration.set and declaration.delete):
        raise ForwardingError(
            f"{cls.__name__}.{name} is a method, which is set and deleted on "
            f"{cls.__name__} itself; set= and delete= are for data"
        )
    return Spec(path, kind, set=False, delete=False)


def _kind(name: str, model: Any) -> Kind:
    if model is not None:
        return kind_of(model)
    return "method" if name in SPECIALS else "data"


def _annotation(cls: type, name: str, declaration: "Forwarded[Any]") -> Any:
    """Return the type of a declaration, and take its annotation from the class.

    It would make a field of it, in a dataclass, an attrs class or a pydantic
    model. An annotation as a ClassVar makes none, and stays.
    """
    annotations = getattr(cls, "__annotations__", {})
    annotation = annotations.get(name)
    if annotation is not None and "ClassVar" not in str(annotation):
        del annotations[name]
    argument = typing.get_args(getattr(declaration, "__orig_class__", None))
    if typing.get_origin(annotation) is type(declaration):
        argument = typing.get_args(annotation)
    return argument[0] if argument else annotation
