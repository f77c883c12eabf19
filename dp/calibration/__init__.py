"""The least noise, the most steps or the largest batches that keep a target epsilon.

Nothing here has to be believed: what is found is asked of :func:`dp.accounting.epsilon`
before it is returned, and a plan's own :meth:`~dp.plan.PrivacyPlan.guarantee` says what
it costs. A search that fails can waste some of the budget, never exceed it.
"""

from dp.calibration._calibrate import (
    calibrate_noise_multiplier,
    calibrate_sampling_probability,
    calibrate_steps,
    rough_noise_multiplier,
)
from dp.calibration._risk import RiskTarget


__all__ = (
    "RiskTarget",
    "calibrate_noise_multiplier",
    "calibrate_sampling_probability",
    "calibrate_steps",
    "rough_noise_multiplier",
)
