"""The subject of a judgement: a wrapper class, its targets, and the names between."""

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self, final

from hypothesis import strategies as st

from forwarding.testing import probes
from forwarding.testing._law import Domain
from forwarding.testing._options import Options, Values
from forwarding.testing._special import is_special


__all__ = ("Subject", "example_call", "label")

_ANY_VALUE = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_IMMUTABLE_TYPE = 1 << 8
_OWN_WORDS = {"target", "wrapper", "value", "other", "args", "keywords"}


def label(function: object, otherwise: str) -> str:
    """Return the name under which a counterexample calls ``function``."""
    name = getattr(function, "__name__", "")
    usable = name.isidentifier() and name not in _OWN_WORDS.union(probes.__all__)
    return name if usable else otherwise


def example_call(method: Callable[..., object]) -> tuple[tuple[Any, ...], Any]:
    """Return arguments for ``method``: what has a default goes by keyword.

    Where the method takes any number of them, that is one argument more.
    """
    args: list[str] = []
    keywords: dict[str, str] = {}
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return (), {}
    # What comes before *args can only be passed by position.
    takes_more = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    for one in parameters:
        has_default = one.default is not one.empty and not takes_more
        by_name = one.kind in {one.KEYWORD_ONLY, one.VAR_KEYWORD} or has_default
        if by_name and one.kind is not one.POSITIONAL_ONLY:
            keywords[one.name] = one.name
        else:
            args.append(one.name)
    return tuple(args), keywords


def _is_method(target: object, name: str) -> bool:
    own = name in probes.own_dict(target)
    return not own and callable(getattr(type(target), name, None))


