"""Check a wrapper that was built: does every declared name still reach a target?"""

from collections.abc import Iterator, Mapping

from forwarding._kind import static_attribute
from forwarding._record import Record, Spec, forwarded_attributes, spec_of
from forwarding.exceptions import ForwardingError


__all__ = ("verify",)


def verify(wrapper: object, /) -> None:
    """Resolve every forwarded name now, and report all that do not reach a target.

    >>> from forwarding import Forwarded, Wrapper
    >>> class Scaled(Wrapper):
    ...     factor = Forwarded()
    >>> verify(Scaled(7))
    Traceback (most recent call last):
    forwarding.exceptions.ForwardingError: Scaled(__wrapped__=<int>) forwards 1 name; 'factor' does not exist on int

    Raises:
        ForwardingError: Naming what does not exist on its owner (*missing*), what
            the wrapper's own ``__dict__`` holds although nothing reads it
            there (*shadowed*), and what was replaced on a class by a plain
            value (*cut*).
    """
    specs = forwarded_attributes(type(wrapper))
    problems = (
        *_cut(type(wrapper)),
        *_shadowed(wrapper, specs),
        *_missing(wrapper, specs),
    )
    if problems:
        declared = f"{len(specs)} name{'s' * (len(specs) != 1)}"
        raise ForwardingError(
            f"{_titled(wrapper, specs)} forwards {declared}; {'; '.join(problems)}"
        )


def _titled(wrapper: object, specs: Mapping[str, Spec]) -> str:
    roots = dict.fromkeys(s.path[0] for s in specs.values() if s.path[0] not in specs)
    held = (
        f"{root}=<{type(getattr(wrapper, root)).__name__}>"
        for root in roots
        if hasattr(wrapper, root)
    )
    return f"{type(wrapper).__name__}({', '.join(held)})"


def _cut(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        record = vars(base).get("__forwarding__")
        for name in record.specs if isinstance(record, Record) else ():
            now = static_attribute(cls, name)
            if spec_of(now) is None and not hasattr(type(now), "__get__"):
                yield f"{name!r} is cut off by {cls.__name__}.{name} = {now!r}"


def _shadowed(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    own = getattr(wrapper, "__dict__", {})
    if own is getattr(getattr(wrapper, "__wrapped__", None), "__dict__", None):
        return  # A transparent proxy shows its target's.
    for name, spec in specs.items():
        if name in own and spec.kind == "data":
            yield f"{name!r} is also in the wrapper's __dict__, where nothing reads it"


def _missing(wrapper: object, specs: Mapping[str, Spec]) -> Iterator[str]:
    absent: dict[str, list[str]] = {}
    for spec in specs.values():
        try:
            owner = spec.find_owner(wrapper)
        except AttributeError as error:
            absent.setdefault(f"are out of reach: {error}", []).append(repr(str(spec)))
        else:
            where = _absence(owner, spec.name)
            if where is not None:
                absent.setdefault(where, []).append(repr(spec.name))
    for where, names in absent.items():
        yield f"{', '.join(names)} {_agreeing(where, len(names))}"


def _absence(owner: object, name: str) -> str | None:
    try:
        exists = hasattr(owner, name)
    except RecursionError:
        return "are forwarded in a circle"
    return None if exists else f"do not exist on {type(owner).__name__}"


def _agreeing(verb: str, count: int) -> str:
    if count > 1:
        return verb
    return verb.replace("are ", "is ", 1).replace("do not ", "does not ", 1)
