"""What a loss function may change, and how to put it back.

A picture is taken before the function runs for real. Later the function runs again
from that picture, on stand-ins for tensors: autograd saved the buffers of the real
pass, and writing to these would break its backward pass.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from dp._containers import rebuilt
from dp.evidence._random_state import RandomState
from dp.evidence._reach import Place, reach_of


__all__ = ("Differences", "Label", "Picture", "ProgramState")


class Label(NamedTuple):
    """What tells a value from others, from step to step.

    Attributes:
        owner: What has the name, in words.
        name: The name.
        which: The identity of the owner's names, where another owner of the same words
            has the same name, as each of several layers does; else 0.
    """

    owner: str
    name: Any
    which: int = 0


_MISSING: Final = object()
_COMPARED: Final = (bool, int, float, complex, str, bytes, set, type(None))
_CONTAINERS: Final = (list, dict, set, deque, np.ndarray)
_LARGEST: Final = 1 << 24  # Bytes of a tensor outside of modules: more may be the data.
_LONGEST: Final = 100_000  # Entries of a container.
_LARGEST_ARRAY: Final = 1 << 22  # Bytes: every picture has a copy.


@final
@dataclass(frozen=True, slots=True)
class _Kept:
    """What stood in a place.

    Attributes:
        value: The object.
        copy: What was in it: of a container, and of a tensor if it was asked for.
        is_state: Whether it is a tensor that the function may write to.
    """

    value: Any
    copy: Any = None
    is_state: bool = False

    @classmethod
    def of(cls, value: Any, *, most: float, in_full: bool) -> "_Kept":
        if isinstance(value, Tensor):
            # Weights are not copied: a loss function that writes to them is seen by
            # their versions.
            is_state = _is_state(value, most)
            return cls(value, value.clone() if is_state and in_full else None, is_state)
        # Shallow: a list that grows by a loss at every call is put back to what was in
        # it, the same objects.
        if type(value) in _CONTAINERS and _is_small(value):
            return cls(value, value.copy())
        return cls(value)

    def stand_in(self) -> Any:
        """Return what stands for it while the function runs again."""
        if self.is_state:
            tensor = (self.value if self.copy is None else self.copy).clone()
            if isinstance(self.value, nn.Parameter):
                return nn.Parameter(tensor, requires_grad=False)
            return tensor
        return self.refilled()

    def refilled(self) -> Any:
        """Return the object itself, a container with what was in it."""
        if self.copy is not None and not self.is_state:
            _refill(self.value, self.copy)
        return self.value


Picture = list[dict[Any, _Kept]]
"""For every place, what stood there by name."""


@final
class ProgramState:
    """The places where a function may keep something, as they were before it ran.

    Args:
        function: The function.
        devices: Accelerators that hold its batch.
        numpys: Whether it may draw from numpy's own generator.

    Attributes:
        before: What stood there.
        reach: The places, and everything else that the function names.
        random: The generators that it may draw from, before it ran.
    """

    __slots__ = ("_exchanged", "_in_batch", "before", "random", "reach")

    def __init__(
        self,
        function: Any,
        devices: Iterable[torch.device] = (),
        *,
        numpys: bool = True,
    ) -> None:
        self.reach = reach_of(function)
        self.random = RandomState(
            self.reach.generators,
            sorted({*self.reach.devices, *devices}, key=str),
            numpys=numpys,
        )
        self.before = self.picture(in_full=True)
        self._in_batch: list[tuple[Place, Any, Any, list[int]]] = []
        self._exchanged: dict[tuple[int, Any], tuple[Any, Any]] = {}

    def picture(self, *, in_full: bool = False) -> Picture:
        """Return what stands in every place now.

        Args:
            in_full: With copies of tensors, which the function may write to.
        """
        taken: Picture = []
        for place in self.reach.places:
            most = math.inf if place.holds_buffers else _LARGEST
            names = place.current_names()
            taken.append(
                {
                    n: _Kept.of(place.namespace[n], most=most, in_full=in_full)
                    for n in names
                }
            )
        return taken

    @contextmanager
    def excursion(self) -> Iterator[tuple[Picture, RandomState]]:
        """Undo at its end whatever a block does to the places and generators.

        The block gets what they are when it begins.
        """
        now, random_now = self.picture(), self.random.now()
        try:
            yield now, random_now
        finally:
            self._install(now, stand_ins=False)
            random_now.restore()

    def rewind(self, picture: Picture | None = None) -> None:
        """Go back to *picture*, or to :attr:`before`; the generators go there anyway."""
        self._install(self.before if picture is None else picture, stand_ins=True)
        self.random.restore()

    def _install(self, picture: Picture, *, stand_ins: bool) -> None:
        # Example: state.steps was 7, and the second evaluation makes it 8, and
        # state.cache. Put back, it is 7, and the cache is gone.
        # What holds a container comes before what is in it.
        for place, row in zip(self.reach.places, picture, strict=True):
            for name in place.current_names():
                if name not in row:
                    del place.namespace[name]  # It was made since.
            for name, kept in row.items():
                value = kept.stand_in() if stand_ins else kept.refilled()
                if place.namespace.get(name, _MISSING) is not value:
                    place.namespace[name] = value

    def note_batch(self, tensors: Sequence[Tensor]) -> None:
        """Note which names stand for a tensor of the batch, as a loop's own variables."""
        known = {_where(tensor): which for which, tensor in enumerate(tensors)}
        self._in_batch = []
        for label, place, value in self._values():
            parts = value if isinstance(value, tuple) else (value,)
            if parts and all(type(p) is Tensor and _where(p) in known for p in parts):
                which = [known[_where(part)] for part in parts]
                self._in_batch.append((place, label.name, value, which))

    def exchange(self, tensors: Sequence[Tensor]) -> None:
        """Let names that stand for a tensor of the batch stand for another batch's."""
        for place, name, value, which in self._in_batch:
            if max(which) < len(tensors):
                parts = {k: tensors[i] for k, i in enumerate(which)}
                other = rebuilt(value, parts) if isinstance(value, tuple) else parts[0]
                place.namespace[name] = other
                self._exchanged[id(place), name] = value, other

    def named(self) -> Iterator[tuple[Label, Any]]:
        """Yield what the function names, but the batch and the weights that are trained.

        A layer may have its weights in a list as well.
        """
        in_batch = {(id(place), name) for place, name, *_ in self._in_batch}
        values = list(self._values())
        buffers = {id(value) for _, place, value in values if place.holds_buffers}
        for label, place, value in values:
            is_elsewhere = _is_weight(value) or id(value) in buffers
            is_other = not place.holds_buffers and is_elsewhere
            is_own = label.name == "training" or (id(place), label.name) in in_batch
            if not is_other and not is_own:
                yield label, value

    def _values(self) -> Iterator[tuple[Label, Place, Any]]:
        found = [
            (place, name)
            for place in self.reach.places
            for name in place.current_names()
        ]
        counts = Counter((place.owner, name) for place, name in found)
        for place, name in found:
            # What is no dictionary may be a view, made anew for every picture.
            is_one_of_many = counts[place.owner, name] > 1
            is_lasting = isinstance(place.namespace, dict)
            which = id(place.namespace) if is_one_of_many and is_lasting else 0
            yield Label(place.owner, name, which), place, place.namespace[name]

    def with_values(self, values: Mapping[Label, Any]) -> Picture:
        """Return the picture from before, with other values by some labels."""
        taken = [dict(row) for row in self.before]
        rows = {id(p): row for p, row in zip(self.reach.places, taken, strict=True)}
        for label, place, _ in self._values():
            if label in values and label.name in rows[id(place)]:
                rows[id(place)][label.name] = _Kept.of(
                    values[label], most=math.inf, in_full=True
                )
        return taken

    def differing(self, left: Picture, right: Picture) -> "Differences":
        """Return the places where two pictures hold other numbers."""
        names = [
            (place, f"{place.owner}.{name}")
            for place, one, other in zip(self.reach.places, left, right, strict=True)
            for name in one.keys() | other.keys()
            if name not in one
            or name not in other
            or (
                not self._is_exchanged(place, name, one[name], other[name])
                and _differ(one[name], other[name])
            )
        ]
        buffers = sorted(name for place, name in names if place.holds_buffers)
        return Differences(bool(names), buffers)

    def _is_exchanged(self, place: Place, name: Any, left: _Kept, right: _Kept) -> bool:
        """Whether a name stands for the batch in one picture, and its exchange in one."""
        own, other = self._exchanged.get((id(place), name), (_MISSING, _MISSING))
        return left.value is own and right.value is other


