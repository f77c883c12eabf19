"""Draw how many runs there are, and with which candidates, by the operating system."""

import secrets

from dp.accounting._selection import NumRuns


__all__ = ("draw_candidates", "draw_num_runs")


def draw_num_runs(runs: NumRuns) -> int:
    """Return a number of runs of the law *runs*, from 53 random bits."""
    coin = secrets.SystemRandom().random()
    number, total = 0, 0.0
    for number, probability in runs.probabilities():  # noqa: B007 -- the last one counts
        total += probability
        if coin < total:
            break
    return number


def draw_candidates(num_runs: int, num_candidates: int) -> list[int]:
    """Return which candidate each run takes: any of them, independently and alike."""
    return [secrets.randbelow(num_candidates) for _ in range(num_runs)]
