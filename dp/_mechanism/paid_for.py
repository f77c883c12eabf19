"""Which ledger has paid for which weights and data, while they live in this process.

A notebook cell that is run again makes a new ledger on weights that an earlier one has
paid for, and a second optimizer on a dataset makes another: each then states a part of
what the data cost. So whoever charges has to know all that was charged for the same
parameters and the same rows. Kept are weak references and row numbers; of the data
itself nothing is kept, not even a hash.

Not seen: other processes, copies, lists of numbers and texts, and datasets that are built
anew, unless of the same tensors, arrays or objects.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import TensorDataset

from dp.exceptions import LedgerError
from dp.ledger import Ledger
from dp.sampling import Rows, kept_rows


__all__ = ("Account", "apart")

_FEW: Final = 4096  # Things that are remembered without asking which are still there.


@final
@dataclass(frozen=True, slots=True)
class _Thing:
    """A parameter, or what rows of a dataset are read from.

    Attributes:
        key: What kind of thing it is, and its address.
        is_there: Whether it still is what lies at that address.
        rows: Which rows of it are meant.
        name: What to call it in an error.
    """

    key: tuple[str, int]
    is_there: Callable[[], bool]
    rows: Rows
    name: str


@final
@dataclass(frozen=True, slots=True)
class _Payment:
    thing: _Thing
    ledger: Ledger

    def is_for(self, thing: _Thing, ledger: Ledger) -> bool:
        """Whether it is of the same rows, by the same ledger."""
        return self.ledger is ledger and np.array_equal(self.thing.rows, thing.rows)


@final
@dataclass(slots=True)
class _Memory:
    """What was paid for, and how often that grew."""

    payments: dict[tuple[str, int], list[_Payment]] = field(default_factory=dict)
    version: int = 0
    most: int = _FEW

    def check(self, ledger: Ledger, things: Sequence[_Thing]) -> None:
        for thing in things:
            # An address may belong to a new object by now: only what is still there is
            # the same.
            for payment in self.payments.get(thing.key, ()):
                is_same = payment.thing.is_there() and payment.ledger is not ledger
                if (
                    is_same
                    and _meet(thing.rows, payment.thing.rows)
                    and not _knows(ledger, payment.ledger)
                ):
                    raise _unknown_charges(thing.name)

    def note(self, ledger: Ledger, things: Sequence[_Thing]) -> None:
        for thing in things:
            earlier = self.payments.get(thing.key, ())
            kept = [payment for payment in earlier if payment.thing.is_there()]
            if not any(payment.is_for(thing, ledger) for payment in kept):
                self.payments[thing.key] = [*kept, _Payment(thing, ledger)]
                self.version += 1
        # Twice as many as are left: cleaning up takes as long as what was added since.
        if len(self.payments) > self.most:
            self.payments = {
                key: payments
                for key, payments in self.payments.items()
                if payments[-1].thing.is_there()
            }
            self.most = max(_FEW, 2 * len(self.payments))


def _knows(ledger: Ledger, other: Ledger) -> bool:
    """Whether a ledger has all charges of another, and all that was counted for it."""
    counted = copy(other.meter)  # First: another thread may charge meanwhile.
    return ledger.includes(other) and not counted.misses(
        ledger.segments(), failure=ledger.failure
    )


_of_process: Final = _Memory()
_memory: Final[ContextVar[_Memory]] = ContextVar("dp_paid_for", default=_of_process)


@contextmanager
def apart() -> Iterator[None]:
    """Know nothing of earlier payments in the block, and nothing of its own afterwards.

    For those who train on one dataset again and again and publish none of it: audits.
    """
    token = _memory.set(_Memory())
    try:
        yield
    finally:
        _memory.reset(token)


@final
class Account:
    """What one ledger pays for.

    The memory is asked again only if the parameters or the dataset are other ones, or if
    a ledger has paid for something new meanwhile.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._settled: object = None
        self._kept: object = None  # So that no other object comes to have their ids.

    def check(self, parameters: Sequence[Tensor], dataset: Any) -> None:
        """Raise if the ledger does not know what these have cost already.

        Raises:
            LedgerError: If another ledger of this process paid for some of them, and
                this one has not all of its charges.
        """
        memory = _memory.get()
        identity = (id(memory), id(dataset), *map(id, parameters))
        # The usual step: nothing has changed since the last one.
        if self._settled == (identity, memory.version):
            return
        things = [*_parameters(parameters), *_rows_of(dataset)]
        memory.check(self._ledger, things)
        memory.note(self._ledger, things)
        self._settled, self._kept = (identity, memory.version), (dataset, parameters)


def _parameters(parameters: Sequence[Tensor]) -> Iterator[_Thing]:
    for parameter in parameters:
        yield from _object(parameter, range(1), "these parameters")


def _rows_of(dataset: Any) -> Iterator[_Thing]:
    if dataset is None:
        return
    # What a dataset keeps is what is paid for, whichever dataset is made of it.
    for source, read in kept_rows(dataset, range(len(dataset))):
        if len(read):
            yield from _source(source, read)


def _source(dataset: Any, rows: Rows) -> Iterator[_Thing]:
    name = "rows of this dataset"
    column = dataset.tensors[0] if type(dataset) is TensorDataset else dataset
    is_dense = isinstance(column, Tensor) and column.layout == torch.strided
    if not is_dense or not column.numel():
        yield from _object(dataset, rows, name)
        return
    # Of the same tensors, whoever builds a dataset of them: where each row begins.
    # Example: X of [100, 8]. TensorDataset(X) has rows that begin at 0, 8, ..., 792,
    # and one of X[50:] has those from 400 on: both are found to have 50 rows in common,
    # though neither knows of the other.
    storage = StorageWeakRef(column.untyped_storage())
    first, step = int(column.storage_offset()), column.stride(0)
    if isinstance(rows, range):
        begins: Rows = range(first, first + step * len(rows), step) if step else rows
    else:
        begins = first + step * rows
    yield _Thing(
        ("storage", storage.cdata), lambda: not storage.expired(), begins, name
    )


def _object(thing: object, rows: Rows, name: str) -> Iterator[_Thing]:
    """Yield a thing, unless it is of a kind that cannot be referred to weakly."""
    try:
        # Lists have no weak references, and a strong one would keep private data alive.
        reference = weakref.ref(thing)
    except TypeError:
        return
    key = ("object", id(thing))
    yield _Thing(key, lambda: reference() is not None, rows, name)


def _meet(one: Rows, other: Rows) -> bool:
    """Whether two sets of rows have one in common."""
    # Example: 0, 8, ..., 392 and 400, 408, ... do not overlap; 0, 8, ... and 4, 12, ...
    # do, and have no beginning in common.
    if isinstance(one, range) and isinstance(other, range) and one.step == other.step:
        overlap = max(one[0], other[0]) <= min(one[-1], other[-1])
        return overlap and (one[0] - other[0]) % one.step == 0
    return len(np.intersect1d(np.asarray(one), np.asarray(other))) > 0


def _unknown_charges(name: str) -> LedgerError:
    return LedgerError(
        f"{name} were trained on before in this process, or asked about, and this ledger"
        " does not know what that cost, so its epsilon would be too small. Go on with"
        " that ledger: DPOptimizer(..., continue_from=earlier_optimizer), with a plan for"
        " everything that is charged; or load its last state_dict(). A run of its own"
        " needs fresh weights and data of other people"
    )
