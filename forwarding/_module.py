"""The :class:`ModuleForwarding` base, for wrappers of ``torch.nn.Module``.

torch is not imported here: what a module is, is known from its registries.
"""

from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from forwarding._annotations import annotations_of
from forwarding._descriptor import Forwarded
from forwarding._kind import kind_of
from forwarding._preserved import preserved
from forwarding._record import record_of
from forwarding._static import static_attribute
from forwarding._wrapper import Holder, Wrapper
from forwarding.exceptions import ForwardingError


__all__ = ("ModuleForwarding",)

T = TypeVar("T")

# Where a module keeps what it is made of. The wrapper has the very same dicts, so that
# whatever torch reads or registers through the wrapper is read and registered inside,
# and named_parameters() and state_dict() have the inner module's keys.
_REGISTRIES: Final = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
)


class _Plain:
    """First base, which gives instances the memory layout of a plain object.

    fully_shard() assigns ``module.__class__``, which Python allows between equal layouts
    only. Forwarding has no ``__dict__``, so as the first base it would change the layout.
    """


_METHODS: Final = """
    state_dict load_state_dict _load_from_state_dict _save_to_state_dict
    get_extra_state set_extra_state
    register_parameter register_buffer register_module add_module
    register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook
    register_state_dict_pre_hook register_state_dict_post_hook
    register_load_state_dict_pre_hook register_load_state_dict_post_hook
"""


class ModuleForwarding(_Plain, Wrapper[T], methods=_METHODS):
    """Wrap a module, and be one: put it before the module base.

    .. code-block:: python

        class Scaled(ModuleForwarding, torch.nn.Module):
            scale: float  # The wrapper's own.

            def __init__(self, module, scale):
                super().__init__(module)
                self.scale = scale

            def forward(self, x):
                return self.scale * self.__wrapped__(x)

        scaled = Scaled(torch.nn.Linear(2, 1), 0.5)
        scaled.bias = None  # Of the layer.
        list(scaled.state_dict())  # ["weight"]

    The wrapper owns the names that its class defines, assigns or annotates (``scale``
    above). Every other name is read, set and deleted on the wrapped module, including
    parameters, buffers and submodules. A method of the module that is replaced through
    the wrapper is replaced on this layer only.

    Args:
        wrapped: The module.

    Raises:
        ForwardingError: ``wrapped`` is no module, or the class has no module base.

    Guarantees:
        * Building the wrapper changes nothing in the module, its mode included.
        * Names of parameters and buffers, and keys of ``state_dict()``, are those of the
          module, at any depth of wrappers.
        * ``to()``, ``train()`` and ``apply()`` reach the module by its own methods, and
          the wrapper's own modules and tensors besides.
        * Hooks are registered on the module. They run when the wrapper calls it; see a
          wrapper's own result by overriding ``forward``.
        * Copies, deep copies and pickles are wrappers of the same class.

    The wrapper's own attributes are not in its ``state_dict()``; deep copies and pickles
    include them.
    """

    if not TYPE_CHECKING:  # pragma: no branch -- Checkers see the module base's.
        training = Forwarded(kind="data")

    _own_names: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        bare = {name for name in annotations_of(cls) if name not in vars(cls)}
        cls._own_names = cls._own_names | bare
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__:
            if "register_parameter" in vars(base) and not issubclass(base, Wrapper):
                # Of the module base; they work on the registries, so on the module.
                public = {name for name in vars(base) if not name.startswith("_")}
                record_of(cls).excepted |= public

    def __init__(self, wrapped: T, /) -> None:
        self.__wrapped__ = wrapped
        if not hasattr(super(Holder, self), "register_parameter"):
            raise ForwardingError(
                f"{type(self).__name__} has no module base; write "
                f"class {type(self).__name__}(ModuleForwarding, torch.nn.Module)"
            )
        with preserved(self):  # Module.__init__ sets training, which is the module's.
            super(Holder, self).__init__()
        self._share(wrapped)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        module: Any = self.__wrapped__
        return module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 -- As torch's.
        """Set the mode of the module, and of the wrapper's own modules."""
        modules: list[Any] = [self.__wrapped__, *self._own_values("train")]
        for module in modules:
            module.train(mode)
        return self

    def apply(self, fn: Any) -> Self:
        """Call ``fn`` on every module inside, as ``Module.apply``."""
        modules: list[Any] = [self.__wrapped__, *self._own_values("apply")]
        for module in modules:
            module.apply(fn)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        """Move or convert the module, and what the wrapper itself holds."""
        module: Any = self.__wrapped__
        module._apply(fn, recurse)  # noqa: SLF001 -- What to() and cuda() call inside.
        for own in self._own_values("register_parameter"):
            own._apply(fn, recurse)  # noqa: SLF001
        for name in self._own_names:
            value = vars(self).get(name)
            if hasattr(value, "grad_fn"):  # A tensor.
                object.__setattr__(self, name, fn(value))
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__" or hasattr(type(self), name):
            return object.__getattribute__(self, name)  # Its own error, once more.
        return getattr(self.__wrapped__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__wrapped__":
            self._share(value)
        if name == "__wrapped__" or self._is_own(name) or self._is_method(name):
            object.__setattr__(self, name, value)
        else:
            setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self) or self._is_own(name):
            object.__delattr__(self, name)
        else:
            delattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        inner = dir(self.__wrapped__) if "__wrapped__" in vars(self) else ()
        return sorted({*object.__dir__(self), *inner})

    def _is_own(self, name: str) -> bool:
        return name in self._own_names or hasattr(type(self), name)

    def _is_method(self, name: str) -> bool:
        """Whether the module has a method of that name, which is patched on the layer."""
        module: Any = self.__wrapped__
        attribute = static_attribute(type(module), name)
        if attribute is not None:
            return kind_of(attribute) != "data"
        return isinstance(module, ModuleForwarding) and module._is_method(name)  # noqa: SLF001

    def _own_values(self, method: str) -> list[Any]:
        values = (vars(self).get(name) for name in self._own_names)
        return [value for value in values if hasattr(value, method)]

    def _share(self, wrapped: Any) -> None:
        """Take the registries of the module for the wrapper's own."""
        held = getattr(wrapped, "__dict__", {})
        missing = [name for name in _REGISTRIES if name not in held]
        if missing:
            raise ForwardingError(
                f"{type(self).__name__} wraps a module, got an object of "
                f"{type(wrapped).__name__}, which has no {missing[0]}"
            )
        vars(self).update({name: held[name] for name in _REGISTRIES})


for _hook in (ModuleForwarding.__setattr__, ModuleForwarding.__delattr__):
    vars(_hook)["__forwarding_routes__"] = True
