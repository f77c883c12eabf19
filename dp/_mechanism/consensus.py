"""What the ranks of one run must agree on before a step releases anything.

A few integers are compared at every step. What is slow to compare is compared once,
and again after something was loaded, copied or replaced on any rank; the ranks then
also agree on the id under which their ledgers charge, so that the ledgers stay equal
and one run is not counted once a rank.
"""

import json
from collections.abc import Hashable, Sequence
from typing import final

from torch import Tensor

from dp._mechanism.current_values import CurrentValues
from dp._mechanism.fingerprint import (
    fingerprint_of_dataset,
    fingerprint_of_tensors,
    held_by,
)
from dp.clipping import Clipping
from dp.distributed import World
from dp.distributed._world import NO_SHARE, Share
from dp.exceptions import SamplingMismatchError
from dp.noise import GaussianNoise
from dp.sampling import Ticket, TicketedLoader
from dp.sampling._rows_in_place import times_changed


__all__ = ("Consensus",)


@final
class Consensus:
    """The agreement of the ranks that train together; it is never copied."""

    def __init__(self) -> None:
        self._settled: Hashable = None
        self._kept: object = None  # So that no other object comes to have their ids.

    def check(
        self,
        world: World,
        *,
        ticket: Ticket | None,
        max_grad_norm: float,
        values: CurrentValues,
        clipping: Clipping,
        noise: GaussianNoise,
        loader: TicketedLoader | None,
        parameters: Sequence[Tensor],
        asks: bool = False,
    ) -> bool:
        """Return once all ranks are ready for the same release.

        Returns:
            Whether any of several ranks *asks* the others to look at their losses.

        Raises:
            RankFailedError: If another rank raised, died, or did not come in time.
            RanksDivergedError: If the ranks differ in something.
        """
        ledger = values.ledger
        # Ranks that share an id charge the same release once; alone, this process must
        # charge under an id of its own again.
        if world.size == 1:
            if self._settled is not None:  # It shared its id with others until now.
                ledger.use_segment(None)
                self._settled = None
            return False

        if _is_of_fewer(ticket, loader, world):
            world.tell_failure()
            raise SamplingMismatchError(
                f"this batch is of an iteration that began before all {world.size}"
                " processes had joined, so that each drew from all examples, and one could"
                " count twice; join the process group first, and iterate over the loader"
                " anew"
            )

        # What was compared is recognised by the objects: a loaded ledger, another
        # loader or new parameters are compared again.
        def identity() -> Hashable:
            of_data = id(loader), times_changed(loader)
            return world, ledger.segment, of_data, tuple(map(id, parameters))

        # What was seen of losses and weights may differ: each rank has its own.
        charged = ledger.state_dict() | {"remarks": None}
        agreement = world.agree_or_raise(
            {
                "the batch": None if ticket is None else _place(ticket),
                "the ledger": json.dumps(charged, sort_keys=True),
                "the clipping norm": max_grad_norm,
                "the noise": values.noise_multiplier,
            },
            agreed=self._settled == identity(),
            asks=asks,
        )
        # Parameters' values, the dataset and the plan take long to compare, and do not
        # change by themselves: once is enough until one of the objects is replaced.
        if not agreement.settled:
            # Shards differ in content by design. They are compared to be different
            # ones, and what all ranks have to be the same.
            data, share = None, NO_SHARE
            if loader is not None:
                data = fingerprint_of_dataset(loader.dataset)
                if loader.sharded:
                    share = Share(data if data.is_whole else None, held_by(loader))
                    data = None
            facts = {
                **_slow_facts(values, clipping, noise, loader, parameters),
                "the dataset": None if data is None else data.order,
            }
            samples = () if data is None else data.leaves
            ledger.use_segment(
                world.compare_once(
                    facts, proposal=ledger.segment, samples=samples, share=share
                )
            )
            self._settled, self._kept = identity(), (loader, parameters)
        return agreement.asked


def _place(ticket: Ticket) -> tuple[int, ...]:
    """Return which batch of its loader a ticket is for, and which step of its pass.

    Passes and rounds have other numbers on other ranks. They begin together if their
    steps do; so do chains of rounds, whose steps are counted through.
    """
    # Example: pass 0 of one rank may be pass 3 of another. At step 5 of each they are
    # together, at steps 5 and 6 they are not.
    in_pass = ticket.draw.in_pass
    if in_pass is None:
        return (ticket.ordinal,)
    return (ticket.ordinal, in_pass.step, in_pass.position)


def _is_of_fewer(
    ticket: Ticket | None, loader: TicketedLoader | None, world: World
) -> bool:
    """Whether a batch was drawn as if fewer processes shared the dataset."""
    # Fewer than when it was drawn is no harm: their parts stay apart.
    if ticket is None or loader is None or loader.sharded:
        return False
    return ticket.draw.num_ranks < world.size


def _in_words(rule: Clipping) -> str:
    """Return a clipping rule's own words, or its class where they are an address."""
    has_words = type(rule).__repr__ is not object.__repr__
    return repr(rule) if has_words else type(rule).__qualname__


def _slow_facts(
    values: CurrentValues,
    clipping: Clipping,
    noise: GaussianNoise,
    loader: TicketedLoader | None,
    parameters: Sequence[Tensor],
) -> dict[str, object]:
    """Return what is compared once, by the name that an error gives it."""
    # Shards differ by design; torch checks what they are shards of.
    whole = [p for p in parameters if not hasattr(p, "placements")]
    return {
        "the plan": values.plan,
        "the clipping rule": _in_words(clipping),
        "the source of noise": noise,
        "the parameters": [(tuple(p.shape), p.dtype) for p in parameters],
        "the parameters' values": fingerprint_of_tensors(whole),
        "the units of the dataset": (
            None if loader is None or loader.sharded else loader.units_digest
        ),
    }
