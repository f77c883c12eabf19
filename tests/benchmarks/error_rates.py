"""Repeat statistical tests, and tell how often they fail and how nearly they did.

    python tests/benchmarks/error_rates.py --times 300 tests/dp/test_audit.py
    python tests/benchmarks/error_rates.py tests/dp -k "noise and planned"

What follows the options goes to pytest; without a mark of its own, only tests that are
marked ``statistical`` run. A test of a right build that fails is a false alarm; a twin,
a test of a broken build, that fails is a defect that was missed. Failures that come once in a million
runs are not seen in hundreds, so the numbers that tests decide by (the fixture
``decisions``) are taken down, too: how many of their standard deviations lie between
their mean and their limit, and how often a normal number would be beyond it. p-values
are on the scale of a normal score; those of right builds have a false-alarm rate by
construction, and it is told in how many runs they were below 1 %.

The exit code is 1 if a test failed.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from _pytest.runner import runtestprotocol
from scipy import stats


@dataclass
class Repeated:
    """What became of one test in all its runs."""

    runs: int = 0
    failures: int = 0
    # By the name of a decision: value and limit of every run.
    decided: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )


class Repeat:
    """A plugin that runs every test many times in place of once."""

    def __init__(self, times):
        self.times = times
        self.tests = defaultdict(Repeated)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """Run a test as often as was asked for; report its first run and failure."""
        test = self.tests[item.nodeid]
        for _ in range(self.times):
            item.user_properties.clear()
            reports = runtestprotocol(item, log=False)
            failed = any(report.failed for report in reports)
            if test.runs == 0 or (failed and not test.failures):
                for report in reports:
                    item.ihook.pytest_runtest_logreport(report=report)
            test.runs += 1
            test.failures += failed
            if any(report.skipped for report in reports):
                break
            for name, value in item.user_properties:
                test.decided[name].append(value)
        return True

    def pytest_terminal_summary(self, terminalreporter):
        """Print the table."""
        terminalreporter.write_sep("=", "rates of failure, with 95 % confidence")
        for name, test in self.tests.items():
            others = test.runs - test.failures
            most = stats.beta.ppf(0.95, test.failures + 1, others) if others else 1.0
            terminalreporter.write_line(
                f"{name}: {test.failures} of {test.runs} failed: at most {most:.2%}"
            )
            for decision, pairs in test.decided.items():
                terminalreporter.write_line(f"    {decision}: {told(pairs)}")


def told(pairs):
    """Return how far values are from their limits, in words."""
    gaps = [value - limit for value, limit in pairs]
    mean = statistics.fmean(gaps)
    if mean < 0 and all(limit == SCORE_LIMIT for _, limit in pairs):
        share = sum(value > SCORE_AT_ONE_PERCENT for value, _ in pairs) / len(pairs)
        return f"p < 1 % in {share:.1%} of runs"
    spread = statistics.pstdev(gaps)
    if not spread:
        return f"{mean:+.4g} from its limit in every run"
    distance = abs(mean) / spread
    sides = {gap > 0 for gap in gaps}
    return (
        f"{'above' if mean > 0 else 'below'} its limit by {abs(mean):.4g},"
        f" {distance:.1f} standard deviations"
        f" (beyond it: {stats.norm.sf(distance):.1g} if normal)"
        + ("" if len(sides) == 1 else "; ON BOTH SIDES OF IT")
    )


SCORE_LIMIT = float(stats.norm.isf(1e-9 / 2))
SCORE_AT_ONE_PERCENT = float(stats.norm.isf(0.01 / 2))


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="runs of each test")
    arguments, others = parser.parse_known_args()
    if "-m" not in others:
        others += ["-m", "statistical"]
    return pytest.main(["-q", *others], plugins=[Repeat(arguments.times)])


if __name__ == "__main__":
    sys.exit(main())
