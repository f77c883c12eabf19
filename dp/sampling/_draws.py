"""The coins that decide which units join a batch.

They come from the operating system, never from the generators of torch, numpy or
random, so no seed has an effect on them.

A draw flips one coin for each of ``n`` units. Flipping them one by one costs time and
memory for all ``n``; where few of them win, it is the same to draw first how many do,
and then which: ``k`` from the binomial distribution and a uniform subset of size ``k``
(two draws, one law). So a batch of ten from a billion costs as much as from a thousand.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp import _checks
from dp._keystream import Keystream, are_replayed


__all__ = ("allocate_at_random", "deal_at_random", "poisson_sample", "random_subset")

# Above it, coins one by one are as fast, and a subset would be drawn with many ties.
_MOST_BY_COUNT: Final = 1 / 16
_BITS: Final = 256  # Of the fixed-point numbers of a binomial distribution.
_WORD: Final = np.dtype(np.uint64)


def poisson_sample(num_examples: int, *, sampling_probability: float) -> list[int]:
    """Return the indices that independent coin flips select, in ascending order.

    >>> poisson_sample(3, sampling_probability=1.0)
    [0, 1, 2]

    Guarantees:
        * Each index is selected independently, with a probability of at most
          *sampling_probability* and less than ``2**-64`` below it; for a probability
          below 1/16, the law of the selection is exact up to a total variation of
          ``2**-180``.
        * The coins are a keystream under a fresh 256-bit key of the OS.
        * The order is that of the dataset, so it tells nothing beyond the selection.
        * Time and memory grow with the number of selected indices, below 1/16.

    Raises:
        ValueError: If the probability is outside ``(0, 1]``.
    """
    _checks.probability(sampling_probability=sampling_probability)
    if sampling_probability == 1:
        return list(range(num_examples))
    # Example: of a million examples with q = 1e-4 first a number is drawn, say 97, and
    # then 97 of them: 97 words and not a million.
    # An audit replays a run on one example less, and needs everybody else's coins again.
    if sampling_probability < _MOST_BY_COUNT and not are_replayed():
        count = _binomial(num_examples, sampling_probability)
        return _distinct_indices(count, num_examples)
    # q = 0.25 is 2**62: a word below it wins.
    threshold = np.uint64(int(sampling_probability * 2.0**64))  # Exact, then floor.
    coins = Keystream().integers(num_examples, _WORD)
    selected: list[int] = np.flatnonzero(coins < threshold).tolist()
    return selected


def allocate_at_random(
    num_examples: int, *, num_steps: int
) -> list[NDArray[np.uint64]]:
    """Return the indices that each step gets, in ascending order.

    >>> [step.tolist() for step in allocate_at_random(3, num_steps=1)]
    [[0, 1, 2]]

    Guarantees:
        * Each index is in exactly one step, uniform among them and independent of the
          steps of all others: the law is exact.
        * The coins are a keystream under a fresh 256-bit key of the OS, one word for
          each example in their order. So with another one at the end, the others stay.
    """
    steps = _uniform(num_examples, num_steps, Keystream())
    # Steps 1, 0, 1 of three examples: step 0 has example 1, and step 1 has 0 and 2.
    order = np.argsort(steps, kind="stable").astype(_WORD)
    ends = np.cumsum(np.bincount(steps.astype(np.int64), minlength=num_steps))
    return np.split(order, ends[:-1])


def deal_at_random(num_examples: int, *, num_steps: int) -> list[NDArray[np.uint64]]:
    """Return the indices that each step gets, equally many but for one, ascending.

    >>> [len(step) for step in deal_at_random(5, num_steps=2)]
    [3, 2]

    Guarantees:
        * Each index is in exactly one step. The order that is cut is uniform among all
          of as many examples, whatever they are, and under a fresh 256-bit key of the
          OS. With another example, others are in other steps.
    """
    order = np.argsort(_distinct_words(num_examples)).astype(_WORD)
    return [np.sort(step) for step in np.array_split(order, num_steps)]


def random_subset(indices: Sequence[int], *, size: int) -> list[int]:
    """Return *size* of the indices, each set of them as likely, in their order.

    >>> random_subset([3, 5], size=2)
    [3, 5]
    """
    if len(indices) <= size:
        return list(indices)
    ranks = np.argsort(_distinct_words(len(indices)))[:size]
    return [indices[i] for i in np.sort(ranks)]


def _binomial(num_trials: int, probability: float) -> int:
    """Draw how many of *num_trials* coins win, by inversion in fixed point.

    Outcomes are tried from the likeliest outwards, so a draw looks at about as many as
    the standard deviation. Outwards from the mode each probability is the last one
    times a ratio of at most 1, so the rounding of ``i`` steps is at most ``i`` units of
    ``2**-256`` in a term; summed over the at most ``2**34`` terms that do not vanish,
    less than ``2**-180`` is missing, and goes to the mode.
    """
    if num_trials == 0:
        return 0
    # Example: probabilities 0.4 of the mode 2, then 0.25 of 3 and 0.2 of 1. A number of
    # 0.5 is 0.1 behind the mode, and so in 3.
    left = int.from_bytes(Keystream().integers(_BITS // 64, _WORD).tobytes())
    mode, at_mode = _mode(num_trials, probability)
    for outcome, mass in _outwards(num_trials, probability, mode, at_mode):
        left -= mass
        if left < 0:
            return outcome
    return mode


def _outwards(
    num_trials: int, probability: float, mode: int, at_mode: int
) -> Iterator[tuple[int, int]]:
    """Yield outcomes and their probabilities in fixed point, the mode first."""
    wins = Fraction(probability).numerator
    loses = Fraction(probability).denominator - wins
    above = below = mode
    mass_above = mass_below = at_mode
    yield mode, at_mode
    while mass_above or mass_below:
        if (
            mass_above
        ):  # pragma: no branch -- P(k + 1) = P(k) (n - k) / (k + 1) q / (1 - q)
            mass_above *= (num_trials - above) * wins
            above += 1
            mass_above //= above * loses
            yield above, mass_above
        if mass_below:  # P(k - 1) = P(k) k / (n - k + 1) (1 - q) / q
            mass_below *= below * loses
            mass_below //= (num_trials - below + 1) * wins
            below -= 1
            yield below, mass_below


@lru_cache(maxsize=64)
def _mode(num_trials: int, probability: float) -> tuple[int, int]:
    """Return the likeliest outcome and its probability in units of ``2**-256``."""
    from mpmath import mp, mpf, workprec  # noqa: PLC0415 -- a third of a second

    mode = (num_trials + 1) * Fraction(probability) // 1
    # The logarithms below have up to 48 digits before the point that cancel.
    with workprec(3 * _BITS):
        q = mpf(probability)
        log_mass = (
            mp.loggamma(num_trials + 1)
            - mp.loggamma(mode + 1)
            - mp.loggamma(num_trials - mode + 1)
            + mode * mp.log(q)
            + (num_trials - mode) * mp.log1p(-q)
        )
        return mode, int(mp.floor(mp.exp(log_mass) * 2**_BITS))


def _distinct_indices(count: int, num_examples: int) -> list[int]:
    """Return a uniform subset of ``range(num_examples)``, in ascending order.

    Independent uniform indices are drawn until *count* different ones are there; by
    symmetry each set of them is as likely.
    """
    keystream = Keystream()
    chosen = np.empty(0, _WORD)
    while len(chosen) < count:
        # Repetitions are left out and drawn again: below q = 1/16 they are few.
        more = _uniform(count - len(chosen), num_examples, keystream)
        chosen = np.sort(np.concatenate([chosen, more]))
        chosen = chosen[np.diff(chosen, prepend=chosen[:1] + 1) != 0]
    indices: list[int] = chosen.tolist()
    return indices


def _uniform(count: int, below: int, keystream: Keystream) -> NDArray[np.uint64]:
    """Return *count* integers that are uniform in ``range(below)``.

    Words of the last, partial round of remainders are drawn again: they would make
    small remainders likelier.
    """
    # Below 3: words up to 2**64 - 2 in rounds of 3, and the one that is left is drawn
    # again.
    largest = 2**64 - 2**64 % below - 1
    words = keystream.integers(count, _WORD)
    while len(surplus := np.flatnonzero(words > np.uint64(largest))):
        words[surplus] = keystream.integers(len(surplus), _WORD)
    return words % np.uint64(below)


def _distinct_words(count: int) -> NDArray[np.uint64]:
    """Return random numbers without a tie, which would prefer some orders."""
    keystream = Keystream()
    numbers = keystream.integers(count, _WORD)
    while len(np.unique(numbers)) < count:
        numbers = keystream.integers(count, _WORD)
    return numbers
