"""One line of a ledger: what a number of equal releases was charged as."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, final

from dp._typing import Assignment
from dp.accounting._counted import NoiseBesideCount
from dp.accounting._release import Release, Truncation


__all__ = ("Charge",)

_FIELDS: Final = (
    "sampling_probability",
    "noise_multiplier",
    "max_grad_norm",
    "count",
)
_FIELDS_OFF_PLAN: Final = (
    "planned_noise_multiplier",
    "planned_sampling_probability",
    "public",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A number of equal releases in a row.

    Attributes:
        sampling_probability: Probability of an example to be in a batch.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        max_grad_norm: Sensitivity of the sums that were noised.
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
            ``max_grad_norm``, where one was released beside it: then
            ``noise_multiplier`` is what the two are charged as.
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
        return cls(**{**row, "truncation": smaller, "noise_beside_count": noises})

    def to_dict(self) -> dict[str, Any]:
        """Return the charge in plain types, without what it has not."""
        # What a charge has not is left out, so that the row of an ordinary one reads
        # the same as before these fields existed.
        row: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        for name in _FIELDS_OFF_PLAN:
            if getattr(self, name) is not None:
                row[name] = getattr(self, name)
        if self.truncation is not None:
            row["truncation"] = asdict(self.truncation)
        if self.noise_beside_count is not None:
            row["noise_beside_count"] = asdict(self.noise_beside_count)
        if self.steps_per_pass is not None:
            row["steps_per_pass"] = self.steps_per_pass
        if self.disjoint is not None:
            row["disjoint"] = self.disjoint
        if self.bands is not None:
            row["bands"] = self.bands
        return row

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
