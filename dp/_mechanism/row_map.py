"""Who touched which rows of tables, released before the gradients of rows that are kept.

The counts pass through the same exchange between ranks and the same noise stage as the
gradients, multiplied by a weight so that they take the same noise. Why the two together
are one Gaussian release: take it that noise were added to the sum of all rows, and this
vector of counts and sum were published. Its charge is that of :mod:`dp.accounting._counted`.
Rows whose noisy count is small could then be thrown away, by anyone, at no cost. What is
published here has just that distribution: gradients are clipped before rows are selected,
so that the sum in a row depends on no count; the noise of each row is independent of that
of all others and of the counts; and noise that would be thrown away is not drawn.

Shapes: ``B`` examples, ``G`` groups of parameters, ``V`` rows of all tables, ``K`` pairs
of an example and a row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from dp._mechanism.batch import PendingBatch
from dp._mechanism.norm_count import count_dtype
from dp.accounting._counted import NoiseBesideCount
from dp.clipping import Clipping, SparseClipping
from dp.distributed import Exchange, World
from dp.exceptions import UnsupportedOperationError
from dp.per_sample import PerSampleGradients
from dp.per_sample._parts.embedding import EmbeddingGrads
from dp.per_sample._parts.part import GradPart, squared_norms


__all__ = ("KeptRows", "RowMap")

_FAINT: Final = 2.0**-10  # Of the clipping norm; a fainter gradient counts in part.
_ROUNDING: Final = 1e-9  # More than sums of squares of float64 numbers lose.


@final
@dataclass(frozen=True, slots=True)
class KeptRows:
    """The rows of tables that a release is about.

    Attributes:
        of_table: The rows that are kept, by the index of each table; none for all.
    """

    of_table: Mapping[int, Tensor]

    def of(
        self, sums: list[Tensor], buffers: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return sums and their memory, with that of kept rows in the place of a table's."""
        if not self.of_table:
            return sums, buffers
        kept = [
            total[self.of_table[i]] if i in self.of_table else total
            for i, total in enumerate(sums)
        ]
        return kept, kept

    def spread(
        self, released: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return whole gradients, zero in all rows that were not kept."""
        spread = list(released)
        for index, rows in self.of_table.items():
            whole = released[index].new_zeros(parameters[index].shape)
            spread[index] = whole.index_copy_(0, rows, released[index])
        return spread


_ALL_ROWS: Final = KeptRows({})


@final
@dataclass(frozen=True, slots=True)
class RowMap:
    """What a clipping rule selects rows by; nothing, unless it is sparse.

    Attributes:
        rule: The clipping rule.
    """

    rule: Clipping

    def noises(
        self, noise_multiplier: float, parameters: Sequence[Tensor]
    ) -> NoiseBesideCount | None:
        """Return how a release shares its noise with the counts, or None without them.

        Raises:
            ValueError, UnsupportedOperationError: If the rule's tables are none.
        """
        if type(self.rule) is not SparseClipping:  # Faster, of an abstract class.
            return None
        self.rule.tables_among(parameters)
        return NoiseBesideCount.of(
            noise_multiplier,
            self.rule.count_stddev_of(noise_multiplier) or 1.0,
            rows_per_example=self.rule.most_rows,
        )

    def count(
        self, batch: PendingBatch, gradients: PerSampleGradients, norms_GB: Tensor
    ) -> None:
        """Add to a batch how many of these examples touched each row, as they count."""
        norm = batch.max_grad_norm
        batch.num_touched += self.of(gradients, batch.parameters, norms_GB, norm)

    def of(
        self,
        gradients: PerSampleGradients,
        parameters: Sequence[Tensor],
        norms_GB: Tensor,
        max_grad_norm: float,
    ) -> Tensor | float:
        """Return how many examples touched each row of the tables, as they count.

        An example moves all counts together by ``sqrt(rows_per_example)`` at most, in L2.
        It touches a row if it looked it up, with a gradient that is not zero; less so
        with one below a thousandth of *max_grad_norm*. One whose norm is not finite
        touches nothing, as it contributes nothing.

        Raises:
            UnsupportedOperationError: If a table was used otherwise.
        """
        if type(self.rule) is not SparseClipping:
            return 0.0
        tables = self.rule.tables_among(parameters)
        device, dtype = tables[0].device, count_dtype(tables[0])
        faint = _FAINT * max_grad_norm * gradients.loss_scale
        pairs = [
            [
                part_K.to(device)
                for part_K in _touched(gradients.parts(index), index, faint, dtype)
            ]
            for index in self.rule.tables
        ]
        num_rows_B = torch.zeros(gradients.num_samples, dtype=dtype, device=device)
        for owners_K, _, shares_K in pairs:
            num_rows_B.index_add_(0, owners_K, shares_K.square())
        num_rows_B *= 1 + _ROUNDING
        # Where no loss of a batch is finite, no gradient is computed, so that such an
        # example must not count among others either: one more would move all of them.
        is_usable_B = norms_GB.isfinite().all(0).to(device)
        weights_B = self.rule.weights(num_rows_B) * is_usable_B
        counts = [num_rows_B.new_zeros(len(table)) for table in tables]
        for count_V, (owners_K, rows_K, shares_K) in zip(counts, pairs, strict=True):
            count_V.index_add_(0, rows_K, weights_B[owners_K] * shares_K)
        return torch.cat(counts)

    def release(
        self,
        world: World,
        batch: PendingBatch,
        noises: NoiseBesideCount | None,
        stddev: float,
        add_noise: Callable[[Sequence[Tensor], float], None],
    ) -> KeptRows:
        """Release who touched which rows; return those to keep.

        Args:
            world: The ranks, whose counts are added up.
            batch: The batch, whose release was charged.
            noises: What the counts are weighted by.
            stddev: The standard deviation of the noise on weighted counts.
            add_noise: Adds noise to a share of the totals.
        """
        counts = self.as_sums(batch, noises)
        if not counts:
            return _ALL_ROWS
        totals = Exchange(world, counts, [None])
        for share in totals:
            add_noise(share, stddev)  # Private from here on.
            totals.start_all_gather()
        (noisy_V,) = totals.results()
        return self.kept(noisy_V, batch.parameters, stddev)

    def as_sums(
        self, batch: PendingBatch, noises: NoiseBesideCount | None
    ) -> list[Tensor]:
        """Return the counts of a batch, weighted to take the noise of the gradients."""
        if noises is None or not isinstance(self.rule, SparseClipping):
            return []
        tables = self.rule.tables_among(batch.parameters)
        none_V = torch.zeros(
            sum(map(len, tables)), dtype=count_dtype(tables[0]), device=tables[0].device
        )
        counts_V = none_V + batch.num_touched
        return [counts_V * (noises.weight * batch.max_grad_norm)]

    def kept(
        self, noisy_V: Tensor, parameters: Sequence[Tensor], stddev: float
    ) -> KeptRows:
        """Return the rows whose noisy weighted counts are above the threshold.

        Args:
            noisy_V: The released counts, of all tables.
            parameters: Of the optimizer.
            stddev: The standard deviation of the noise on them.
        """
        rule = self.rule
        assert isinstance(rule, SparseClipping)  # noqa: S101 -- others count nothing
        tables = rule.tables_among(parameters)
        kept = (noisy_V > rule.threshold * stddev).split([*map(len, tables)])
        return KeptRows(
            {
                index: is_kept_V.nonzero()[:, 0].to(table.device)
                for index, table, is_kept_V in zip(
                    rule.tables, tables, kept, strict=True
                )
            }
        )


def _touched(
    parts: Sequence[GradPart], index: int, faint: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of an example and a row that it looked up, and how each counts.

    A lookup counts by its gradient, in full from *faint* on. One without a gradient, as
    of padding, does not: how far a batch is padded is decided by its longest example,
    and what is looked up for all of them may be by one.
    """
    # Not "is not zero": where terms cancel, the others of the batch may decide by how
    # they are rounded whether they do exactly, and a gradient of 1e-8 is 1 or 0.
    match [*parts]:
        case []:
            none = torch.empty(0, dtype=torch.long)
            return none, none, none.to(dtype)
        case [EmbeddingGrads() as lookups]:
            keys_L = lookups.indices_L + lookups.owners_L * lookups.num_rows
            keys_K, where_L = keys_L.unique(return_inverse=True)
            norms_L = squared_norms(lookups.grads_LD).sqrt().to(dtype)
            shares_L = (norms_L / faint).clamp(max=1.0).nan_to_num(nan=0.0)
            shares_K = torch.zeros_like(keys_K, dtype=dtype)
            shares_K.scatter_reduce_(0, where_L, shares_L, "amax")
            owners_K = keys_K.div(lookups.num_rows, rounding_mode="floor")
            return owners_K, keys_K % lookups.num_rows, shares_K
    raise UnsupportedOperationError(
        f"the table at {index} of the trainable parameters is not only looked up by rows,"
        " so that which rows an example touched is not known; leave it out of"
        " clipping.tables"
    )
