"""The report of a check."""

import textwrap
from dataclasses import dataclass
from typing import Final, Literal, final

from dp._reports import Report


__all__ = ("CheckReport", "Problem", "Severity")

Severity = Literal["error", "warning", "note"]
_ORDER: Final = ("error", "warning", "note")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that was found.

    Attributes:
        severity: ``"error"`` where privacy or the run would break, ``"warning"``
            where it may, ``"note"`` where it only costs time.
        name: What kind of thing it is, the same in every report.
        detail: What was seen, with the names and numbers.
        remedy: What to do about it.
    """

    severity: Severity
    name: str
    detail: str
    remedy: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport(Report):
    """The problems that a check found, errors first.

    It was computed from the batch, which is private data: keep it to yourself.

    Guarantees:
        * :attr:`ok` is true only if there is no error.

    Attributes:
        problems: What was found; empty if nothing was.
        num_compared: How many examples' gradients were compared with what they are
            in other batches.
    """

    problems: tuple[Problem, ...]
    num_compared: int

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Problem, ...]:
        """Return the problems of one severity."""
        return tuple(p for p in self.problems if p.severity == severity)

    def to_text(self) -> str:
        """Return the report for people to read."""
        counts = [(len(self.of(severity)), severity) for severity in _ORDER]
        found = ", ".join(f"{n} {name}{'s' * (n > 1)}" for n, name in counts if n)
        compared = f"({self.num_compared} examples compared)"
        lines = [f"dp.check: {found or 'nothing found'} {compared}"]
        for problem in sorted(self.problems, key=lambda p: _ORDER.index(p.severity)):
            lines += [
                "",
                *_wrapped(
                    f"{problem.severity:8} {problem.name}: ", problem.detail, indent=9
                ),
                *_wrapped("         do: ", problem.remedy, indent=13),
            ]
        return "\n".join(lines)


def _wrapped(head: str, text: str, *, indent: int) -> list[str]:
    return textwrap.wrap(
        head + text,
        width=88,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
