"""What is judged: a wrapper class, its targets, and the names between them."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self, final

from hypothesis import strategies as st

from forwarding.testing import probes
from forwarding.testing._law import Domain, Law
from forwarding.testing._script import run


__all__ = ("Case", "Subject", "Values")

Values = Mapping[str, st.SearchStrategy[Any]] | st.SearchStrategy[Any] | None

_ANY_VALUE = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
)
_OWN_WORDS = {"target", "wrapper", "value", "other", "args", "keywords"}


def _label(function: object, otherwise: str) -> str:
    """Return the name under which a counterexample calls ``function``."""
    name = getattr(function, "__name__", "")
    usable = name.isidentifier() and name not in _OWN_WORDS.union(probes.__all__)
    return name if usable else otherwise


def _example_call(method: Callable[..., object]) -> tuple[tuple[Any, ...], Any]:
    """Return arguments for ``method``: what has a default goes by keyword."""
    args: list[str] = []
    keywords: dict[str, str] = {}
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # some builtins tell no signature
        return (), {}
    for one in parameters:
        if one.kind in {one.VAR_POSITIONAL, one.VAR_KEYWORD}:
            continue
        by_name = one.kind is one.KEYWORD_ONLY or one.default is not one.empty
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
    """What the target itself lets one do with one of its attributes."""

    domains: frozenset[Domain]
    relaxed: bool = False

    @classmethod
    def of(cls, make_target: Callable[[], Any], name: str, *, read_only: bool) -> Self:
        target = make_target()
        if _is_method(target, name):
            return cls(frozenset({"method"}))
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

    @classmethod
    def of(
        cls,
        factory: Callable[[Any], Any],
        make_target: Callable[[], Any],
        names: Collection[str],
        *,
        values: Values,
        target: str | None,
        read_only: Collection[str],
        depth: int,
    ) -> Self:
        """Look at a target and at wrappers of it, and refuse what cannot be judged."""
        _check_names(make_target(), names, read_only)
        kinds = {
            name: _Name.of(make_target, name, read_only=name in read_only)
            for name in names
        }
        _check_depth(factory, make_target, depth)
        return cls(
            factory=factory,
            make_target=make_target,
            names=kinds,
            target=target or _find_target(factory, make_target, names),
            depth=depth,
            values=_strategies(make_target, kinds, values),
        )

    @property
    def label(self) -> str:
        """The name of the wrapper class in reports."""
        return _label(self.factory, "factory")

    def names_in(self, domain: Domain) -> tuple[str, ...]:
        """Return the names that a law on ``domain`` speaks about."""
        if domain == "wrapper":
            return ("",)
        return tuple(n for n, kind in self.names.items() if domain in kind.domains)

    def cases(self, law: Law) -> Iterator["Case"]:
        """Yield every depth with every name, the smallest first."""
        for depth in range(law.layers, self.depth + 1):
            for name in self.names_in(law.on):
                yield Case(self, depth, name)


def _check_names(
    target: object, names: Collection[str], read_only: Collection[str]
) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a non-empty collection, got {names!r}")
    missing = [name for name in names if not hasattr(target, name)]
    if missing:
        raise ValueError(f"{type(target).__name__} has no {', '.join(missing)}")
    strangers = sorted(set(read_only) - set(names))
    if strangers:
        raise ValueError(f"read_only names {strangers}, which names does not list")


def _check_depth(
    factory: Callable[[Any], Any], make_target: Callable[[], Any], depth: int
) -> None:
    if depth < 1:
        raise ValueError(f"depth must be >= 1, got {depth}")
    wrapper = factory(make_target())
    for layers in range(2, depth + 1):
        try:
            wrapper = factory(wrapper)
        except Exception as error:
            raise ValueError(
                f"the factory cannot wrap its own result at depth {layers}; "
                f"pass depth={layers - 1}"
            ) from error


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

    def stored(name: str) -> Callable[[object], bool]:
        def accepts(value: object) -> bool:
            target = make_target()
            if probes.attempt(setattr, target, name, value) is not None:
                return False
            kept = getattr(target, name)
            return kept is value or (names[name].relaxed and probes.alike(kept, value))

        return accepts

    return {name: given.get(name, default).filter(stored(name)) for name in names}


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A subject at one depth, and one of its names."""

    subject: Subject
    depth: int
    name: str

    def run(self, law: Law, values: tuple[object, ...] = ()) -> None:
        """Run the law's script on freshly built objects.

        Raises:
            ScriptFailedError: The law is broken here.
            NotApplicableError: The law says nothing here.
        """
        words = self._words()
        for word, value in words.items():
            if not value and re.search(rf"\b{word}\b", law.script):
                raise probes.NotApplicableError(_UNKNOWN[word])
        variables: dict[str, object] = {}
        variables.update(zip(("value", "other"), values, strict=False))
        if law.on == "method":
            method = getattr(self.subject.make_target(), self.name)
            variables["args"], variables["keywords"] = _example_call(method)
        kind = self.subject.names.get(self.name)
        run(
            self._building() + law.script,
            words,
            variables,
            callables=self._callables(),
            relaxed=kind is not None and kind.relaxed,
        )

    def _callables(self) -> dict[str, Any]:
        return {
            _label(self.subject.factory, "factory"): self.subject.factory,
            _label(self.subject.make_target, "make_target"): self.subject.make_target,
        }

    def _layers(self) -> list[str]:
        """Return the names of the wrappers, the innermost first."""
        return [*(f"layer{n}" for n in range(1, self.depth)), "wrapper"]

    def _building(self) -> str:
        lines = ["target = MAKE_TARGET()"]
        below = "target"
        for layer in self._layers():
            lines.append(f"{layer} = FACTORY({below})")
            below = layer
        return "\n".join(lines) + "\n"

    def _words(self) -> dict[str, str]:
        layers = self._layers()
        others = [name for name in self.subject.names_in("data") if name != self.name]
        return {
            "NAME": self.name,
            "AT": self.subject.target or "",
            "BELOW": ["target", *layers][-2],
            "INNERMOST": layers[0],
            "LAYERS": ", ".join(reversed(layers)),
            "DEPTH": str(self.depth),
            "OTHERS": repr(others) if others else "",
            "FACTORY": _label(self.subject.factory, "factory"),
            "MAKE_TARGET": _label(self.subject.make_target, "make_target"),
        }


_UNKNOWN = {
    "AT": "it does not show where the target is kept; pass target=",
    "OTHERS": "there is only one name",
}
