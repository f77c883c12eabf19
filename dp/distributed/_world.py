"""Check that all ranks agree before anything is released.

Ranks that step on different batches, parameters or ledgers would release something
that no accountant has charged, so a step starts with one small all-gather: flags and
digests of public facts. The exchange also tells the others when a rank has raised; they
would otherwise wait in a collective until it times out.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from dp._ranks import rank_and_size
from dp.exceptions import RankFailedError, RanksDivergedError


__all__ = ("World", "translate_errors")

_T = TypeVar("_T")
_READY: Final = 1
_AGREED: Final = 2
_ASKS: Final = 4
_ROW: Final = 8  # Integers per rank in the exchange before a step.


@final
@dataclass(frozen=True, slots=True)
class Agreement:
    """What the ranks said in one exchange.

    Attributes:
        settled: Whether all of them have compared the slow facts before.
        asked: Whether any of them asks the others for something.
    """

    settled: bool
    asked: bool


@final
@dataclass(frozen=True, slots=True)
class Share:
    """What tells this rank's part of the data from another rank's.

    Attributes:
        whole: What no other rank's part may equal; None if nothing tells them apart.
        held: A number for each row or unit, which no other rank may have.
    """

    whole: object = None
    held: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


NO_SHARE: Final = Share()
"""That of ranks which share all of the data."""


@final
@dataclass(frozen=True, slots=True)
class World:
    """The processes that train together; a single process is a world of size 1.

    Attributes:
        size: The number of ranks.
    """

    size: int = 1

    @classmethod
    def current(cls) -> "World":
        """Return the world of torch's default process group, or of this process alone."""
        _, size = rank_and_size()
        return cls(size)

    def tell_failure(self) -> None:
        """Tell the other ranks that this one raised, so that they do not wait for it.

        In place of :meth:`agree_or_raise`, where the others listen.
        """
        if self.size > 1:
            with suppress(RankFailedError):  # This rank's own error explains more.
                self._exchanged([])

    def agree_or_raise(
        self, facts: Mapping[str, object], *, agreed: bool, asks: bool = False
    ) -> "Agreement":
        """Check in one exchange that every rank is ready, and that their facts are equal.

        Args:
            facts: Values that must be equal on all ranks, by name.
            agreed: Whether this rank has compared the slow facts before, by
                :meth:`compare_once`.
            asks: Whether this rank asks all others for something.

        Returns:
            Whether every rank passed *agreed*, and whether any passed *asks*.

        Raises:
            RankFailedError: If another rank raised, died or timed out.
            RanksDivergedError: If a fact differs.
        """
        digests = {name: _digest(fact) for name, fact in facts.items()}
        flags = _READY + _AGREED * agreed + _ASKS * asks
        rows = self._exchanged([flags, *digests.values()])
        # A rank that raised sent nothing, which arrives as zeros: it is not ready.
        failed = [r for r, row in enumerate(rows) if not row[0] & _READY]
        if failed:
            raise RankFailedError(
                f"rank {failed[0]} of {self.size} raised before this step, so no rank"
                " takes it; see the error of that process. Nothing was charged for it"
            )
        for column, name in enumerate(digests, start=1):
            self._check_equal(name, [row[column] for row in rows])
        return Agreement(
            settled=all(row[0] & _AGREED for row in rows),
            asked=any(row[0] & _ASKS for row in rows),
        )

    def compare_once(
        self,
        facts: Mapping[str, object],
        proposal: _T,
        *,
        samples: Sequence[str | None] = (),
        share: Share = NO_SHARE,
    ) -> _T:
        """Compare *facts* over all ranks, and return rank 0's *proposal*.

        Args:
            facts: What must be equal on all ranks, by name.
            proposal: What rank 0 decides for all.
            samples: What must be equal of the dataset; None for what is random.
            share: This rank's part of the data, where each has its own.

        Raises:
            RankFailedError: If another rank died or timed out.
            RanksDivergedError: If a fact differs, or if two ranks have data in common.
                Its values are not shown, since they may depend on data.
        """
        digests = {name: _digest(fact) for name, fact in facts.items()}
        own_part = None if share.whole is None else _digest(share.whole)
        answers: list[Any] = [None] * self.size
        with translate_errors():
            distributed.all_gather_object(
                answers, (digests, proposal, tuple(samples), own_part, share.held)
            )
        for name in digests:
            self._check_equal(name, [by_name.get(name) for by_name, *_ in answers])
        for values in _comparable([samples for _, _, samples, _, _ in answers]):
            self._check_equal("the dataset", values)
        self._check_distinct(
            [[] if part is None else [part] for *_, part, _ in answers]
        )
        self._check_distinct([held for *_, held in answers])
        return cast("_T", answers[0][1])

    def _check_distinct(self, parts: Sequence[Any]) -> None:
        """Raise if a number is in the parts of two ranks."""
        numbers = np.concatenate([np.asarray(part, np.uint64) for part in parts])
        ranks = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        # Equal numbers are neighbours once they are sorted.
        order = np.argsort(numbers, kind="stable")
        (again,) = np.nonzero(numbers[order][1:] == numbers[order][:-1])
        if len(again):
            one, other = ranks[order[again[0]]], ranks[order[again[0] + 1]]
            raise RanksDivergedError(
                f"ranks {one} and {other} of {self.size} have examples or units in"
                " common, but their loaders are sharded=True: what both draw counts"
                " twice. Give each process its own, without the repetitions by which"
                " torch's DistributedSampler makes parts equally long, and units that are"
                " told apart over all processes, as (rank, number); or give all of them"
                " the whole dataset without sharded=True. Nothing was charged for this"
                " step"
            )

    def _exchanged(self, row: Sequence[int]) -> list[list[int]]:
        """Return the rows of all ranks, padded with zeros."""
        device = distributed.distributed_c10d._get_object_coll_device()  # noqa: SLF001 -- the device that the group exchanges objects on has no public name
        # One tensor of 8 integers each, whatever is compared: a collective of fixed
        # size.
        padded = torch.zeros(_ROW, dtype=torch.int64, device=device)
        padded[: len(row)] = torch.tensor(row, dtype=torch.int64)
        rows = padded.new_empty(self.size * _ROW)
        with translate_errors():
            distributed.all_gather_single(rows, padded)
            listed: list[list[int]] = rows.view(self.size, _ROW).tolist()
        return listed

    def _check_equal(self, name: str, values: Sequence[object]) -> None:
        diverged = [r for r, value in enumerate(values) if value != values[0]]
        if diverged:
            raise RanksDivergedError(
                f"{name} differs between rank 0 and rank {diverged[0]} of {self.size};"
                f" {_REMEDIES.get(name, 'give every process the same')}. Nothing was"
                " charged for this step"
            )


def _comparable(samples: Sequence[Sequence[str | None]]) -> Iterator[list[object]]:
    """Yield what each rank has of one part of the examples, unless it is random on any."""
    if any([*leaves] == [None] for leaves in samples):
        return
    yield [len(leaves) for leaves in samples]
    for values in zip(*samples, strict=False):
        if None not in values:
            yield [*values]


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
    """Raise RankFailedError in place of the errors of a broken process group."""
    try:
        yield
    except RuntimeError as error:  # The base class of torch.distributed's errors.
        raise RankFailedError(
            "another process died, or did not reach this step within the timeout of"
            " the process group; end all processes and resume from a checkpoint. What"
            f" the ledger was charged stays charged ({error})"
        ) from error


def _digest(fact: object) -> int:
    """Return 62 bits of a hash of *fact*, which an int64 tensor can hold."""
    hashed = hashlib.sha256(repr(fact).encode()).digest()
    # Two facts that differ have equal digests with probability 2**-62.
    return int.from_bytes(hashed[:8]) >> 2
