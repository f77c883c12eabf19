"""Fire torch's hooks around a step once, whatever is wrapped in what.

torch wraps ``step`` of every optimizer class so that the global hooks, the hooks of
the instance and the profiler see it. A layer around an optimizer is hooked the same
way, with itself as the object that hooks are given. Below it, the wrapped optimizer's
own hooks still fire, the global ones not again.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, ParamSpec, TypeVar

from torch._C._autograd import _profiler_enabled
from torch._compile import _disable_dynamo
from torch.autograd.profiler import record_function
from torch.optim import Optimizer


__all__ = ("disable_dynamo", "profiled", "step_of_wrapped", "wrap_step_hooks")

P = ParamSpec("P")
R = TypeVar("R")

_UNPROFILED: Final = nullcontext()


def wrap_step_hooks(step: Callable[P, R]) -> Callable[P, R]:
    """Wrap ``step`` of a class as torch would, and mark it so that torch does not."""
    wrapper = Optimizer.profile_hook_step(step)
    wrapper.hooked = True  # type: ignore[attr-defined]  # torch's mark
    return wrapper


def disable_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``torch.compile`` call *function* as it is.

    A traced ledger or noise generator could be replayed with what it did before.
    """
    untraced_function: Callable[P, R] = _disable_dynamo(function)
    return untraced_function


def profiled(name: str) -> AbstractContextManager[object]:
    """Return a context that profilers show under *name*.

    Opening one takes 10 us, which small steps need not pay while no profiler is on.
    """
    return record_function(name) if _profiler_enabled() else _UNPROFILED


# All that torch wraps share this code, and nothing else has it.
_TORCHS_WRAPPER = wrap_step_hooks(lambda: None).__code__


def step_of_wrapped(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run ``optimizer.step`` inside the step of the layer that wraps it.

    Guarantees:
        * A ``step`` that was patched on the instance is the one that runs.
        * Hooks of the instance fire; global ones do not, unless a patch or a foreign
          class hides torch's wrapper, and fires them itself.
    """
    step: Any = optimizer.step
    if hasattr(step, "_wrapped_by_lr_sched"):
        # A scheduler was built before the optimizer was wrapped. What it does:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001
        step = step.__wrapped__.__get__(optimizer)
    function: Any = getattr(step, "__func__", None)
    if getattr(function, "__code__", None) is not _TORCHS_WRAPPER:
        return step(*args, **kwargs)
    return _hooked_by_instance(function.__wrapped__, optimizer, args, kwargs)


def _hooked_by_instance(
    function: Callable[..., Any],
    optimizer: Optimizer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    args = (optimizer, *args)  # As torch gives them to hooks.
    with profiled(f"Optimizer.step#{type(optimizer).__name__}.step"):
        for pre_hook in tuple(optimizer._optimizer_step_pre_hooks.values()):  # noqa: SLF001
            replaced = pre_hook(optimizer, args, kwargs)
            args, kwargs = (args, kwargs) if replaced is None else replaced
        result = function(*args, **kwargs)
        optimizer._optimizer_step_code()  # noqa: SLF001 -- where torch's tracer looks
        for post_hook in tuple(optimizer._optimizer_step_post_hooks.values()):  # noqa: SLF001
            post_hook(optimizer, args, kwargs)
    return result
