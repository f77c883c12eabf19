"""How batches may be drawn, and the draws themselves.

The coins come from the operating system, never from the generators of torch, numpy or
random, so no seed has an effect on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from dp import _checks
from dp._keystream import Keystream


__all__ = (
    "PoissonSampling",
    "TruncatedPoissonSampling",
    "Unamplified",
    "poisson_sample",
    "random_subset",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonSampling:
    """Every example joins every batch with one public probability, independently.

    Args:
        sampling_probability: The probability, in ``(0, 1]``.

    Raises:
        ValueError: If the probability is outside ``(0, 1]``.
    """

    sampling_probability: float

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedPoissonSampling:
    """As :class:`PoissonSampling`, and of a larger batch a random part is kept.

    Batches then have a largest size, and so have time and memory of a step. It costs
    epsilon, because an example may displace another one, and the number of examples
    has to be public: plans need a ``neighboring_relation`` that keeps it. With
    *max_batch_size* six standard deviations above the mean, it costs next to nothing.

    Args:
        sampling_probability: The probability before a batch is made smaller.
        max_batch_size: The most examples of a batch.
        dataset_size: The number of examples of the dataset: a public number.

    Raises:
        ValueError: If a number is out of range.

    References:
        Chua et al., "Scalable DP-SGD: Shuffling vs. Poisson Subsampling", 2024,
        section 3: https://arxiv.org/abs/2411.04205. The accountant's bound:
        https://arxiv.org/abs/2508.15089.
    """

    sampling_probability: float
    max_batch_size: int
    dataset_size: int

    def __post_init__(self) -> None:
        _checks.probability(sampling_probability=self.sampling_probability)
        _checks.count(max_batch_size=self.max_batch_size)
        _checks.count(dataset_size=self.dataset_size)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Unamplified:
    """The user's own loader: each step is accounted as a release on all the data.

    Args:
        backwards_per_step: How many backward calls make up one step. Without tickets
            nobody can tell whether two calls share an example, so more than one call
            is a promise by the user that they do not.

    Raises:
        ValueError: If *backwards_per_step* is not a whole number of at least 1.
    """

    backwards_per_step: int = 1

    def __post_init__(self) -> None:
        _checks.count(backwards_per_step=self.backwards_per_step)


def poisson_sample(num_examples: int, *, sampling_probability: float) -> list[int]:
    """Return the indices that independent coin flips select, in ascending order.

    >>> poisson_sample(3, sampling_probability=1.0)
    [0, 1, 2]

    Guarantees:
        * Each index is selected independently, with a probability of at most
          *sampling_probability* and less than ``2**-64`` below it.
        * The coins are a keystream under a fresh 256-bit key of the OS.
        * The order is that of the dataset, so it tells nothing beyond the selection.

    Raises:
        ValueError: If the probability is outside ``(0, 1]``.
    """
    _checks.probability(sampling_probability=sampling_probability)
    if sampling_probability == 1:
        return list(range(num_examples))
    threshold = np.uint64(int(sampling_probability * 2.0**64))  # Exact, then floor.
    coins = Keystream().integers(num_examples, np.dtype(np.uint64))
    selected: list[int] = np.flatnonzero(coins < threshold).tolist()
    return selected


def random_subset(indices: Sequence[int], *, size: int) -> list[int]:
    """Return *size* of the indices, each set of them as likely, in their order.

    >>> random_part([3, 5], size=2)
    [3, 5]
    """
    if len(indices) <= size:
        return list(indices)
    ranks = np.argsort(_distinct(len(indices)))[:size]
    return [indices[i] for i in np.sort(ranks)]


def _distinct(count: int) -> NDArray[np.uint64]:
    """Return random numbers without a tie, which would prefer some orders."""
    keystream, dtype = Keystream(), np.dtype(np.uint64)
    numbers = keystream.integers(count, dtype)
    while len(np.unique(numbers)) < count:
        numbers = keystream.integers(count, dtype)
    return numbers
