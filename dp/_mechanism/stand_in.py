"""A gradient of zeros that stands in ``p.grad`` before a release, and tells its readers.

While a batch accumulates, its sums are secret. What clips, scales or measures ``p.grad``
then, as loops without privacy do, would find nothing and do nothing, in silence. Here it
finds zeros, and says once that they are no gradient.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from dp.evidence import callers_level


__all__ = ("StandIn", "WatchedZeros")

# What clips, scales, adds to or measures a gradient, in whatever spelling. What moves,
# clears, copies or prints it is left alone, and so is a gradient scaler.
_EDITS: Final = frozenset(
    (
        *("add", "addcdiv", "addcmul", "clamp", "clamp_max", "clamp_min", "clip"),
        *("copy", "div", "lerp", "mul", "neg", "sign", "sub"),
        *("abs", "linalg_norm", "linalg_vector_norm", "norm", "pow", "square", "sum"),
    )
)
_TEXT: Final = (
    "a gradient was read or edited between backward and step, where a private optimizer"
    " has none: zeros stand there until step has added noise. Clipping and scaling do"
    " nothing there, and a norm is 0; each example's gradient is clipped at the plan's"
    " max_grad_norm. Edit the private gradient, in a hook of the wrapped optimizer:"
    " original_optimizer.register_step_pre_hook(...)"
)


@final
class WatchedZeros(Tensor):
    """Zeros that warn, once, whoever takes them for a gradient."""

    is_told: bool = False

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call *func* on plain tensors; warn if it edits or measures."""
        del types
        name: str = getattr(func, "__name__", "")
        if name.removeprefix("_foreach_").strip("_") in _EDITS:
            _tell(args)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 -- as torch's own
            return func(*args, **(kwargs or {}))


def _tell(args: Iterable[Any]) -> None:
    for arg in args:
        if isinstance(arg, list | tuple):
            _tell(arg)
        elif isinstance(arg, WatchedZeros) and not arg.is_told:
            arg.is_told = True
            warnings.warn(_TEXT, stacklevel=callers_level())


@final
class StandIn:
    """The stand-in of one run, which is put on one parameter for each batch.

    Attributes:
        is_watched: Whether readers are told. A trainer that always clips, and says in
            its own way what that does, is not.
        parameter: The parameter that carries it; None if none does.
    """

    __slots__ = ("_zeros", "is_watched", "parameter")

    def __init__(self) -> None:
        self.is_watched: bool = True
        self.parameter: Tensor | None = None
        self._zeros: WatchedZeros | None = None  # Kept, for it takes a while to make.

    def can_watch(self, parameter: Tensor) -> bool:
        """Whether readers of the gradient of *parameter* can be told, and shall be.

        The gradients of other kinds of parameters, as of shards, have to be of theirs.
        """
        return self.is_watched and type(parameter) in (Tensor, nn.Parameter)

    def put(self, parameter: Tensor, value: float) -> None:
        """Let *parameter* carry a gradient of *value*, until it is taken or cleared."""
        self.parameter = parameter
        parameter.grad = self._made(parameter, value)

    def take(self) -> None:
        """Forget it: what stands in ``p.grad`` is not the stand-in any more."""
        self.parameter = None

    def is_untouched(self, grad: Tensor) -> bool:
        """Whether *grad* is the zeros of this stand-in, as they were put there."""
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 -- as torch's own
            return grad is self._zeros and grad._version == 0  # noqa: SLF001 -- no other name

    def _made(self, parameter: Tensor, value: float) -> Tensor:
        zeros = self._zeros
        if value or not self.can_watch(parameter):
            return torch.full_like(parameter, value)
        if zeros is None or not _fits(zeros, parameter):
            told = zeros is not None and zeros.is_told
            fresh = torch.zeros_like(parameter, requires_grad=False)
            self._zeros = zeros = fresh.as_subclass(WatchedZeros)
            zeros.is_told = told
        return zeros


def _fits(zeros: WatchedZeros, parameter: Tensor) -> bool:
    """Whether *zeros* may stand on *parameter*, and nobody wrote to them."""
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 -- as torch's own
        return (
            zeros._version == 0  # noqa: SLF001 -- torch has no other name for it
            and zeros.shape == parameter.shape
            and zeros.dtype == parameter.dtype
            and zeros.device == parameter.device
        )
