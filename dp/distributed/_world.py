"""Check that all ranks agree before anything is released."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast, final

import torch
from torch import distributed

from dp._ranks import rank_and_size
from dp.exceptions import RankFailedError, RanksDivergedError


__all__ = ("World", "translate_errors")

_T = TypeVar("_T")
_READY: Final = 1
_AGREED: Final = 2
_ROW: Final = 8  # Integers that a rank tells the others before a step.


@final
@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together; a process alone is a world too.

    Attributes:
        rank: Which process this one is.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """Return the processes of torch's default group, or this one alone."""
        return cls(*rank_and_size())

    @contextmanager
    def telling_failures(self) -> Iterator[None]:
        """Let the other ranks know if the block raises, so that none waits for it.

        It stands right before :meth:`agree_or_raise`, in which the others listen.
        """
        try:
            yield
        except Exception:
            if self.size > 1:
                with suppress(RankFailedError):  # This rank's own error says more.
                    self._exchanged([])
            raise

    def agree_or_raise(self, facts: Mapping[str, object], *, agreed: bool) -> bool:
        """Go on only if every rank gets here, with equal facts.

        One exchange of a few integers.

        Args:
            facts: What must be equal on all ranks, by name.
            agreed: Whether this rank needs no new agreement on what is slow to
                compare.

        Returns:
            Whether every rank passed *agreed*.

        Raises:
            RankFailedError: If another rank raised, died, or did not come in time.
            RanksDivergedError: If a fact differs.
        """
        digests = {name: _digest(fact) for name, fact in facts.items()}
        flags = _READY + (_AGREED if agreed else 0)
        rows = self._exchanged([flags, *digests.values()])
        failed = [r for r, row in enumerate(rows) if not row[0] & _READY]
        if failed:
            raise RankFailedError(
                f"rank {failed[0]} of {self.size} raised before this step, so no rank"
                " takes it; see the error of that process. Nothing was charged for it"
            )
        for column, name in enumerate(digests, start=1):
            self._check_equal(name, [row[column] for row in rows])
        return all(row[0] & _AGREED for row in rows)

    def compare_once(self, facts: Mapping[str, object], proposal: _T) -> _T:
        """Compare *facts* over all ranks, and return rank 0's *proposal*.

        Raises:
            RanksDivergedError: If a fact differs. Its values are not shown: they may
                come from data.
        """
        digests = {name: _digest(fact) for name, fact in facts.items()}
        answers: list[Any] = [None] * self.size
        with translate_errors():
            distributed.all_gather_object(answers, (digests, proposal))
        for name in digests:
            self._check_equal(name, [theirs.get(name) for theirs, _ in answers])
        return cast("_T", answers[0][1])

    def _exchanged(self, row: Sequence[int]) -> list[list[int]]:
        """Return the rows of all ranks, filled up with zeros."""
        device = distributed.distributed_c10d._get_object_coll_device()  # noqa: SLF001 -- the device that the group exchanges objects on has no public name
        mine = torch.zeros(_ROW, dtype=torch.int64, device=device)
        mine[: len(row)] = torch.tensor(row, dtype=torch.int64)
        rows = mine.new_empty(self.size * _ROW)
        with translate_errors():
            distributed.all_gather_single(rows, mine)
            listed: list[list[int]] = rows.view(self.size, _ROW).tolist()
        return listed

    def _check_equal(self, name: str, values: Sequence[object]) -> None:
        others = [r for r, value in enumerate(values) if value != values[0]]
        if others:
            raise RanksDivergedError(
                f"{name} differs between rank 0 and rank {others[0]} of {self.size};"
                f" {_REMEDIES.get(name, 'give every process the same')}. Nothing was"
                " charged for this step"
            )


_REMEDIES: Final = {
    "the batch": "every rank must draw and step the same number of batches",
    "the dataset": (
        "give every process the same examples in the same order (seed a random"
        " split), or pass sharded=True to the loader if each has its own"
    ),
    "the ledger": "load the same checkpoint on every rank",
    "the parameters' values": (
        "wrap the model in DistributedDataParallel, or broadcast it from rank 0"
    ),
}


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the errors of a process group whose peer is gone into a named one."""
    try:
        yield
    except RuntimeError as error:  # The base of all that torch.distributed raises.
        raise RankFailedError(
            "another process died, or did not come to this step within the timeout of"
            " the process group; end all processes and resume from a checkpoint. What"
            f" the ledger was charged stays charged ({error})"
        ) from error


def _digest(fact: object) -> int:
    """Return 62 bits that tell equal facts from different ones."""
    hashed = hashlib.sha256(repr(fact).encode()).digest()
    return int.from_bytes(hashed[:8]) >> 2
