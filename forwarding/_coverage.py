"""Sort the public names of a target by what a wrapper does with them."""

from collections.abc import Iterable, Iterator, Mapping
from types import CodeType
from typing import Any, Final, NamedTuple, TypeAlias

from forwarding._annotations import has_annotation
from forwarding._bytecode import codes_of
from forwarding._instance_names import body_names
from forwarding._interface import members
from forwarding._record import Record, Spec, forwarded_attributes, record_in
from forwarding._spelling import suggestion
from forwarding._static import static_attribute
from forwarding._targets import target_types
from forwarding.exceptions import ForwardingError


__all__ = ("Coverage", "coverage", "public_names")

_Names: TypeAlias = tuple[str, ...]
_GENERIC: Final = ("forwarded", "own", "composed", "refused", "missing", "shadowed")


class Coverage(NamedTuple):
    """The public names of a target, sorted by what a wrapper does with them."""

    title: str
    """The wrapper and the target, for messages."""
    forwarded: _Names = ()
    """Reach the target; got, set and deleted there."""
    own: _Names = ()
    """Defined by the wrapper's class, which does not ask the target."""
    composed: _Names = ()
    """Defined by the wrapper's class, which also asks the target."""
    refused: _Names = ()
    """Raise, or are None, on purpose."""
    missing: _Names = ()
    """The wrapper does not have them."""
    shadowed: _Names = ()
    """Hide the target's by accident. The wrapper inherited them from a base that it
    shares with the target, or has them in its own ``__dict__``."""

    @property
    def complete(self) -> bool:
        """Whether no name is missing or shadowed."""
        return not (self.missing or self.shadowed)

    def __str__(self) -> str:
        lines = [f"{self.title}: {'complete' if self.complete else 'incomplete'}"]
        for kind in _GENERIC:
            names = getattr(self, kind)
            if names:
                lines.append(f"  {kind} ({len(names)}): {', '.join(names)}")
        return "\n".join(lines)


def coverage(
    wrapper: object, target: object, /, *, leave_out: Iterable[str] = ()
) -> Coverage:
    """Sort every public name of a target by what a wrapper does with it.

    Run in a test, it fails when a new release of the target brings a name that the
    wrapper knows nothing of (SQLAlchemy#7103 asks for that).

    >>> from forwarding import Wrapper
    >>> class Engine:
    ...     def __init__(self):
    ...         self.rpm, self.oil = 900, 1.0
    ...     def start(self): ...
    >>> class Car(Wrapper[Engine], forward="rpm start"): ...
    >>> print(coverage(Car, Engine))
    Car around Engine: incomplete
      forwarded (2): rpm, start
      missing (1): oil

    Args:
        wrapper: A wrapper or its class. An instance tells more: what it keeps in its
            ``__dict__``, and what its ``__getattr__`` answers to.
        target: What is wrapped, or its class. An instance tells more: all that it has.
        leave_out: Names that need not be covered, and are not listed.

    Raises:
        ForwardingError: ``leave_out`` names something that the target does not have.

    Guarantees:
        No property is run, unless the wrapper's ``__getattr__`` has to be asked.
    """
    names = public_names(target)
    left_out = set(leave_out)
    unknown = sorted(left_out - set(names))
    cls = wrapper if isinstance(wrapper, type) else type(wrapper)
    target_type = target if isinstance(target, type) else type(target)
    if unknown:
        raise ForwardingError(
            f"leave_out= names {', '.join(unknown)}, which {target_type.__name__} lacks"
            f"{suggestion(unknown[0], names)}"
        )
    view = _View(wrapper, cls, target_type)
    sorted_: dict[str, list[str]] = {kind: [] for kind in _GENERIC}
    for name in sorted(set(names) - left_out):
        sorted_[view.kind(name)].append(name)
    kinds = {kind: tuple(names_) for kind, names_ in sorted_.items()}
    return Coverage(f"{cls.__name__} around {target_type.__name__}", **kinds)


def public_names(target: object) -> tuple[str, ...]:
    """Return the public names of an object, or of the instances of a class."""
    if isinstance(target, type):
        return tuple(name for name in members(target) if not name.startswith("_"))
    # Not hasattr(): it would run every property of a target that may be expensive.
    # dir() lists what __dict__, slots and a __dir__ of its own tell, as of a module.
    present = {*dir(target), *_had(target)}
    return tuple(sorted(name for name in present if _is_public(name)))


