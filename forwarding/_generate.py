"""Run the source of forwarded attributes, as if it stood in a file.

Generated code is run with ``exec``: from CPython 3.12 on, a property is read at
full speed only if it is an exact ``property`` whose getter was made by running a
``def``; on 3.13, one put together from a code object is slower.

Compiling a property takes 30 µs, so it is done once per *shape*, the lengths of
the names in it, and the names are put in afterwards: 4 µs. Equal lengths keep
the columns that a traceback underlines.
"""

import functools
import itertools
from types import CodeType, FunctionType
from typing import Any, Final

from forwarding._record import Kind, Record, Spec, mark, record_of, undecorated
from forwarding._source import Shape, source_of


__all__ = ("generated", "writers")

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOKEN: Final = "__forwarding_source__"  # noqa: S105 -- A name, no secret.


def generated(
    cls: type, shape: Shape, names: dict[str, Any], helpers: dict[str, Any]
) -> property | FunctionType:
    """Return the property or function that forwards ``cls.<name>``.

    Args:
        cls: The class that declares it.
        shape: What the source depends on.
        names: What this source alone refers to, such as a conversion.
        helpers: What the source of every attribute may refer to.

    Guarantees:
        A traceback through it shows the forwarded line. The line is forgotten with
        the last function of the class.
    """
    # Set as globals, so that nothing is looked up in a closure cell at each access.
    space = _namespace(cls, record_of(cls), helpers)
    space.update(names)
    source = source_of(shape)
    filename = _shown(source, f"{cls.__qualname__}.{shape.name} -> {shape.spec}", space)
    made: dict[str, Any] = {}
    # Definitions go into a dict of their own: a forwarded name such as "property"
    # must not hide what the next source refers to.
    exec(_code(shape, source, filename), space, made)  # noqa: S102
    attribute: property | FunctionType = made[shape.name]
    qualname = f"{cls.__qualname__}.{shape.name}"
    for function in _functions(attribute):
        function.__qualname__ = qualname
        mark(function, shape.spec)
    return attribute


def writers(
    attribute: property, shape: Shape, helpers: dict[str, Any]
) -> dict[FunctionType, CodeType]:
    """Return the code that setter and deleter have in another shape, by function.

    To be assigned to them: functions keep their place in aliases, decorators and
    rebuilt classes. The getter keeps its code: CPython 3.13 reads a property at full
    speed only if its getter never changed. Sets have no such fast path.
    """
    getter = undecorated(attribute.fget)
    source = source_of(shape)
    title = f"{getter.__qualname__} -> {shape.spec}" if getter else str(shape.spec)
    space = getter.__globals__ if getter else {}
    filename = _shown(source, title, space)
    made: dict[str, property] = {}
    exec(_code(shape, source, filename), {}, made)  # noqa: S102
    new = made[shape.name]
    codes: dict[FunctionType, CodeType] = {}
    for old, other in ((attribute.fset, new.fset), (attribute.fdel, new.fdel)):
        function = undecorated(old)
        if function is not None and isinstance(other, FunctionType):
            # What came by cloudpickle has only the globals that it used, or copies.
            function.__globals__.update(helpers)
            codes[function] = other.__code__
    return codes


# Files of classes that are gone. The collector may drop a class while linecache walks
# over its cache, so they leave the cache when the next class is made.
_GONE: Final[list[str]] = []

_COUNT: Final = itertools.count(2)


class _Token:
    """Lives as long as a namespace, that is as the functions that run in it."""

    __slots__ = ("__weakref__", "filenames")

    def __init__(self) -> None:
        self.filenames: list[str] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _Token, ()


def _namespace(cls: type, record: Record, helpers: dict[str, Any]) -> dict[str, Any]:
    """Return the globals that all generated functions of a class share.

    One dict per attribute would take more memory than the functions themselves.
    """
    if not record.namespace:
        import weakref  # noqa: PLC0415 -- For wrapper classes only.

        token = _Token()
        weakref.finalize(token, _GONE.extend, token.filenames)
        record.namespace.update(helpers)
        record.namespace.update({"__name__": cls.__module__, _TOKEN: token})
    return record.namespace


def _shown(source: str, title: str, space: dict[str, Any]) -> str:
    """Let tracebacks and ``inspect.getsource`` find the source; return its file name."""
    import linecache  # noqa: PLC0415 -- 1 ms, for wrapper classes only.

    while _GONE:
        linecache.cache.pop(_GONE.pop(), None)

    # Two classes may have one name, so the file names are counted. One counter for all:
    # a search from 2, as in attrs, takes a time that grows with the namesakes.
    filename = f"<forwarded {title}>"
    while filename in linecache.cache:
        filename = f"<forwarded {title}, {next(_COUNT)}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    if _TOKEN in space:
        space[_TOKEN].filenames.append(filename)
    return filename


def _code(shape: Shape, source: str, filename: str) -> CodeType:
    # A lens or a dynamic target has names of its own; such attributes are few, and so
    # are paths of more names than there are placeholders.
    if not shape.is_plain or len({shape.name, *shape.spec.path}) > len(_LETTERS):
        return compile(source, filename, "exec")
    path, kind, *options, _ = shape.spec
    placeholders = _placeholders(shape.name, *map(str, path))
    parts = tuple(placeholders[str(part)] for part in (shape.name, *path))
    flags = (*options, shape.is_undecided, shape.is_recorded)
    template = _template(parts, kind, flags)
    names = {placeholder: real for real, placeholder in placeholders.items()}
    return _renamed(template, names, filename)


def _placeholders(*names: str) -> dict[str, str]:
    """Return for each different name another one of its length in UTF-8."""
    different = dict.fromkeys(names)
    return {
        name: letter * len(name.encode())
        for letter, name in zip(_LETTERS, different, strict=False)
    }


@functools.lru_cache(maxsize=256)
def _template(parts: tuple[str, ...], kind: Kind, flags: tuple[bool, ...]) -> CodeType:
    name, *path = parts
    can_set, can_delete, is_undecided, is_recorded = flags
    spec = Spec(tuple(path), kind, can_set, can_delete)
    shape = Shape(name, spec, is_undecided, is_recorded)
    return compile(source_of(shape), "<forwarded>", "exec")


def _renamed(code: CodeType, names: dict[str, str], filename: str) -> CodeType:
    """Put the names of one attribute into the functions of a template."""
    functions = [
        const.replace(
            co_name=names[const.co_name],
            co_qualname=names[const.co_name],
            co_names=tuple([names.get(name, name) for name in const.co_names]),
            co_filename=filename,
            co_consts=tuple([_renamed_const(c, names) for c in const.co_consts]),
        )
        if isinstance(const, CodeType)
        else const
        for const in code.co_consts
    ]
    return code.replace(
        co_names=tuple([names.get(name, name) for name in code.co_names]),
        co_filename=filename,
        co_consts=tuple(functions),
    )


def _renamed_const(const: object, names: dict[str, str]) -> object:
    return names.get(const, const) if isinstance(const, str) else const


def _functions(attribute: property | FunctionType) -> list[FunctionType]:
    if isinstance(attribute, FunctionType):
        return [attribute]
    accessors = (attribute.fget, attribute.fset, attribute.fdel)
    return [function for function in accessors if isinstance(function, FunctionType)]
