"""Check a wrapper that was built: does every declared name still reach a target?"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from forwarding._build import decide, live_kind
from forwarding._coverage import coverage, public_names
from forwarding._dynamic import is_built
from forwarding._inspect import unwrap
from forwarding._path import Part, step
from forwarding._record import Spec, forwarded_attributes, record_in, spec_of
from forwarding._spelling import suggestion
from forwarding._static import static_attribute
from forwarding._targets import target_names
from forwarding.exceptions import ForwardingError


__all__ = ("verify",)

_MARK: Final = "_forwarding_is_checked"  # On Forwarding alone.


def verify(wrapper: object, /) -> None:
    """Resolve every forwarded name now, and report all that do not reach a target.

    >>> from forwarding import Forwarded, Wrapper
    >>> class Scaled(Wrapper):
    ...     factor = Forwarded()
    >>> verify(Scaled(7))
    Traceback (most recent call last):
    forwarding.exceptions.ForwardingError: Scaled(__wrapped__=<int>) forwards 1 name; 'factor' does not exist on int

    Raises:
        ForwardingError: Naming what does not exist on its owner, or cannot be read
            there (*missing*); what the wrapper's own ``__dict__`` holds although the
            target has it too (*shadowed*); what was replaced on a class by a plain
            value (*cut*); what is a method of the target and forwarded as data; and,
            where a whole class is forwarded, what its instances have and the wrapper
            does not. Also a class whose keywords were swallowed by an earlier base.
    """
    cls = type(wrapper)
    specs = forwarded_attributes(cls)
    # All at once, so that one run shows everything there is to mend.
    problems = (
        *_unchecked(cls),
        *_cut(cls),
        *_shadowed(wrapper, specs),
        *_missing(wrapper, specs),
        *_wrong_kind(wrapper, forwarded_attributes(cls)),
        *_uncovered(wrapper, specs),
    )
    if problems:
        declared = f"{len(specs)} name{'s' * (len(specs) != 1)}"
        raise ForwardingError(
            f"{_titled(wrapper, specs)} forwards {declared}; {'; '.join(problems)}"
        )


def _titled(wrapper: object, specs: Mapping[str, Spec]) -> str:
    held = (
        f"{name}=<{type(target).__name__}>" for name, target in _targets(wrapper, specs)
    )
    return f"{type(wrapper).__name__}({', '.join(held)})"


def _targets(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[tuple[str, Any]]:
    """Yield the targets that are there, by name."""
    roots = (
        *(str(spec.path[0]) for spec in specs.values()),
        *target_names(type(wrapper)),
    )
    for root in dict.fromkeys(roots):
        if root not in specs and is_built(wrapper, root) and hasattr(wrapper, root):
            yield root, getattr(wrapper, root)


def _unchecked(cls: type) -> Iterator[str]:
    """Yield the classes of which Forwarding never heard, so that nothing is forwarded."""
    for base in cls.__mro__:
        is_heir = hasattr(base, _MARK) and _MARK not in vars(base)
        record = record_in(base)
        if is_heir and not (record and record.is_checked):
            yield (
                f"the class keywords of {base.__name__} were not read, for a base before "
                "Forwarding does not call super().__init_subclass__(); put Forwarding first"
            )


def _cut(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        record = record_in(base)
        for name in record.specs if record else ():
            now = static_attribute(cls, name)
            if not any(name in vars(one) for one in cls.__mro__):
                yield f"{name!r} was deleted from {base.__name__}"
            elif spec_of(now) is None and not hasattr(type(now), "__get__"):
                yield f"{name!r} is cut off by {cls.__name__}.{name} = {now!r}"


def _shadowed(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    own = getattr(wrapper, "__dict__", {})
    if own is getattr(getattr(wrapper, "__wrapped__", None), "__dict__", None):
        return  # A transparent proxy shows its target's.
    for name, spec in specs.items():
        if name in own and spec.kind == "data":
            yield f"{name!r} is also in the wrapper's __dict__, where nothing reads it"
    for root, layer in _targets(wrapper, specs):
        target = _innermost(layer)
        hidden = {*coverage(wrapper, target).shadowed} & own.keys()
        for name in sorted(hidden - _elsewhere(wrapper, specs, root)):
            yield (
                f"{name!r} in the wrapper's __dict__ hides {type(target).__name__}'s; "
                "forward it, or say that it is the wrapper's: annotate it, or name it in but="
            )


def _innermost(layer: object) -> object:
    """Return what is wrapped in the end: what layers have for themselves hides nothing."""
    try:
        return unwrap(layer)
    except (AttributeError, ForwardingError):
        return layer


def _elsewhere(wrapper: object, specs: Mapping[str, Spec], root: str) -> set[str]:
    """Return the names that another target of the wrapper accounts for."""
    others = (target for name, target in _targets(wrapper, specs) if name != root)
    return {name for target in others for name in public_names(target)}


def _missing(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    absent: dict[str, list[str]] = {}
    for spec in specs.values():
        try:
            owner = spec.find_owner(wrapper)
        except AttributeError as error:
            told = f"are out of reach: {error}{_meant(error.obj, error.name)}"
            absent.setdefault(told, []).append(repr(str(spec)))
        else:
            where = _absence(owner, spec)
            if where is not None:
                last = spec.path[-1] if where.startswith("do not exist") else None
                absent.setdefault(where, []).append(
                    f"{spec.name!r}{_meant(owner, last)}"
                )
    for where, names in absent.items():
        yield f"{', '.join(names)} {_agreeing(where, len(names))}"


def _meant(owner: object, name: object) -> str:
    """Return a question after the name that was meant, if *owner* has one like it."""
    return suggestion(name, public_names(owner)) if isinstance(name, str) else ""


def _absence(owner: object, spec: Spec) -> str | None:
    lens = spec.lens
    if lens is not None and (lens.default or lens.others or lens.each):
        return None  # It is declared that the owner may lack it, or be several.
    part = spec.path[-1]
    try:
        step(owner, part)
    except RecursionError:
        return "are forwarded in a circle"
    except Exception as error:  # noqa: BLE001 -- A property can raise anything.
        is_absent = isinstance(error, AttributeError) and not _is_there(owner, part)
        return (
            f"do not exist on {type(owner).__name__}"
            if is_absent
            else f"cannot be read on {type(owner).__name__} now: {error!r}"
        )
    return None


def _is_there(owner: object, part: Part) -> bool:
    """Whether the owner has a property of that name, whose own code raised the error."""
    attribute = static_attribute(type(owner), str(part))
    is_computed = isinstance(attribute, property | cached_property)
    return is_computed and spec_of(attribute) is None


def _wrong_kind(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    """Yield the methods of a live target that were taken for data.

    Undecided names are decided on the way.
    """
    for name, spec in specs.items():
        if spec.kind != "data" or spec.lens is not None:
            continue
        try:
            kind = decide(wrapper, name)
            owner = spec.find_owner(wrapper)
            live = live_kind(owner, spec.path[-1])
        except (AttributeError, RecursionError):
            continue  # Reported as missing.
        if (
            kind == "data"
            and live not in (None, "data")
            and not _is_wanted(wrapper, name)
        ):
            yield (
                f"{name!r} is a method of {type(owner).__name__} and forwarded as data; "
                f"say kind={live!r}"
            )


def _is_wanted(wrapper: object, name: str) -> bool:
    """Whether a declaration says kind="data" of a method, to give the bound method."""
    records = filter(None, map(record_in, type(wrapper).__mro__))
    return any(name in record.said_data for record in records)


def _uncovered(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    """Yield what a target has beyond the class that was to be forwarded as a whole."""
    records = list(filter(None, map(record_in, type(wrapper).__mro__)))
    interfaces = {cls for record in records for cls in record.interfaces}
    for _, target in _targets(wrapper, specs):
        # A subclass of the interface may have more than the class promised.
        if type(target) in interfaces:
            missing = coverage(wrapper, target).missing
            if missing:
                names = ", ".join(map(repr, missing))
                yield f"{names} of {type(target).__name__} {_agreeing('are not forwarded', len(missing))}"


def _agreeing(verb: str, count: int) -> str:
    if count > 1:
        return verb
    return verb.replace("are ", "is ", 1).replace("do not ", "does not ", 1)
