"""One run of a law: on one name, with a number of layers, on values."""

import copy
import dataclasses
import re
from typing import Any, final

from forwarding.testing import probes
from forwarding.testing._law import Law
from forwarding.testing._script import run
from forwarding.testing._special import as_python_calls, is_special, special_call
from forwarding.testing._subject import Subject, example_call, label


__all__ = ("Case",)

_UNKNOWN = {
    "AT": "it does not show where the target is kept; pass target=",
    "OTHERS": "there is only one name",
    "LAZY": "it is not told how to wrap a target that is made later; pass lazy=",
    "BIND": "it is not told how a target is bound to a context; pass bind=",
    "LEAVE_OUT": "not asked for; pass leave_out=, the names that may be missing",
}
_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


def _fresh(value: object) -> object:
    """Return a value of which no other run holds a part."""
    if type(value) in _ATOMS:
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001  # it is used as it is, then
        return value


def _whatever_it_returns(script: str) -> str:
    """Return a script that calls a method and does not look at its result.

    Many a fluent method of a wrapper returns the wrapper in any case. What it ought to
    return is said by the law ``fluent``.

    >>> _whatever_it_returns("assert finish(wrapper.NAME()) is result")
    'finish(wrapper.NAME())'
    """
    return re.sub(r"assert (finish\(.*\)) (?:is|==) result", r"\1", script)


def _itself(target: Any) -> Any:
    return target


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A law on one of a subject's names, at one depth.

    At depth 0 it is the control: the target stands for its own wrapper.
    """

    subject: Subject
    law: Law
    depth: int
    name: str

    def run(self, values: tuple[object, ...] = ()) -> None:
        """Run the law's script on freshly built objects.

        Raises:
            ScriptFailedError: The law is broken here.
            NotApplicableError: The law says nothing here.
        """
        script = self.law.script if self.depth else str(self.law.control)
        kind = self.subject.names.get(self.name)
        if is_special(self.name):
            script = as_python_calls(script, self.name)
        if kind is not None and "fluent" in kind.domains:
            script = _whatever_it_returns(script)
        words = self._words()
        for word, reason in _UNKNOWN.items():
            if not words[word] and re.search(rf"\b{word}\b", script):
                raise probes.NotApplicableError(reason)
        run(
            self._building() + script,
            words,
            self._variables(values),
            callables=self._callables(),
            relaxed=kind is not None and kind.relaxed,
        )

    def _variables(self, values: tuple[object, ...]) -> dict[str, object]:
        # Laws change values in place (+=), and examples are shared by all laws.
        fresh = map(_fresh, values[: self.law.values])
        variables: dict[str, object] = dict(
            zip(("value", "other"), fresh, strict=False)
        )
        if self.law.on in {"method", "fluent"}:
            method = getattr(self.subject.make_target(), self.name)
            by_operator = is_special(self.name) and self.name != "__call__"
            call = special_call if by_operator else example_call
            variables["args"], variables["keywords"] = call(method)
        return variables

    def _labels(self) -> dict[str, tuple[str, Any]]:
        """Return, for each placeholder, the name of a callable, and the callable."""
        subject, options = self.subject, self.subject.options
        given = {
            "FACTORY": (subject.factory, "factory"),
            "MAKE_TARGET": (subject.make_target, "make_target"),
            "LAZY": (options.lazy, "lazy"),
            "BIND": (options.bind, "bind"),
        }
        labels: dict[str, tuple[str, Any]] = {}
        for word, (function, otherwise) in given.items():
            name = label(function, otherwise) if function else ""
            # Two callables of one name cannot both be called by it.
            taken = {other for other, known in labels.values() if known is not function}
            labels[word] = (otherwise if name in taken else name, function)
        if not self.depth:
            labels["FACTORY"] = ("itself", _itself)
        return labels

    def _callables(self) -> dict[str, Any]:
        return {name: function for name, function in self._labels().values() if name}

    def _layers(self) -> list[str]:
        """Return the names of the wrappers, the innermost first."""
        return [*(f"layer{n}" for n in range(1, self.depth)), "wrapper"]

    def _building(self) -> str:
        lines = ["target = MAKE_TARGET()"]
        below = "target"
        for layer in self._layers():
            lines.append(
                f"{layer} = FACTORY({below})" if self.depth else "wrapper = target"
            )
            below = layer
        return "\n".join(lines) + "\n"

    def _words(self) -> dict[str, str]:
        layers = self._layers()
        others = [name for name in self.subject.names_in("data") if name != self.name]
        left_out = self.subject.options.leave_out
        return {
            "NAME": self.name,
            "AT": self.subject.target or "",
            "BELOW": ["target", *layers][-2],
            "INNERMOST": layers[0],
            "LAYERS": ", ".join(reversed(layers)),
            "DEPTH": str(self.depth),
            "OTHERS": repr(others) if others else "",
            "LEAVE_OUT": "" if left_out is None else repr(list(left_out)),
            **{word: name for word, (name, _) in self._labels().items()},
        }
