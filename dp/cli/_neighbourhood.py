"""A run's numbers beside those of half and twice its steps and sampling, and its plan."""

from collections.abc import Callable, Mapping
from typing import Final


__all__ = ("code_of_calibrated_plan", "code_of_plan", "table")

_FACTORS: Final = (0.5, 1.0, 2.0)
_WIDTH: Final = 12

At = Callable[[float, int], float]  # Of a sampling probability and steps.


def table(what: str, at: At, *, q: float, steps: int) -> str:
    """Return *what* by steps and sampling probability, around one run.

    Args:
        what: What *at* returns.
        at: Returns it for a sampling probability and a number of steps.
        q: The run's sampling probability.
        steps: The run's number of steps.
    """
    probabilities = sorted({min(1.0, q * factor) for factor in _FACTORS})
    counts = sorted({max(1, round(steps * factor)) for factor in _FACTORS})
    head = "".join(f"{f'q = {p:.4g}':>{_WIDTH}}" for p in probabilities)
    lines = [f"About the {what}, by steps (down) and sampling probability q (across):"]
    lines.append(f"{'':>{_WIDTH}}{head}")
    for count in counts:
        cells = "".join(f"{at(p, count):>{_WIDTH}.3g}" for p in probabilities)
        lines.append(f"{count:>{_WIDTH}}{cells}")
    return "\n".join(lines)


def code_of_plan(
    *, q: float, steps: int, sigma: float, delta: float, others: Mapping[str, str]
) -> str:
    """Return code that makes the plan of a run."""
    sampling = (
        "dp.Unamplified()"
        if q == 1
        else f"dp.PoissonSampling(sampling_probability={q!r})"
    )
    return _code(
        "dp.PrivacyPlan",
        {
            "sampling": sampling,
            "noise_multiplier": repr(sigma),
            "expected_batch_size": _batch(q),
            "max_grad_norm": "1.0",
            "steps": repr(steps),
            "target_delta": repr(delta),
            **others,
        },
    )


def code_of_calibrated_plan(
    goal: Mapping[str, str],
    *,
    q: float,
    steps: int,
    delta: float,
    others: Mapping[str, str],
) -> str:
    """Return code that calibrates a plan to *goal*, an argument as code."""
    numbers = {
        **goal,
        "target_delta": repr(delta),
        "sampling_probability": repr(q),
        "steps": repr(steps),
        "expected_batch_size": _batch(q),
        "max_grad_norm": "1.0",
        **others,
    }
    if q == 1:  # A loader of one's own, which draws nothing.
        del numbers["sampling_probability"]
    return _code("dp.plan_for", numbers)


def _code(function: str, numbers: dict[str, str]) -> str:
    arguments = "".join(f"    {name}={value},\n" for name, value in numbers.items())
    return (
        "import dp\n\n"
        "num_examples = 10_000  # Yours, as a public number.\n"
        f"plan = {function}(\n{arguments})"
    )


def _batch(q: float) -> str:
    return "num_examples" if q == 1 else f"{q!r} * num_examples"
