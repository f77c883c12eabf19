"""Which examples take part in a step, and the proof that nothing else decided it.

:class:`PoissonLoader` draws every batch by independent coin flips and issues one
:class:`Ticket` with each batch; a private step may claim amplification by sampling
only for a batch that has one.

Not done here: the draws (:mod:`dp.sampling._schemes`), spending tickets (:mod:`dp.optimizer`)
and what a draw costs (:mod:`dp.accounting`). Empty batches are built in
:mod:`dp.sampling._empty_batch`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar, Final, final

from torch.utils.data import DataLoader, Dataset, default_collate

from dp import _checks
from dp._ranks import rank_and_size
from dp.exceptions import SamplingMismatchError, UnsupportedOperationError
from dp.sampling._draws import poisson_sample, random_subset
from dp.sampling._empty_batch import empty_batch_of
from dp.sampling._fetch import iter_batches
from dp.sampling._refused_arguments import check_map_style, reject_arguments
from dp.sampling._schemes import PoissonSampling, TruncatedPoissonSampling
from dp.sampling._ticket import Ticket, TicketIssuer


__all__ = ("PoissonLoader",)


class PoissonLoader(DataLoader[Any]):
    """Yield Poisson batches of a map-style dataset, each with a ticket.

    A pass has *steps* batches; a batch may hold any number of examples, also none.
    Works as :class:`torch.utils.data.DataLoader` does, except that the batches are
    not the caller's to choose: ``batch_size``, ``shuffle``, ``sampler``,
    ``batch_sampler``, ``drop_last``, ``generator`` and ``in_order`` are refused.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        sampling_probability: The probability of each example to join a batch.
        steps: Batches in one pass: a public number, ``len(loader)``.
        max_batch_size: The most examples of a batch, of which a random part is taken
            if more were drawn; None for no such limit.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples. If None, it is found by collating the
            first example once and twice and emptying what grew.
        sharded: Whether *dataset* holds this process's examples only, none of which
            another process has. If not, all processes of torch's default group have
            the same dataset, and each draws from every n-th example of it.
        num_workers: Processes that load examples; see torch.
        pin_memory: Copy batches to page-locked memory; see torch.
        timeout: Seconds to wait for a worker; see torch.
        worker_init_fn: Called in each worker; see torch.
        multiprocessing_context: How to start workers; see torch.
        prefetch_factor: Batches that each worker loads ahead; see torch.
        persistent_workers: Keep workers between passes; see torch.

    Raises:
        TypeError: If the dataset is not map-style, if an argument would take the
            choice of batches away from the loader, or if the empty batch cannot be
            found.
        ValueError: If a number is out of range, or if the dataset holds no example
            and *empty_batch* is not given.

    Guarantees:
        * Neither the number of batches nor anything else public depends on
          ``len(dataset)`` or on what was drawn.
        * :attr:`ticket` belongs to the batch yielded last, whatever was loaded ahead.
        * One pass is live at a time: starting another one ends it, and its ticket.

    References:
        Abadi et al. 2016, section 3.1; Chua et al. 2024, "How Private are DP-SGD
        Implementations?", on why a shuffled loader may not claim this epsilon.
        https://arxiv.org/abs/2403.17673
    """

    # accelerate's mark: its prepare() passes the loader on, where it would otherwise
    # rebuild it without tickets. Moving batches to a device is left to the caller.
    _is_accelerate_prepared: ClassVar[bool] = True

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        sampling_probability: float,
        steps: int,
        max_batch_size: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        empty_batch: Any = None,
        sharded: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        **refused: Any,
    ) -> None:
        reject_arguments(refused)
        check_map_style(dataset)
        self._sampling = _scheme(sampling_probability, max_batch_size, dataset)
        collate_fn = default_collate if collate_fn is None else collate_fn
        self._empty_batch = (
            empty_batch_of(dataset, collate_fn) if empty_batch is None else empty_batch
        )
        self._sharded = sharded
        self._issuer = TicketIssuer()
        self._draws = _GuardedBatchSampler(_checks.count(steps=steps))
        super().__init__(
            dataset,  # type: ignore[arg-type]  # A Sequence serves as a Dataset.
            batch_sampler=self._draws,
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
        )

    @property
    def sampling(self) -> PoissonSampling | TruncatedPoissonSampling:
        """How batches are drawn."""
        return self._sampling

    @property
    def sampling_probability(self) -> float:
        """The probability of each example to join a batch."""
        return self._sampling.sampling_probability

    @property
    def sharded(self) -> bool:
        """Whether the dataset holds this process's examples only."""
        return self._sharded

    @property
    def ticket(self) -> Ticket | None:
        """The ticket of the batch yielded last, or None before the first of a pass."""
        return self._issuer.ticket

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # Not torch's own.
        if not self.in_order:
            raise SamplingMismatchError(
                "in_order is False, so a ticket could belong to another batch; set it"
                " to True"
            )
        share = (0, 1) if self._sharded else rank_and_size()
        if isinstance(self._sampling, TruncatedPoissonSampling):
            self._check_alone()
        draws = _Draws(self.dataset, self._sampling, share, num_draws=len(self))
        number = self._issuer.open()
        if self.num_workers or self.pin_memory:
            with self._draws.serving(draws):
                batches: Iterator[Any] = super().__iter__()
        else:
            batches = iter_batches(self.dataset, draws, self.collate_fn)
        return _EpochIterator(
            batches, draws.sizes, self._issuer, number, self._empty_batch
        )

    def _check_alone(self) -> None:
        if self._sharded or rank_and_size()[1] > 1:
            raise UnsupportedOperationError(
                "max_batch_size limits the batch of all processes together, which none"
                " of them knows; train in one process, or plan with PoissonSampling and"
                " bound memory by dp.MicroBatches"
            )


