"""Route writes of forwarded names past a base's own ``__setattr__``."""

from types import FunctionType
from typing import Any, Final

from forwarding._record import declared_spec, forwarded_attributes


__all__ = ("route_writes",)

_HOOKS: Final = ("__setattr__", "__delattr__")
# What makes a module of torch, which is not imported here. Other hooks, such as those
# of frozen dataclasses, see a forwarded name and may refuse it.
_OF_MODULES: Final = ("register_parameter", "register_buffer")


def route_writes(cls: type) -> None:
    """Route writes of forwarded names to their property, past a module's ``__setattr__``.

    ``nn.Module.__setattr__`` looks at the value first: None would reach the wrapped
    layer's bias, while a Parameter, on its way back, would be registered on the
    wrapper (peft#3246).
    """
    specs = forwarded_attributes(cls).values()
    is_module = all(hasattr(cls, name) for name in _OF_MODULES)
    if not is_module or all(spec.kind != "data" for spec in specs):
        return
    for hook in _HOOKS:
        inherited = getattr(cls, hook)
        is_python = isinstance(inherited, FunctionType)
        is_routed = "__forwarding_routes__" in getattr(inherited, "__dict__", {})
        if is_python and not is_routed and hook not in vars(cls):
            type.__setattr__(cls, hook, _routed(cls, hook))


def _routed(cls: type, hook: str) -> FunctionType:
    direct = getattr(object, hook)

    def write(self: Any, name: str, /, *value: Any) -> None:
        spec = declared_spec(type(self), name)
        if spec is not None and spec.kind == "data":
            direct(self, name, *value)
        else:
            getattr(super(cls, self), hook)(name, *value)

    write.__name__, write.__qualname__ = hook, f"{cls.__qualname__}.{hook}"
    write.__doc__ = (
        f"Pass forwarded names to their owners, others to ``super().{hook}``."
    )
    vars(write)["__forwarding_routes__"] = True
    return write  # type: ignore[return-value]
