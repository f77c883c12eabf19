"""This process's rank and the world size.

Asked anew whenever it matters: a process group may be made after a loader or an
optimizer was, as Lightning does.
"""

from torch import distributed


__all__ = ("rank_and_size",)


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes: 0 and 1 if alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
