"""Clip gradients, and release only those rows of tables that enough examples touched.

Shapes: ``B`` examples in a batch, ``G`` groups of parameters, of which there is one,
``V`` rows of all tables together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from dp import _checks
from dp.clipping._rules import FlatClipping, SingleNormClipping
from dp.exceptions import UnsupportedOperationError


__all__ = ("SparseClipping",)

_MATRIX = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SparseClipping(SingleNormClipping):
    """Clip to a norm, and add noise only to rows of tables that enough examples touched.

    A batch touches few rows of a large embedding table, yet plain noise falls on all of
    them. Here each step first releases how many examples touched each row, with noise
    of its own; rows whose noisy count is beyond a threshold are kept. The gradient of
    all other rows is zero, without noise (DP-AdaFEST).

    Counts and gradients are charged as one release at the plan's noise multiplier
    sigma, so epsilon stays the plan's. Gradients pay with a little more noise,
    ``sigma / sqrt(1 - counts_share)``: 2.6 % with the default.

    >>> clipping = SparseClipping(max_grad_norm=1.0, tables=(0, 1))
    >>> round(clipping.count_stddev_of(noise_multiplier=1.0), 2)  # In examples.
    6.32

    Args:
        max_grad_norm: The clipping norm C, in the unit of gradients; the plan's.
        tables: The positions of the tables among the optimizer's trainable parameters,
            in its order: see :meth:`tables_of`.
        rows_per_example: How many rows of all tables an example may touch and still
            count fully in each; one that touches more counts less in all of them. None
            for one row a table.
        counts_share: The share of ``1 / sigma^2`` that counts take, between 0 and 1.
            More of it makes counts more exact, and gradients noisier.
        threshold: How far a noisy count must be above zero for its row to be kept, in
            standard deviations of its noise. At 2, one of 44 untouched rows is kept.

    Raises:
        ValueError: If a number is out of range; when it is used, if *tables* are no
            positions of matrices, or if the plan correlates noise.
        UnsupportedOperationError: When it is used, if a table is sharded, or used
            otherwise than by looking up its rows.

    Guarantees:
        * As of :class:`FlatClipping`; gradients are clipped before rows are selected.
        * Which rows are kept is a function of noisy counts, and so as public as the
          parameters.
        * Without noise, rows that an example touched are kept: nothing is lost.

    References:
        Ghazi et al., "Sparsity-Preserving Differentially Private Training of Large
        Embedding Models", 2023, DP-AdaFEST. https://arxiv.org/abs/2311.08357
    """

    max_grad_norm: float
    tables: tuple[int, ...]
    rows_per_example: int | None = None
    counts_share: float = 0.05
    threshold: float = 2.0

    def __post_init__(self) -> None:
        _checks.clipping_norm(max_grad_norm=self.max_grad_norm)
        _checks.open_unit(counts_share=self.counts_share)
        _checks.positive(threshold=self.threshold)
        if self.rows_per_example is not None:
            _checks.count(rows_per_example=self.rows_per_example)
        positions = self.tables
        if (
            not isinstance(positions, tuple)
            or not positions
            or not all(
                type(position) is int and position >= 0 for position in positions
            )
            or len({*positions}) < len(positions)
        ):
            raise ValueError(
                "tables must be a tuple of different positions among the trainable"
                f" parameters, got {_checks.shown(positions)}; pass SparseClipping.tables_of(model)"
            )

    @staticmethod
    def tables_of(model: nn.Module) -> tuple[int, ...]:
        """Return the positions of a model's embedding tables.

        They are those in ``model.parameters()``; pass these to the optimizer.

        >>> SparseClipping.tables_of(nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 1)))
        (0,)
        """
        kinds = nn.Embedding, nn.EmbeddingBag
        tables = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
        trainable = filter(lambda p: p.requires_grad, model.parameters())
        return tuple(i for i, p in enumerate(trainable) if id(p) in tables)

    @property
    def most_rows(self) -> int:
        """How many rows an example may touch and still count fully in each."""
        return self.rows_per_example or len(self.tables)

    def count_stddev_of(self, noise_multiplier: float) -> float:
        """Return the standard deviation of the noise on each count, in examples."""
        # An example moves all counts together by sqrt(most_rows) at most, in L2.
        return noise_multiplier * math.sqrt(self.most_rows / self.counts_share)

    def weights(self, num_rows_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return what each example adds to the count of every row that it touched.

        A vector of ones, clipped to the root of :attr:`most_rows`. Where a gradient is
        faint there is less than one, whose square is what it adds to *num_rows_B*.

        >>> import torch
        >>> clipping = SparseClipping(max_grad_norm=1.0, tables=(0,))
        >>> clipping.weights(torch.tensor([0.0, 1.0, 4.0]))
        tensor([1.0000, 1.0000, 0.5000])

        Guarantees:
            * ``weight * sqrt(num_rows) <= sqrt(most_rows)``, also before rounding.
        """
        clipped = FlatClipping(max_grad_norm=math.sqrt(self.most_rows))
        return clipped.factors(num_rows_B.sqrt()[None])[0]

    def tables_among(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the tables; raise if one of them can be none.

        Raises:
            ValueError: If a position is none of a matrix.
            UnsupportedOperationError: If a table is sharded.
        """
        for position in self.tables:
            shapes = [tuple(parameter.shape) for parameter in parameters]
            if position >= len(shapes) or len(shapes[position]) != _MATRIX:
                found = shapes[position] if position < len(shapes) else "no parameter"
                raise ValueError(
                    f"tables={self.tables!r} must be the positions of embedding tables"
                    f" among {len(shapes)} trainable parameters, but at {position} is"
                    f" {found}; pass SparseClipping.tables_of(model)"
                )
            if hasattr(parameters[position], "placements"):
                raise UnsupportedOperationError(
                    f"the table at {position}, of shape {shapes[position]}, is sharded,"
                    " and clipping=SparseClipping selects rows of whole tables;"
                    " replicate it (DistributedDataParallel), or use FlatClipping"
                )
        return [parameters[position] for position in self.tables]