@final
@dataclasses.dataclass(frozen=True, slots=True)
class _Name:
    """The operations that the bare target permits on one of its attributes."""

    domains: frozenset[Domain]
    relaxed: bool = False

    @classmethod
    def of(
        cls, make_target: Callable[[], Any], name: str, *, read_only: bool, fluent: bool
    ) -> Self:
        target = make_target()
        if _is_method(target, name):
            returning: set[Domain] = {"fluent"} if fluent else set()
            kind: Domain = "special" if is_special(name) else "method"
            return cls(frozenset({kind, *returning}))
        value = getattr(target, name)
        stable = getattr(target, name) is value
        refusal = probes.attempt(setattr, target, name, value)
        if read_only or isinstance(refusal, AttributeError):
            return cls(frozenset({"data", "read-only"}), relaxed=not stable)
        if refusal is not None:
            return cls(frozenset({"data"}), relaxed=not stable)
        stable = stable and getattr(target, name) is value
        probes.attempt(delattr, target, name)
        gone: set[Domain] = set() if hasattr(target, name) else {"deletable"}
        return cls(frozenset({"data", "settable", *gone}), relaxed=not stable)


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A wrapper class and everything the laws need to know about it."""

    factory: Callable[[Any], Any]
    make_target: Callable[[], Any]
    names: Mapping[str, _Name]
    target: str | None
    depth: int
    values: Mapping[str, st.SearchStrategy[Any]]
    options: Options

    @classmethod
    def of(
        cls,
        factory: Callable[[Any], Any],
        make_target: Callable[[], Any],
        names: Collection[str],
        options: Options,
    ) -> Self:
        """Look at a target and at wrappers of it.

        Raises:
            ValueError: The names, or the options that refer to them, make no sense.
        """
        _check_names(make_target(), names)
        _check_fresh(make_target, names)
        _check_listed("read_only", options.read_only, names)
        _check_listed("fluent", options.fluent, names)
        kinds = {
            name: _Name.of(
                make_target,
                name,
                read_only=name in options.read_only,
                fluent=name in options.fluent,
            )
            for name in names
        }
        return cls(
            factory=factory,
            make_target=make_target,
            names=kinds,
            target=options.target or _find_target(factory, make_target, names),
            depth=_attainable_depth(factory, make_target, options.depth),
            values=_strategies(make_target, kinds, options.values),
            options=options,
        )

    @property
    def label(self) -> str:
        """The name of the wrapper class in reports."""
        return label(self.factory, "factory")

    def names_in(self, domain: Domain) -> tuple[str, ...]:
        """Return the names that a law on ``domain`` speaks about."""
        if domain == "wrapper":
            return ("",)
        return tuple(n for n, kind in self.names.items() if domain in kind.domains)

    def stores(self, name: str, value: object) -> bool:
        """Whether the bare target keeps a value of an attribute as it is."""
        return _stores(self.make_target, name, self.names[name].relaxed, value)


def _check_names(target: object, names: Collection[str]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a non-empty collection, got {names!r}")
    missing = [name for name in names if not hasattr(target, name)]
    if missing:
        raise ValueError(f"{type(target).__name__} has no {', '.join(missing)}")


def _check_fresh(make_target: Callable[[], Any], names: Collection[str]) -> None:
    """Refuse one target for all laws: what one law puts on it, the next one meets."""
    target = make_target()
    if target is make_target() and (
        _takes_overrides(target) or any(_can_set(target, name) for name in names)
    ):
        raise ValueError(
            f"make_target returned one {type(target).__name__} twice; laws change "
            "their target, so it must build a new one at each call"
        )


def _takes_overrides(target: object) -> bool:
    """Whether laws can put methods on it: its class is written in Python."""
    flags = type(target).__flags__
    is_of_python = flags & _HEAP_TYPE and not flags & _IMMUTABLE_TYPE
    return bool(is_of_python) and not isinstance(target, enum.Enum)  # Has no subclass.


def _can_set(target: object, name: str) -> bool:
    if _is_method(target, name):
        return False
    return probes.attempt(setattr, target, name, getattr(target, name)) is None


def _check_listed(option: str, given: Collection[str], names: Collection[str]) -> None:
    strangers = sorted(set(given) - set(names))
    if strangers:
        raise ValueError(f"{option} names {strangers}, which names does not list")


def _attainable_depth(
    factory: Callable[[Any], Any], make_target: Callable[[], Any], depth: int
) -> int:
    """Return how often the factory can wrap its own result, at most ``depth``.

    It cannot where it raises, or makes something else of its own result, as
    ``torch.compile`` makes a function of what it compiled.
    """
    wrapper = factory(make_target())  # What it raises here is the caller's to mend.
    kinds = set(type(wrapper).__mro__) - {object}
    for layers in range(2, depth + 1):
        try:
            wrapper = factory(wrapper)
        except Exception:  # noqa: BLE001  # whatever it is, it does not wrap
            return layers - 1
        if kinds.isdisjoint(type(wrapper).__mro__):
            return layers - 1
    return depth


def _find_target(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
) -> str | None:
    """Return the attribute in which a wrapper holds its target, if it shows."""
    target = make_target()
    wrapper = factory(target)
    slots: list[str] = [
        name for cls in type(wrapper).__mro__ for name in vars(cls).get("__slots__", ())
    ]
    for name in ("__wrapped__", *probes.own_dict(wrapper), *slots):
        error = probes.attempt(getattr, wrapper, name)
        if error is None and name not in names and getattr(wrapper, name) is target:
            return name
    return None


def _strategies(
    make_target: Callable[[], Any], names: Mapping[str, _Name], values: Values
) -> Mapping[str, st.SearchStrategy[Any]]:
    given = values if isinstance(values, Mapping) else {}
    strangers = sorted(given.keys() - names.keys())
    if strangers:
        raise ValueError(f"values are given for {strangers}, which names does not list")
    default = values if isinstance(values, st.SearchStrategy) else _ANY_VALUE
    return {
        name: given.get(name, default).filter(
            functools.partial(_stores, make_target, name, kind.relaxed)
        )
        for name, kind in names.items()
    }


def _stores(
    make_target: Callable[[], Any],
    name: str,
    relaxed: bool,  # noqa: FBT001  # of partial()
    value: object,
) -> bool:
    """Whether the bare target keeps a value as it is."""
    target = make_target()
    if probes.attempt(setattr, target, name, value) is not None:
        return False
    kept = getattr(target, name)
    return kept is value or (relaxed and probes.alike(kept, value))
