"""Warn about learning-rate schedulers driven by a metric that no ledger covers."""

import warnings
from collections.abc import Iterable

from torch.optim.lr_scheduler import ReduceLROnPlateau


__all__ = ("warn_about_plateau_schedulers",)


def warn_about_plateau_schedulers(schedulers: Iterable[object]) -> None:
    """Warn if one of *schedulers*, wrapped by a framework or not, follows a metric.

    On the weights of each step it acts as something that looked at the data of that
    metric: free if they are public, and not in epsilon if they are not.
    """
    for scheduler in schedulers:
        inner = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
        if isinstance(inner, ReduceLROnPlateau):
            warnings.warn(
                "ReduceLROnPlateau sets the learning rate by a metric. If the metric is"
                " computed from private data, epsilon does not cover what the rate"
                " tells of them: follow public data or a schedule of steps, or say so"
                " in certificate(private_data_touches=[...])",
                stacklevel=3,
            )
