"""Evidence that an example's loss depends on that example alone.

What the losses compute without a gradient (a statistic that is detached, ``.item()``,
a BatchNorm that was left in ``train()``) leaves no trace in their autograd graph. So
the library evaluates the loss function again now and then, with other examples in the
batch, and compares the losses of those that stayed. What it looked at stands in the
certificate; it is evidence, and no proof.

Not done here: gradients (:mod:`dp.per_sample`) and ending a run
(:mod:`dp._mechanism.mechanism`).
"""

from dp.evidence._callers import callers_level
from dp.evidence._checked_models import checked_on, remember_check
from dp.evidence._evaluated import LossFunction
from dp.evidence._looking import looking
from dp.evidence._record import Evidence, longest, of_segments
from dp.evidence._schedule import num_due
from dp.evidence._watch import Watch


__all__ = (
    "Evidence",
    "LossFunction",
    "Watch",
    "callers_level",
    "checked_on",
    "longest",
    "looking",
    "num_due",
    "of_segments",
    "remember_check",
)
