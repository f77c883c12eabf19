"""Build forwarded attributes, and rebuild them when more is known."""

from _thread import RLock  # What threading has, without its import of 1 ms.
from types import CodeType, FunctionType, MethodType
from typing import Any, Final
from weakref import WeakKeyDictionary

from forwarding._describe import describe
from forwarding._dynamic import resolver_of, unbound, unbound_or
from forwarding._exact import exact_signature
from forwarding._generate import generated, writers
from forwarding._inspect import owner_of
from forwarding._kind import kind_of
from forwarding._lens import first, instead, no_item
from forwarding._path import Item, Part
from forwarding._record import (
    Kind,
    Spec,
    declared_spec,
    record_in,
    record_of,
    spec_in,
    spec_of,
    undecorated,
)
from forwarding._recording import note_write, recorders
from forwarding._source import Shape
from forwarding._static import static_attribute


__all__ = ("build", "decide", "live_kind", "switches")

_LOCK: Final = RLock()
_SWITCHES: Final[WeakKeyDictionary[FunctionType, "Switch"]] = WeakKeyDictionary()


def build(
    cls: type, name: str, spec: Spec, *, model: Any = None, is_undecided: bool = False
) -> property | FunctionType:
    """Return the property or method that forwards ``cls.name``.

    Args:
        cls: The class that declares it.
        name: Its name there.
        spec: Where it goes, and how.
        model: The attribute of the target's class, None if unknown.
        is_undecided: Whether it counts as data only because nothing is known.
    """
    shape, names = _shape(cls, name, spec, model)
    shape = shape._replace(is_undecided=is_undecided)
    # Not yet on the class: install() does that once nothing can fail any more.
    return generated(cls, shape, names, _HELPERS)


def decide(wrapper: Any, name: str) -> Kind | None:
    """Decide from a live target whether an undecided name is data or a method.

    "Data belongs to the owner; methods belong to the layer": a scheduler that patches
    ``step`` on a wrapper must not patch the optimizer inside.

    Returns:
        What it is, None where the owner has no such attribute yet.
    """
    for base in type(wrapper).__mro__:
        record = record_in(base)
        if record is not None and name in record.undecided:
            spec = record.specs[name]
            owner = spec.find_owner(wrapper)
            kind = live_kind(owner, spec.path[-1])
            # Of threads that assign first at the same time, one rebuilds the attribute.
            with _LOCK:
                if kind is not None and name in record.undecided:
                    _settle(base, name, kind, static_attribute(type(owner), spec.name))
            return kind
    spec_now = declared_spec(type(wrapper), name)
    return spec_now.kind if spec_now else None


def live_kind(owner: Any, part: Part) -> Kind | None:
    """Return what an attribute of a living object is, None if there is none.

    No property of the object is run.
    """
    if isinstance(part, Item):
        return "data"
    attribute = static_attribute(type(owner), part)
    spec = spec_of(attribute)
    if spec is not None:  # The owner is a wrapper too: ask further in.
        known = spec.kind != "data"
        return spec.kind if known else live_kind(spec.find_owner(owner), spec.path[-1])
    if attribute is not None:
        return kind_of(attribute)
    try:
        value = getattr(owner, "__dict__", {}).get(part, _MISSING)
        value = getattr(owner, part) if value is _MISSING else value
    except Exception:  # noqa: BLE001 -- Its __getattr__ can raise anything.
        return None
    # self.run = self._run makes a method; self.on_click = print is data that is callable.
    is_own = isinstance(value, MethodType) and (
        value.__self__ is owner or value.__name__ == part
    )
    return kind_of(value.__func__) if is_own else "data"


class Switch:
    """The two codes of a setter or deleter: plain, and reporting what it writes."""

    __slots__ = ("blocks", "plain", "recording")

    def __init__(self, plain: CodeType, recording: CodeType) -> None:
        self.plain = plain
        self.recording = recording
        self.blocks = 0

    def turn(self, function: FunctionType, *, by: int) -> None:
        """Count the blocks of preserved() that run, and set the code that they need."""
        with _LOCK:
            self.blocks += by
            function.__code__ = self.recording if self.blocks else self.plain


