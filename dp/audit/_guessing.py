r"""How many of an attacker's guesses may be right, under a claimed trade-off.

An attacker who knows all but fair coins guesses ``r`` of them; the mechanism is
``f``-private when one coin is flipped: ``P(E) <= F(Q(E))`` for every event, either way,
with ``F`` concave. *Claim*: the number of right guesses ``W`` has a distribution ``p``
with, for every ``j < v``,

.. math:: \sum_{k > j} k\,p_k \le m\,F\Bigl(\tfrac1m \sum_{k \ge j} (r - k)\,p_k\Bigr).

*Proof.* Fix a coin ``i``, the others, and ``E`` = "``i`` is guessed to be ``x``, and at
least ``j`` of the other guesses are right". If the coin is ``x``, that is "``i`` is
right, and ``W > j``"; if not, "``i`` is wrong, and ``W >= j``". So the probability of
the one is at most ``F`` of the other's. Average over ``x``, the others and ``i`` (there
are ``m``), with Jensen's inequality; and ``sum_i P(i right, W = k) = k p_k``.

The largest ``P(W >= v)`` that the claim permits puts that mass on ``v``, and then, for
``k = v - 1, v - 2, ...``, the least mass that the inequality of ``k`` needs: mass moved
from ``k`` to ``k - 1`` makes every inequality below it easier. It is permitted if the
masses sum to 1 at most. Permitted is a smaller mass if a larger one is, by the same
move.

References:
    Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", 2024,
    https://arxiv.org/abs/2410.22235, theorem 3.2 and its algorithm.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, final


__all__ = ("ByPairs", "Gaussian", "Pairs", "TradeOff", "largest_permitted", "permits")

Pairs = tuple[tuple[float, float], ...]
"""Epsilons and deltas."""

_SAYS_NOTHING: Final = 700.0  # Of epsilons: their exponentials are no numbers.
_LEAST: Final = 1e-12  # Of probabilities of right guesses that are told apart.
_BISECTIONS: Final = 50
_ROUNDING: Final = 1e-9  # Of the sum of masses.


class TradeOff(ABC):
    """The largest probability ``F(x)`` of an event whose other one is ``x``; concave."""

    __slots__ = ()

    @abstractmethod
    def inverse(self, y: float) -> float:
        """Return at most the least ``x`` in [0, 1] with ``F(x) >= y``."""


@final
@dataclass(frozen=True, slots=True)
class ByPairs(TradeOff):
    """What pairs of epsilon and delta permit that all hold, in both directions."""

    pairs: Pairs

    def inverse(self, y: float) -> float:
        """Return the largest ``x`` that any pair demands.

        Of an event, ``y <= e^epsilon x + delta``; of its complement
        ``1 - x <= e^epsilon (1 - y) + delta``.
        """
        return max(
            0.0,
            *((y - delta) * math.exp(-epsilon) for epsilon, delta in self.pairs),
            *(
                1 - delta - math.exp(epsilon) * (1 - y)
                for epsilon, delta in self.pairs
                if epsilon < _SAYS_NOTHING
            ),
        )


@final
@dataclass(frozen=True, slots=True)
class Gaussian(TradeOff):
    """What telling ``N(mu, 1)`` from ``N(0, 1)`` permits."""

    mu: float

    def inverse(self, y: float) -> float:
        """Return it in closed form."""
        from scipy.special import ndtr, ndtri

        return float(ndtr(ndtri(min(y, 1.0)) - self.mu))


def permits(
    trade_off: TradeOff,
    probability: float,
    *,
    num_coins: int,
    num_guesses: int,
    num_right: int,
) -> bool:
    """Whether so many right guesses, or more, may have a *probability*.

    Args:
        trade_off: The claim.
        probability: Above 0.
        num_coins: The coins (m).
        num_guesses: Those that were guessed (r).
        num_right: The right guesses (v).
    """
    m, r, mass = num_coins, num_guesses, probability
    right = num_right * mass / m  # The sum of k p_k / m so far.
    wrong = (r - num_right) * mass / m
    for k in range(num_right - 1, -1, -1):
        more = trade_off.inverse(right) - wrong
        if more <= 0:
            break  # Nothing is needed any more: with both sums, it stays so.
        wrong += more
        mass += more * m / (r - k)
        right += more * k / (r - k)
        if mass > 1 + _ROUNDING:
            return False
    return mass <= 1 + _ROUNDING


def largest_permitted(
    trade_off: TradeOff,
    *,
    num_coins: int,
    num_guesses: int,
    num_right: int,
    bisections: int = _BISECTIONS,
) -> float:
    """Return at least the largest probability of so many right guesses, or more."""
    if num_right == 0:
        return 1.0
    low, high = math.log(_LEAST), 0.0
    for _ in range(bisections):
        middle = (low + high) / 2
        if permits(
            trade_off,
            math.exp(middle),
            num_coins=num_coins,
            num_guesses=num_guesses,
            num_right=num_right,
        ):
            low = middle
        else:
            high = middle
    return math.exp(high)
