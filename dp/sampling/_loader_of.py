"""The loader that draws by a scheme."""

from typing import Any

from dp.sampling._allocation_loader import AllocationLoader
from dp.sampling._cyclic_loader import CyclicPoissonLoader
from dp.sampling._cyclic_scheme import CyclicPoisson
from dp.sampling._disjoint_loader import DisjointLoader
from dp.sampling._loader import PoissonLoader
from dp.sampling._passes import DisjointBatches, Passes, RandomAllocation
from dp.sampling._schemes import (
    PoissonSampling,
    TruncatedPoissonSampling,
)


__all__ = ("loader_of",)


def loader_of(
    scheme: CyclicPoisson | PoissonSampling | TruncatedPoissonSampling | Passes,
    dataset: Any,
    *,
    steps: int,
    **arguments: Any,
) -> PoissonLoader:
    """Return a loader that draws by *scheme*.

    Args:
        scheme: How batches are drawn.
        dataset: What they are drawn from.
        steps: Batches of one iteration; of a scheme of passes, as many whole ones, and
            one at least.
        arguments: What else the loader takes.
    """
    if isinstance(scheme, DisjointBatches):
        return DisjointLoader(
            dataset,
            steps_per_pass=scheme.steps_per_pass,
            assigned_by=scheme.assigned_by,
            passes=max(1, steps // scheme.steps_per_pass),
            **arguments,
        )
    if isinstance(scheme, RandomAllocation):
        return AllocationLoader(
            dataset,
            steps_per_pass=scheme.steps_per_pass,
            passes=max(1, steps // scheme.steps_per_pass),
            **arguments,
        )
    if isinstance(scheme, CyclicPoisson):
        return CyclicPoissonLoader(
            dataset,
            sampling_probability=scheme.sampling_probability,
            bands=scheme.bands,
            steps=steps,
            **arguments,
        )
    return PoissonLoader(
        dataset,
        sampling_probability=scheme.sampling_probability,
        steps=steps,
        max_batch_size=scheme.max_batch_size
        if isinstance(scheme, TruncatedPoissonSampling)
        else None,
        **arguments,
    )
