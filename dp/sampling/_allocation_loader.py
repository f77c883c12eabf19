"""A loader whose passes hold every example exactly once, at random."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

from torch.utils.data import Dataset

from dp import _checks
from dp.sampling._draws import allocate_at_random, deal_at_random
from dp.sampling._loader import PoissonLoader
from dp.sampling._passes import DisjointBatches, Passes, RandomAllocation
from dp.sampling._random_draws import Law
from dp.sampling._refused_arguments import reject_allocation_arguments
from dp.sampling._ticket import PassStep, new_pass
from dp.sampling._units import Units


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("AllocationLoader",)


class AllocationLoader(PoissonLoader):
    """Yield passes over a map-style dataset, each example in one batch of a pass.

    Each example's batch is chosen by its own coin, anew in every pass. So sizes of
    batches vary, and a batch may be empty. All else is as of :class:`PoissonLoader`.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        steps_per_pass: Batches in one pass over the data: a public number.
        passes: Passes in one iteration, which so has ``steps_per_pass * passes``
            batches: ``len(loader)``.
        units: The unit of privacy of every row; see :class:`PoissonLoader`. Units are
            allocated then, each with all of its rows.
        max_per_unit: The most rows of a unit in a batch; see there.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples; inferred if None.
        sharded: Whether *dataset* holds this process's examples only.
        arguments: What else torch's loader takes, but for the choice of batches.

    Raises:
        TypeError, ValueError: As :class:`PoissonLoader`; truncated batches
            (``max_batch_size``) are refused, too.

    Guarantees:
        * An iteration that ends within a pass ends that pass; another one begins with
          a new pass.
        * Neither the number of batches nor anything else public depends on
          ``len(dataset)`` or on what was drawn.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        steps_per_pass: int,
        passes: int = 1,
        units: Units | None = None,
        max_per_unit: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        empty_batch: Any = None,
        sharded: bool = False,
        **arguments: Any,
    ) -> None:
        reject_allocation_arguments(arguments)
        self._allocation = self._scheme(steps_per_pass)
        super().__init__(
            dataset,
            sampling_probability=self._allocation.sampling_probability,
            steps=steps_per_pass * _checks.count(passes=passes),
            units=units,
            max_per_unit=max_per_unit,
            collate_fn=collate_fn,
            empty_batch=empty_batch,
            sharded=sharded,
            **arguments,
        )

    @property
    def sampling(self) -> Passes:
        """How batches are drawn."""
        return self._allocation

    def _scheme(self, steps_per_pass: int) -> Passes:
        return RandomAllocation(steps_per_pass=steps_per_pass)

    def _law(self) -> Law:
        return _Passes(self._allocation)


@final
class _Passes:
    """Of several passes, each with every unit in one step."""

    def __init__(self, scheme: Passes) -> None:
        is_dealt = (
            isinstance(scheme, DisjointBatches) and scheme.assigned_by == "position"
        )
        self._assign = deal_at_random if is_dealt else allocate_at_random
        self._steps_per_pass = scheme.steps_per_pass
        self._pass = 0
        self._steps: deque[NDArray[np.uint64]] = deque()

    def __call__(self, num_units: int) -> tuple[list[int], PassStep]:
        """Return the units of the next step."""
        num_steps = self._steps_per_pass
        # Coins are drawn for a pass as a whole, under a key that is used for it alone.
        if not self._steps:
            self._pass = new_pass()
            self._steps = deque(self._assign(num_units, num_steps=num_steps))
        step = num_steps - len(self._steps)
        in_pass = PassStep(number=self._pass, step=step, num_steps=num_steps)
        return self._steps.popleft().tolist(), in_pass