def switches(cls: type, name: str) -> dict[FunctionType, Switch]:
    """Return how to let the writes of a name be reported, by function.

    Only while a block runs: a question in every setter would cost a tenth of it.
    """
    base = next(base for base in cls.__mro__ if name in vars(base))
    attribute, spec = vars(base)[name], spec_in(base, name)
    # Behind a class decorator such as beartype's, the generated function is further in.
    accessors = filter(None, (attribute.fset, attribute.fdel))
    functions = [f for f in map(undecorated, accessors) if f is not None]
    with _LOCK:
        # Kept by the function, which must not be kept by its switch, or a class that
        # used preserved() once would never be freed.
        if spec is not None and any(f not in _SWITCHES for f in functions):
            codes = _writers(base, attribute, spec, is_recorded=True)
            for function, code in codes.items():
                _SWITCHES.setdefault(function, Switch(function.__code__, code))
        return {f: _SWITCHES[f] for f in functions if f in _SWITCHES}


def _settle(cls: type, name: str, kind: Kind, model: Any) -> None:
    """Build an undecided name again, as what it has turned out to be."""
    record = record_of(cls)
    record.undecided.discard(name)
    attribute, spec = vars(cls)[name], record.specs[name]
    if kind == "data":
        for function, code in _writers(cls, attribute, spec).items():
            switch = _SWITCHES.get(function)
            # While a block runs, its code stays; the new one comes when the block ends.
            if switch is None:
                function.__code__ = code
            else:
                switch.plain = code
        return
    spec = spec._replace(kind=kind, set=False, delete=False)
    record.specs[name] = spec
    method = build(cls, name, spec)
    describe(method, spec, doc=attribute.__doc__, model=model, annotation=None)
    type.__setattr__(cls, name, method)


def _writers(
    cls: type, attribute: property, spec: Spec, *, is_recorded: bool = False
) -> dict[FunctionType, CodeType]:
    getter = undecorated(attribute.fget)
    name = getter.__name__ if getter else ""
    record = record_in(cls)
    shape, _ = _shape(cls, name, spec, None)
    shape = shape._replace(
        is_recorded=is_recorded,
        is_undecided=record is not None and name in record.undecided,
    )
    return writers(attribute, shape, _HELPERS)


def _shape(
    cls: type, name: str, spec: Spec, model: Any
) -> tuple[Shape, dict[str, Any]]:
    """Return what the source depends on, and the names that it alone refers to."""
    shape, names, lens = Shape(name, spec), {}, spec.lens
    resolver = resolver_of(cls, str(spec.path[0]))
    if resolver is not None and resolver.make is None:
        root = str(spec.path[0])
        names[f"{root}_via"] = resolver.via
        shape = shape._replace(
            look_up=resolver.expression.format(name=root, via=f"{root}_via"),
            errors=resolver.errors,
            may_be_none=resolver.may_be_none,
        )
    if lens is not None:
        names |= {f"{name}_get": lens.get, f"{name}_set": lens.set}
    if lens is not None and lens.exact:
        where = f"{cls.__name__}.{name}"
        parameters, call, defaults = exact_signature(where, name, model)
        shape = shape._replace(parameters=parameters, call=call)
        names |= defaults
    return shape, names


def _stays(wrapper: Any, name: str, value: Any) -> bool:
    """Decide at an assignment what a name is; keep the value here if it is a method.

    Returns:
        Whether it was kept. If not, the caller passes it to the owner.
    """
    if decide(wrapper, name) in (None, "data"):
        return False
    # The attribute is a plain function by now, so the value goes into the __dict__.
    object.__setattr__(wrapper, name, _rebound(wrapper, name, value))
    return True


def _rebound(wrapper: Any, name: str, value: Any) -> Any:
    """Return what is assigned, with the layer's own function in place of the owner's.

    ``w.step = MethodType(w.step.__func__, w)`` read the owner's, for nothing said yet
    that it is a method; with the wrapper as self, it would change the wrong object.
    """
    if not (isinstance(value, MethodType) and value.__self__ is wrapper):
        return value
    owner, last = owner_of(wrapper, name)  # The innermost, which was read from.
    method = getattr(owner, last, None)
    if getattr(method, "__func__", None) is not value.__func__:
        return value
    return MethodType(static_attribute(type(wrapper), name), wrapper)


_HELPERS: Final[dict[str, Any]] = {
    "first": first,
    "instead": instead,
    "no_item": no_item,
    "note_write": note_write,
    "recorders": recorders,
    "stays": _stays,
    "unbound": unbound,
    "unbound_or": unbound_or,
}
_MISSING: Final = object()
