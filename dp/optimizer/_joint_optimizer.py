"""Several optimizers as one, so that one private release serves all of them.

Muon updates matrices and AdamW the rest; each gets its part of one gradient. Two
private optimizers would release twice, and clip each part of an example's gradient to
the whole norm.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dp.exceptions import UnsupportedOperationError
from dp.optimizer._step_hooks import step_of_wrapped, wrap_step_hooks


__all__ = ("JointOptimizer",)

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


@final
class JointOptimizer(Optimizer):
    """Step several optimizers, each of parameters of its own, as one optimizer.

    Its groups are theirs, the first optimizer's first, so schedulers, trainers and
    checkpoints act on all of them through it. Wrap it to make all of them private in
    one release::

        joint = JointOptimizer(Muon(matrices), AdamW(others))
        optimizer = DPOptimizer(joint, plan=plan, loader=loader)

    Args:
        *optimizers: The optimizers, in the order in which they are stepped.

    Raises:
        TypeError: If one of them is no optimizer.
        ValueError: If there is none, or if two of them have a parameter in common.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        _check_apart(optimizers)
        self.optimizers = optimizers
        for name in _HOOKS:
            setattr(self, name, OrderedDict())
        self._warned_capturable_if_run_uncaptured = True
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]  # A view of several.
        """The groups of all optimizers, in order."""
        return [group for o in self.optimizers for group in o.param_groups]

    @param_groups.setter
    def param_groups(self, groups: Sequence[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if len(groups) != len(self.param_groups):
            raise ValueError(
                f"{len(groups)} parameter groups were assigned to a JointOptimizer of"
                f" {len(self.param_groups)}; whose they are can only be told if their"
                " number stays"
            )
        for optimizer, own in zip(self.optimizers, self._split(groups), strict=True):
            optimizer.param_groups = own

    @property
    def state(self) -> MutableMapping[Tensor, Any]:  # type: ignore[override]  # A view of several.
        """The state of every parameter, in its own optimizer."""
        return _States(self.optimizers)

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]  # Read from several.
        """The defaults that all optimizers have, with the first one's values.

        A scheduler that cycles momentum looks here for what every group has.
        """
        first, *others = (optimizer.defaults for optimizer in self.optimizers)
        return {k: v for k, v in first.items() if all(k in other for other in others)}

    @wrap_step_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let every optimizer take its step.

        Args:
            closure: Evaluated once, with gradients enabled, before the first of them.

        Returns:
            What *closure* returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            step_of_wrapped(optimizer, (), {})
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 -- torch's signature
        """Reset the gradients as every optimizer does."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: which optimizer is to update the group is not said.

        Raises:
            UnsupportedOperationError: Always, with the remedy.
        """
        del param_group
        raise UnsupportedOperationError(
            "add_param_group of a JointOptimizer does not say whose the group is to be;"
            " call it on one of its optimizers, which are in the attribute `optimizers`"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all optimizers as that of one, numbered through."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state: dict[str, Any] = {"state": {}, "param_groups": []}
        offset = 0
        for optimizer in self.optimizers:
            part = optimizer.state_dict()
            for key, value in part["state"].items():
                state["state"][key + offset if isinstance(key, int) else key] = value
            for group in part["param_groups"]:
                shifted = [number + offset for number in group["params"]]
                state["param_groups"].append({**group, "params": shifted})
            offset += _num_parameters(optimizer)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state)
            state = state if replaced is None else replaced
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` returned.

        Raises:
            ValueError: If it has another number of groups or parameters.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        for optimizer, part in zip(
            self.optimizers, self._parts_of(state_dict), strict=True
        ):
            optimizer.load_state_dict(part)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _parts_of(self, state_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the state of each optimizer, its parameters numbered from 0."""
        saved = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in saved]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            raise ValueError(
                f"the state has parameter groups of {sizes} parameters, and this"
                " JointOptimizer of"
                f" {[len(group['params']) for group in self.param_groups]}; join the"
                " same optimizers in the same order"
            )
        parts = []
        for groups in self._split(saved):
            numbers = [number for group in groups for number in group["params"]]
            index = {number: position for position, number in enumerate(numbers)}
            state = {
                index[number]: value
                for number, value in state_dict["state"].items()
                if number in index
            }
            own = [
                {**group, "params": [index[number] for number in group["params"]]}
                for group in groups
            ]
            parts.append({"state": state, "param_groups": own})
        return parts

    def _split(
        self, groups: Sequence[dict[str, Any]]
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield those of *groups* that are each optimizer's."""
        remaining = iter(groups)
        for optimizer in self.optimizers:
            yield [next(remaining) for _ in optimizer.param_groups]

    def _patch_step_function(self) -> None:
        # torch would wrap `step` of the class; it was hooked when the class was made.
        self._zero_grad_profile_name = "Optimizer.zero_grad#JointOptimizer.zero_grad"

    def __repr__(self) -> str:
        return f"JointOptimizer of {', '.join(map(repr, self.optimizers))}"

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["optimizers"])


@final
class _States(MutableMapping[Tensor, Any]):
    """The states of several optimizers, each parameter's in its own."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def _owner(self, parameter: Tensor) -> Optimizer:
        for optimizer in self._optimizers:
            if parameter in optimizer.state or any(
                parameter is p
                for group in optimizer.param_groups
                for p in group["params"]
            ):
                return optimizer
        raise KeyError(parameter)

    def __getitem__(self, parameter: Tensor) -> Any:
        return self._owner(parameter).state[parameter]

    def __setitem__(self, parameter: Tensor, value: Any) -> None:
        self._owner(parameter).state[parameter] = value

    def __delitem__(self, parameter: Tensor) -> None:
        del self._owner(parameter).state[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return (p for optimizer in self._optimizers for p in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._optimizers)

    def __repr__(self) -> str:
        return repr(dict(self))


def _num_parameters(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _check_apart(optimizers: Sequence[object]) -> None:
    """Raise unless *optimizers* are optimizers of parameters of their own."""
    if not optimizers:
        raise ValueError("JointOptimizer needs an optimizer")
    owner: dict[int, int] = {}
    for number, optimizer in enumerate(optimizers):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"JointOptimizer takes optimizers, got {type(optimizer).__name__} at"
                f" {number}; pass them one by one: JointOptimizer(muon, adamw)"
            )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if owner.setdefault(id(parameter), number) != number:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} is in the"
                        f" optimizers at {owner[id(parameter)]} and {number}, which"
                        " would both update it; give it to one of them"
                    )
