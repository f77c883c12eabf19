"""What was seen of weights beside the private gradients."""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, Final, Literal, final

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


__all__ = ("Beside",)


# What the last update of any private optimizer left, or its making found.
_versions: Final[MutableMapping[Tensor, int]] = WeakIdKeyDictionary()


@final
class Beside:
    """Versions of parameters, and the leaves of graphs of losses.

    A graph is looked at in the first call and then ever more rarely: it costs a walk.
    """

    def __init__(self) -> None:
        self.has_others = False
        self.has_writes: bool = False
        self.is_blind = False  # Of shards nothing can be seen.
        self._since: Literal["made", "updated"] | None = None
        self._num_calls = 0

    def note(
        self, parameters: Sequence[Tensor], *, since: Literal["made", "updated"]
    ) -> None:
        """Remember the versions of the parameters of a new optimizer, or of an update."""
        for parameter in parameters:
            _versions[parameter] = parameter._version  # noqa: SLF001 -- torch has no other name for it
        self._since = since

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
        num_written = sum(
            _versions.get(p, p._version) != p._version  # noqa: SLF001 -- as above
            for p in parameters
        )
        is_all = num_written == len(parameters) and self._since == "made"
        self.has_writes = num_written > 0 and not is_all
        return self.has_writes

    def leaves(self, losses: Tensor) -> list[Tensor]:
        """Return the leaves below *losses*, if it is time to look; else nothing."""
        self._num_calls += 1
        is_due = self._num_calls & (self._num_calls - 1) == 0  # 1, 2, 4, 8 and so on.
        return list(_leaves(losses.grad_fn)) if is_due else []


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
