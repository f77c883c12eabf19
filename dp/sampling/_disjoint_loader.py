"""A loader whose passes are disjoint batches, and which one has an example is no secret."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from dp._typing import Assignment
from dp.sampling._allocation_loader import AllocationLoader
from dp.sampling._passes import DisjointBatches
from dp.sampling._units import Units


__all__ = ("DisjointLoader",)


class DisjointLoader(AllocationLoader):
    """Yield passes over a map-style dataset, each example in one batch of a pass.

    What it yields is as of :class:`AllocationLoader`; what is claimed of it is less, and
    so batches may have equal sizes (``assigned_by="position"``).

    >>> loader = DisjointLoader(range(6), steps_per_pass=3, assigned_by="position")
    >>> [len(batch) for batch in loader]
    [2, 2, 2]

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        steps_per_pass: Batches in one pass over the data: a public number.
        assigned_by: What decides an example's batch; see :class:`DisjointBatches`.
        passes: Passes in one iteration, which so has ``steps_per_pass * passes``
            batches: ``len(loader)``.
        units: The unit of privacy of every row; see :class:`PoissonLoader`. Units are
            assigned then, each with all of its rows.
        max_per_unit: The most rows of a unit in a batch; see there.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples; inferred if None.
        sharded: Whether *dataset* holds this process's examples only.
        arguments: What else torch's loader takes, but for the choice of batches.

    Raises:
        TypeError, ValueError: As :class:`AllocationLoader`.

    Guarantees:
        * As of :class:`AllocationLoader`; but by position, sizes of batches tell the
          number of examples, which ``"zero_out"`` and ``"replace_one"`` do not hide.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        steps_per_pass: int,
        assigned_by: Assignment = "coin",
        passes: int = 1,
        units: Units | None = None,
        max_per_unit: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        empty_batch: Any = None,
        sharded: bool = False,
        **arguments: Any,
    ) -> None:
        self._assigned_by: Assignment = assigned_by
        super().__init__(
            dataset,
            steps_per_pass=steps_per_pass,
            passes=passes,
            units=units,
            max_per_unit=max_per_unit,
            collate_fn=collate_fn,
            empty_batch=empty_batch,
            sharded=sharded,
            **arguments,
        )

    def _scheme(self, steps_per_pass: int) -> DisjointBatches:
        return DisjointBatches(
            steps_per_pass=steps_per_pass, assigned_by=self._assigned_by
        )
