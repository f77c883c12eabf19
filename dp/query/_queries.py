"""Counts, means, histograms and quantiles of columns, losses and metrics.

**Sensitivity**: a unit of privacy is one entry of the values that a query is given. It
adds a vector of L2 norm at most 1 to what is summed, whatever the value is: a count adds
0 or 1; a mean adds a number in [-1, 1], on which its range is mapped; a histogram adds 1
to one cell or to none. Under replacement two such vectors are exchanged, for which the
accountant doubles the sensitivity, as it does for gradients. Sums are of multiples of
2^-20 in float64, and so exact up to 2^33 units.

Shapes: ``N`` units of privacy.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol, final

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from dp import _checks
from dp._mechanism.paid_for import Account
from dp._ranks import rank_and_size
from dp.exceptions import UnsupportedOperationError
from dp.ledger import Ledger
from dp.noise import GaussianNoise
from dp.query._answers import Answer, Histogram
from dp.query._statistic import Statistic, noised
from dp.sampling import TicketedLoader
from dp.sampling._units import UnitIndex, Units, column_of_units


__all__ = ("Queries",)

_GRID: Final = 2.0**20


class _HasLedger(Protocol):
    @property
    def ledger(self) -> Ledger: ...


@final
class Queries:
    """Ask the queries that were planned with a run.

    >>> import torch
    >>> import dp
    >>> plan = dp.plan_for(
    ...     target_epsilon=3.0,
    ...     target_delta=1e-5,
    ...     sampling_probability=0.2,
    ...     steps=10,
    ...     expected_batch_size=10,
    ...     max_grad_norm=1.0,
    ...     queries=[dp.Query(name="adults", noise_multiplier=8.0)],
    ... )
    >>> ledger = dp.ledger.Ledger(plan)  # Or the optimizer, once there is one.
    >>> ages = torch.tensor([17, 25, 40] * 100)
    >>> answer = Queries(ledger, dataset=ages).count("adults", ages > 18)
    >>> answer.stddev
    8.0

    Guarantees:
        * Each planned query is answered once, and no other is answered. That is recorded
          before noise is drawn, in the ledger, which checkpoints carry.
        * An entry of the values changes an answer's sums by at most 1 in L2 norm, also
          one that is NaN or infinite.
        * Rows of a dataset are charged by no ledger of this process that lacks what
          another one charged for them, steps or queries.
        * Noise is that of ``GaussianNoise()``: a cryptographic generator, rounded exactly.

    Args:
        run: The optimizer of the run, or its ledger: before there is an optimizer, a
            ledger of the plan, which the optimizer then takes as ``continue_from=``.
        dataset: Whose rows the values are computed from: a dataset, or a tensor of data;
            None if no object of this process holds them. By default that of the
            optimizer's loader; with a ledger it has to be said.
        units: The unit of privacy of every row of *dataset*, as for its loader; needed
            where the plan protects one value of a column. By default as the
            optimizer's loader has them.

    Raises:
        TypeError: If *run* is a ledger and *dataset* is left out.
        ValueError: If the plan protects one value of a column, and *units* are left out,
            or if they do not fit *dataset*.
    """

    def __init__(
        self,
        run: Ledger | _HasLedger,
        *,
        dataset: Any = ...,
        units: Units | None = None,
    ) -> None:
        self._ledger = run if isinstance(run, Ledger) else run.ledger
        loader = _loader_of(run) if dataset is ... else None
        if dataset is ...:
            dataset = None if loader is None else loader.dataset
        self._dataset = dataset
        unit = self._ledger.plan.unit_of_privacy
        self._most: float = (
            _most_units(dataset, units, unit) if loader is None else loader.num_units
        )
        self._account = Account(self._ledger)
        self._noise = GaussianNoise()

    def count(self, name: str, mask_N: ArrayLike | Tensor) -> Answer:
        """Return how many units the mask is true of.

        Args:
            name: The planned query.
            mask_N: One truth value a unit of privacy.

        Raises:
            BudgetExhaustedError: If the query was asked before.
            ValueError: If it is not planned, or for another number of values, or if the
                mask is no vector.
            LedgerError: If another ledger charged for rows of the dataset, and this one
                does not know of it.
            UnsupportedOperationError: If there are several ranks.
        """
        mask = self._vector(mask_N) != 0
        reason = "a unit is counted or not"
        (value,), stddev = self._released(name, mask.sum(dtype=torch.float64), reason)
        return Answer(name=name, value=value, stddev=stddev)

    def mean(
        self,
        name: str,
        values_N: ArrayLike | Tensor,
        *,
        low: float,
        high: float,
        num_units: float,
    ) -> Answer:
        """Return about the mean of the values, each clipped to a range.

        For losses and metrics of a model, too: one number a unit, computed without other
        units.

        Args:
            name: The planned query.
            values_N: One value a unit of privacy; NaN counts as the middle of the range.
            low: The smallest number that a value counts as: public, not the data's own.
            high: The largest one.
            num_units: What the sum is divided by: a public number, as the expected
                number of units. Where it is not known, ask for a count.

        Raises:
            BudgetExhaustedError: If the query was asked before.
            ValueError: If it is not planned, or for another number of values, if the
                range is empty or not finite, or if the values are no vector.
            LedgerError: If another ledger charged for rows of the dataset, and this one
                does not know of it.
            UnsupportedOperationError: If there are several ranks.
        """
        middle, half = _range(low, high)
        num_units = _checks.positive(num_units=num_units)
        unit_N = (
            ((self._vector(values_N) - middle) / half).nan_to_num(nan=0.0).clamp(-1, 1)
        )
        total = ((unit_N * _GRID).round() / _GRID).sum()
        reason = "a unit adds a number in [-1, 1]"
        (noisy,), stddev = self._released(name, total, reason)
        value = middle + half * noisy / num_units
        return Answer(
            name=name,
            value=min(max(value, low), high),
            stddev=half * stddev / num_units,
        )

    def histogram(
        self, name: str, values_N: ArrayLike | Tensor, *, edges: Sequence[float]
    ) -> Histogram:
        """Return how many values lie in each cell ``[edges[i], edges[i + 1])``.

        Quantiles may be read off it: ``histogram(...).quantile(0.5)``.

        Args:
            name: The planned query, whose ``num_values`` is the number of cells.
            values_N: One value a unit of privacy; those in no cell are not counted.
            edges: Rising numbers, public and not the data's own.

        Raises:
            BudgetExhaustedError: If the query was asked before.
            ValueError: If it is not planned, or for another number of cells, if the
                edges do not rise, or if the values are no vector.
            LedgerError: If another ledger charged for rows of the dataset, and this one
                does not know of it.
            UnsupportedOperationError: If there are several ranks.
        """
        sides = torch.as_tensor(edges, dtype=torch.float64)
        if len(sides) < 2 or not bool((sides[1:] > sides[:-1]).all()):  # noqa: PLR2004
            raise ValueError(
                f"edges must be at least two rising numbers, got {tuple(edges)!r}"
            )
        cells_N = torch.bucketize(self._vector(values_N), sides, right=True) - 1
        num_cells = len(sides) - 1
        inside_N = (cells_N >= 0) & (cells_N < num_cells)
        counts = torch.bincount(cells_N[inside_N], minlength=num_cells).double()
        noisy, stddev = self._released(
            name, counts, "a unit is in one cell, or in none"
        )
        return Histogram(
            name=name, edges=tuple(sides.tolist()), counts=noisy, stddev=stddev
        )

    def _vector(self, values_N: ArrayLike | Tensor) -> Tensor:
        """Return the values in float64, on the host.

        Raises:
            ValueError: If they are no vector, or more than there are units.
        """
        vector = torch.as_tensor(values_N).detach().to("cpu", torch.float64)
        if vector.dim() != 1:
            raise ValueError(
                "values must be a vector, one entry a unit of privacy, got"
                f" {vector.dim()} dimensions"
            )
        # Of some units only there may be values; with more, a unit counts twice.
        if len(vector) > self._most:
            raise ValueError(
                "values must be one entry a unit of privacy, and are more than there are"
                " units; add up what belongs to one unit, or take one value of it"
            )
        return vector

    def _released(
        self, name: str, sums: Tensor, reason: str
    ) -> tuple[tuple[float, ...], float]:
        """Return noisy sums, to which one unit adds at most 1, and their noise."""
        _, num_ranks = rank_and_size()
        if num_ranks > 1:
            raise UnsupportedOperationError(
                f"query {name!r} was asked on one of {num_ranks} ranks, each of which"
                " would draw noise of its own; ask in one process alone, and load its"
                " ledger's state on all ranks"
            )
        statistic = Statistic(
            name=name, sums=sums.reshape(-1), sensitivity=1.0, reason=reason
        )
        self._account.check((), self._dataset)
        query = self._ledger.ask(name, num_values=sums.numel())  # Recorded before.
        noisy = noised(
            statistic, noise_multiplier=query.noise_multiplier, noise=self._noise
        )
        return tuple(noisy.tolist()), query.noise_multiplier


def _loader_of(run: Ledger | _HasLedger) -> TicketedLoader | None:
    """Return the loader of an optimizer, if it has one."""
    if isinstance(run, Ledger):
        raise TypeError(
            "Queries(ledger) needs dataset=, whose rows the values are computed from, so"
            " that no other ledger asks about them as if they had cost nothing yet; say"
            " dataset=None if no object of this process holds them"
        )
    loader = getattr(getattr(run, "mechanism", None), "loader", None)
    return loader if isinstance(loader, TicketedLoader) else None


def _most_units(dataset: Any, units: Units | None, unit_of_privacy: str) -> float:
    """Return how many units of privacy a dataset may have at most.

    Raises:
        ValueError: If rows may share a unit, and which do was not said.
    """
    if not hasattr(dataset, "__len__"):
        return math.inf
    if units is not None:
        index = UnitIndex(units, num_rows=len(dataset), max_per_unit=None)
        return index.num_units
    column = column_of_units(unit_of_privacy)
    if column is not None:
        raise ValueError(
            f"the plan protects {unit_of_privacy!r}, and rows of dataset may share one,"
            " which would count once a row; pass units=, the"
            f" {column} of every row, or units=range(len(dataset)) if no two rows share one"
        )
    return len(dataset)


def _range(low: float, high: float) -> tuple[float, float]:
    """Return the middle and half the width of a range."""
    half = (high - low) / 2
    if not 0 < half < float("inf"):
        raise ValueError(
            f"low and high must be a range of finite numbers, got {_checks.shown(low)} and {_checks.shown(high)}"
        )
    return low + half, half
