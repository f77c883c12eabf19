"""Options of an update, such as its learning rate, that change between steps.

A schedule of steps is public. A rate that follows a loss on private data tells of them,
on the weights of every step, and no ledger counts it. From the rate alone the two cannot
be told apart: a certificate says that options changed, and what has to be true of that.
Of torch's ``ReduceLROnPlateau``, which follows a metric, is warned.
"""

import gc
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dp.evidence import callers_level


__all__ = (
    "CHANGED",
    "ChangedOptions",
    "warn_of_plateau_on",
    "warn_of_plateau_schedulers",
)

CHANGED: Final = (
    "Learning rates and other options of the optimizer that changed between steps follow"
    " from public facts and released values."
)
_PLAIN: Final = frozenset((bool, int, float, tuple, str))

_told: Final[WeakSet[ReduceLROnPlateau]] = WeakSet()


@final
class ChangedOptions:
    """Whether options of the groups changed between the steps of one optimizer."""

    def __init__(self) -> None:
        self.have_changed: bool = False
        self._last: Sequence[Sequence[object]] | None = None

    def note(self, groups: Iterable[Mapping[str, Any]], *optimizers: Optimizer) -> None:
        """Note the options of a step.

        The first time that they changed, warns of a ``ReduceLROnPlateau`` on one of
        *optimizers*.
        """
        options = [_options(group) for group in groups]
        if not self.have_changed and self._last not in (None, options):
            self.have_changed = True
            warn_of_plateau_on(optimizers)
        self._last = options

    def assumed(self, *optimizers: Optimizer) -> tuple[str, ...]:
        """Return what a certificate has to assume of them; warns once more."""
        if not self.have_changed:
            return ()
        warn_of_plateau_on(optimizers)
        return (CHANGED,)


def _options(group: Mapping[str, Any]) -> list[object]:
    """Return the options of a group, or what changes with them.

    A tensor may be on an accelerator: whether it was written to is known without waiting.
    """
    plain: list[object] = [v for v in group.values() if v.__class__ in _PLAIN]
    rate = group.get("lr")
    if isinstance(rate, Tensor):
        plain += [id(rate), rate._version]  # noqa: SLF001 -- torch has no other name for it
    return plain


def warn_of_plateau_on(optimizers: Sequence[Optimizer]) -> None:
    """Warn of every ``ReduceLROnPlateau`` of one of *optimizers*, which do not know it.

    It is searched for among all objects, which takes a tenth of a second.
    """
    ids = set(map(id, optimizers))
    warn_of_plateau_schedulers(
        found
        for found in gc.get_objects()
        if issubclass(type(found), ReduceLROnPlateau)
        and id(getattr(found, "optimizer", None)) in ids
    )


def warn_of_plateau_schedulers(schedulers: Iterable[object]) -> None:
    """Warn, once each, if *schedulers*, wrapped by a framework or not, follow a metric.

    On the weights of each step they act as something that looked at the data of that
    metric: free if they are public, and not in epsilon if they are not.
    """
    for scheduler in schedulers:
        inner = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
        if isinstance(inner, ReduceLROnPlateau) and inner not in _told:
            _told.add(inner)
            warnings.warn(
                "ReduceLROnPlateau sets the learning rate by a metric. If the metric is"
                " computed from private data, epsilon does not cover what the rate"
                " tells of them: follow public data or a schedule of steps, or say so"
                " in certificate(private_data_touches=[...])",
                stacklevel=callers_level(),
            )