def _is_public(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_")


def _had(target: object) -> Iterator[str]:
    """Yield what the class lists and this instance has, whatever its ``dir`` says.

    Not what only other instances have: assigned under an ``if``, or annotated.
    """
    own = getattr(target, "__dict__", {})
    cls = type(target)
    for name in members(cls):
        # The value does not matter: spec = None is an attribute too.
        if name in own or any(name in vars(base) for base in cls.__mro__):
            yield name


class _View:
    """One wrapper, as far as it is known, seen from one class of targets."""

    def __init__(self, wrapper: object, cls: type, target: type) -> None:
        self._cls = cls
        self._target = target
        self._instance = None if wrapper is cls else wrapper
        self._own = {} if wrapper is cls else _own_dict(wrapper)
        specs = forwarded_attributes(cls)
        # A car forwards its engine's names and its radio's; each target is judged by
        # what reaches it, and the other's names are the car's own.
        self._specs = {n: s for n, s in specs.items() if _leads_to(cls, s, target)}
        self._elsewhere = specs.keys() - self._specs.keys()
        self._reached = {spec.name for spec in self._specs.values()}
        records = filter(None, map(record_in, cls.__mro__))
        self._records: tuple[Record, ...] = tuple(records)
        self._roots = {str(spec.path[0]) for spec in specs.values()}
        self._roots |= {name for record in self._records for name in record.targets}
        self._of_layers = _names_of_layers(cls, target)

    def kind(self, name: str) -> str:
        """Return which field of :class:`Coverage` a name belongs to."""
        if name in self._specs:
            return "forwarded"
        if name in self._elsewhere:
            return "own"
        if self._is_said(name):
            return "composed" if self._is_composed(name) else "own"
        definer = self._definer(name)
        if definer is not None and definer not in self._target.__mro__:
            return self._kind_of_definition(name)
        return self._kind_by_accident(name, is_inherited=definer is not None)

    def _is_said(self, name: str) -> bool:
        """Whether the class declares a name to be the wrapper's own."""
        if name in self._roots | self._of_layers:
            return True
        return any(name in r.excepted or name in r.composed for r in self._records)

    def _kind_by_accident(self, name: str, *, is_inherited: bool) -> str:
        """Return the kind of a name that no class body of the wrapper defines."""
        if self._is_annotated(name):
            return "own"
        if name in self._own or is_inherited:
            return "shadowed"
        return (
            "forwarded" if name in self._reached or self._answers(name) else "missing"
        )

    def _definer(self, name: str) -> type | None:
        return next((b for b in self._cls.__mro__ if name in vars(b)), None)

    def _is_annotated(self, name: str) -> bool:
        bases = (b for b in self._cls.__mro__ if b not in self._target.__mro__)
        return any(has_annotation(base, name) for base in bases)

    def _kind_of_definition(self, name: str) -> str:
        attribute = static_attribute(self._cls, name)
        if attribute is None or _only_raises(attribute):
            return "refused"
        return "composed" if self._is_composed(name) else "own"

    def _is_composed(self, name: str) -> bool:
        """Whether a definition asks the target for the same name, or ``super()``."""
        attribute = static_attribute(self._cls, name)
        if any(name in record.composed for record in self._records):
            return True
        roots = self._roots or {"__wrapped__"}
        for code in codes_of(attribute):
            used = set(_names_used(code))
            # A wrapper that is not ours keeps its target where it likes.
            if name in used and (used & roots or "super" in used or not self._specs):
                return True
        return False

    def _answers(self, name: str) -> bool:
        """Whether the wrapper has a name that neither its class nor its dict has."""
        if self._instance is None:
            # One shared with the target, as nn.Module's, finds the wrapper's own only.
            hooks = (static_attribute(self._cls, "__getattr__"),)
            shared = static_attribute(self._target, "__getattr__")
            return any(hook is not None and hook is not shared for hook in hooks)
        try:
            getattr(self._instance, name)
        except AttributeError:
            return False
        except Exception:  # noqa: BLE001 -- The target's property; so it was reached.
            return True
        return True


def _leads_to(cls: type, spec: Spec, target: type) -> bool:
    """Whether a declaration may end in a target of that class."""
    types = target_types(cls, str(spec.path[0]))
    return not types or any(
        issubclass(target, known) or issubclass(known, target) for known in types
    )


def _names_of_layers(cls: type, target: type) -> set[str]:
    """Return what each layer has for itself where one wrapper is around another.

    That the outer ``steps`` is not the inner one is no accident.
    """
    shared = [b for b in cls.__mro__ if b in target.__mro__ and record_in(b)]
    own = {name for base in shared for name in body_names(base, cls)}
    return own | {name for base in shared for name in vars(base)}


def _own_dict(wrapper: object) -> Mapping[str, Any]:
    own: Mapping[str, Any] = getattr(wrapper, "__dict__", {})
    inner = getattr(getattr(wrapper, "__wrapped__", None), "__dict__", None)
    return {} if own is inner else own  # A transparent proxy shows its target's.


def _names_used(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from (const for const in code.co_consts if isinstance(const, str))


def _only_raises(attribute: object) -> bool:
    """Whether a function cannot return: its body is one ``raise``."""
    codes = list(codes_of(attribute))
    if not codes:
        return False
    import dis  # noqa: PLC0415 -- 2 ms.

    opnames = [{i.opname for i in dis.get_instructions(code)} for code in codes]
    return all("RAISE_VARARGS" in names for names in opnames) and not any(
        name.startswith("RETURN") for names in opnames for name in names
    )
