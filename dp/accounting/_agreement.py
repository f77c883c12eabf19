"""Compare the vectorised losses of this package with ``dp_accounting``'s own.

Budgets are kept and plans are made by :mod:`dp.accounting._sampled_losses` and
:mod:`dp.accounting._group_losses`. Before a number is published, the same releases are
composed by ``dp_accounting`` alone, in buckets of the same width: an error in these
modules, or a release of a library that they do not fit, is an error there and then.
"""

from functools import lru_cache
from typing import Final

from dp._typing import NeighboringRelation
from dp.accounting import _resolution
from dp.accounting._accountant import epsilon
from dp.accounting._composition import (
    affordable,
    epsilon_by_delta,
    rounding,
)
from dp.accounting._groups import GROUP_TOLERANCE
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release, is_allocated
from dp.accounting._widths import interval_for
from dp.exceptions import PrivacyError


__all__ = ("TOLERANCE", "check_agreement")

TOLERANCE: Final = 1e-6
"""Relative difference up to which two epsilons count as equal but for rounding."""
_PAIR: Final = 2


@lru_cache(maxsize=256)
def check_agreement(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    claimed_size: int = 1,
    *,
    of_example: bool = True,
) -> None:
    """Compose *releases* twice: by this package's losses, and by ``dp_accounting``'s.

    An example, or as many as the claim is about, is compared in the buckets of the
    epsilon that is claimed, a pair of examples in the widest ones that are ever used. One
    kind of release takes about a second; what agreed once is not composed again.

    Args:
        releases: What a certificate is about.
        delta: The delta of its epsilon.
        relation: What neighbouring datasets are.
        claimed_size: How many examples the claim is about.
        of_example: Whether to compare an example; not where its charges were composed
            by :mod:`dp.certificate._recomputation`.

    Random allocation is unknown to ``dp_accounting``. Its epsilon is compared with a
    lower bound instead, which shares nothing with the upper one.

    Raises:
        PrivacyError: If the two differ by more than one part in a million, and more
            than rounding explains, or if the lower bound is not below.
    """
    if not releases or any(release.noise_multiplier == 0 for release in releases):
        return
    # What is left of releases that the library knows is compared as usual.
    if is_allocated(releases):
        _compare_with_lower_bound(releases, delta, relation)
        releases = tuple(r for r in releases if not is_allocated([r]))
        if not releases:
            return
    # An example in the very buckets of the claim, so that equal means equal up to
    # rounding.
    if of_example:
        _compare(releases, delta, relation, group_size=1, tolerance=_resolution.TIGHT)
    if any(release.truncation for release in releases):
        return  # A group is a chain of examples then.
    # A pair in wide buckets: a wrong formula shows in any, and narrow ones take long.
    groups = {_PAIR: 1.0}
    if claimed_size > 1:
        groups[claimed_size] = GROUP_TOLERANCE
    for size, tolerance in groups.items():
        _compare(
            releases, delta, "add_or_remove_one", group_size=size, tolerance=tolerance
        )


def _compare_with_lower_bound(
    releases: tuple[Release, ...], delta: float, relation: NeighboringRelation
) -> None:
    from dp.accounting._lower_bounds import lower_bound  # noqa: PLC0415 -- scipy

    upper = epsilon(releases, delta=delta, neighboring_relation=relation).epsilon
    lower = lower_bound(releases, delta)
    # NaN is no agreement.
    if not lower <= upper:
        raise PrivacyError(
            f"epsilon of {releases!r} is {upper!r} by the losses of this package, but at"
            f" least {lower!r} by its lower bound, for delta {delta!r} and"
            f" {relation!r}: one of the two is wrong, so nothing is certified. Please"
            " report it"
        )


def _compare(
    releases: tuple[Release, ...],
    delta: float,
    relation: NeighboringRelation,
    *,
    group_size: int,
    tolerance: float,
) -> None:
    releases = affordable(releases, delta, relation, group_size)
    interval = interval_for(releases, delta, relation, group_size, tolerance)
    if interval > _resolution.LARGEST:  # An epsilon of many such buckets says nothing,
        return  # and its exponential is no number, whoever computes it.
    ours, theirs = (
        float(
            epsilon_by_delta(
                releases,
                relation=relation,
                group_size=group_size,
                interval=interval,
                library=accountant,
            )(delta)
        )
        for accountant in (None, ReferenceAccountant())
    )
    # Example: 100 000 releases round delta by 1e-11. At delta 1e-5 that is one part in
    # a million, as much again as is allowed anyway.
    allowed = TOLERANCE + rounding(releases) / delta
    # Infinity equals infinity, whose difference is NaN.
    if ours != theirs and not abs(ours - theirs) <= allowed * max(ours, theirs):
        raise PrivacyError(
            f"epsilon of {releases!r} is {ours!r} by the losses of this package, but"
            f" {theirs!r} by dp_accounting's, for {group_size} example(s), delta"
            f" {delta!r} and {relation!r}: one of the two is wrong, so nothing is"
            " certified. Please report it, with the version of dp-accounting"
        )