@final
@dataclass(frozen=True, slots=True)
class Differences:
    """Where two pictures differ: anywhere at all, and in which buffers."""

    anywhere: bool
    buffers: list[str]


def _where(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors of the same memory have in common."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided:
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _differ(left: _Kept, right: _Kept) -> bool:
    if type(left.value) in _CONTAINERS and type(right.value) in _CONTAINERS:
        return _unlike(left.copy, right.copy)
    return _unlike(left.value, right.value)


def _unlike(left: Any, right: Any) -> bool:
    """Whether two values are seen to differ; objects that cannot be compared are not."""
    if left is right:
        return False
    if type(left) is not type(right):
        return True
    if isinstance(left, Tensor):
        kinds = [(t.shape, t.dtype, t.device, t.layout) for t in (left, right)]
        return kinds[0] != kinds[1] or not torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() != right.keys() or any(
            _unlike(value, right[key]) for key, value in left.items()
        )
    if isinstance(left, list | tuple | deque):
        return len(left) != len(right) or any(map(_unlike, left, right))
    return _unlike_values(left, right)


def _unlike_values(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        # NaN counts as equal to itself, where there can be one: arrays of text have none.
        return not np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
    # Only plain values: comparing others may raise, or return an array.
    return isinstance(left, _COMPARED) and bool(left != right)


def _is_weight(value: Any) -> bool:
    is_trained = isinstance(value, Tensor) and value.is_leaf and value.requires_grad
    return is_trained or isinstance(value, nn.Parameter)


def _is_state(tensor: Tensor, most: float) -> bool:
    """Whether a tensor of at most *most* bytes is neither a weight nor a result."""
    is_plain = tensor.layout == torch.strided and tensor.grad_fn is None
    return is_plain and not tensor.requires_grad and tensor.nbytes <= most


def _is_small(container: Any) -> bool:
    """Whether a container can be copied for every picture, and filled again."""
    if isinstance(container, np.ndarray):
        # Of objects only the references would be compared.
        is_plain = container.flags.writeable and not container.dtype.hasobject
        return is_plain and container.nbytes <= _LARGEST_ARRAY
    return len(container) <= _LONGEST


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, np.ndarray):
        np.copyto(container, content)
        return
    if len(container) == len(content) and all(
        map(_is_same, _entries(container), _entries(content))
    ):
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _entries(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        for key, value in container.items():
            yield key
            yield value
    else:
        yield from container


def _is_same(left: Any, right: Any) -> bool:
    return left is right
