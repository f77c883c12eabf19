"""How good a model was along its run, for a report: no part of a certificate."""

from dataclasses import dataclass
from typing import final


__all__ = ("Scores",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores along a run, on data that privacy does not cover, for a report.

    They are no part of a certificate, and nothing verifies them.

    Args:
        name: What is measured, such as ``"accuracy"``.
        data: What was trained on, in words.
        steps: After how many steps it was measured.
        values: What was measured then, one number a step.
        without_privacy: The steps and values of a run without privacy, to compare with.
        verdict: What came of it, in a sentence.
        is_good: Whether the model is better than one that knows nothing; None if that
            was not asked.
        highest: The best value there is, such as 1; None if there is none.

    Raises:
        ValueError: If there is not one value for each step.
    """

    name: str
    data: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    without_privacy: tuple[tuple[int, float], ...] = ()
    verdict: str = ""
    is_good: bool | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(
                f"values must be one for each of the {len(self.steps)} steps, got"
                f" {len(self.values)} values"
            )
