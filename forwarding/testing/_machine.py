"""A state machine that mixes all operations on a stack of wrappers."""

import copy
from collections.abc import Callable, Collection
from typing import Any, Unpack

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from forwarding.testing._options import Given, Options
from forwarding.testing._subject import Subject
from forwarding.testing.probes import alike, attempt, pickled, shadowed


__all__ = ("WrapperMachine", "machine_for")


def _from_machine(
    method: Callable[["WrapperMachine"], st.SearchStrategy[Any]],
) -> st.SearchStrategy[Any]:
    """Return a strategy that the running machine chooses."""
    return st.runner().flatmap(method)


class WrapperMachine(RuleBasedStateMachine):
    """A stack of wrappers beside a dictionary of what its target should hold.

    :func:`machine_for` makes one for a wrapper class.
    """

    subject: Subject
    waived: frozenset[str] = frozenset()

    def __init__(self) -> None:
        """Build a target, not yet wrapped."""
        super().__init__()
        self.target: Any = self.subject.make_target()
        self.layers: list[Any] = []
        self.model: dict[str, Any] = {}
        self.left_behind: list[tuple[Any, dict[str, Any]]] = []

    @property
    def wrapper(self) -> Any:
        """The outermost layer."""
        return self.layers[0]

    def _changes(self) -> st.SearchStrategy[tuple[str, Any]]:
        names = self.subject.names_in("settable")
        return st.one_of(
            *(st.tuples(st.just(name), self.subject.values[name]) for name in names)
        )

    def _present(self) -> st.SearchStrategy[str]:
        names = self.subject.names_in("deletable")
        return st.sampled_from([name for name in names if name in self.model])

    def _depths(self) -> st.SearchStrategy[int]:
        return st.integers(1, self.subject.depth)

    @initialize(depth=_from_machine(_depths))
    def wrap(self, depth: int) -> None:
        """Wrap the target ``depth`` times."""
        for _ in range(depth):
            below = self.wrapper if self.layers else self.target
            self.layers.insert(0, self.subject.factory(below))
        self.model = self._look(self.target)

    @precondition(lambda self: self.subject.names_in("settable"))
    @rule(change=_from_machine(_changes))
    def put(self, change: tuple[str, Any]) -> None:
        """Assign through the outermost wrapper."""
        name, value = change
        setattr(self.wrapper, name, value)
        self.model[name] = value

    @precondition(lambda self: self.subject.names_in("settable"))
    @rule(change=_from_machine(_changes))
    def reassign_on_target(self, change: tuple[str, Any]) -> None:
        """Assign behind the wrappers' back."""
        name, value = change
        setattr(self.target, name, value)
        self.model[name] = value

    @precondition(lambda self: self._deletes())
    @rule(name=_from_machine(_present))
    def delete(self, name: str) -> None:
        """Delete through the outermost wrapper."""
        delattr(self.wrapper, name)
        del self.model[name]

    @precondition(lambda self: self._finds_target("re-target"))
    @rule()
    def exchange_target(self) -> None:
        """Give the innermost wrapper another target."""
        self.left_behind.append((self.target, self.model))
        self.target = self.subject.make_target()
        setattr(self.layers[-1], str(self.subject.target), self.target)
        self.model = self._look(self.target)

    @precondition(lambda self: self._can_copy("deepcopy", copy.deepcopy))
    @rule()
    def deepcopy(self) -> None:
        """Go on with a deep copy."""
        self._move_to(copy.deepcopy(self.wrapper))

    @precondition(lambda self: self._can_copy("pickle", pickled))
    @rule()
    def pickle(self) -> None:
        """Go on with what comes back from pickle."""
        self._move_to(pickled(self.wrapper))

    @invariant()
    def all_agree(self) -> None:
        """The wrapper, the target and the model hold the same values."""
        for layer in [*self.layers, self.target]:
            self._compare(layer, self.model)

    @invariant()
    def no_shadow(self) -> None:
        """No layer keeps a value of its own."""
        for name in self.subject.names_in("data"):
            owners = shadowed(self.layers, self.target, name)
            _require(not owners, f"{owners} keep a {name} of their own")

    @invariant()
    def left_alone(self) -> None:
        """Objects that were copied from, or exchanged, do not change any more."""
        for target, model in self.left_behind:
            self._compare(target, model)

    def _deletes(self) -> bool:
        names = self.subject.names_in("deletable")
        return "delete" not in self.waived and bool(self.model.keys() & set(names))

    def _finds_target(self, law: str) -> bool:
        return law not in self.waived and self.subject.target is not None

    def _can_copy(self, law: str, how: Callable[[Any], Any]) -> bool:
        return self._finds_target(law) and attempt(how, self.target) is None

    def _look(self, target: Any) -> dict[str, Any]:
        names = self.subject.names_in("data")
        return {name: getattr(target, name) for name in names if hasattr(target, name)}

    def _compare(self, layer: object, model: dict[str, Any]) -> None:
        seen = self._look(layer)
        what = type(layer).__name__
        _require(
            seen.keys() == model.keys(), f"{what} has {set(seen)}, not {set(model)}"
        )
        for name, value in seen.items():
            relaxed = self.subject.names[name].relaxed
            same = alike(value, model[name]) if relaxed else value is model[name]
            _require(same, f"{what}.{name} is {value!r}, not {model[name]!r}")

    def _move_to(self, twin: Any) -> None:
        _require(type(twin) is type(self.wrapper), f"a copy is a {type(twin).__name__}")
        self.left_behind.append((self.target, self.model))
        self.layers = [twin, *self.layers[1:]]
        for index in range(1, len(self.layers)):
            above = self.layers[index - 1]
            self.layers[index] = getattr(above, str(self.subject.target))
        self.target = getattr(self.layers[-1], str(self.subject.target))
        copied = self._look(self.target)
        same = copied.keys() == self.model.keys() and all(
            alike(value, self.model[name]) for name, value in copied.items()
        )
        _require(same, f"a copy holds {copied}, not {self.model}")
        self.model = copied


def _require(condition: bool, message: str) -> None:  # noqa: FBT001  # as in assert
    if not condition:
        raise AssertionError(message)


def machine_for(
    factory: Callable[[Any], Any],
    make_target: Callable[[], Any],
    names: Collection[str],
    **options: Unpack[Given],
) -> type[WrapperMachine]:
    """Return a hypothesis state machine for a wrapper class, ours or foreign.

    Its rules put and delete through the wrapper, assign on the target, exchange
    the target, deepcopy and pickle. Its invariants: every layer, the target and a
    plain dictionary agree, no layer keeps a value of its own, and what was copied
    or exchanged is left alone. Waiving ``"delete"``, ``"re-target"``, ``"deepcopy"``
    or ``"pickle"`` leaves out that rule; the arguments are those of :func:`judge`,
    of which ``strict`` and ``settings`` have no effect. Use it as
    ``TestWrapper = machine_for(...).TestCase``.

    Raises:
        TypeError: There is no such option.
        ValueError: An argument makes no sense, such as an unknown law in ``waive``.
    """
    subject = Subject.of(factory, make_target, names, Options.of(options))
    waived = subject.options.waived
    body = {"subject": subject, "waived": waived, "__module__": __name__}
    return type(f"{subject.label}Machine", (WrapperMachine,), body)
