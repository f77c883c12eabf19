"""A loader whose passes hold every example exactly once, at random."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, final

from torch.utils.data import Dataset

from dp import _checks
from dp._keystream import RepeatedKeys
from dp.sampling._draws import allocate_at_random
from dp.sampling._loader import PoissonLoader
from dp.sampling._refused_arguments import reject_allocation_arguments
from dp.sampling._schemes import RandomAllocation
from dp.sampling._ticket import Draw, PassStep, new_pass
from dp.sampling._ticketed import Draws
from dp.sampling._units import UnitIndex, Units


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
        self._allocation = RandomAllocation(steps_per_pass=steps_per_pass)
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
    def sampling(self) -> RandomAllocation:
        """How batches are drawn."""
        return self._allocation

    def _begin_pass(self) -> Draws:
        share = self._share()
        return _AllocatedDraws(
            self.dataset,
            self._units,
            self._allocation.steps_per_pass,
            share,
            num_draws=len(self),
            keys=self._keys_of(share[0]),
        )


@final
class _AllocatedDraws(Iterator[list[int]]):
    """The draws of several passes that hold a row; ``made`` has all of them."""

    def __init__(
        self,
        dataset: Any,
        units: UnitIndex | None,
        steps_per_pass: int,
        share: tuple[int, int],
        *,
        num_draws: int,
        keys: RepeatedKeys | None,
    ) -> None:
        self.made: deque[Draw] = deque()
        self._dataset = dataset
        self._units = units
        self._steps_per_pass = steps_per_pass
        self._first, self._every = share
        self._num_left = num_draws
        self._keys = keys
        self._pass = 0
        self._steps: deque[NDArray[np.uint64]] = deque()

    def __next__(self) -> list[int]:
        while self._num_left:
            self._num_left -= 1
            with nullcontext() if self._keys is None else self._keys.used():
                draw = self._draw()
            self.made.append(draw)
            if draw.rows:
                return list(draw.rows)
        raise StopIteration

    def _draw(self) -> Draw:
        index = self._units
        if not self._steps:
            self._begin(len(self._dataset) if index is None else index.num_units)
        in_pass = PassStep(
            number=self._pass,
            step=self._steps_per_pass - len(self._steps),
            num_steps=self._steps_per_pass,
        )
        units = (self._steps.popleft() * self._every + self._first).tolist()
        if index is None:
            return Draw(units, in_pass=in_pass)
        return Draw(*index.select(units), in_pass=in_pass)

    def _begin(self, num_units: int) -> None:
        # Coins are drawn for a pass as a whole, under a key that is used for it alone.
        # Of several ranks, each allocates every n-th unit, whose rows stay together.
        share = range(self._first, num_units, self._every)
        self._pass = new_pass()
        self._steps.extend(
            allocate_at_random(len(share), num_steps=self._steps_per_pass)
        )
