"""Reject steps that bypass privacy, and optimizers that cannot be made private.

An optimizer that reaches such parameters without passing through its
:class:`~dp.DPOptimizer` would apply whatever gradient it finds and charge nothing.
Frameworks do this by accident: DeepSpeed's offload rebuilds the optimizer from
``param_groups``, and a wrapped optimizer still has a ``step`` of its own.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, copy_context
from functools import cache
from typing import Any, Final, Protocol
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp._mechanism.mechanism import Mechanism
from dp.exceptions import (
    PrivacyError,
    UnsupportedOperationError,
    WrongReleaseError,
)
from dp.optimizer._joint_optimizer import JointOptimizer
from dp.optimizer._registry import OptimizerRegistry, parameters_of
from dp.optimizer._step_hooks import disable_dynamo


__all__ = (
    "check_in_place",
    "check_subclass",
    "check_wrappable",
    "owners_around",
    "private_owner_of",
    "protect",
    "refresh",
    "run_permitted",
)

# Optimizers whose update cannot be made from one private gradient a step.
_REFUSED: Final = {
    "LBFGS": "its line search evaluates the loss many times within one step",
    "SparseAdam": "it needs sparse gradients, and private noise is dense",
}

# Layers around a private optimizer that take its groups apart.
_REFUSED_AROUND: Final = {
    "ZeroRedundancyOptimizer": (
        "it gives each rank a part of the parameters, whose gradients would be clipped"
        " alone, and its checkpoints leave the ledger out; put it inside:"
        " DPOptimizer(ZeroRedundancyOptimizer(parameters, AdamW), plan=...)"
    ),
}

_protected: Final = OptimizerRegistry()
_told: Final[WeakSet[type[Optimizer]]] = WeakSet()  # Of layers that read gradients.
_permitted: ContextVar[bool] = ContextVar("dp_step_permitted", default=False)


class Witnessed(Protocol):
    """A private optimizer whose releases are compared now and then."""

    mechanism: Mechanism
    original_optimizer: Optimizer


def protect(optimizer: Optimizer) -> None:
    """Let no optimizer but *optimizer* step the parameters in its groups.

    Parameters that join the groups later are protected from then on, also those that
    a framework puts there in place of others.
    """
    _install_hook()
    _protected.add(optimizer)


@cache
def _install_hook() -> None:
    """Watch the steps of all optimizers, from the first private one on.

    The hook is process-wide, so a program that only imports this package has none.
    """
    register_optimizer_step_pre_hook(_refuse_unprivate_step)


def refresh(optimizer: Optimizer) -> None:
    """Look at the groups of *optimizer* again, before its parameters get gradients."""
    _protected.refresh(optimizer)


def private_owner_of(parameter: Tensor) -> Optimizer | None:
    """Return the private optimizer that steps *parameter*, if there is one."""
    return next(iter(_protected.owners_of([parameter])), None)


def owners_around(optimizer: Optimizer) -> list[Optimizer]:
    """Return the private optimizers that a step of *optimizer* led to, or was one of.

    None within a private step, where the wrapped optimizer is stepped.
    """
    if _permitted.get():
        return []
    if _protected.has_kind_of(optimizer):
        return [optimizer]
    return _protected.owners_of(parameters_of(optimizer)) if _protected else []


def run_permitted(
    owner: Witnessed, step: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """Call *step*, which may step the optimizer that *owner* wraps.

    Guarantees:
        * What that optimizer would see is what was released, at the steps at which it is
          compared.
        * The permission ends with the call, wherever an interrupt hits it: it is given
          in a copy of the context.
    """
    _compare_release(owner)
    return copy_context().run(_with_permission, step, *args, **kwargs)


@disable_dynamo
def _compare_release(owner: Witnessed) -> None:
    witness, groups = owner.mechanism.witness, owner.original_optimizer.param_groups
    if witness.is_due:
        _check_protected(groups)
    witness.admit(groups)


def _check_protected(param_groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise if a step of the wrapped optimizer by itself would be let through."""
    # One tells of all: a look at each goes through the lists of all of them.
    parameters = [parameter for group in param_groups for parameter in group["params"]]
    if parameters and not _protected.owners_of(parameters[:1]):
        raise WrongReleaseError(
            "the parameters of a private optimizer are not protected from steps of"
            " others; please report it, with the versions of dp and torch"
        )


