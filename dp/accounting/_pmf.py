"""How many of a group a Poisson batch can hold."""

import numpy as np
from scipy.stats import binom


__all__ = ("numbers_in_batch",)


def numbers_in_batch(
    group_size: int, sampling_probability: float
) -> tuple[list[float], list[float]]:
    """Return how many of a group a batch can hold, and with what probability."""
    weights = binom.pmf(range(group_size + 1), group_size, sampling_probability)
    sizes = np.flatnonzero(weights > 0)
    return sizes.astype(float).tolist(), weights[sizes].tolist()
