"""A loader that draws each step from one of several groups of the data, in turn."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

from torch.utils.data import Dataset

from dp.exceptions import SamplingMismatchError
from dp.sampling._cyclic_scheme import CyclicPoisson
from dp.sampling._draws import allocate_at_random, poisson_sample
from dp.sampling._loader import PoissonLoader
from dp.sampling._random_draws import Law
from dp.sampling._refused_arguments import reject_cyclic_arguments
from dp.sampling._ticket import PassStep, new_pass
from dp.sampling._units import Units


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ("CyclicPoissonLoader",)


class CyclicPoissonLoader(PoissonLoader):
    """Yield batches by :class:`~dp.sampling.CyclicPoisson` sampling, each with a ticket.

    One iteration is one chain of rounds: a coin of its own gives every example a group,
    once for all of the iteration, and step ``t`` draws from group ``t mod bands``. All
    else is as of :class:`PoissonLoader`.

    Args:
        dataset: Anything with ``__len__`` and ``__getitem__``.
        sampling_probability: The probability of each unit to be in a given batch.
        bands: How many groups there are.
        steps: Batches in one iteration, whole rounds of *bands*: ``len(loader)``.
            Correlation of noise ends with an iteration, so make it the whole run.
        units: The unit of privacy of every row; see :class:`PoissonLoader`. Units are
            grouped and drawn then, each with all of its rows.
        max_per_unit: The most rows of a unit in a batch; see there.
        collate_fn: Makes a batch of a list of examples.
        empty_batch: The batch of no examples; inferred if None.
        sharded: Whether *dataset* holds this process's examples only.
        arguments: What else torch's loader takes, but for the choice of batches.

    Raises:
        TypeError, ValueError: As :class:`PoissonLoader`; truncated batches
            (``max_batch_size``) and parts of rounds are refused, too.

    Guarantees:
        * Groups are independent of one another, of the data and of earlier iterations,
          and so are the coins of each step. Neither is kept in any state.
        * Neither the number of batches nor anything else public depends on
          ``len(dataset)`` or on what was drawn.
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        *,
        sampling_probability: float,
        bands: int,
        steps: int,
        units: Units | None = None,
        max_per_unit: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        empty_batch: Any = None,
        sharded: bool = False,
        **arguments: Any,
    ) -> None:
        reject_cyclic_arguments(arguments)
        self._cyclic = CyclicPoisson(
            sampling_probability=sampling_probability, bands=bands
        )
        self._cyclic.check_plan(steps=steps)
        super().__init__(
            dataset,
            sampling_probability=sampling_probability,
            steps=steps,
            units=units,
            max_per_unit=max_per_unit,
            collate_fn=collate_fn,
            empty_batch=empty_batch,
            sharded=sharded,
            **arguments,
        )

    @property
    def sampling(self) -> CyclicPoisson:
        """How batches are drawn."""
        return self._cyclic

    def _law(self) -> Law:
        return _Rounds(self._cyclic)


@final
class _Rounds:
    """Of a chain of rounds, in all of which a unit has the same group."""

    def __init__(self, scheme: CyclicPoisson) -> None:
        self._scheme = scheme
        self._chain = new_pass()
        self._round = 0
        self._position = 0
        self._num_units = 0
        self._groups: list[NDArray[np.uint64]] = []

    def __call__(self, num_units: int) -> tuple[list[int], PassStep]:
        """Return the units of the next step."""
        bands = self._scheme.bands
        # Groups are drawn here and not before: here the keys of a debugging seed hold.
        if not self._groups:
            self._num_units = num_units
            self._groups = allocate_at_random(num_units, num_steps=bands)
        if num_units != self._num_units:
            raise SamplingMismatchError(
                f"the dataset had {self._num_units} examples when this iteration began,"
                f" and has {num_units} now; each has a group for a whole iteration, so"
                " their number has to stay"
            )
        position, step = self._position, self._position % bands
        if step == 0:
            self._round = new_pass()
        self._position += 1
        group = self._groups[step]
        drawn = poisson_sample(
            len(group), sampling_probability=self._scheme.coin_probability
        )
        place = PassStep(
            number=self._round,
            step=step,
            num_steps=bands,
            chain=self._chain,
            position=position,
        )
        return group[drawn].tolist(), place
