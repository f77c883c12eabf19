"""A constant-time index from parameters to the private optimizers that own them.

Every step of every optimizer in the process looks here, including those that have
nothing to do with privacy, so it must cost them little and never fail them.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer


__all__ = ("OptimizerRegistry", "parameters_of")


@final
@dataclass(frozen=True, slots=True)
class _Seen:
    """The parameter groups of an owner, as last read."""

    outline: Sequence[tuple[int, ...]] | None = None
    parameters: tuple[int, ...] = ()  # By id.


@final
class OptimizerRegistry:
    """An index of the parameters of all private optimizers that are alive.

    Guarantees:
        * A parameter is found as soon as its owner was added, refreshed, or given
          another list of parameters or another group, by any code.
        * A parameter that its owner no longer has is not found.
        * An owner whose groups cannot be read keeps the parameters that it had, and
          raises nothing in the steps of others.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Optimizer, _Seen] = WeakKeyDictionary()
        self._owners: dict[int, tuple[weakref.ref[Optimizer], ...]] | None = None

    def add(self, owner: Optimizer) -> None:
        """Index the parameters of *owner* from now on."""
        self._seen[owner] = _Seen()
        self.refresh(owner)

    def refresh(self, owner: Optimizer) -> None:
        """Re-read the parameters of *owner*, or of every owner if it is not registered.

        Lightning makes proxies of an optimizer: they have its groups, and were never
        registered themselves.
        """
        for known in [owner] if owner in self._seen else self._alive():
            outline = _groups_signature(known)
            parameters = tuple(map(id, parameters_of(known)))
            last = self._seen[known]
            if outline is not None and (
                parameters != last.parameters or outline != last.outline
            ):
                self._seen[known] = _Seen(outline, parameters)
                self._owners = None

    def owners_of(self, parameters: Iterable[Tensor]) -> list[Optimizer]:
        """Return every private optimizer that has one of *parameters*."""
        for owner in self._alive():
            if _groups_signature(owner) != self._seen[owner].outline:
                self.refresh(owner)
        index = self._indexed()
        owners: dict[int, Optimizer] = {}
        for parameter in parameters:
            for reference in index.get(id(parameter), ()):
                holder = reference()
                if holder is not None and _has(holder, parameter):
                    owners[id(holder)] = holder
        return list(owners.values())

    def kinds(self) -> tuple[type[Optimizer], ...]:
        """Return the classes of the private optimizers."""
        return tuple({type(owner) for owner in self._alive()})

    def _alive(self) -> list[Optimizer]:
        owners = [reference() for reference in self._seen.keyrefs()]
        return [owner for owner in owners if owner is not None]

    def _indexed(self) -> dict[int, tuple[weakref.ref[Optimizer], ...]]:
        if self._owners is None:
            self._owners = {}
            for owner in self._alive():
                for key in self._seen[owner].parameters:
                    others = self._owners.get(key, ())
                    self._owners[key] = (*others, weakref.ref(owner))
        return self._owners

    def __bool__(self) -> bool:
        return len(self._seen) > 0


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return every parameter of the groups that can be read.

    Unreadable groups are skipped; the optimizer's own step reports them.
    """
    groups: Any = getattr(optimizer, "param_groups", None)
    lists = [g.get("params") for g in _as_sequence(groups) if isinstance(g, dict)]
    return [p for parameters in lists for p in _as_sequence(parameters)]


def _as_sequence(value: Any) -> Sequence[Any]:
    """Return *value* if it is a list or tuple, else an empty sequence."""
    return value if isinstance(value, list | tuple) else ()


def _groups_signature(owner: Optimizer) -> Sequence[tuple[int, ...]] | None:
    """Return a value that changes when a group or its list of parameters is replaced.

    Reading the ends of each list is enough to notice what frameworks do (they replace
    lists or append to them), at a cost that does not grow with the parameters.

    Returns:
        None if there is a group that cannot be read.
    """
    try:
        lists = [group["params"] for group in owner.param_groups]
        return [
            (id(params), len(params), id(params[0]), id(params[-1]))
            if params
            else (id(params),)
            for params in lists
        ]
    except (AttributeError, KeyError, TypeError):  # Half-built, or overwritten.
        return None


def _has(owner: Optimizer, parameter: Tensor) -> bool:
    return _groups_signature(owner) is None or any(
        p is parameter for p in parameters_of(owner)
    )
