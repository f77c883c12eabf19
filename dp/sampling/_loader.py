"""Which examples take part in a step, and the proof that nothing else decided it.

:class:`PoissonLoader` draws every batch by independent coin flips and issues one
:class:`Ticket` with each batch; a private step may claim amplification by sampling
only for a batch that has one.

Not done here: the draws (:mod:`dp.sampling._schemes`), spending tickets (:mod:`dp.optimizer`)
and what a draw costs (:mod:`dp.accounting`). Empty batches are built in
:mod:`dp.sampling._empty_batch`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.utils.data import Dataset, default_collate

from dp import _checks
from dp._keystream import RepeatedKeys
from dp._ranks import rank_and_size
from dp.exceptions import SamplingMismatchError, UnsupportedOperationError
from dp.sampling._collation import check_collation
from dp.sampling._cyclic_scheme import CyclicPoisson
from dp.sampling._distinct_rows import check_distinct_rows
from dp.sampling._draws import poisson_sample, random_subset
from dp.sampling._empty_batch import empty_batch_of
from dp.sampling._passes import Passes
from dp.sampling._random_draws import Law, RandomDraws
from dp.sampling._refused_arguments import check_map_style, reject_arguments
from dp.sampling._rows_in_place import RowsInPlace
from dp.sampling._schemes import (
    PoissonSampling,
    TruncatedPoissonSampling,
)
from dp.sampling._ticketed import Draws, TicketedLoader
from dp.sampling._units import UnitIndex, Units


__all__ = ("PoissonLoader",)


class PoissonLoader(TicketedLoader):
    """Yield Poisson batches of a map-style dataset, each with a ticket.

    A pass has *steps* batches; a batch may hold any number of examples, also none.
    Works as :class:`torch.utils.data.DataLoader` does, except that the batches are
    not the caller's to choose: ``batch_size``, ``shuffle``, ``sampler``,
    ``batch_sampler``, ``drop_last``, ``generator`` and ``in_order`` are refused.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        sampling_probability: The probability of each unit to join a batch.
        steps: Batches in one pass: a public number, ``len(loader)``.
        units: The unit of privacy of every row of *dataset*, such as its user: any
            hashable values, an array or a tensor. Units are drawn then, each with all
            of its rows, and each is clipped once. None makes every row a unit.
        max_per_unit: The most rows of a unit in a batch, of which a fresh random part
            is taken if it has more; None for no such limit.
        max_batch_size: The most units of a batch, of which a random part is taken if
            more were drawn; None for no such limit.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples. If None, it is inferred by collating the
            first example once and then twice, and emptying what grew.
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
        SamplingMismatchError: If two rows of the dataset are the same example, as far
            as can be seen, and not of one unit.
        SampleMixingError: If *collate_fn* makes a row of several examples.

    Guarantees:
        * Neither the number of batches nor anything else public depends on
          ``len(dataset)`` or on what was drawn.
        * ``ticket`` belongs to the batch yielded last, whatever was loaded ahead.
        * One pass is live at a time: starting another one ends it, and its ticket.

    References:
        Abadi et al. 2016, section 3.1; Chua et al. 2024, "How Private are DP-SGD
        Implementations?", on why a shuffled loader may not claim this epsilon.
        https://arxiv.org/abs/2403.17673
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        sampling_probability: float,
        steps: int,
        units: Units | None = None,
        max_per_unit: int | None = None,
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
        # torch would take a shuffling sampler, and the claim would be one of Poisson
        # sampling all the same (opacus#128; #813 for weighted samplers).
        reject_arguments(refused)
        check_map_style(dataset)
        rows: Any = dataset  # torch's Dataset declares no __len__; it was checked.
        self._units = _unit_index(units, max_per_unit, num_rows=len(rows))
        num_units = len(rows) if self._units is None else self._units.num_units
        self._sampling = _scheme(sampling_probability, max_batch_size, num_units)
        collate_fn = default_collate if collate_fn is None else collate_fn
        unit_of_row = None if self._units is None else self._units.unit_of_row
        check_distinct_rows(dataset, unit_of_row)
        self._in_place = RowsInPlace(dataset, unit_of_row)
        check_collation(dataset, collate_fn)
        super().__init__(
            dataset,
            num_draws=_checks.count(steps=steps),
            collate_fn=collate_fn,
            empty_batch=(
                empty_batch_of(dataset, collate_fn)
                if empty_batch is None
                else empty_batch
            ),
            sharded=sharded,
            arguments={
                "num_workers": num_workers,
                "pin_memory": pin_memory,
                "timeout": timeout,
                "worker_init_fn": worker_init_fn,
                "multiprocessing_context": multiprocessing_context,
                "prefetch_factor": prefetch_factor,
                "persistent_workers": persistent_workers,
            },
        )

    def __repr__(self) -> str:  # Public numbers, so not how many examples there are.
        return f"{type(self).__name__}(sampling={self.sampling}, steps={len(self)})"

    @property
    def sampling(
        self,
    ) -> CyclicPoisson | PoissonSampling | TruncatedPoissonSampling | Passes:
        """How batches are drawn."""
        return self._sampling

    @property
    def sampling_probability(self) -> float:
        """The probability of each example to join a batch."""
        return self._sampling.sampling_probability

    @property
    def units_digest(self) -> str | None:
        """A hash of which rows share a unit; None if every row is a unit."""
        return None if self._units is None else self._units.digest

    @property
    def num_units(self) -> int:
        """How many units of privacy the dataset has; private, as its length is."""
        return super().num_units if self._units is None else self._units.num_units

    def _begin_pass(self) -> Draws:
        self._in_place.check()
        if isinstance(self._sampling, TruncatedPoissonSampling):
            self._check_alone()
        share = self._share()
        return RandomDraws(
            self.dataset,
            self._units,
            share,
            self._law(),
            num_draws=len(self),
            keys=self._keys_of(share[0]),
        )

    def _law(self) -> Law:
        """Return what draws the units of each step of one iteration."""
        return partial(_poisson, self._sampling)

    def _share(self) -> tuple[int, int]:
        """Return which units are this process's: from which on, every which."""
        # Asked at each pass: Lightning makes its process group after the loader.
        return (0, 1) if self._sharded else rank_and_size()

    def _keys_of(self, rank: int) -> RepeatedKeys | None:
        """Return the keys of a debugging seed, if there is one."""
        if self._debug_seed is not None and self._debug_keys is None:
            name = f"draws of seed {self._debug_seed}, rank {rank}: "
            self._debug_keys = RepeatedKeys(name)
        return self._debug_keys

    def _check_alone(self) -> None:
        if self._sharded or rank_and_size()[1] > 1:
            raise UnsupportedOperationError(
                "max_batch_size limits the batch of all processes together, which none"
                " of them knows; train in one process, or plan with PoissonSampling and"
                " bound memory by dp.MicroBatches"
            )


