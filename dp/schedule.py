"""A public number that changes with the step, decided before the run."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

from dp import _checks


__all__ = ("Schedule", "rounded_up", "runs_of", "value_at", "values_of")


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """Phases of some steps each, with one value a phase; the last one goes on.

    For ``noise_multiplier`` and ``max_grad_norm`` of a :class:`~dp.plan.PrivacyPlan`. It is
    a value that knows nothing but the number of a step, so it cannot follow a loss.

    >>> schedule = Schedule([(100, 2.0), (200, 1.5)])
    >>> schedule(0), schedule(99), schedule(100), schedule(1000)
    (2.0, 2.0, 1.5, 1.5)

    Args:
        phases: The number of steps and the value of each phase, in order.

    Raises:
        ValueError: If there is no phase, or a number is out of range.
    """

    phases: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        phases = tuple(
            (
                _checks.count(steps_of_a_phase=steps),
                _checks.non_negative(value_of_a_phase=value),
            )
            for steps, value in self.phases
        )
        if not phases:
            raise ValueError(
                "a schedule needs a phase: Schedule([(steps, value), ...])"
            )
        object.__setattr__(self, "phases", phases)

    @classmethod
    def of(
        cls, value_at: Callable[[int], float], *, steps: int, digits: int = 3
    ) -> "Schedule":
        """Return the schedule of a function of the step, evaluated now.

        >>> Schedule.of(lambda step: 2 * 0.99**step, steps=200)(100)
        0.733

        Args:
            value_at: The value at step 0, 1, ...
            steps: How many steps to evaluate it for.
            digits: Significant digits that are kept, rounding up. Fewer make fewer
                phases; each phase of noise adds to the time of accounting.
        """
        values = [
            rounded_up(value_at(step), digits=digits)
            for step in range(_checks.count(steps=steps))
        ]
        return cls(tuple((len(list(run)), value) for value, run in groupby(values)))

    def __call__(self, step: int) -> float:
        """Return the value at *step*, which counts from 0."""
        value = self.phases[-1][1]
        for count, value in self.phases:  # noqa: B007 -- the last one is what is found
            step -= count
            if step < 0:
                break
        return value

    def phases_until(self, num_steps: int) -> Iterator[tuple[int, float]]:
        """Yield how many of the first *num_steps* steps have which value, in order."""
        for count, value in self.phases:
            yield from [(min(count, num_steps), value)] if num_steps > 0 else []
            num_steps -= count
        if num_steps > 0:
            yield num_steps, self.phases[-1][1]

    def scaled(self, factor: float) -> "Schedule":
        """Return the schedule of the same shape, *factor* times as large."""
        return Schedule(tuple((steps, value * factor) for steps, value in self.phases))


def rounded_up(value: float, *, digits: int) -> float:
    """Return the least number of so many significant digits that is not below *value*.

    >>> rounded_up(0.12301, digits=3), rounded_up(2.0, digits=3)
    (0.124, 2.0)

    Raises:
        ValueError: If *value* is negative or not finite.
    """
    value = _checks.non_negative(value_of_a_phase=value)
    if value == 0:
        return value
    rounded = float(f"{value:.{digits}g}")
    if rounded >= value:
        return rounded
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{rounded + unit:.{digits}g}")


def values_of(number: float | Schedule) -> Sequence[float]:
    """Return every value that *number* takes."""
    if isinstance(number, Schedule):
        return [value for _steps, value in number.phases]
    return [number]


def value_at(number: float | Schedule, step: int) -> float:
    """Return the value at *step*, which counts from 0."""
    return number(step) if isinstance(number, Schedule) else number


def runs_of(number: float | Schedule, num_steps: int) -> Iterable[tuple[int, float]]:
    """Return how many of the first *num_steps* steps have which value, in order."""
    if isinstance(number, Schedule):
        return number.phases_until(num_steps)
    return [(num_steps, number)] if num_steps else []
