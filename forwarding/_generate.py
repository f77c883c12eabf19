"""Source code of forwarded attributes, as a person would write it.

Generated code is run with ``exec``: from CPython 3.12 on, a property is read at
full speed only if it is an exact ``property`` whose getter was made by running a
``def``; on 3.13, one put together from a code object is slower.

Compiling a property takes 30 µs, so it is done once per *shape*, the lengths of
the names in it, and the names are put in afterwards: 4 µs. Equal lengths keep
the columns that a traceback underlines.
"""

import functools
import string
from types import CodeType, FunctionType
from typing import Any

from forwarding._record import Spec


__all__ = ("generated",)

_GET = """\
@property
def {name}(self):
    return self.{path}
"""
_SET = """\
@{name}.setter
def {name}(self, value):
    self.{path} = value
"""
_DELETE = """\
@{name}.deleter
def {name}(self):
    del self.{path}
"""
_METHOD = """\
def {name}(self, /, *args, **kwargs):
    return self.{path}(*args, **kwargs)
"""
_ASYNC_METHOD = """\
async def {name}(self, /, *args, **kwargs):
    return await self.{path}(*args, **kwargs)
"""


def generated(cls: type, name: str, spec: Spec) -> property | FunctionType:
    """Return the property or function that forwards ``cls.name`` by ``spec``.

    Guarantees:
        A traceback through it shows the forwarded line.
    """
    filename = f"<forwarded {cls.__qualname__}.{name} -> {spec}>"
    _show(_source(name, spec), filename)
    placeholders = _placeholders(name, *spec.path)
    path = tuple(placeholders[part] for part in spec.path)
    template = _template(placeholders[name], spec._replace(path=path))
    names = {placeholder: real for real, placeholder in placeholders.items()}
    namespace: dict[str, Any] = {"__name__": cls.__module__}
    exec(_renamed(template, names, filename), namespace)  # noqa: S102
    attribute: property | FunctionType = namespace[name]
    for function in _functions(attribute):
        function.__qualname__ = f"{cls.__qualname__}.{name}"
        vars(function)["__forwarded__"] = spec
    return attribute


def _source(name: str, spec: Spec) -> str:
    if spec.kind == "data":
        source = _GET + _SET * spec.set + _DELETE * spec.delete
    else:
        source = _METHOD if spec.kind == "method" else _ASYNC_METHOD
    return source.format(name=name, path=spec)


def _show(source: str, filename: str) -> None:
    """Let tracebacks and ``inspect.getsource`` find the source."""
    import linecache  # noqa: PLC0415 -- 1 ms, for wrapper classes only.

    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)


def _placeholders(*names: str) -> dict[str, str]:
    """Return for each different name another one of its length in UTF-8."""
    different = dict.fromkeys(names)
    letters = string.ascii_letters[: len(different)]
    return {
        name: letter * len(name.encode())
        for name, letter in zip(different, letters, strict=True)
    }


@functools.lru_cache(maxsize=256)
def _template(name: str, spec: Spec) -> CodeType:
    return compile(_source(name, spec), "<forwarded>", "exec")


def _renamed(code: CodeType, names: dict[str, str], filename: str) -> CodeType:
    return code.replace(
        co_name=names.get(code.co_name, code.co_name),
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_filename=filename,
        co_consts=tuple(
            _renamed(const, names, filename) if isinstance(const, CodeType) else const
            for const in code.co_consts
        ),
    )


def _functions(attribute: property | FunctionType) -> list[FunctionType]:
    if isinstance(attribute, FunctionType):
        return [attribute]
    found = (attribute.fget, attribute.fset, attribute.fdel)
    return [function for function in found if isinstance(function, FunctionType)]
