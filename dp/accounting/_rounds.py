"""What a round by cyclic Poisson sampling costs, also with correlated noise.

A round is one Poisson sample, at the coin of an eligible example. This is proven for
noise of at most as many bands as a round has steps, whose columns have norm 1 at most.

Take an example, and fix the coins of all others. It is eligible in the steps r, r + b,
r + 2 b, ... of a chain of rounds of b steps. If its coin of such a step t says so, it adds
the multiples ``c_0, ..., c_(b-1)`` of one vector v, of norm C at most, to the noised sums
of the steps t, ..., t + b - 1, all of which come before the next step that it is eligible
in. What these sums hold besides are earlier releases and other examples, so each is a
known number plus noise, plus its multiple of v. A block of b sums is therefore computed
from one Gaussian release of a vector of norm C at most, on a Poisson sample, whose v is
fixed when the block begins; and blocks compose, adaptively. The last block of a chain may
be cut short, and so may any, where the correlation begins anew at a step that earlier
releases decide: what is released of it is a part of the whole one.

The group r of the example is a coin of its own, or a public fact; any r costs the same.
What is proven for one release of the pair of a relation, is so for the rounds.

References:
    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023, Theorems 4 and
    5: https://arxiv.org/abs/2306.08153. Composition of dominating pairs: Zhu, Dong, Wang,
    "Optimal Accounting of Differential Privacy via Characteristic Function", 2021:
    https://arxiv.org/abs/2106.08567.
"""

from collections.abc import Iterable

from dp import _checks
from dp.accounting._release import Release, merge_equal_releases


__all__ = ("as_poisson", "is_cyclic", "without_rounds")


def without_rounds(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Return Poisson samples that cost what the releases cost, counted together."""
    return merge_equal_releases(map(as_poisson, releases))


def as_poisson(release: Release) -> Release:
    """Return the Poisson samples that cost what a kind of release costs."""
    if release.bands is None:
        return release
    return Release(
        sampling_probability=_checks.cyclic_coin(
            release.sampling_probability, release.bands
        ),
        noise_multiplier=release.noise_multiplier,
        count=release.num_participations,
    )


def is_cyclic(releases: Iterable[Release]) -> bool:
    """Whether any of the releases is on a step of a round by cyclic Poisson sampling."""
    return any(release.bands is not None for release in releases)
