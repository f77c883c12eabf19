"""Judge any wrapper class, ours or foreign, by the laws of forwarding.

:func:`law_tests` makes a pytest test for each law. :func:`check` is for one test of
all: it raises at the first law that is broken, with the shortest program that
breaks it. :func:`judge` reports on all laws. :func:`machine_for` builds a
hypothesis state machine that mixes all operations.

Only this package needs hypothesis: ``pip install forwarding[testing]``.
"""

try:
    from forwarding.testing._judge import check, judge
    from forwarding.testing._law import Law, LawBrokenError
    from forwarding.testing._laws import LAWS
    from forwarding.testing._machine import WrapperMachine, machine_for
    from forwarding.testing._options import Options
    from forwarding.testing._report import Report, Verdict
    from forwarding.testing._tests import law_tests
except ModuleNotFoundError as _error:
    raise ImportError(
        f"forwarding.testing needs {_error.name}: pip install 'forwarding[testing]'"
    ) from _error


__all__ = (
    "LAWS",
    "Law",
    "LawBrokenError",
    "Options",
    "Report",
    "Verdict",
    "WrapperMachine",
    "check",
    "judge",
    "law_tests",
    "machine_for",
)
