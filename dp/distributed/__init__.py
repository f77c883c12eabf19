"""Private steps over several processes, on :mod:`torch.distributed`.

Every process ("rank") clips and sums its own examples. A reduce-scatter then leaves
each rank with the total of one share of the elements; the rank adds noise to its share,
and an all-gather distributes the noisy shares. So each element is noised exactly once,
at the full scale, for any number of ranks, and all ranks end up with the same bits.

Not done here: assigning examples to ranks (:mod:`dp.sampling`), accounting.
"""

from dp.distributed._exchange import Exchange
from dp.distributed._fsdp import (
    any_sharded,
    sharding_of,
    shardings_of,
    unsharded_parameters,
)
from dp.distributed._world import World


__all__ = (
    "Exchange",
    "World",
    "any_sharded",
    "sharding_of",
    "shardings_of",
    "unsharded_parameters",
)