def _scheme(
    sampling_probability: float, max_batch_size: int | None, dataset: Any
) -> PoissonSampling | TruncatedPoissonSampling:
    if max_batch_size is None:
        return PoissonSampling(sampling_probability=sampling_probability)
    return TruncatedPoissonSampling(
        sampling_probability=sampling_probability,
        max_batch_size=max_batch_size,
        dataset_size=len(dataset),
    )


@final
class _Draws(Iterator[list[int]]):
    """The draws of one pass that hold an example; ``sizes`` has those of all.

    It knows the loader's dataset and not the loader: torch's iterator keeps it, and
    workers of an iterator in a reference cycle are stopped late.
    """

    def __init__(
        self,
        dataset: Any,
        scheme: PoissonSampling | TruncatedPoissonSampling,
        share: tuple[int, int],
        *,
        num_draws: int,
    ) -> None:
        self.sizes: deque[int] = deque()
        self._dataset = dataset
        self._scheme = scheme
        self._first, self._step = share
        self._num_left = num_draws

    def __next__(self) -> list[int]:
        while self._num_left:
            self._num_left -= 1
            share = range(self._first, len(self._dataset), self._step)
            drawn = self._sample(len(share))
            self.sizes.append(len(drawn))
            if drawn:
                return [share[i] for i in drawn]
        raise StopIteration

    def _sample(self, num_examples: int) -> list[int]:
        scheme = self._scheme
        q = scheme.sampling_probability
        drawn = poisson_sample(num_examples, sampling_probability=q)
        if isinstance(scheme, PoissonSampling):
            return drawn
        if num_examples != scheme.dataset_size:
            raise SamplingMismatchError(
                f"the dataset had {scheme.dataset_size} examples when its loader was"
                f" made, and has {num_examples} now; what truncated batches cost depends"
                " on the number, so it has to stay"
            )
        return random_subset(drawn, size=scheme.max_batch_size)


@final
class _GuardedBatchSampler:
    """The batch sampler that torch sees: it has draws only while a pass is set up.

    Whoever else takes it, as those do who rebuild a loader to shard or to resume it,
    would get batches without tickets.
    """

    def __init__(self, num_draws: int) -> None:
        self._num_draws = num_draws
        self._served: _Draws | None = None

    def __len__(self) -> int:
        return self._num_draws

    def __iter__(self) -> Iterator[list[int]]:
        if self._served is None:
            raise SamplingMismatchError(
                "the batch sampler of a PoissonLoader was taken out of it, so its"
                " batches would have no tickets; iterate over the PoissonLoader"
                " itself, and pass it to nothing that rebuilds data loaders"
            )
        return self._served

    @contextmanager
    def serving(self, draws: _Draws) -> Iterator[None]:
        self._served = draws
        try:
            yield
        finally:
            self._served = None


_NOTHING: Final = object()


@final
class _EpochIterator(Iterator[Any]):
    """One pass over a loader: torch's batches, with the empty ones put back."""

    def __init__(
        self,
        batches: Iterator[Any],
        sizes: deque[int],
        desk: TicketIssuer,
        number: tuple[int, int],
        empty_batch: Any,
    ) -> None:
        self._batches = batches
        self._sizes = sizes
        self._issuer = desk
        self._number = number
        self._empty_batch = empty_batch
        self._loaded: Any = _NOTHING

    def __next__(self) -> Any:
        self._issuer.check(self._number)
        if self._loaded is _NOTHING and not (self._sizes and self._sizes[0] == 0):
            self._load()
        if not self._sizes:
            raise StopIteration
        size = self._sizes.popleft()
        batch = self._take() if size else deepcopy(self._empty_batch)
        self._issuer.issue(size)
        return batch

    def _load(self) -> None:
        try:
            self._loaded = next(self._batches, _NOTHING)  # Draws, also empty ones.
        except BaseException:
            # Which draw failed is unknown: as with a generator, the pass is over.
            self._batches = iter(())
            self._sizes.clear()
            raise

    def _take(self) -> Any:
        batch, self._loaded = self._loaded, _NOTHING
        return batch
