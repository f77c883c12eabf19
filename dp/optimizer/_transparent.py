"""An optimizer that is, from outside, the optimizer it wraps.

:class:`TransparentOptimizer` is everything about wrapping a
:class:`torch.optim.Optimizer` that has nothing to do with privacy: whose data is
whose, which layer's hooks fire, and what a copy contains. A subclass adds to ``step``.

Data that the wrapped optimizer has is read, written and deleted there. A method that
is patched from outside (``optimizer.step = ...``, as learning-rate schedulers do)
stays on the layer it was set on: forwarded, it would call itself for ever.
"""

from collections import OrderedDict, defaultdict
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from dp.optimizer._step_hooks import profiled, step_of_wrapped, wrap_step_hooks
from forwarding import ForwardingMeta, forwarded, target


__all__ = ("TransparentOptimizer",)

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

_TORCHS_STATE = ("defaults", "state", "param_groups")

# What GradScaler and schedulers write on the object they are given. On the inner
# optimizer the same marks would make it unscale again, or count a step it did not take.
_MARKS_OF_THIS_LAYER = frozenset({"found_inf", "grad_scale"})


class TransparentOptimizer(Optimizer, metaclass=ForwardingMeta):
    """Base class of optimizers that wrap another one as ``original_optimizer``."""

    # Forwarded: the wrapped optimizer's own data, at any depth. A reference that is
    # copied here once goes stale when accelerate assigns `optimizer.param_groups = ...`
    # (opacus#649, dp-transformers#43): the learning rate of the update stayed as it was.
    original_optimizer: Optimizer = target(Optimizer)
    param_groups: list[dict[str, Any]] = forwarded(original_optimizer.param_groups)
    state: defaultdict[Tensor, Any] = forwarded(original_optimizer.state)
    defaults: dict[str, Any] = forwarded(original_optimizer.defaults)

    # Own: hooks (they see this object, once a step), patches, and the marks above.
    # Composed: step, zero_grad, add_param_group, state_dict, load_state_dict.
    # Not run: Optimizer.__init__ and __setstate__, which overwrite the forwarded
    # names and, through _patch_step_function, rewrite step on the class.
    # Every name with its reason: dp.optimizer._surface.

    def __init__(self, original_optimizer: Optimizer) -> None:
        self.original_optimizer = original_optimizer
        for name in _HOOKS:
            setattr(self, name, OrderedDict())
        self._warned_capturable_if_run_uncaptured = True
        self._patch_step_function()

    @wrap_step_hooks
    def step(self, closure: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Let the wrapped optimizer take its step."""
        if closure is not None or args:
            args = (closure, *args)
        return self._update(*args, **kwargs)

    def _update(self, *args: Any, **kwargs: Any) -> Any:
        return step_of_wrapped(self.original_optimizer, args, kwargs)

    def _patch_step_function(self) -> None:
        # torch would wrap `step` of the class; it was hooked when the class was made.
        name = type(self).__name__
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{name}.zero_grad"

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """Reset the gradients as the wrapped optimizer does."""
        with profiled(self._zero_grad_profile_name):
            self.original_optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimizer."""
        self.original_optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state; hooks of this layer see this object."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self._compose_state(self.original_optimizer.state_dict())
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        self.original_optimizer.load_state_dict(self._take_state(state_dict))
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _compose_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Add what this layer keeps to the wrapped optimizer's state."""
        return state_dict

    def _take_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Load what this layer keeps; return what is the wrapped optimizer's."""
        return state_dict

    def __getattr__(self, name: str) -> Any:
        """Read what only the wrapped optimizer has, such as ``train`` or a knob."""
        is_special = name[:2] == name[-2:] == "__"
        if is_special or name == "original_optimizer" or hasattr(type(self), name):
            return object.__getattribute__(self, name)  # Its own error, once more.
        return getattr(self.original_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_data_of_inner(name):
            setattr(self.original_optimizer, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_data_of_inner(name):
            delattr(self.original_optimizer, name)
        else:
            super().__delattr__(name)

    def _is_data_of_inner(self, name: str) -> bool:
        if name[0] == "_" or name in _MARKS_OF_THIS_LAYER or hasattr(type(self), name):
            return False
        own = vars(self)
        inner = own.get("original_optimizer")
        return (
            inner is not None
            and name not in own
            and hasattr(inner, name)
            and not callable(getattr(inner, name))
        )

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.original_optimizer)})

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.original_optimizer!r}"

    def __getstate__(self) -> dict[str, Any]:
        # Hooks and patches of an instance (a scheduler's `step`) refer to the
        # original and would act on it from the copy. torch's own __getstate__ keeps
        # none of this layer's attributes, but its keys are what readers look for.
        own = {k: v for k, v in vars(self).items() if k not in _HOOKS and k != "step"}
        return {**own, **{name: getattr(self, name) for name in _TORCHS_STATE}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What torch has under its keys came with the wrapped optimizer.
        own = {
            name: value for name, value in state.items() if name not in _TORCHS_STATE
        }
        vars(self).update(own)
        for name in _HOOKS:
            vars(self).setdefault(name, OrderedDict())

    def _all_parameters(self) -> list[Tensor]:
        groups = self.param_groups
        if len(groups) == 1:
            return [*groups[0]["params"]]
        return [*chain.from_iterable(group["params"] for group in groups)]
