"""What a caller of :func:`dp.private` asks for, and the plan that follows from it."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from torch import Tensor

from dp import _checks
from dp.calibration._epochs import steps_of_epoch
from dp.plan import PrivacyPlan, plan_for
from dp.sampling._units import ONE_EXAMPLE, Units


__all__ = ("Request",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The public numbers that a trainer does not know.

    Attributes:
        epsilon: The epsilon that the whole run may cost at most.
        delta: The delta it is for.
        dataset_size: How many units of privacy the training data hold: a public number.
        units: The column that says whose each row is, or one value a row; None if each
            row is a unit of its own.
        max_per_unit: The most rows of a unit in a batch; None for no limit.
        max_grad_norm: The clipping norm; None for the trainer's own number.
        epochs: How often each unit is drawn on average; None where the trainer says it.

    Raises:
        ValueError: If a number is out of range.
    """

    epsilon: float
    delta: float
    dataset_size: int
    units: str | Units | None = None
    max_per_unit: int | None = None
    max_grad_norm: float | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        _checks.positive(epsilon=self.epsilon)
        _checks.open_unit(delta=self.delta)
        _checks.count(dataset_size=self.dataset_size)
        if self.max_grad_norm is not None:
            _checks.clipping_norm(max_grad_norm=self.max_grad_norm)
        if self.epochs is not None:
            _checks.positive(epochs=self.epochs)
        if self.max_per_unit is not None:
            _checks.count(max_per_unit=self.max_per_unit)
            if self.units is None:
                raise ValueError(
                    f"max_per_unit={self.max_per_unit!r} limits the rows of a unit, but"
                    " every row is a unit of its own; pass units= as well"
                )

    @property
    def unit_of_privacy(self) -> str:
        """Whose data one unit is, as plans say it."""
        if self.units is None:
            return ONE_EXAMPLE
        name = self.units if isinstance(self.units, str) else "the units given"
        return f"one value of {name}"

    @property
    def assumptions(self) -> tuple[str, str]:
        """What the certificate has to say of what a trainer was built from."""
        what = "examples" if self.units is None else "units"
        return (
            (
                f"That the training data hold about {self.dataset_size} {what} is"
                " public: the sampling probability and the number of steps follow from it."
            ),
            "The weights that the run began with were not computed from these data.",
        )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches of *batch_size* units hold each unit once on average."""
        return steps_of_epoch(self.dataset_size, batch_size)

    def plan(
        self, *, batch_size: int, max_grad_norm: float, steps: int | None = None
    ) -> PrivacyPlan:
        """Return the plan of a trainer that would take *batch_size* units a step.

        Args:
            batch_size: Units of a step on all devices together, on average.
            max_grad_norm: The trainer's own clipping norm.
            steps: How many steps the trainer takes; None to follow from ``epochs``.

        Raises:
            ValueError: If a batch would be larger than the dataset, or if no noise
                keeps the target.
        """
        if batch_size > self.dataset_size:
            raise ValueError(
                f"a step takes {batch_size} examples (per device, times accumulation,"
                f" times devices), more than dataset_size={self.dataset_size}; make the"
                " batches smaller, or correct dataset_size"
            )
        if steps is None:
            assert self.epochs is not None  # noqa: S101 -- asked by the adapters
            steps = math.ceil(self.epochs * self.steps_per_epoch(batch_size))
        return plan_for(
            target_epsilon=self.epsilon,
            target_delta=self.delta,
            sampling_probability=batch_size / self.dataset_size,
            steps=steps,
            expected_batch_size=batch_size,
            max_grad_norm=(
                max_grad_norm if self.max_grad_norm is None else self.max_grad_norm
            ),
            unit_of_privacy=self.unit_of_privacy,
        )

    def units_of(self, dataset: Any) -> Units | None:
        """Return the unit of every row of *dataset*.

        Raises:
            ValueError: If the column that ``units`` names is not there.
        """
        if self.units is None or not isinstance(self.units, str):
            return self.units
        return _column(dataset, self.units)


def _column(dataset: Any, name: str) -> Units:
    """Return a column of a dataset: of ``datasets``, a mapping, or rows that are ones."""
    names = getattr(dataset, "column_names", None)
    if names is not None and name in names:
        return _values(dataset[name])
    if names is None and len(dataset):
        first = dataset[0]
        names = list(first) if hasattr(first, "keys") else []
        if name in names:
            return [row[name] for row in dataset]
    raise ValueError(
        f"units={name!r} names no column of the training data; there are {names or []}."
        " Name one of them, or give the dataset the column before the trainer is built"
    )


def _values(column: Any) -> Units:
    if isinstance(column, Tensor | np.ndarray | list):
        return column
    return list(column)  # A column of `datasets` is read lazily.
