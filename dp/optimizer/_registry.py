"""Which private optimizer steps which parameter, found in the time of a look-up.

Every step of every optimizer of the process asks this, also of those that have nothing
to do with privacy, so it must cost them little and never fail them.
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
    """The groups of an owner, as they were when they were last looked at."""

    outline: Sequence[tuple[int, ...]] | None = None
    parameters: tuple[int, ...] = ()  # By id.


@final
class OptimizerRegistry:
    """An index of the parameters of all private optimizers that are alive.

    Guarantees:
        * A parameter is found once its owner was added, refreshed, or given another
          list of parameters or another group, by whomever.
        * No parameter is found that its owner no longer has.
        * An owner whose groups cannot be read fails nobody, and keeps the parameters
          that it had.
    """

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Optimizer, _Seen] = WeakKeyDictionary()
        self._owners: dict[int, tuple[weakref.ref[Optimizer], ...]] | None = None

    def add(self, owner: Optimizer) -> None:
        """Look at the groups of *owner* from now on."""
        self._seen[owner] = _Seen()
        self.refresh(owner)

    def refresh(self, owner: Optimizer) -> None:
        """Look at every parameter of *owner* again; of all, if it was never added.

        A proxy of an owner has its groups, and is not known.
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
        found: dict[int, Optimizer] = {}
        for parameter in parameters:
            for reference in index.get(id(parameter), ()):
                holder = reference()
                if holder is not None and _has(holder, parameter):
                    found[id(holder)] = holder
        return list(found.values())

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

    What is wrong with the others, the optimizer's own step says.
    """
    groups: Any = getattr(optimizer, "param_groups", None)
    found = [g.get("params") for g in _some(groups) if isinstance(g, dict)]
    return [p for parameters in found for p in _some(parameters)]


def _some(found: Any) -> Sequence[Any]:
    return found if isinstance(found, list | tuple) else ()


def _groups_signature(owner: Optimizer) -> Sequence[tuple[int, ...]] | None:
    """Return what changes where a group, or its list of parameters, is replaced.

    None if there is a group that cannot be read.
    """
    try:
        lists = [group["params"] for group in owner.param_groups]
        return [
            (id(some), len(some), id(some[0]), id(some[-1])) if some else (id(some),)
            for some in lists
        ]
    except (AttributeError, KeyError, TypeError):  # Half-built, or overwritten.
        return None


def _has(owner: Optimizer, parameter: Tensor) -> bool:
    return _groups_signature(owner) is None or any(
        p is parameter for p in parameters_of(owner)
    )
