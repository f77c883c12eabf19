"""What a plan may not ask for where several steps have one charge.

No bound is proven for it; so whoever makes such a plan is told, by the name of the number.
"""

from collections.abc import Mapping
from typing import Literal

from dp.schedule import Schedule


__all__ = ("check_one_charge",)


def check_one_charge(
    named: str,
    part: Literal["pass", "round"],
    *,
    steps: int,
    renyi_order: float | str | None,
    values: Mapping[str, float | Schedule],
    **length: int,
) -> None:
    """Raise unless a plan has whole passes, or rounds, each with one charge.

    Args:
        named: How batches are drawn, in words.
        part: What is charged at once.
        steps: How many steps the plan has.
        renyi_order: The order of a Renyi filter, if it has one.
        values: Numbers that must not change with the step.
        length: The steps of a pass or round, by their name.

    Raises:
        ValueError: If it has not, with what it has.
    """
    if renyi_order is not None:
        raise ValueError(
            f"renyi_order must be None with {named}, got {renyi_order!r}: no bound is"
            f" proven for less noise in some step of a {part}; plan with PoissonSampling"
        )
    parts = "passes" if part == "pass" else "rounds"
    for name, value in values.items():
        if isinstance(value, Schedule):
            raise ValueError(  # noqa: TRY004 -- a schedule is right elsewhere
                f"{name} must be a number with {named}, whose {parts} have one charge"
                f" each, got {value!r}; plan with PoissonSampling for a schedule"
            )
    ((name, per_charge),) = length.items()
    if steps % per_charge:
        whole = -(-steps // per_charge) * per_charge
        raise ValueError(
            f"steps must be a multiple of {name}={per_charge}, since a part"
            f" of a {part} costs as much as all of it, got {steps}; plan for {whole}"
        )
