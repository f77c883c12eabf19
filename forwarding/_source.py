"""Source code of one forwarded attribute, as written by hand.

Each function returns lines. A plain attribute is one line a function; what a lens or
a dynamic target adds is added only where it was declared, so that it costs nothing
elsewhere.
"""

import functools
from collections.abc import Iterator
from typing import Final, NamedTuple

from forwarding._path import Item, Part, spelled_path
from forwarding._record import Kind, Lens, Spec


__all__ = ("Shape", "source_of")

_INDENT: Final = "    "
_NO_LENS: Final = Lens()
# Stand for names in a pattern; no identifier has such a character.
_NAME: Final = "\0name"
_PATH: Final = "\0path"
_CALL: Final = "(*args, **kwargs)"
_PARAMETERS: Final = "self, /, *args, **kwargs"

# An asynchronous generator has no "yield from" (PEP 525), so each of the ways into
# it is passed on by hand: next, send, throw and close.
_ASYNC_GENERATOR: Final = """\
async def {name}({parameters}):
{before}    inner_ = {access}{call}
    try:
        item_ = await inner_.__anext__()
        while True:
            try:
                sent_ = yield item_
            except GeneratorExit:
                await inner_.aclose()
                raise
            except BaseException as error_:
                item_ = await inner_.athrow(error_)
            else:
                item_ = await inner_.asend(sent_)
    except StopAsyncIteration:
        return
"""


class Shape(NamedTuple):
    """Everything that the source of one attribute depends on."""

    name: str
    spec: Spec
    is_undecided: bool = False
    """Whether an assignment must first find out if the name is a method."""
    is_recorded: bool = False
    """Whether writes are reported to preserved()."""
    look_up: str = ""
    """Expression that finds a dynamic target; "" where the target is an attribute."""
    errors: str = ""
    """Exceptions of the look-up that mean "nothing is bound"."""
    may_be_none: bool = False
    """Whether the look-up gives None when nothing is bound."""
    parameters: str = _PARAMETERS
    """Of a method, as in its ``def``."""
    call: str = _CALL
    """Arguments that a method passes on."""

    @property
    def lens(self) -> Lens:
        """Conversions and the like; neutral where there are none."""
        return self.spec.lens or _NO_LENS

    @property
    def is_plain(self) -> bool:
        """Whether the source depends only on names, of whatever spelling."""
        plain = (None, "", _PARAMETERS)
        given = (self.spec.lens, self.look_up, self.parameters)
        names_only = not any(isinstance(part, Item) for part in self.spec.path)
        return names_only and given == plain


def source_of(shape: Shape) -> str:
    """Return the definitions of a property, or of a method."""
    # 50 declarations of one form are formatted, not composed again.
    if shape.is_plain:
        path, kind, *options, _ = shape.spec
        flags = (*options, shape.is_undecided, shape.is_recorded)
        pattern = _pattern(kind, flags)
        return pattern.replace(_NAME, shape.name).replace(_PATH, spelled_path(path))
    return _composed(shape)


@functools.lru_cache(maxsize=64)
def _pattern(kind: Kind, flags: tuple[bool, ...]) -> str:
    """Return the source of all plain attributes that differ in names only."""
    can_set, can_delete, is_undecided, is_recorded = flags
    spec = Spec((_PATH,), kind, can_set, can_delete)
    return _composed(Shape(_NAME, spec, is_undecided, is_recorded))


def _composed(shape: Shape) -> str:
    if shape.spec.kind == "async generator method":
        return _ASYNC_GENERATOR.format(
            name=shape.name,
            parameters=shape.parameters,
            call=shape.call,
            access=_access(shape),
            before="".join(_indented(_before(shape))),
        )
    lines = _property(shape) if shape.spec.kind == "data" else _method(shape)
    return "".join(f"{line}\n" for line in lines)


def _property(shape: Shape) -> Iterator[str]:
    yield "@property"
    yield f"def {shape.name}(self):"
    yield from _body(shape, _reading(shape), on_error="return instead")
    if shape.spec.set:
        yield f"@{shape.name}.setter"
        yield f"def {shape.name}(self, value):"
        yield from _noted(shape, "")
        yield from _body(shape, _writing(shape))
    if shape.spec.delete:
        yield f"@{shape.name}.deleter"
        yield f"def {shape.name}(self):"
        yield from _noted(shape, ", deletes=True")
        yield from _body(shape, _each(shape, f"del {_access(shape)}"))


