"""The parameters of models in which ``dp.check`` found nothing, in this process."""

from collections.abc import Iterable
from datetime import UTC, datetime

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


__all__ = ("checked_on", "remember_check")

_days: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember_check(parameters: Iterable[Tensor]) -> None:
    """Remember that a check of the model with these parameters found nothing today."""
    today = datetime.now(UTC).date().isoformat()
    for parameter in parameters:
        _days[parameter] = today


def checked_on(parameters: Iterable[Tensor]) -> str | None:
    """Return the day of the oldest check of *parameters*; None if one has none."""
    days = [_days.get(parameter) for parameter in parameters]
    return min(days) if days and all(days) else None
