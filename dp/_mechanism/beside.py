"""What was seen of weights beside the private gradients."""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Final, Literal, final

from torch import Tensor

from dp._mechanism.fingerprint import fingerprint_of_tensors
from dp.evidence import callers_level


__all__ = ("Beside",)


@final
class _Versions:
    """What the last update of any private optimizer left, or its making found.

    By identity, for as long as a parameter lives: a look-up in one of torch's own
    dictionaries of tensors takes ten times as long.
    """

    def __init__(self) -> None:
        self._of: dict[int, int] = {}
        self._bits: dict[int, int] = {}  # Where they were asked for: sums of all bits.
        self._alive: dict[int, weakref.ref[Tensor]] = {}

    def note(self, parameters: Sequence[Tensor], *, with_bits: bool) -> None:
        keys = [*map(id, parameters)]
        if not self._alive.keys() >= {*keys}:
            for key, parameter in zip(keys, parameters, strict=True):
                self._alive[key] = weakref.ref(parameter, partial(self._forget, key))
        self._of.update(zip(keys, map(_version, parameters), strict=True))
        if with_bits:
            self._bits.update(
                zip(keys, fingerprint_of_tensors(parameters), strict=True)
            )
        elif self._bits:
            for key in keys:
                self._bits.pop(key, None)

    def num_written(self, parameters: Sequence[Tensor]) -> int:
        """Return how many are known, and have another version by now."""
        now: list[int] = [*map(_version, parameters)]
        noted: list[int] = [*map(self._of.get, map(id, parameters), now)]
        if noted == now:
            return self._num_rewritten(parameters) if self._bits else 0
        return sum(map(int.__ne__, noted, now))

    def _num_rewritten(self, parameters: Sequence[Tensor]) -> int:
        """Return how many have other bits than were noted, which are compared once."""
        # A write through `.data`, or of another tensor to it, raises no version.
        known = [p for p in parameters if id(p) in self._bits]
        noted = [self._bits.pop(id(parameter)) for parameter in known]
        return sum(map(int.__ne__, noted, fingerprint_of_tensors(known)))

    def _forget(self, key: int, _reference: object) -> None:
        self._alive.pop(key, None)
        self._of.pop(key, None)
        self._bits.pop(key, None)


# In C, of each parameter twice a step. torch has no other name for it.
_version: Final = attrgetter("_version")
_versions: Final = _Versions()


@final
class Beside:
    """Versions of parameters, and the leaves of graphs of losses.

    A graph is looked at in the first call and then ever more rarely: it costs a walk.

    Attributes:
        is_cleared: Whether ``zero_grad`` left no gradient, and no losses came since.
    """

    def __init__(self) -> None:
        self.has_others = False
        self.has_hooks = False
        self.has_writes: bool = False
        self.has_left_out: bool = False
        self.lacks_units: bool = False
        self.is_blind = False  # Of shards nothing can be seen.
        self.is_cleared: bool = False
        self._since: Literal["made", "updated"] | None = None
        self._num_calls = self._num_updates = 0

    @property
    def has_updated(self) -> bool:
        """Whether an update was noted since the optimizer was made or loaded."""
        return self._since == "updated"

    def note(
        self, parameters: Sequence[Tensor], *, since: Literal["made", "updated"]
    ) -> None:
        """Remember the versions of the parameters of a new optimizer, or of an update."""
        is_update = since == "updated"
        self._num_updates += is_update
        with_bits = is_update and _is_due(self._num_updates)
        _versions.note(parameters, with_bits=with_bits and not self.is_blind)
        self._since = since

    def accept(self, parameters: Sequence[Tensor]) -> None:
        """Take what was written since an update for a part of that update.

        Called where the step of a layer around the optimizer ends, or its own step's
        hooks do: they average or clamp what was released. Losses that were computed
        before had their own check.
        """
        if self._since == "updated":
            self.note(parameters, since="updated")

    def note_units(self, *, are_missing: bool) -> None:
        """Note whether drawn units have no loss in a step; warn once if some have none.

        By what a caller names: a unit without a loss adds nothing, which is right if it
        has none by itself. Where its losses were cut off behind those of others, or
        where the losses of several units were named as one unit's, others decide it.
        """
        if not are_missing or self.lacks_units:
            return
        self.lacks_units = True
        warnings.warn(
            "units= names fewer units than the loader drew. That is right for units that"
            " have no loss by themselves, as a text without a labelled token. If losses"
            " were cut off at a public number, or if units= groups what the loader drew"
            " as several units, as the rows of a user, then one of them moves the sum by"
            " more than the clipping norm: bound each unit by itself, and let the loader"
            " group rows, plan.loader(dataset, units=...). The certificate says that"
            " units had no loss",
            stacklevel=callers_level(),
        )

    def forget(self) -> None:
        """Take what is written before the next note for what is loaded, or an update."""
        self._since = None

    def was_written(self, parameters: Sequence[Tensor]) -> bool:
        """Whether something else wrote to parameters, for the first time.

        Before the first update all of them may have been written, as by loading a model
        or by its broadcast to all ranks: some alone tell of the forward pass.
        """
        if self.has_writes or self._since is None:
            return False
        # An in-place write raises a tensor's version, whoever made it:
        # Embedding(max_norm=...) writes the batch's tokens into its weight during the
        # forward pass, and a plain optimizer over the same weights steps on raw
        # gradients.
        num_written = _versions.num_written(parameters)
        is_all = num_written == len(parameters) and self._since == "made"
        self.has_writes = num_written > 0 and not is_all
        return self.has_writes

    def takes_earlier_grads(self, parameters: Sequence[Tensor]) -> bool:
        """Whether gradients of another loss came between ``zero_grad`` and these losses.

        As of a penalty that was added to the private loss, and that autograd met first.
        Gradients that nobody cleared are left from a step, or from before the run.
        """
        was_cleared, self.is_cleared = self.is_cleared, False
        return was_cleared and any(
            p.grad is not None and bool(p.grad.any()) for p in parameters
        )

    def leaves(self, losses: Tensor) -> list[Tensor]:
        """Return the leaves below *losses*, if it is time to look; else nothing."""
        self._num_calls += 1
        return list(_leaves(losses.grad_fn)) if _is_due(self._num_calls) else []


def _is_due(number: int) -> bool:
    """Whether to look at the *number*-th: at 1, 2, 4, 8 and so on."""
    return number & (number - 1) == 0


def _leaves(root: Any) -> Iterator[Tensor]:
    # A loss without a graph has the root None, and no leaves.
    pending, seen = [root], {root}
    while pending:
        node = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        for child, _ in () if node is None else node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                pending.append(child)
