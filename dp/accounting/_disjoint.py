"""Disjoint batches: of each pass, an example meets one release on all of the data.

In every pass of ``t`` steps each example is in the batch of one step only. Whoever knows
the step gains nothing by the others. *Claim*: a pass is dominated by one Gaussian
release on all of the data, whatever the gradients of a step depend on; so ``k`` passes
cost what ``k`` such releases cost, not ``k t`` (parallel composition).

*Proof.* Fix all coins, or the order, so that the step of every example is known; let
one example's be ``j``. Neighbouring datasets have the same batches but for the example
in step ``j``: under zero-out or replacement since its place stays, under adding or
removing since the others' steps are decided by coins of their own, which is why batches
cut by position are refused there. Given what was released before, each step but ``j`` is
the same mechanism for both, and step ``j`` adds noise of ``sigma C`` to sums that differ
by at most ``C`` (``2 C`` if replaced). Adaptive composition of pairs of which all but one
are equal is the pair of that one. It does not depend on ``j``, so it holds for a mixture
over the coins, too (joint convexity). A part of a pass is a projection of all of it.

A group of ``g`` examples may be spread over steps, ``g_i`` of them in step ``i``; the
distances ``g_i`` compose to ``sqrt(sum g_i**2) <= g``, that of all in one step.

Not covered: less noise in some step of a pass than was charged for it.

References:
    McSherry, "Privacy Integrated Queries", 2009, theorem 4 (parallel composition):
    https://doi.org/10.1145/1559845.1559850.
"""

from collections.abc import Iterable
from dataclasses import replace

from dp.accounting._release import Release, merge_equal_releases


__all__ = ("one_a_pass",)


def one_a_pass(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return *releases* with passes of disjoint batches as one release each.

    >>> from dp.accounting import Release
    >>> batches = Release(
    ...     sampling_probability=1.0,
    ...     noise_multiplier=2.0,
    ...     count=12,
    ...     steps_per_pass=5,
    ...     disjoint="coin",
    ... )
    >>> [release.count for release in one_a_pass([batches])]
    [3]

    Guarantees:
        * Those that are returned cost at least as much, under the relations that a
          :class:`~dp.accounting.Release` permits.
    """
    return merge_equal_releases(
        release
        if release.disjoint is None
        else replace(
            release,
            count=release.num_participations,
            steps_per_pass=None,
            disjoint=None,
        )
        for release in releases
    )
