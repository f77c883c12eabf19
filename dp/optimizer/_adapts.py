"""Whether a plan lets a clipping rule find the norm, or the scales, of each step."""

from dp.accounting._counted import NoiseBesideCount
from dp.clipping import Clipping, QuantileClipping, ScaledClipping
from dp.plan import PrivacyPlan
from dp.schedule import Schedule, values_of


__all__ = ("check_adapts",)


def check_adapts(plan: PrivacyPlan, clipping: Clipping) -> None:
    """Raise if *clipping* follows what is released, and *plan* does not permit that.

    Raises:
        ValueError: If the plan schedules a norm that is found, charges whole passes at
            one norm, or has too much noise for the count; if noise is correlated between
            steps whose gradients are scaled differently.
    """
    if isinstance(clipping, ScaledClipping) and plan.correlation is not None:
        raise ValueError(
            "clipping=ScaledClipping gives gradients other scales at every step, but the"
            f" plan correlates the noise of {plan.correlation.bands} steps, which then"
            " would not cancel; plan with independent noise, or take FlatClipping"
        )
    if not isinstance(clipping, QuantileClipping):
        return
    if isinstance(plan.max_grad_norm, Schedule):
        raise ValueError(  # noqa: TRY004 -- a schedule is right with other rules
            "clipping=QuantileClipping finds the norm of each step, but the plan"
            f" schedules it: max_grad_norm={plan.max_grad_norm!r}; plan with the norm of"
            " the first step"
        )
    if plan.steps_per_pass is not None or plan.bands is not None:
        raise ValueError(
            "clipping=QuantileClipping changes the norm at every step, but a pass by"
            f" {plan.sampling!r} has one charge, at one norm; plan with PoissonSampling"
        )
    for noise_multiplier in values_of(plan.noise_multiplier):
        NoiseBesideCount.of(
            noise_multiplier, clipping.count_stddev_of(plan.expected_batch_size)
        )
