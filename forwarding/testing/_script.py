"""Run a law's script statement by statement, and show what ran when it fails.

The script is executed from its own text, so the counterexample that is printed is
the program that failed. ``assert`` statements at the top level are evaluated here:
both sides are read once and shown, and ``python -O`` does not remove them.
"""

import ast
import functools
import operator
import re
import reprlib
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, NamedTuple

from forwarding.testing import probes


__all__ = ("ScriptFailedError", "run")

_OPERATORS: Mapping[type[ast.cmpop], tuple[str, Callable[[Any, Any], object]]] = {
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
    ast.Eq: ("==", operator.eq),
    ast.In: ("in", lambda item, items: item in items),
    ast.NotIn: ("not in", lambda item, items: item not in items),
}
_WIDTH = 160
_PROBES = {name: getattr(probes, name) for name in probes.__all__}


class ScriptFailedError(Exception):
    """A statement of a script failed.

    Args:
        lines: The program up to and including the statement that failed.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class _Shown(reprlib.Repr):
    """Show values shortly, and without addresses, which differ from run to run."""

    def repr_instance(self, x: object, level: int) -> str:
        shown = super().repr_instance(x, level)
        try:
            whole = repr(x)
        except Exception:  # noqa: BLE001  # reprlib shows what cannot be shown
            return shown
        plain = re.sub(r" at 0x[0-9a-fA-F]+", "", whole)
        if len(plain) <= self.maxother:
            return plain
        head = (self.maxother - 3) // 2
        return f"{plain[:head]}...{plain[len(plain) - (self.maxother - 3 - head) :]}"


_SHOWN = _Shown()


class _Claim(NamedTuple):
    """An ``assert`` with its operands taken apart, to read each one once."""

    operands: tuple[CodeType, ...]
    holds: Callable[..., object]
    sign: str

    def __call__(self, namespace: dict[str, Any]) -> str | None:
        values = [eval(code, namespace) for code in self.operands]  # noqa: S307  # the laws' own text
        if self.holds(*values):
            return None
        return "fails: " + f" {self.sign} ".join(map(_SHOWN.repr, values))


class _Action(NamedTuple):
    """Any other statement."""

    code: CodeType

    def __call__(self, namespace: dict[str, Any]) -> None:
        exec(self.code, namespace)  # noqa: S102  # the laws' own text


class _Alike(ast.NodeTransformer):
    """Read ``w.a is v`` as ``alike(w.a, v)``, where every get makes a new object."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if not (isinstance(node.left, ast.Attribute) and type(node.ops[0]) is ast.Is):
            return node
        alike = ast.Name("alike", ast.Load())
        return ast.Call(alike, [node.left, *node.comparators], [])


def _expression(node: ast.expr) -> CodeType:
    tree = ast.fix_missing_locations(ast.Expression(node))
    return compile(tree, "<law>", "eval")


def _claim(test: ast.expr) -> _Claim:
    if isinstance(test, ast.Compare):
        operands = (_expression(test.left), _expression(test.comparators[0]))
        sign, holds = _OPERATORS[type(test.ops[0])]
        return _Claim(operands, holds, sign)
    return _Claim((_expression(test),), bool, "")


@functools.cache
def _compiled(script: str, *, relaxed: bool) -> list[tuple[str, _Claim | _Action]]:
    tree = ast.parse(script)
    if relaxed:
        tree = ast.fix_missing_locations(_Alike().visit(tree))
    steps: list[tuple[str, _Claim | _Action]] = []
    for node in tree.body:
        source = ast.unparse(node)
        if isinstance(node, ast.Assert):
            steps.append((source, _claim(node.test)))
        else:
            code = compile(ast.Module([node], []), "<law>", "exec")
            steps.append((source, _Action(code)))
    return steps


@functools.cache
def _filled(script: str, words: tuple[tuple[str, str], ...]) -> str:
    meanings = dict(words)
    return re.sub(
        r"\b[A-Z][A-Z_]*\b", lambda word: meanings.get(word[0], word[0]), script
    )


def run(
    script: str,
    words: Mapping[str, str],
    variables: Mapping[str, Any],
    *,
    callables: Mapping[str, Any],
    relaxed: bool,
) -> None:
    """Run ``script`` with its capital words replaced by ``words``.

    Args:
        script: Statements of Python.
        words: What each placeholder stands for.
        variables: What the script starts from; shown at the top.
        callables: What else it may call, beside the probes; not shown.
        relaxed: Read ``is`` as ``alike``.

    Raises:
        ScriptFailedError: A statement raised, or an assertion does not hold.
        NotApplicableError: A probe has no meaning for these objects.
    """
    text = _filled(script, tuple(words.items()))
    namespace = {**_PROBES, **callables, **variables}
    done = [f"{name} = {value!r}" for name, value in variables.items()]
    for source, step in _compiled(text, relaxed=relaxed):
        done.append(source)
        trouble = _trouble(step, namespace)
        if trouble is not None:
            done[-1] += "  # " + textwrap.shorten(trouble, _WIDTH)
            raise ScriptFailedError(done)


def _trouble(step: _Claim | _Action, namespace: dict[str, Any]) -> str | None:
    try:
        return step(namespace)
    except probes.NotApplicableError:
        raise
    except Exception as error:  # noqa: BLE001  # a law that raises is broken
        return f"raises {type(error).__name__}: {error}"
