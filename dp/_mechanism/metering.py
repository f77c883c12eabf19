"""Count a release where its noise is added, and tell how its loader drew."""

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from dp.accounting import Truncation
from dp.ledger import Kind, Ledger
from dp.noise._gaussian import Witness
from dp.plan import PrivacyPlan
from dp.sampling import (
    PoissonSampling,
    Scheme,
    TicketedLoader,
    TruncatedPoissonSampling,
    Unamplified,
)
from dp.sampling._units import column_of_units


__all__ = ("counting", "is_by_step", "wrong_draw")

_BY_STEP: Final = (PoissonSampling, TruncatedPoissonSampling, Unamplified)


def is_by_step(scheme: Scheme) -> bool:
    """Whether each release has a charge of its own.

    A pass is charged whole at its first step, by a run that another goes on from.
    """
    return isinstance(scheme, _BY_STEP)


def wrong_draw(
    plan: PrivacyPlan, loader: TicketedLoader | None, *, charged: float
) -> str | None:
    """Return how a loader draws otherwise than was planned and charged; None if not so.

    Args:
        plan: The plan.
        loader: Where batches are from; None if the plan claims no amplification.
        charged: The probability that a release is accounted with.
    """
    scheme = getattr(loader, "sampling", Unamplified())
    drawn = getattr(scheme, "sampling_probability", 1.0)
    if is_by_step(scheme) and not charged >= drawn:
        return "its batch was drawn with a larger probability than charged"
    if isinstance(plan.sampling, Unamplified):
        return None  # Whose units have several losses is said where they are given.
    if loader is None or scheme != plan.sampling:
        return "its batch was not drawn as planned"
    if column_of_units(plan.unit_of_privacy) and loader.units_digest is None:
        return "its batch was drawn by rows, and units may have several"
    return None


def counting(
    ledger: Ledger, loader: TicketedLoader | None, *, max_grad_norm: float
) -> Witness:
    """Return what adds the noise of one release, and counts it.

    What it counts follows from the standard deviation that was used and from how the
    loader draws, and from no charge.

    Args:
        ledger: Of the release.
        loader: Where its batch is from; None if the plan claims no amplification.
        max_grad_norm: What its gradients were clipped to.
    """
    scheme = getattr(loader, "sampling", Unamplified())
    segment, is_counted = ledger.segment, not is_by_step(scheme)

    def count(add: Callable[[], float], _noised: Sequence[Tensor]) -> float:
        nonlocal is_counted
        stddev = add()
        if not is_counted:
            is_counted = True
            ledger.meter.count(segment, _kind(stddev / max_grad_norm, scheme))
        return stddev

    return count


def _kind(noise_multiplier: float, scheme: Scheme) -> Kind:
    q, cut = getattr(scheme, "sampling_probability", 1.0), None
    if isinstance(scheme, TruncatedPoissonSampling):
        cut = Truncation(
            max_batch_size=scheme.max_batch_size, dataset_size=scheme.dataset_size
        )
    return Kind(noise_multiplier, q, cut)
