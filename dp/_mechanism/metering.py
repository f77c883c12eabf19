"""Count each release for its ledger's meter, where the noise stage adds its noise."""

from collections.abc import Callable, Sequence
from typing import Final

from torch import Tensor

from dp.accounting import Truncation
from dp.ledger import Kind, Ledger
from dp.noise._gaussian import Witness
from dp.sampling import (
    PoissonSampling,
    Scheme,
    TicketedLoader,
    TruncatedPoissonSampling,
    Unamplified,
)


__all__ = ("counting", "is_by_step")

_BY_STEP: Final = (PoissonSampling, TruncatedPoissonSampling, Unamplified)


def is_by_step(scheme: Scheme) -> bool:
    """Whether each release has a charge of its own.

    A pass is charged whole at its first step, by a run that another goes on from.
    """
    return isinstance(scheme, _BY_STEP)


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
