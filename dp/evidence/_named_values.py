"""What a loss function reads beside its batch, and what of that changes between steps.

A mean of the batch that a training loop computed, and the function names, is in no batch
that looks exchange: whatever it was made of, the losses stay as they are. What changes
between two evaluations by something else than the function is seen, and so is whether
losses follow it: they are others with what stood in its place before.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from dp._containers import parts_of, rebuilt
from dp.evidence._averages import Averages
from dp.evidence._program_state import Label, ProgramState


__all__ = ("Changed", "NamedValues", "Values", "labels_in_words", "tensors_of")

Values = Mapping[Label, Any]
Changed = tuple[Values, Values]
"""What has changed, as it was: tensors and arrays, and numbers."""

_NUMBERS: Final = (bool, int, float, complex)
_LARGEST: Final = 1 << 24  # Bytes: each is copied in every look.


@final
class NamedValues:
    """The numbers, tensors and arrays that a function names, from look to look."""

    def __init__(self) -> None:
        self._last: Values | None = None
        self._asked: set[Label] = set()

    def forget(self) -> None:
        """Note that the function ran and was not looked at: it may write them itself."""
        self._last = None

    def keep(self, state: ProgramState) -> None:
        """Keep what the function left."""
        self._last = dict(_named(state))

    def earlier(self, state: ProgramState) -> Changed:
        """Return what has changed since, but for what followed released weights."""
        changed = self._changed(state)
        self._asked |= changed.keys()
        numbers = {k: v for k, v in changed.items() if _is_of(v, _NUMBERS)}
        return {k: v for k, v in changed.items() if k not in numbers}, numbers

    def changes_anew(self, function: Any) -> bool:
        """Whether a tensor or an array has changed since, which none was asked of yet.

        What a loop begins to write later is seen at the step after a look.
        """
        if self._last is None:
            return False
        changed = self._changed(ProgramState(function, numpys=False))
        return any(
            label not in self._asked and not _is_of(value, _NUMBERS)
            for label, value in changed.items()
        )

    def _changed(self, state: ProgramState) -> Values:
        last = self._last or {}
        changed = {
            label: (last[label], value)
            for label, value in _named(state)
            if label in last and not _is_equal(last[label], value)
        }
        trained = [
            weight
            for module in state.reach.modules
            for weight in module.parameters(recurse=False)
            if weight.requires_grad
        ]
        followed = Averages(trained).followed(changed) if changed else ()
        return {k: before for k, (before, _) in changed.items() if k not in followed}


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch, in its order."""
    if isinstance(batch, Tensor):
        return [batch]
    return [t for part in (parts_of(batch) or {}).values() for t in tensors_of(part)]


def _named(state: ProgramState) -> Iterator[tuple[Label, Any]]:
    """Yield copies of what can be told from others by its label."""
    found = [
        (label, value)
        for label, value in state.named()
        if _is_of(value, (*_NUMBERS, np.ndarray, Tensor))
    ]
    counts = Counter(label for label, _ in found)
    for label, value in found:
        if counts[label] == 1 and _size_of(value) <= _LARGEST:
            yield label, _copied(value)


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of *kinds*, or a tuple of such, as a pair of mean and deviation.

    A tuple cannot be written to, so that it is one value of who holds it.
    """
    if isinstance(value, tuple):
        return len(value) > 0 and all(_is_of(part, kinds) for part in value)
    return isinstance(value, kinds)


def _size_of(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(map(_size_of, value))
    return int(getattr(value, "nbytes", 0))


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return rebuilt(value, {k: _copied(p) for k, p in enumerate(value)})
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)


def labels_in_words(labels: Iterable[Label]) -> str:
    """Return the names of what changed, in words."""
    return ", ".join(sorted({f"{label.owner}.{label.name}" for label in labels}))
