"""Are rounds by cyclic Poisson sampling what they claim to be?

Shapes: ``R`` complete rounds, ``N`` records in the data.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dp import _checks
from dp._reports import Finding
from dp.audit._draws import Draws
from dp.audit._observation import Observation
from dp.audit._statistics import binomial_p, finding, sizes_p
from dp.audit._subject import Bools


__all__ = ("about_rounds",)

Groups = NDArray[np.int_]
_UNKNOWN = -1


def about_rounds(
    first: Observation, second: Observation, included_M: Bools
) -> Iterator[Finding]:
    """Test that each record has a group by a coin, and joins its turns by others.

    Args:
        first: A run.
        second: The same, resumed.
        included_M: Which records are in the data.
    """
    bands = first.bands or 1
    yield _one_group(first, included_M)
    ours, theirs = (_groups_of(run, included_M) for run in (first, second))
    known_N = ours[ours != _UNKNOWN]
    if not len(known_N):
        return
    yield finding(
        "sampling: groups of equal chances",
        sizes_p(np.bincount(known_N, minlength=bands)[None]),
    )
    yield _same("over records", ours[:-1], ours[1:], bands)
    yield _same("over restarts", ours, theirs, bands)
    yield from _about_coins(first, included_M, bands)


def _about_coins(run: Observation, included_M: Bools, bands: int) -> Iterator[Finding]:
    """Test the coins of whole rounds, of which each record flips one in each."""
    drawn_TN = run.drawn()[:, included_M]
    taken_RN = np.array([drawn_TN[rows].any(axis=0) for rows in _whole(run)])
    coin = _checks.cyclic_coin(float(run.sampling_probabilities()[0, 0]), bands)
    if coin >= 1:
        yield Finding(
            claim="sampling: every record in every round",
            holds=bool(taken_RN.all()),
            detail=f"{int((~taken_RN).sum())} were left out",
        )
        return
    draws = Draws(taken_RN, coin)
    yield draws.rate()
    yield draws.sizes()
    yield draws.every_record()
    yield draws.in_a_row("sampling: independent over rounds", taken_RN)
    yield draws.in_a_row("sampling: independent over neighbours", taken_RN.T)


def _one_group(run: Observation, included_M: Bools) -> Finding:
    """No record has a turn of two groups of one chain."""
    drawn_TN = run.drawn()[:, included_M]
    most = max(
        int(
            np.sum([drawn_TN[rows].any(axis=0) for rows in turns], axis=0).max(
                initial=0
            )
        )
        for turns in run.turns()
    )
    return Finding(
        claim="sampling: every record in one group",
        holds=most <= 1,
        detail=f"in up to {most} of {run.bands}",
    )


def _groups_of(run: Observation, included_M: Bools) -> Groups:
    """Return the group of every record in the first chain, [N]; -1 if it is unknown.

    Known is what was drawn in a whole round: all groups have as many turns of those.
    """
    drawn_TN = run.drawn()[:, included_M]
    whole = {row for rows in _whole(run) for row in rows}
    taken = np.array(
        [
            drawn_TN[[row for row in rows if row in whole]].any(axis=0)
            for rows in run.turns()[0]
        ]
    )
    return np.where(taken.any(axis=0), taken.argmax(axis=0), _UNKNOWN)


def _whole(run: Observation) -> list[list[int]]:
    return [rows for rows in run.passes() if len(rows) == run.bands]


def _same(what: str, left: Groups, right: Groups, bands: int) -> Finding:
    """Two coins show the same group as often as independent ones."""
    both = (left != _UNKNOWN) & (right != _UNKNOWN)
    together, trials = int((left == right)[both].sum()), int(both.sum())
    return finding(
        f"sampling: groups independent {what}",
        binomial_p(together, trials, 1 / bands) if trials else 1.0,
        f"{together / max(1, trials):.5f} in the same group, {1 / bands:g} if so",
    )
