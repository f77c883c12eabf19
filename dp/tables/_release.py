"""Release a vector of sums: charge a ledger, then add the noise that was charged for."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from dp._typing import NeighboringRelation
from dp.accounting import Release
from dp.certificate import Certificate
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.plan import PrivacyPlan
from dp.query import Statistic, noised
from dp.sampling import Unamplified


__all__ = ("Statistics",)


@final
class Statistics:
    """Releases of noisy sums about one dataset, each with a ledger of its own.

    Guarantees:
        * A statistic is charged before its noise is drawn, and released once.
        * What is returned has noise of the standard deviation that was charged.

    Args:
        target_delta: The delta of their certificates.
        neighboring_relation: What two neighbouring datasets are.
        unit_of_privacy: Whose data one row is, in words.
        group_size: How many units may differ at once.
        noise: The source of noise; a cryptographic generator if None.
    """

    def __init__(
        self,
        *,
        target_delta: float,
        neighboring_relation: NeighboringRelation,
        unit_of_privacy: str,
        group_size: int = 1,
        noise: GaussianNoise | None = None,
    ) -> None:
        self._target_delta = target_delta
        self._relation: NeighboringRelation = neighboring_relation
        self._unit = unit_of_privacy
        self._group_size = group_size
        self._noise = GaussianNoise() if noise is None else noise
        self._charged: list[tuple[Ledger, str, int, str]] = []

    def release(self, statistic: Statistic, *, noise_multiplier: float) -> Tensor:
        """Return the sums of *statistic* with noise; private from then on.

        Args:
            statistic: What is released. Its sums are overwritten.
            noise_multiplier: Standard deviation of the noise over the sensitivity.

        Raises:
            PrivacyError: If the noise stage used another standard deviation.
        """
        ledger = Ledger(self._plan(statistic, noise_multiplier))
        self._charged.append(
            (ledger, statistic.name, statistic.sums.numel(), statistic.reason)
        )
        ledger.reserve(
            sampling_probability=1.0,
            noise_multiplier=noise_multiplier,
            max_grad_norm=statistic.sensitivity,
        )
        return noised(statistic, noise_multiplier=noise_multiplier, noise=self._noise)

    def _plan(self, statistic: Statistic, noise_multiplier: float) -> PrivacyPlan:
        return PrivacyPlan(
            sampling=Unamplified(),
            noise_multiplier=noise_multiplier,
            max_grad_norm=statistic.sensitivity,
            expected_batch_size=1.0,  # Sums are released, not means.
            steps=1,
            target_delta=self._target_delta,
            neighboring_relation=self._relation,
            unit_of_privacy=self._unit,
            group_size=self._group_size,
        )

    def releases(self) -> tuple[Release, ...]:
        """Return what was charged so far."""
        return tuple(r for ledger, *_ in self._charged for r in ledger.releases())

    def certificates(
        self, *, private_data_touches: Sequence[str] | None = None
    ) -> tuple[Certificate, ...]:
        """Return a certificate of each statistic, to compose with that of training.

        Args:
            private_data_touches: What else looked at private data, as in
                :meth:`dp.certificate.Certificate.of`.
        """
        return tuple(
            Certificate.of(
                ledger,
                noise=self._noise,
                num_parameters=num_sums,
                private_data_touches=private_data_touches,
                assumptions=(f"One unit is one row in {name}: {reason}.",),
                released=name,
            )
            for ledger, name, num_sums, reason in self._charged
        )