def _with_permission(step: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    _permitted.set(True)
    return step(*args, **kwargs)


def _refuse_unprivate_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    # A private step is its own business, also that of a proxy made of one's class.
    if _permitted.get() or _protected.has_kind_of(optimizer) or not _protected:
        return
    # What leads here in the field: the inner optimizer stepped by itself (opacus#313),
    # DeepSpeed's offload rebuilding it from param_groups, a second optimizer that was
    # made before the first was wrapped.
    for owner in _protected.owners_of(parameters_of(optimizer)):
        if not _leads_to(optimizer, owner):
            raise PrivacyError(
                f"{type(optimizer).__name__}.step() would update parameters that are"
                f" under differential privacy without clipping, noise or accounting;"
                f" call step() of the {type(owner).__name__} that wraps them"
            )
        for kind in type(optimizer).__mro__:
            if kind.__name__ in _REFUSED_AROUND and kind.__module__.startswith(
                "torch."
            ):
                raise UnsupportedOperationError(
                    f"{kind.__name__} cannot be built around a private optimizer:"
                    f" {_REFUSED_AROUND[kind.__name__]}"
                )
        _warn_of_edits(type(optimizer))


def _warn_of_edits(kind: type[Optimizer]) -> None:
    """Warn, once a class, of a layer around a private optimizer that reads gradients.

    Before the private step there are none: what scales or clips them, as LARS does,
    would do nothing, in silence.
    """
    code = getattr(inspect.unwrap(kind.step), "__code__", None)
    if kind not in _told and "grad" in getattr(code, "co_names", ()):
        _told.add(kind)
        warnings.warn(
            f"{kind.__name__}.step reads p.grad, and steps a private optimizer: before"
            " that step there is no gradient to edit. If it edits gradients, put it"
            f" inside, DPOptimizer({kind.__name__}(inner), plan=...), where it sees the"
            " private ones",
            stacklevel=5,
        )


def check_wrappable(optimizer: object) -> None:
    """Raise unless *optimizer* makes its update from one gradient a step.

    Raises:
        TypeError: If it is not an optimizer.
        UnsupportedOperationError: If it needs more than that, with the reason.
    """
    if isinstance(optimizer, list | tuple) and any(
        isinstance(item, Optimizer) for item in optimizer
    ):
        raise TypeError(
            f"original_optimizer must be one torch.optim.Optimizer, got a"
            f" {type(optimizer).__name__} of them; join them first, so that one release"
            " serves all: DPOptimizer(JointOptimizer(muon, adamw), plan=...)"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "original_optimizer must be a torch.optim.Optimizer, got"
            f" {type(optimizer).__name__}; construct it first, then wrap it"
        )
    if isinstance(optimizer, JointOptimizer):
        for part in optimizer.optimizers:
            check_wrappable(part)
    for kind in type(optimizer).__mro__:
        if kind.__module__.startswith("torch.") and kind.__name__ in _REFUSED:
            raise UnsupportedOperationError(
                f"{kind.__name__} cannot be made private: {_REFUSED[kind.__name__]}"
            )
    check_in_place(optimizer.param_groups)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UnsupportedOperationError(
            f"{type(optimizer).__name__} cannot be made private: its step requires a"
            " closure, so it evaluates the loss itself, where one release was charged"
        )


def check_in_place(param_groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise if an update would be recorded by autograd, which leaves do not permit.

    torch itself raises in the update, when the release has been charged.

    Raises:
        UnsupportedOperationError: With the number of the group.
    """
    for number, group in enumerate(param_groups):
        if group.get("differentiable"):
            raise UnsupportedOperationError(
                f"group {number} of the optimizer has differentiable=True, by which its"
                " update is recorded for autograd, and parameters that are trained"
                " cannot be written to then; leave differentiable=True out"
            )


def check_subclass(cls: type) -> None:
    """Raise if *cls* was made to rebuild a private optimizer from its groups.

    Horovod's ``DistributedOptimizer`` and its like give a new class the name of the
    optimizer's and the body of their own, whose ``__init__`` takes parameter groups.
    """
    init = vars(cls).get("__init__")
    body, _, _ = getattr(init, "__qualname__", cls.__qualname__).rpartition(".")
    named_as_a_base = any(base.__name__ == cls.__name__ for base in cls.__bases__)
    if init is not None and named_as_a_base and body != cls.__qualname__:
        raise TypeError(
            f"{cls.__name__} cannot be rebuilt by {body}: it would reduce gradients"
            " over processes before they are private. Train the DPOptimizer itself"
            " under torch.distributed, or wrap what is built around the optimizer"
        )


def _leads_to(optimizer: Optimizer, owner: Optimizer) -> bool:
    """Whether *optimizer* wraps *owner*, at any depth, as Lookahead would."""
    seen: set[int] = set()
    pending: list[object] = [optimizer]
    while pending:
        candidate = pending.pop()
        if candidate is owner:
            return True
        if isinstance(candidate, Optimizer) and id(candidate) not in seen:
            seen.add(id(candidate))
            pending.extend(vars(candidate).values())
    return False
