"""One line of a ledger: what a number of equal releases was charged as."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

from dp._typing import Assignment
from dp.accounting._counted import NoiseBesideCount
from dp.accounting._release import Release, Truncation
from dp.ledger._norm_range import NormRange


__all__ = ("Charge",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A number of equal releases in a row.

    Attributes:
        sampling_probability: Probability of an example to be in a batch.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Sensitivity of the sums that were noised; of the last one, where
            it followed a quantile.
        count: How many.
        truncation: How a batch was made smaller, if it was.
        steps_per_pass: Steps of a pass by random allocation, or of disjoint batches,
            all of which are charged at once; None for Poisson samples.
        disjoint: How the disjoint batches of a pass are assigned; None for samples.
        bands: Steps of a round by cyclic Poisson sampling, all of which are charged at
            once; None for Poisson samples.
        planned_noise_multiplier: What they are accounted at where more noise was added
            than planned: the plan's, since the surplus may depend on earlier releases.
        planned_sampling_probability: The same where less was sampled than planned.
        public: Why the numbers are public, where they are not the plan's and were
            declared so.
        noise_beside_count: The noise on the sum and on a count of the gradients within
            ``max_grad_norm``, or on counts of touched rows of tables, where they were
            released beside it: then ``noise_multiplier`` is what the two are charged as.
        norms: Between which norms the sums were, where that followed a quantile; None
            if all have ``max_grad_norm``.
    """

    sampling_probability: float
    noise_multiplier: float
    max_grad_norm: float
    count: int
    truncation: Truncation | None = None
    steps_per_pass: int | None = None
    disjoint: Assignment | None = None
    bands: int | None = None
    planned_noise_multiplier: float | None = None
    planned_sampling_probability: float | None = None
    public: str | None = None
    noise_beside_count: NoiseBesideCount | None = None
    norms: NormRange | None = None

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Charge":
        """Return the charge that :meth:`to_dict` wrote; its numbers are not checked.

        Raises:
            AttributeError, TypeError, ValueError: If it is none.
        """
        truncation = row.get("truncation")
        smaller = None if truncation is None else Truncation(**truncation)
        split = row.get("noise_beside_count")
        noises = None if split is None else NoiseBesideCount(**split)
        norms = None if row.get("norms") is None else NormRange(**row["norms"])
        parts = {"truncation": smaller, "noise_beside_count": noises, "norms": norms}
        return cls(**{**row, **parts})

    def to_dict(self) -> dict[str, Any]:
        """Return the charge in plain types, without what it has not."""
        # So that the row of an ordinary one reads the same as before a field existed.
        return asdict(self, dict_factory=_stated)

    @property
    def norm_moves(self) -> bool:
        """Whether the norm followed a quantile, by a count beside the sum."""
        noises = self.noise_beside_count
        return noises is not None and noises.rows_per_example is None

    @property
    def norm_range(self) -> NormRange:
        """The norms of the sums that were noised."""
        norm = self.max_grad_norm
        return self.norms or NormRange(least=norm, largest=norm)

    def to_release(self) -> Release:
        """Return what the accountant composes: the plan's step where that costs more."""
        # Example: planned with sigma 1.0, released with 1.2, charged as 1.0. Whether
        # there was more noise may have been decided by earlier releases, which no sum
        # of privacy losses allows for; at least the planned noise is a fact that does
        # not depend on them.
        sigma, q = self.planned_noise_multiplier, self.planned_sampling_probability
        return Release(
            sampling_probability=self.sampling_probability if q is None else q,
            noise_multiplier=self.noise_multiplier if sigma is None else sigma,
            count=self.count,
            truncation=self.truncation,
            steps_per_pass=self.steps_per_pass,
            disjoint=self.disjoint,
            bands=self.bands,
        )


def _stated(parts: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: part for name, part in parts if part is not None}
