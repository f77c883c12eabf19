r"""Betting against a claim, step by step: the evidence may be looked at at any time.

An auditor who knows all but fair coins guesses them after each step. *Claim*: if, given
all that came before, the coins of a step are fair and independent, and its release is
``f``-private in each of them, then the chance that the capital ever reaches ``1 / error``
is at most ``error``, however many steps there are and whenever the auditor stops.

*Proof.* Four bets share the capital equally, each with a gain ``e >= 0`` whose mean, given
the past, is at most 1. Two are on how many guesses are right. Let ``p`` be the largest
probability that ``f`` permits so many, or more (:mod:`dp.audit._guessing`): it is at most
``u`` with a probability of at most ``u``, for every ``u``, and

.. math:: e(p) = \int_0^1 k p^{k-1} dk = \frac{1 - p + p \ln p}{p \ln^2 p},
   \qquad \int_0^1 e(p)\,dp = 1,

falls with ``p``. Two are on their share. For any canary, whatever the guess is made of,
the probability of "in" is at most ``a`` larger if it is in than if it is not, with ``a``
the largest such difference that ``f`` permits. So right guesses exceed wrong ones by at
most ``a`` times all guesses on average, ``d <= a`` in the mean, and
``1 + s (d - a) / (1 + a)`` is a gain for a stake ``s`` up to 1. The first bets win soon
against much too little noise, the others in the end against a little too little.

Before step ``t`` a part ``1 / (t (t + 1))`` of the first capital is staked and stays so;
these parts add up to 1, and what is not yet staked keeps its worth. So the capital is a
nonnegative supermartingale that starts at 1, and Ville's inequality bounds how high it
gets. The staggered stakes see a fault that begins late: those of before have lost by
then.

A step whose batch is drawn with a probability ``q`` has no fair coins. A record is
considered if it was drawn and a coin of probability ``min(1, (1 - q) / q)`` says so, or if
it was not and one of ``min(1, q / (1 - q))`` does. Of those considered it is a fair coin
who was drawn, independent of the others, and the release is as private in it.

References:
    Gonzalez, Dulce-Rubio, Ramdas, Ribero, "Sequentially Auditing Differential Privacy",
    2025, https://arxiv.org/abs/2509.07055: products of e-values against a claim, beside
    training. Theirs compare outputs by a kernel; these count guesses.
    Vovk and Wang, "E-values: Calibration, combination and applications", 2021,
    https://arxiv.org/abs/1912.06116: how a p-value becomes an e-value.
"""

import math
from typing import Final, final

import numpy as np
from numpy.typing import ArrayLike

from dp import _checks
from dp.audit._guessing import Gaussian, largest_permitted
from dp.audit._statistics import FALSE_ALARM, Floats
from dp.audit._subject import Bools


__all__ = ("SequentialTest",)

_SHARES_GUESSED: Final = (0.2, 1.0)  # Of those considered; others are left open.
_STAKES: Final = (
    0.25,
    1.0,
)  # Of all that a bet on the share of right guesses may lose.
_BISECTIONS: Final = 12  # Rounds p up by less than a hundredth.


