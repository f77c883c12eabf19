"""What a plan may not ask for where several steps have one charge.

No bound is proven for it; so whoever makes such a plan is told, by the name of the number.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from dp.schedule import Schedule


__all__ = ("OneCharge",)


class OneCharge:
    """Base class of schemes in which a pass, or a round, has one charge.

    Attributes:
        _NAMED: How batches are drawn, in words.
        _PART: What is charged at once.
        _LENGTH: The name of the number of its steps.
        _COVERS_GROUPS: Whether a bound is proven for units that differ together.
    """

    __slots__ = ()
    _NAMED: ClassVar[str]
    _PART: ClassVar[str]
    _LENGTH: ClassVar[str]
    _COVERS_GROUPS: ClassVar[bool] = False

    def check_plan(
        self,
        *,
        steps: int,
        group_size: int = 1,
        renyi_order: float | str | None = None,
        **values: float | Schedule,
    ) -> None:
        """Raise unless a plan has whole passes or rounds, and *values* that hold throughout.

        Raises:
            ValueError: If it has not, with what it has.
        """
        named, part = self._NAMED, self._PART
        if group_size > 1 and not self._COVERS_GROUPS:
            raise ValueError(
                f"group_size must be 1 with {named}, got {group_size!r}: no bound is"
                " proven for groups; plan with PoissonSampling, or make a group one unit"
            )
        if renyi_order is not None:
            raise ValueError(
                f"renyi_order must be None with {named}, got {renyi_order!r}: no bound is"
                f" proven for less noise in some step of a {part}; plan with"
                " PoissonSampling"
            )
        self._check_constant(values)
        per_charge: int = getattr(self, self._LENGTH)
        if steps % per_charge:
            whole = -(-steps // per_charge) * per_charge
            raise ValueError(
                f"steps must be a multiple of {self._LENGTH}={per_charge}, since a part"
                f" of a {part} costs as much as all of it, got {steps}; plan for {whole}"
            )

    def _check_constant(self, values: Mapping[str, Any]) -> None:
        parts = "passes" if self._PART == "pass" else "rounds"
        for name, value in values.items():
            if isinstance(value, Schedule):
                raise ValueError(  # noqa: TRY004 -- a schedule is right elsewhere
                    f"{name} must be a number with {self._NAMED}, whose {parts} have one"
                    f" charge each, got {value!r}; plan with PoissonSampling for a"
                    " schedule"
                )
