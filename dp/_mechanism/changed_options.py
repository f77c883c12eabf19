"""Options of an update, such as its learning rate, that change between steps.

A schedule of steps is public. A rate that follows a loss on private data tells of them,
on the weights of every step, and no ledger counts it. From the rate alone the two cannot
be told apart: a certificate says that options changed, and what has to be true of that.
Of schedulers whose ``step`` takes a metric, as ``ReduceLROnPlateau``, is warned.
"""

import gc
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final
from weakref import WeakValueDictionary

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dp.evidence import callers_level


__all__ = (
    "CHANGED",
    "ChangedOptions",
    "warn_of_metric_schedulers",
    "warn_of_metrics_on",
)

CHANGED: Final = (
    "Learning rates and other options of the optimizer that changed between steps follow"
    " from public facts and released values."
)
_PLAIN: Final = frozenset((bool, int, float, tuple, str))

_NO_METRICS: Final = frozenset(("epoch", "step", "iteration", "closure"))

# By identity: a scheduler of one's own may have no hash.
_told: Final[WeakValueDictionary[int, object]] = WeakValueDictionary()


@final
class ChangedOptions:
    """Whether options of the groups changed between the steps of one optimizer."""

    def __init__(self) -> None:
        self.have_changed: bool = False
        self._last: Sequence[Sequence[object]] | None = None

    def note(self, groups: Iterable[Mapping[str, Any]], *optimizers: Optimizer) -> None:
        """Note the options of a step.

        The first time that they changed, warns of schedulers on one of *optimizers*
        that follow a metric.
        """
        options = [*map(_options, groups)]
        if not self.have_changed and self._last not in (None, options):
            self.have_changed = True
            warn_of_metrics_on(optimizers)
        self._last = options

    def warn_again(self, *optimizers: Optimizer) -> None:
        """Warn of schedulers that follow a metric and came after the first change."""
        if self.have_changed:
            warn_of_metrics_on(optimizers)


def _options(group: Mapping[str, Any]) -> list[object]:
    """Return the options of a group, or what changes with them.

    A tensor may be on an accelerator: whether it was written to is known without waiting.
    """
    plain: list[object] = [v for v in group.values() if v.__class__ in _PLAIN]
    rate = group.get("lr")
    if isinstance(rate, Tensor):
        plain += [id(rate), rate._version]  # noqa: SLF001 -- torch has no other name for it
    return plain


def warn_of_metrics_on(optimizers: Sequence[Optimizer]) -> None:
    """Warn of schedulers on one of *optimizers* that follow a metric.

    Optimizers do not know their schedulers, which are searched for among all objects: it
    takes a tenth of a second.
    """
    ids, everything = set(map(id, optimizers)), gc.get_objects()
    # Of hundreds of thousands of objects, but some thousand kinds. Attributes are read
    # of schedulers alone: other objects may do anything when they are asked.
    kinds = {id(kind): kind for kind in map(type, everything)}
    followers = {key for key, kind in kinds.items() if _follows_metric(kind)}
    warn_of_metric_schedulers(
        found
        for found in everything
        if id(type(found)) in followers and id(getattr(found, "optimizer", None)) in ids
    )


def warn_of_metric_schedulers(schedulers: Iterable[object]) -> None:
    """Warn, once each, if *schedulers*, wrapped by a framework or not, follow a metric.

    On the weights of each step they act as something that looked at the data of that
    metric: free if they are public, and not in epsilon if they are not.
    """
    for scheduler in schedulers:
        inner = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper
        if _follows_metric(type(inner)) and _told.get(id(inner)) is not inner:
            _told[id(inner)] = inner
            warnings.warn(
                f"{type(inner).__name__} sets the learning rate by a metric. If the"
                " metric is computed from private data, epsilon does not cover what the"
                " rate tells of them: follow public data or a schedule of steps, or say"
                " so in certificate(private_data_touches=[...])",
                stacklevel=callers_level(),
            )


def _follows_metric(kind: type) -> bool:
    """Whether instances are schedulers whose ``step`` demands a number to follow.

    As ``ReduceLROnPlateau``, and ``GreedyLR`` of transformers, which shares no class
    with it. A schedule of steps can be called without an argument.
    """
    if issubclass(kind, ReduceLROnPlateau):
        return True
    step, rates = (
        inspect.getattr_static(kind, name, None) for name in ("step", "get_last_lr")
    )
    if not inspect.isfunction(step) or rates is None:
        return False
    demanded = [
        parameter.name
        for parameter in [*inspect.signature(step).parameters.values()][1:]
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    return bool(demanded) and demanded[0] not in _NO_METRICS
