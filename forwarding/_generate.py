"""Source code of forwarded attributes, as a person would write it.

Generated code is made with ``exec``: from CPython 3.12 on, a property is read
at full speed only if it is an exact ``property`` whose getter was made by
running a ``def``; one put together from code objects is slower on 3.13.
"""

import linecache
from types import FunctionType
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
    source = _source(spec).format(name=name, path=spec)
    filename = f"<forwarded {cls.__qualname__}.{name} -> {spec}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)
    namespace: dict[str, Any] = {"__name__": cls.__module__}
    exec(compile(source, filename, "exec"), namespace)  # noqa: S102
    attribute: property | FunctionType = namespace[name]
    for function in _functions(attribute):
        function.__qualname__ = f"{cls.__qualname__}.{name}"
        vars(function)["__forwarded__"] = spec
    return attribute


def _functions(attribute: property | FunctionType) -> list[FunctionType]:
    if isinstance(attribute, FunctionType):
        return [attribute]
    found = (attribute.fget, attribute.fset, attribute.fdel)
    return [function for function in found if isinstance(function, FunctionType)]


def _source(spec: Spec) -> str:
    if spec.kind == "data":
        return _GET + _SET * spec.set + _DELETE * spec.delete
    return _METHOD if spec.kind == "method" else _ASYNC_METHOD
