"""A constant-time index from parameters to the private optimizers that own them.

Every step of every optimizer in the process looks here, including those that have
nothing to do with privacy, so it must cost them little and never fail them.
"""

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer


__all__ = ("OptimizerRegistry", "parameters_of")


@final
@dataclass(frozen=True, slots=True)
class _Seen:
    """The parameter groups of an owner, as last read."""

    outline: Sequence[tuple[int, ...]] | None = None
    parameters: tuple[int, ...] = ()  # By id.


_Entry = tuple[weakref.ref[Optimizer], _Seen]
_Index = dict[int, tuple[weakref.ref[Optimizer], ...]]  # Owners by a parameter's id.


@final
class OptimizerRegistry:
    """An index of the parameters of all private optimizers that are alive.

    Guarantees:
        * A parameter is found as soon as its owner was added, refreshed, or given
          another list of parameters or another group, by any code.
        * A parameter that its owner no longer has is not found.
        * An owner whose groups cannot be read keeps the parameters that it had, and
          raises nothing in the steps of others.
        * Only calls change what is read: owners that are collected leave it as it is.
    """

    def __init__(self) -> None:
        # No weak dictionary: the garbage collector removes entries of those at any
        # moment, such as while torch.compile goes through one that a traced step reads
        # ("dictionary changed size during iteration").
        self._seen: dict[weakref.ref[Optimizer], _Seen] = {}
        self._index: tuple[list[_Entry], _Index] = [], {}  # Of these entries.

    def add(self, owner: Optimizer) -> None:
        """Index the parameters of *owner* from now on; forget owners that are gone."""
        for gone in [known for known in list(self._seen) if known() is None]:
            self._seen.pop(gone, None)
        self._seen[weakref.ref(owner)] = _Seen()
        self.refresh(owner)

    def refresh(self, owner: Optimizer) -> None:
        """Re-read the parameters of *owner*, or of every owner if it is not registered.

        Lightning makes proxies of an optimizer: they have its groups, and were never
        registered themselves.
        """
        reference = weakref.ref(owner)
        # One look-up for each: this runs twice in every private step.
        known = self._seen.get(reference)
        if known is not None:
            self._reread(reference, owner, known)
            return
        for other in self._alive():
            reference = weakref.ref(other)
            self._reread(reference, other, self._seen[reference])

    def _reread(
        self, reference: weakref.ref[Optimizer], owner: Optimizer, last: _Seen
    ) -> None:
        outline = _groups_signature(owner)
        if outline is None:
            return
        parameters = tuple(map(id, parameters_of(owner)))
        if outline != last.outline or parameters != last.parameters:
            self._seen[reference] = _Seen(outline, parameters)

    def owners_of(self, parameters: Iterable[Tensor]) -> list[Optimizer]:
        """Return every private optimizer that has one of *parameters*."""
        for owner in self._alive():
            if _groups_signature(owner) != self._seen[weakref.ref(owner)].outline:
                self.refresh(owner)
        index = self._indexed()
        owners: dict[int, Optimizer] = {}
        for parameter in parameters:
            for reference in index.get(id(parameter), ()):
                holder = reference()
                if holder is not None and _has(holder, parameter):
                    owners[id(holder)] = holder
        return list(owners.values())

    def has_kind_of(self, optimizer: object) -> bool:
        """Whether *optimizer* is an instance of a private optimizer's class."""
        for reference in list(self._seen):
            owner = reference()
            if owner is not None and isinstance(optimizer, type(owner)):
                return True
        return False

    def _alive(self) -> list[Optimizer]:
        owners = [reference() for reference in list(self._seen)]
        return [owner for owner in owners if owner is not None]

    def _indexed(self) -> _Index:
        # Made whole before others see it: a thread that finds no owner in a part of it
        # would step private parameters.
        entries = list(self._seen.items())
        if entries != self._index[0]:
            index: _Index = {}
            for owner, seen in entries:
                for key in seen.parameters:
                    index[key] = (*index.get(key, ()), owner)
            self._index = entries, index
        return self._index[1]

    def __bool__(self) -> bool:
        return bool(self._alive())


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return every parameter of the groups that can be read.

    Unreadable groups are skipped; the optimizer's own step reports them.
    """
    groups: Any = getattr(optimizer, "param_groups", None)
    parameters: list[Tensor] = []
    for group in _as_sequence(groups):
        if isinstance(group, dict):
            parameters += _as_sequence(group.get("params"))
    return parameters


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
    outline: list[tuple[int, ...]] = []
    try:
        for group in owner.param_groups:
            params = group["params"]
            ends = (id(params[0]), id(params[-1])) if params else ()
            outline.append((id(params), len(params), *ends))
    except (AttributeError, KeyError, TypeError):  # Half-built, or overwritten.
        return None
    return outline


def _has(owner: Optimizer, parameter: Tensor) -> bool:
    return _groups_signature(owner) is None or any(
        p is parameter for p in parameters_of(owner)
    )
