"""The public numbers of a private run, decided before it starts.

A :class:`PrivacyPlan` holds nothing that depends on the data: no dataset size, no
realised batch size, no random state. Whatever is derived from it is public too.
"""

from dp.plan._plan import PrivacyPlan
from dp.plan._plan_for import plan_for


__all__ = ("PrivacyPlan", "plan_for")

for _public in (PrivacyPlan, plan_for):
    _public.__module__ = __name__  # What pickles and tracebacks show.
