"""Delta by epsilon, of losses that are composed once for both.

Epsilon is read at one delta; a risk needs delta at many epsilons.
"""

from functools import partial
from typing import TYPE_CHECKING

from dp._typing import NeighboringRelation
from dp.accounting import _composition, _own_losses
from dp.accounting._reference import ReferenceAccountant
from dp.accounting._release import Release


if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    from dp.accounting._trade_off import DeltasAt, Floats

__all__ = ("deltas_by_epsilon",)


def deltas_by_epsilon(
    releases: tuple[Release, ...],
    *,
    relation: NeighboringRelation,
    group_size: int,
    interval: float,
    library: ReferenceAccountant | None,
) -> "DeltasAt":
    """Return the delta of all the releases together, by epsilon.

    The larger one of both directions: of adding a unit, and of removing it. The
    arguments are those of :func:`dp.accounting._composition.epsilon_by_delta`.
    """
    if library is None:
        losses, _ = _own_losses.composed(releases, relation, group_size, interval)
        at: DeltasAt = partial(_deltas, losses)
    elif group_size == 1:
        at = library.deltas_of_example(releases, relation, interval)
    else:
        at = library.deltas_of_group(releases, group_size, interval)
    lost = _composition.most_rounded(releases)

    def deltas_at(epsilons_E: "Floats") -> "Floats":
        return at(epsilons_E) + lost

    return deltas_at


def _deltas(losses: "PrivacyLossDistribution", epsilons_E: "Floats") -> "Floats":
    """Return the larger delta of both directions, at every epsilon."""
    import numpy as np  # noqa: PLC0415 -- a tenth of a second

    from dp.accounting._buckets import read_deltas  # noqa: PLC0415 -- a second

    removed_E = read_deltas(losses._pmf_remove, epsilons_E)  # noqa: SLF001 -- there is no public one
    return np.maximum(removed_E, read_deltas(losses._pmf_add, epsilons_E))  # noqa: SLF001
