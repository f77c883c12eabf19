"""One private step by many processes, on :mod:`torch.distributed`.

Every process ("rank") clips and sums its own examples. The sums are then exchanged so
that each rank holds the total of one share of the elements; it adds noise there, and
the noisy shares are gathered. So each element gets noise once, of the full scale,
whatever the number of ranks is, and every rank ends up with the same bits.

Not done here: which examples a rank has (:mod:`dp.sampling`), what a step costs.
"""

from dp.distributed._exchange import Exchange
from dp.distributed._fsdp import sharding_of, unsharded_parameters
from dp.distributed._world import World


__all__ = ("Exchange", "World", "sharding_of", "unsharded_parameters")