@final
class SequentialTest:
    """Whether steps hide their canaries as well as their noise claims, so far.

    Feed it beside training with what each step released along canaries: records of the
    auditor's own, whose coins are flipped anew in each step.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> test = SequentialTest(error=1e-6)
    >>> while not test.is_refuted:  # Noise 1 is claimed, and 1/2 was added.
    ...     drawn = rng.random(2000) < 0.1
    ...     released = drawn + 0.5 * rng.normal(size=2000)
    ...     test.observe(released, drawn, noise_multiplier=1.0, sampling_probability=0.1)
    >>> test.num_steps < 100
    True

    Guarantees:
        * A run all of whose steps are as private as they claim is refuted with a
          probability of at most ``error``, whenever one looks and however long it is.
        * The claim that is tested is that of a Gaussian: of a step that is given the
          batch, with a canary or without it.

    Args:
        error: The probability with which a right run is accused.

    Raises:
        ValueError: If *error* is not in (0, 1).
    """

    def __init__(self, *, error: float = FALSE_ALARM) -> None:
        self.error: float = _checks.open_unit(error=error)
        self._staked = np.zeros(len(_SHARES_GUESSED) + len(_STAKES))
        self._refuted_after: int | None = None
        self._num_steps = 0

    @property
    def num_steps(self) -> int:
        """How many steps were observed."""
        return self._num_steps

    @property
    def capital(self) -> float:
        """The evidence against the claim, as what an auditor has who began with 1."""
        return float(self._staked.mean()) + 1 / (self._num_steps + 1)

    @property
    def refuted_after(self) -> int | None:
        """After how many steps the claim was refuted; None if it was not."""
        return self._refuted_after

    @property
    def is_refuted(self) -> bool:
        """Whether the claim was refuted by any of the steps."""
        return self._refuted_after is not None

    def observe(
        self,
        scores_M: ArrayLike,
        drawn_M: ArrayLike,
        *,
        noise_multiplier: float,
        sampling_probability: float,
    ) -> None:
        """Bet on the canaries of one more step.

        Args:
            scores_M: What the step released along each canary, [M]: the higher, the more
                likely the canary was in the batch.
            drawn_M: Which canaries were in the batch, [M].
            noise_multiplier: The noise that the step claims, over the largest
                contribution of a canary.
            sampling_probability: With which each canary was drawn, in (0, 1), by a coin
                of its own in this step.

        Raises:
            ValueError: If a number is out of range, or if scores and coins differ in
                number.
        """
        _checks.positive(noise_multiplier=noise_multiplier)
        q = _checks.open_unit(sampling_probability=sampling_probability)
        if np.shape(scores_M) != np.shape(drawn_M) or np.ndim(scores_M) != 1:
            raise ValueError(
                "scores and coins must be vectors of one length, one entry a canary, got"
                f" shapes {np.shape(scores_M)} and {np.shape(drawn_M)}"
            )
        was_drawn_M = np.asarray(drawn_M, bool)
        chances_M = np.where(was_drawn_M, min(1.0, (1 - q) / q), min(1.0, q / (1 - q)))
        considered_M = np.random.default_rng().random(len(was_drawn_M)) < chances_M
        scores_K = np.asarray(scores_M, np.float64)[considered_M]
        gains = _gains(scores_K, was_drawn_M[considered_M], 1 / noise_multiplier)
        self._num_steps += 1
        fresh = 1 / (self._num_steps * (self._num_steps + 1))
        self._staked = (self._staked + fresh) * gains
        if self._refuted_after is None and self.capital >= 1 / self.error:
            self._refuted_after = self._num_steps


def _gains(scores_K: Floats, drawn_K: Bools, mu: float) -> Floats:
    """Return what each bet makes of a stake of 1."""
    num_coins = len(scores_K)
    if num_coins < 2:  # noqa: PLR2004 -- one guess of either kind
        return np.ones(len(_SHARES_GUESSED) + len(_STAKES))
    # Scores that are no numbers say nothing; ties are broken at random.
    keys_K = np.nan_to_num(scores_K, nan=0.0)
    order = np.lexsort((np.random.default_rng().random(num_coins), keys_K))
    gains, right, guessed = [], 0, 1  # The last share is of all of them.
    for share in _SHARES_GUESSED:
        half = max(1, int(share * num_coins / 2))
        guessed = 2 * half
        right = int(drawn_K[order[-half:]].sum()) + int((~drawn_K[order[:half]]).sum())
        p = largest_permitted(
            Gaussian(mu),
            num_coins=num_coins,
            num_guesses=guessed,
            num_right=right,
            bisections=_BISECTIONS,
        )
        gains.append(_worth(p))
    # Example: noise 1 permits 38 % more right guesses than wrong ones. Of 400 guesses 300
    # are right: 50 % more, and a stake of 1 becomes 1 + 0.12 / 1.38.
    permitted = math.erf(mu / math.sqrt(8))  # 2 Phi(mu / 2) - 1.
    excess = (2 * right / guessed - 1 - permitted) / (1 + permitted)
    gains += [1 + stake * excess for stake in _STAKES]
    return np.array(gains)


def _worth(p: float) -> float:
    """Return what a stake of 1 becomes, from a p-value in (0, 1]."""
    log = math.log(p)
    if log > -1e-3:  # noqa: PLR2004 -- its series, as 0 / 0 has no digits
        return 0.5 - log / 6
    return (1 - p + p * log) / (p * log**2)