def _unit_index(
    units: Units | None, max_per_unit: int | None, *, num_rows: int
) -> UnitIndex | None:
    if units is None:
        if max_per_unit is not None:
            raise ValueError(
                f"max_per_unit={_checks.shown(max_per_unit)} limits the rows of a"
                " unit, but every row is a unit of its own; pass units= as well"
            )
        return None
    if max_per_unit is not None:
        _checks.count(max_per_unit=max_per_unit)
    return UnitIndex(units, num_rows=num_rows, max_per_unit=max_per_unit)


def _scheme(
    sampling_probability: float, max_batch_size: int | None, num_units: int
) -> PoissonSampling | TruncatedPoissonSampling:
    if max_batch_size is None:
        return PoissonSampling(sampling_probability=sampling_probability)
    return TruncatedPoissonSampling(
        sampling_probability=sampling_probability,
        max_batch_size=max_batch_size,
        dataset_size=num_units,
    )


def _poisson(
    scheme: PoissonSampling | TruncatedPoissonSampling, num_units: int
) -> tuple[list[int], None]:
    """Return units that each joined by a coin flip of their own."""
    drawn = poisson_sample(num_units, sampling_probability=scheme.sampling_probability)
    if isinstance(scheme, PoissonSampling):
        return drawn, None
    if num_units != scheme.dataset_size:
        raise SamplingMismatchError(
            f"the dataset had {scheme.dataset_size} examples when its loader was"
            f" made, and has {num_units} now; what truncated batches cost depends"
            " on the number, so it has to stay"
        )
    return random_subset(drawn, size=scheme.max_batch_size), None
