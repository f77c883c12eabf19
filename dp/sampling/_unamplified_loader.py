"""Batches in any order, each example once a step, with tickets that say so."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

from torch.utils.data import (
    BatchSampler,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)

from dp import _checks
from dp._ranks import rank_and_size
from dp.exceptions import SamplingMismatchError, UnsupportedOperationError
from dp.sampling._collation import check_collation
from dp.sampling._distinct_rows import check_distinct_rows
from dp.sampling._refused_arguments import check_map_style
from dp.sampling._schemes import Unamplified
from dp.sampling._ticket import Draw
from dp.sampling._ticketed import TicketedLoader


__all__ = ("UnamplifiedLoader",)


class UnamplifiedLoader(TicketedLoader):
    """Yield batches in any order for a plan with ``Unamplified``, with tickets.

    What such a plan costs does not depend on how batches are chosen, but each example
    may take part in a step once at most. With this loader that is checked: no index is
    twice in a batch, and the losses of a step are those of one batch, each once. With a
    loader of torch it is the caller's word.

    >>> loader = UnamplifiedLoader(range(5), batch_size=2)
    >>> [batch.tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        batch_size: How many examples a batch has; 1 if nothing says how many.
        shuffle: Whether to draw a new order for each pass.
        sampler: Yields the indices of a pass; refused with *shuffle*.
        batch_sampler: Yields the indices of each batch; refused with *batch_size*,
            *shuffle*, *sampler* and *drop_last*.
        drop_last: Whether to leave out a last batch that is smaller.
        collate_fn: Makes a batch of a list of examples.
        sharded: Whether *dataset* holds this process's examples only, none of which
            another process has. Demanded where several processes train.
        arguments: What else torch's loader takes: ``num_workers``, ``pin_memory``,
            ``timeout``, ``worker_init_fn``, ``multiprocessing_context``,
            ``prefetch_factor`` and ``persistent_workers``.

    Raises:
        TypeError: If the dataset is not map-style.
        ValueError: If arguments contradict each other, or a number is out of range.
        SamplingMismatchError: If two rows of the dataset are the same example, as far
            as can be seen; while iterating, if a batch has an index twice, or none.
        SampleMixingError: If *collate_fn* makes a row of several examples.
        UnsupportedOperationError: While iterating, if several processes would train on
            the same examples.

    Guarantees:
        * ``ticket`` belongs to the batch yielded last, whatever was loaded ahead.
        * One pass is live at a time: starting another one ends it, and its ticket.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        batch_size: int | None = None,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        drop_last: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        sharded: bool = False,
        **arguments: Any,
    ) -> None:
        check_map_style(dataset)
        if batch_sampler is None:
            batch_sampler = _batches(dataset, batch_size, shuffle, sampler, drop_last)
        elif batch_size is not None or shuffle or sampler is not None or drop_last:
            raise ValueError(
                "batch_sampler chooses batches alone; leave out batch_size, shuffle,"
                " sampler and drop_last"
            )
        collate_fn = default_collate if collate_fn is None else collate_fn
        check_distinct_rows(dataset)
        check_collation(dataset, collate_fn)
        self._batch_indices = batch_sampler
        super().__init__(
            dataset,
            num_draws=len(batch_sampler),  # type: ignore[arg-type]  # As torch asks it.
            collate_fn=collate_fn,
            empty_batch=None,
            sharded=sharded,
            arguments=arguments,
        )

    def __repr__(self) -> str:  # Not how many batches there are: that is private.
        return f"{type(self).__name__}(sampling={self.sampling})"

    @property
    def sampling(self) -> Unamplified:
        """How batches are drawn, as far as a plan may count on it."""
        return Unamplified()

    def _begin_pass(self) -> "_Draws":
        if not self._sharded and rank_and_size()[1] > 1:
            raise UnsupportedOperationError(
                "several processes train, and each would take its batches from the same"
                " examples, one of which could count twice; give each process examples"
                " of its own, and say so: sharded=True"
            )
        rows: Any = self.dataset  # torch's Dataset declares no __len__.
        return _Draws(iter(self._batch_indices), len(rows))


def _batches(
    dataset: Any,
    batch_size: int | None,
    shuffle: bool,  # noqa: FBT001 -- as in torch
    sampler: Iterable[int] | None,
    drop_last: bool,  # noqa: FBT001
) -> BatchSampler:
    if shuffle and sampler is not None:
        raise ValueError("sampler chooses the order alone; leave out shuffle")
    if sampler is None:
        kind: type[Sampler[int]] = RandomSampler if shuffle else SequentialSampler
        sampler = kind(dataset)  # type: ignore[call-arg]  # Both take it.
    size = 1 if batch_size is None else _checks.count(batch_size=batch_size)
    return BatchSampler(sampler, size, drop_last)


@final
class _Draws(Iterator[list[int]]):
    """The batches of one pass, each index once in its batch."""

    def __init__(self, batches: Iterator[Sequence[int]], num_rows: int) -> None:
        self.made: deque[Draw] = deque()
        self._batches = batches
        self._num_rows = num_rows

    def __next__(self) -> list[int]:
        rows = [
            int(row) + (self._num_rows if row < 0 else 0) for row in next(self._batches)
        ]
        if not rows:
            raise SamplingMismatchError(
                "the batch sampler yielded a batch of no examples; leave it out: without"
                " amplification, no step has to be made of it"
            )
        if len(set(rows)) < len(rows):
            raise SamplingMismatchError(
                "the sampler yielded an index twice for one batch, so its example would"
                " count twice in a step; sample without replacement"
            )
        self.made.append(Draw(rows))
        return rows
