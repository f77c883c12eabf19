"""The error of correlated noise in prefix sums, and the coefficients that make it small.

Nothing here has to be believed: which coefficients are used does not affect epsilon, and
the error is no claim about privacy. Shapes: ``T`` steps, ``K`` coefficients.

Each sum of the first t releases has noise ``sum_(j <= t) h_j z_(t-j)``, where ``h`` are
the coefficients of the power series ``1 / ((1 - z) c(z))``, and ``z`` has the standard
deviation ``|c|``: in units of ``c`` whose norm is 1. So the mean of the variances is
``|c|^2 sum_j (1 - j/T) h_j^2``.

References:
    Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023, section 4:
    https://arxiv.org/abs/2306.08153.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64


__all__ = ("optimal", "prefix_error", "square_root")

_FEW: Final = 128  # Steps, over which the square root is close to the minimum.
_DIVERGES: Final = 1e3  # Above the logarithm of any finite number.

_Vector = Float64[np.ndarray, " _"]


def square_root(bands: int) -> tuple[float, ...]:
    """Return the first coefficients of ``(1 - z)^(-1/2)``.

    >>> square_root(4)
    (1.0, 0.5, 0.375, 0.3125)
    """
    coefficients = [1.0]
    for k in range(1, bands):
        coefficients.append(coefficients[-1] * (2 * k - 1) / (2 * k))
    return tuple(coefficients)


def prefix_error(coefficients: Sequence[float], steps: int) -> float:
    """Return the root of the mean variance of the first *steps* prefix sums.

    >>> round(prefix_error([1.0], 128), 6)
    8.031189
    """
    c_K = np.asarray(coefficients, float)
    h_T = _inverse(np.convolve(c_K, [1.0, -1.0]), steps)
    return math.sqrt(float(_weights(steps) @ h_T**2) * float(c_K @ c_K))


def optimal(bands: int, steps: int) -> tuple[float, ...]:
    """Return coefficients with a small error: a local minimum, from the square root.

    More and more steps are minimized over, each from the coefficients before: far from a
    minimum over many steps, a line search tries series that diverge.
    """
    from scipy.optimize import minimize

    coefficients = square_root(bands)
    few = [steps]
    while few[-1] > _FEW:
        few.append(few[-1] // 2)
    for count in reversed(few if bands > 1 else ()):
        with np.errstate(all="ignore"):
            found = minimize(
                _log_error,
                np.asarray(coefficients[1:]),
                args=(count,),
                jac=True,
                method="L-BFGS-B",
                options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
            )
        coefficients = (1.0, *map(float, found.x))
    return min(square_root(bands), coefficients, key=lambda c: prefix_error(c, steps))


def _log_error(tail: _Vector, steps: int) -> tuple[float, _Vector]:
    """Return the logarithm of the mean variance, and its derivative by ``c_1, ...``.

    The derivative of ``h = 1 / ((1 - z) c)`` by ``c_k`` is ``-h / c``, k places later.
    """
    c_K = np.concatenate(([1.0], tail))
    h_T = _inverse(np.convolve(c_K, [1.0, -1.0]), steps)
    mean = float(_weights(steps) @ h_T**2)
    if not math.isfinite(mean):
        return _DIVERGES, np.zeros_like(tail)
    weighted_T, slope_T = _weights(steps) * h_T, _divided(h_T, c_K)
    by_tail = [
        -2 * float(weighted_T[k:] @ slope_T[: max(0, steps - k)])
        for k in range(1, len(c_K))
    ]
    square = float(c_K @ c_K)
    slope = np.asarray(by_tail) / mean + 2 * tail / square
    return math.log(mean) + math.log(square), slope


def _weights(steps: int) -> _Vector:
    """Return in what share of the prefix sums each coefficient of the series is."""
    return 1 - np.arange(steps) / steps


def _inverse(series_K: _Vector, steps: int) -> _Vector:
    """Return the first coefficients of one over a power series."""
    impulse_T = np.zeros(steps)
    impulse_T[0] = 1.0
    return _divided(impulse_T, series_K)


def _divided(numerator_T: _Vector, series_K: _Vector) -> _Vector:
    """Return the first coefficients of a power series over another one."""
    from scipy.signal import lfilter

    return np.asarray(lfilter([1.0], series_K, numerator_T), float)
