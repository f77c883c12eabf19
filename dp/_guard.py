"""Stop every other optimizer from stepping parameters that are under privacy.

An optimizer that reaches such parameters without passing through its
:class:`~dp.DPOptimizer` would apply whatever gradient it finds and charge nothing.
Frameworks do this by accident: DeepSpeed's offload rebuilds the optimizer from
``param_groups``, and a wrapped optimizer still has a ``step`` of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dp.exceptions import PrivacyError


__all__ = ("permit", "protect")

_private: WeakSet[Optimizer] = WeakSet()
_permitted: ContextVar[bool] = ContextVar("dp_step_permitted", default=False)


def protect(optimizer: Optimizer) -> None:
    """Let no optimizer but *optimizer* step the parameters in its groups.

    The groups are read when another optimizer steps, so parameters that are added,
    replaced or removed later are protected as they then stand.
    """
    _private.add(optimizer)


@contextmanager
def permit() -> Iterator[None]:
    """Allow the wrapped optimizer to step, inside its wrapper's own ``step``."""
    token = _permitted.set(True)
    try:
        yield
    finally:
        _permitted.reset(token)


def _refuse_unprivate_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    if _permitted.get():
        return
    owners = [owner for owner in _private if owner is not optimizer]
    if not owners:
        return
    stepped = _parameter_ids(optimizer)
    for owner in owners:
        if not stepped.isdisjoint(_parameter_ids(owner)) and not _leads_to(
            optimizer, owner
        ):
            raise PrivacyError(
                f"{type(optimizer).__name__}.step() would update parameters that are"
                f" under differential privacy without clipping, noise or accounting;"
                f" call step() of the {type(owner).__name__} that wraps them"
            )


def _parameter_ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


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


register_optimizer_step_pre_hook(_refuse_unprivate_step)