def _method(shape: Shape) -> Iterator[str]:
    kind, lens = shape.spec.kind, shape.lens
    is_async = kind == "async method"
    yield f"{'async ' * is_async}def {shape.name}({shape.parameters}):"
    wait = "await " * is_async
    call = f"{wait}{_access(shape)}{shape.call}"
    if lens.each:
        body = [f"return [{call} for each_ in {_collection(shape)}]"]
    elif lens.others:
        body = [f'return {wait}first(self, "{shape.name}"){shape.call}']
    elif lens.returns_wrapper:
        owner = _access(shape, shape.spec.path[:-1])
        body = [
            f"owner_ = {owner}",
            f"result_ = {wait}owner_{_spelled(shape.spec.path[-1:])}{shape.call}",
            "return self if result_ is owner_ else result_",
        ]
    elif kind == "generator method":
        body = [f"return (yield from {call})"]
    else:
        body = [f"return {call}"]
    yield from _body(shape, body)


def _reading(shape: Shape) -> list[str]:
    value = _access(shape)
    if shape.lens.get is not None:
        value = f"{shape.name}_get({value})"
    if shape.lens.each:
        value = f"[{value} for each_ in {_collection(shape)}]"
    return [f"return {value}"]


def _writing(shape: Shape) -> list[str]:
    lines = []
    if shape.lens.set is not None:
        lines = [f"value = {shape.name}_set(value)"]
    lines += _each(shape, f"{_access(shape)} = value")
    if not shape.is_undecided:
        return lines
    # Asked until the first assignment has told data from methods (forwarding._build).
    question = f'if not stays(self, "{shape.name}", value):'
    return [question, *(f"{_INDENT}{line}" for line in lines)]


def _noted(shape: Shape, how: str) -> list[str]:
    if not shape.is_recorded:
        return []
    is_in_vain = f'note_write(self, "{shape.name}"{how})'
    return [f"{_INDENT}if recorders and {is_in_vain}:", f"{_INDENT * 2}return"]


def _each(shape: Shape, line: str) -> list[str]:
    """Return a statement, or a loop of it over a collection of owners."""
    if not shape.lens.each:
        return [line]
    # The owners are found before the first is changed: a broken collection raises early.
    return [f"for each_ in tuple({_collection(shape)}):", f"{_INDENT}{line}"]


def _body(shape: Shape, lines: list[str], *, on_error: str = "") -> Iterator[str]:
    """Yield the lines of a function, and what it does with errors that it expects."""
    lens = shape.lens
    has_items = any(isinstance(part, Item) for part in shape.spec.path)
    is_lenient = bool(on_error and (lens.default or lens.others))
    yield from _indented_lines(_before(shape))
    handlers = []
    if is_lenient:
        errors = f"AttributeError{', LookupError' * has_items}"
        handlers = [(errors, f'return instead(self, "{shape.name}", error)')]
    elif has_items:
        handlers = [
            ("LookupError", f'raise no_item(self, "{shape.name}", error) from error')
        ]
    if shape.may_be_none and not is_lenient:
        # None of a dead weak reference has no attribute; asking first would cost more.
        root = shape.spec.path[0]
        handlers += [("AttributeError", f'raise unbound_or(self, "{root}", error)')]
    if not handlers:
        yield from _indented_lines(lines)
        return
    yield f"{_INDENT}try:"
    yield from (f"{_INDENT * 2}{line}" for line in lines)
    for errors, line in handlers:
        yield f"{_INDENT}except ({errors},) as error:"
        yield f"{_INDENT * 2}{line}"


def _before(shape: Shape) -> list[str]:
    """Return the lines that look up a dynamic target."""
    if not shape.look_up or shape.may_be_none:
        return []
    root = shape.spec.path[0]
    return [
        "try:",
        f"{_INDENT}target_ = {shape.look_up}",
        f"except {shape.errors} as error:",
        f'{_INDENT}raise unbound(self, "{root}") from error',
    ]


def _root(shape: Shape) -> str:
    """Return the expression for the target itself."""
    if shape.may_be_none:
        return shape.look_up
    return "target_" if shape.look_up else f"self.{shape.spec.path[0]}"


def _access(shape: Shape, path: tuple[Part, ...] | None = None) -> str:
    path = path or shape.spec.path
    if shape.lens.each:
        return f"each_{_spelled(path[-1:])}"
    return f"{_root(shape)}{_spelled(path[1:])}"


def _collection(shape: Shape) -> str:
    path = shape.spec.path[:-1]
    return f"{_root(shape)}{_spelled(path[1:])}"


def _spelled(path: tuple[Part, ...]) -> str:
    """Return a path that continues an expression: ``.gearbox[0]``."""
    return spelled_path(("", *path))


def _indented(lines: list[str]) -> Iterator[str]:
    yield from (f"{line}\n" for line in _indented_lines(lines))


def _indented_lines(lines: list[str]) -> Iterator[str]:
    yield from (f"{_INDENT}{line}" for line in lines)
