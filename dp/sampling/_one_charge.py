"""What a plan may not ask for where several steps have one charge.

No bound is proven for it; so whoever makes such a plan is told, by the name of the number.
"""

from collections.abc import Mapping

from dp.schedule import Schedule


__all__ = ("check_one_charge", "check_whole")


def check_one_charge(
    scheme: str,
    part: str,
    *,
    group_size: int,
    renyi_order: float | str | None,
    values: Mapping[str, float | Schedule],
) -> None:
    """Raise if a plan asks for what is not proven where several steps have one charge.

    Args:
        scheme: How batches are drawn, in words.
        part: What is charged at once: a pass, or a round.
        group_size: How many units may differ.
        renyi_order: The order of a Renyi filter, if there is one.
        values: Numbers that must not change with the step.
    """
    if group_size > 1:
        raise ValueError(
            f"group_size must be 1 with {scheme}, got {group_size!r}: no bound is proven"
            " for groups; plan with PoissonSampling, or make a group one unit"
        )
    if renyi_order is not None:
        raise ValueError(
            f"renyi_order must be None with {scheme}, got {renyi_order!r}: no bound is"
            f" proven for less noise in some step of a {part}; plan with PoissonSampling"
        )
    for name, value in values.items():
        if isinstance(value, Schedule):
            raise ValueError(  # noqa: TRY004 -- a schedule is right elsewhere
                f"{name} must be a number with {scheme}, where each {part} has one"
                f" charge, got {value!r}; plan with PoissonSampling for a schedule"
            )


def check_whole(steps: int, part: str, **size: int) -> None:
    """Raise unless *steps* are a whole number of passes or rounds of *size*."""
    ((name, length),) = size.items()
    if steps % length:
        raise ValueError(
            f"steps must be a multiple of {name}={length}, since a part of a {part}"
            f" costs as much as all of it, got {steps}; plan for"
            f" {-(-steps // length) * length}"
        )
