"""The report on one wrapper, law by law."""

import dataclasses
from typing import Literal, final

from forwarding.testing._law import Law


__all__ = ("Report", "Status", "Verdict")

Status = Literal["holds", "broken", "waived", "not applicable"]


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The finding about one law.

    Args:
        law: The law.
        status: ``"holds"``, ``"broken"``, ``"waived"`` or ``"not applicable"``.
        detail: The counterexample of a broken law, or the reason of the status.
        needless: The law is waived although it holds; known only if ``strict``.
        cause: The broken law that this one, also broken, is put down to; empty if
            it is a root.
    """

    law: Law
    status: Status
    detail: str = ""
    needless: bool = False
    cause: str = ""

    @property
    def summary(self) -> str:
        """The status, with the reason of one that is not kept."""
        if self.status == "broken":
            return f"broken, as {self.cause!r} is" if self.cause else "broken"
        return f"{self.status}: {self.detail}" if self.detail else self.status


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The findings about one wrapper.

    Args:
        label: The wrapper's name.
        verdicts: One for every law, in the order of ``LAWS``.
        depth: How many layers of wrappers were tried.
    """

    label: str
    verdicts: tuple[Verdict, ...]
    depth: int

    def __str__(self) -> str:
        """Return a table with one line for each law, and a line that sums it up."""
        width = max(len(verdict.law.name) for verdict in self.verdicts)
        return "\n".join(
            [
                self.label,
                *(f"{v.law.name:<{width}}  {v.summary}" for v in self.verdicts),
                self.summary,
            ]
        )

    def __getitem__(self, law: str) -> Verdict:
        """Return the verdict on one law."""
        return next(v for v in self.verdicts if v.law.name == law)

    def named(self, status: Status) -> tuple[str, ...]:
        """Return the names of the laws with this status."""
        return tuple(v.law.name for v in self.verdicts if v.status == status)

    @property
    def roots(self) -> tuple[str, ...]:
        """The broken laws that are put down to no other."""
        return tuple(
            v.law.name for v in self.verdicts if v.status == "broken" and not v.cause
        )

    def follow(self, root: str) -> tuple[str, ...]:
        """Return the broken laws that are put down to ``root``."""
        return tuple(v.law.name for v in self.verdicts if v.cause == root)

    @property
    def summary(self) -> str:
        """How many laws hold, how many are broken, and by which causes, in one line."""
        parts = [
            f"{len(self.named(status))} {told}{self._causes(status)}"
            for status, told in _TOLD.items()
            if self.named(status)
        ]
        layers = f"{self.depth} layer{'s' * (self.depth > 1)}"
        return f"{self.label}, {layers}: {', '.join(parts)}"

    def _causes(self, status: Status) -> str:
        if status != "broken":
            return ""
        causes = f"{len(self.roots)} cause{'s' * (len(self.roots) > 1)}"
        return f" for {causes} ({', '.join(self.roots)})"


# In the order of the line that sums up.
_TOLD: dict[Status, str] = {
    "holds": "hold",
    "broken": "broken",
    "waived": "waived",
    "not applicable": "not applicable",
}
