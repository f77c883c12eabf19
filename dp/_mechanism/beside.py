"""What was seen of weights beside the private gradients."""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, Final, final

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


__all__ = ("Beside",)


# What the last update of any private optimizer left.
_versions: Final[MutableMapping[Tensor, int]] = WeakIdKeyDictionary()


@final
class Beside:
    """Versions of parameters after a step, and the leaves of graphs of losses.

    A graph is looked at in the first call and then ever more rarely: it costs a walk.
    """

    def __init__(self) -> None:
        self.has_others = False
        self.has_writes = False
        self._has_updated = False
        self._num_calls = 0

    def note_update(self, parameters: Sequence[Tensor]) -> None:
        """Remember the versions that an update left."""
        self._has_updated = True
        for parameter in parameters:
            _versions[parameter] = parameter._version  # noqa: SLF001 -- torch has no other name for it

    def forget_update(self) -> None:
        """Take what is written before the next update for a state that was loaded."""
        self._has_updated = False

    def was_written(self, parameters: Sequence[Tensor]) -> bool:
        """Whether something wrote to a parameter since the last update, for the first time."""
        if self.has_writes or not self._has_updated:
            return False
        self.has_writes = any(
            _versions.get(p, p._version) != p._version  # noqa: SLF001 -- as above
            for p in parameters
        )
        return self.has_writes

    def leaves(self, losses: Tensor) -> list[Tensor]:
        """Return the leaves below *losses*, if it is time to look; else nothing."""
        self._num_calls += 1
        is_due = self._num_calls & (self._num_calls - 1) == 0  # 1, 2, 4, 8 and so on.
        return list(_leaves(losses.grad_fn)) if is_due else []


def _leaves(root: Any) -> Iterator[Tensor]:
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
