"""What several certificates state, each charge once.

A run that went on from another one's checkpoint has its charges, too, and what remained
of the earlier one is what the later one charged since, and what remains of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dp.certificate._run import CertifiedRun
from dp.certificate._sentences import released
from dp.evidence import Evidence, longest
from dp.ledger._remarks import weakest
from dp.ledger._segments import merge


if TYPE_CHECKING:
    from dp.ledger import Charge

__all__ = ("without_repeats",)


def without_repeats(runs: list[CertifiedRun]) -> tuple[CertifiedRun, ...]:
    """Leave out segments, or the part of them, that an earlier run has as well."""
    known: dict[str, tuple[Charge, ...]] = {}
    evidence: dict[str, Evidence] = {}
    for run in runs:
        for key, segment in run.segments.items():
            known[key] = merge(known.get(key, ()), segment, key)
            evidence[key] = longest(evidence.get(key), run.evidence[key])
    kept = []
    for index, run in enumerate(runs):
        ours = {key: known.pop(key) for key in run.segments if key in known}
        seen = {key: evidence[key] for key in ours}
        later = [
            other
            for i, other in enumerate(runs)
            if i != index
            and _continues(other, run)
            and (not _continues(run, other) or i < index)
        ]
        # Who went on may say that the end was public, and have no charges left to state.
        ends = [] if run.public_end else [o.public_end for o in _last(later)]
        said = replace(
            _said_of(run, runs),
            segments=ours,
            evidence=seen,
            remaining=() if later else run.remaining,
            public_end=next(filter(None, ends), run.public_end),
        )
        kept.append(said)
    # A failed run counts even if an earlier certificate has all that it was charged. So
    # do queries: whether two runs asked the same ones, or each its own, is not known.
    counted = [
        run
        for run in kept
        if run.segments or run.remaining or run.has_failed or run.plan.queries
    ]
    return tuple(counted) or tuple(kept[:1])


def _said_of(run: CertifiedRun, runs: Sequence[CertifiedRun]) -> CertifiedRun:
    """Return *run* with what is said of its charges where others state them, too."""
    # Example: two optimizers share a ledger, and one took noise from "fast". Each
    # states all charges, which count once, in one of the two documents.
    others = [
        o for o in runs if o is run or not run.segments.keys().isdisjoint(o.segments)
    ]
    weakest_rng = run.rng
    for other in others:
        weakest_rng = weakest(weakest_rng, other.rng)
    declared = [name for o in others for name in o.declared_public]
    return replace(
        run,
        rng=weakest_rng,
        noise=next(o.noise for o in others if o.rng == weakest_rng),
        num_parameters=max(o.num_parameters for o in others),
        declared_public=tuple(dict.fromkeys([*run.declared_public, *declared])),
        num_advisories=min(o.num_advisories for o in others),
        released=released(others),
    )


def _last(runs: Sequence[CertifiedRun]) -> list[CertifiedRun]:
    """Return the runs that none of the others goes on from."""
    return [
        run
        for run in runs
        if not any(_continues(o, run) and not _continues(run, o) for o in runs)
    ]


def _continues(later: CertifiedRun, earlier: CertifiedRun) -> bool:
    """Whether *later* is the same run at the same point, or at a later one.

    What remained of it then is what it charged since, and what remains of it now. A run
    that took no step, and only answered, may be any other: none is known to go on.
    """
    return (
        later.plan == earlier.plan
        and bool(earlier.segments)
        and all(
            sum(c.count for c in later.segments.get(key, ()))
            >= sum(c.count for c in segment)
            for key, segment in earlier.segments.items()
        )
    )
