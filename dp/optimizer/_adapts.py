"""Whether a clipping rule that uses what is released fits the plan and the optimizer."""

from collections.abc import Iterable, Sequence
from itertools import chain

from torch import Tensor
from torch.optim import Optimizer

from dp.accounting._counted import NoiseBesideCount
from dp.clipping import Clipping, QuantileClipping, ScaledClipping, SparseClipping
from dp.optimizer._second_moments import check_scalable
from dp.plan import PrivacyPlan
from dp.schedule import Schedule, values_of


__all__ = ("check_adapts", "check_fits", "num_noised")


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
    if isinstance(clipping, SparseClipping) and plan.correlation is not None:
        raise ValueError(
            "clipping=SparseClipping selects other rows at every step, but the plan"
            f" correlates the noise of {plan.correlation.bands} steps, which then would"
            " not cancel; plan with independent noise, or take FlatClipping"
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


def check_fits(clipping: Clipping, optimizer: Optimizer) -> None:
    """Raise if *clipping* needs moments or tables that *optimizer* does not have.

    Raises:
        ValueError: If it selects rows of what is no table.
        UnsupportedOperationError: If no moments are known, or if a table is sharded.
    """
    check_scalable(clipping, optimizer)
    if isinstance(clipping, SparseClipping):
        of_groups = [group["params"] for group in optimizer.param_groups]
        clipping.tables_among(_trainable(chain.from_iterable(of_groups)))


def num_noised(clipping: Clipping, parameters: Sequence[Tensor]) -> int:
    """Return how many numbers are noised at a step: gradients, and counts beside them.

    Args:
        clipping: The rule, which may release counts.
        parameters: All that an optimizer has, in its order; frozen ones count as well.
    """
    counts = int(type(clipping) is QuantileClipping)  # Faster, of an abstract class.
    if type(clipping) is SparseClipping:
        counts = sum(map(len, clipping.tables_among(_trainable(parameters))))
    return sum(map(Tensor.numel, parameters)) + counts


def _trainable(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter for parameter in parameters if parameter.requires_grad]
