"""Fire torch's hooks around a step once, whatever is wrapped in what.

torch wraps ``step`` of every optimizer class so that the global hooks, the hooks of
the instance and the profiler see it. A layer around an optimizer is hooked the same
way, with itself as the object that hooks are given. Below it, the wrapped optimizer's
own hooks still fire, the global ones not again.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, cast

from torch._C._autograd import _profiler_enabled
from torch._compile import _disable_dynamo
from torch.autograd.profiler import record_function
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)


__all__ = ("disable_dynamo", "profiled", "step_of_wrapped", "wrap_step_hooks")

P = ParamSpec("P")
R = TypeVar("R")

_UNPROFILED: Final = nullcontext()


def wrap_step_hooks(step: Callable[P, R]) -> Callable[P, R]:
    """Wrap ``step`` of a class as torch would, and mark it so that torch does not.

    Unlike torch's, the wrapper opens no record while no profiler is on.
    """

    @wraps(step)
    def hooked_step(*args: Any, **kwargs: Any) -> Any:
        return _hooked(step, args, kwargs, is_outer=True)

    hooked_step.hooked = True  # type: ignore[attr-defined]  # torch's mark
    return cast("Callable[P, R]", hooked_step)


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


# All that torch wraps share one code, all that is wrapped here another, and nothing else
# has them.
_WRAPPERS = [w(id).__code__ for w in (Optimizer.profile_hook_step, wrap_step_hooks)]


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
    if getattr(function, "__code__", None) not in _WRAPPERS:
        return step(*args, **kwargs)
    return _hooked(function.__wrapped__, (optimizer, *args), kwargs, is_outer=False)


def _hooked(step: Callable[..., Any], args: Any, kwargs: Any, *, is_outer: bool) -> Any:
    """Call *step* of the first of *args* between its hooks, and global ones if outer."""
    layer = args[0]
    before = _global_optimizer_pre_hooks if is_outer else {}
    after = _global_optimizer_post_hooks if is_outer else {}
    with profiled(f"Optimizer.step#{type(layer).__name__}.step"):
        # Copies: one that is called may remove itself.
        for hook in (*before.values(), *layer._optimizer_step_pre_hooks.values()):  # noqa: SLF001 -- as torch's own
            replaced = hook(layer, args, kwargs)
            if replaced is not None:
                args, kwargs = _pair(replaced)
        result = step(*args, **kwargs)
        layer._optimizer_step_code()  # noqa: SLF001 -- where torch's tracer looks
        for hook in (*layer._optimizer_step_post_hooks.values(), *after.values()):  # noqa: SLF001
            hook(layer, args, kwargs)
    return result


def _pair(replaced: object) -> tuple[Any, Any]:
    """Return what a hook returned, if torch takes it: new arguments and keywords."""
    match replaced:
        case tuple((args, kwargs)):
            return args, kwargs
        case _:
            raise RuntimeError(
                "a step pre-hook must return None or a tuple of (new_args, new_kwargs),"
                f" got {type(replaced).__name__}"
            )
