"""Reduce-scatter the ranks' sums, and all-gather the shares once they are noisy.

Sums are packed into buckets, as DistributedDataParallel packs gradients. A bucket is a
matrix with one row per rank; the ranks exchange rows, and each adds up its own. For
sums that every rank needs whole, the rows are cut from the flattened bucket and gathered
again afterwards, which sends as many bytes as one all-reduce. For sums that stay
sharded, a row holds one rank's shards.

Shapes: ``W`` ranks, ``R`` elements in a row of a bucket.
"""

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, distributed
from torch.nn.functional import pad

from dp import _tuning
from dp.distributed._fsdp import Sharding
from dp.distributed._world import World, translate_errors


__all__ = ("Exchange",)


@final
class Exchange:
    """One exchange of sums over the ranks of a world.

    Iterating yields this rank's share of the totals, bucket by bucket, to be noised in
    place while the next bucket is in flight. :meth:`start_all_gather` sends the share
    to all ranks, and :meth:`results` returns the noisy totals.

    >>> exchange = Exchange(World(), [torch.ones(2)], [None])
    >>> for (share,) in exchange:
    ...     _ = share.add_(1)
    ...     exchange.start_all_gather()
    >>> exchange.results()
    [tensor([2., 2.])]

    Args:
        world: The ranks.
        sums: This rank's sums, with the same shapes and dtypes on all ranks. Their
            memory may be reused.
        shardings: How the result of each sum is sharded over the ranks; None if every
            rank needs all of it.
        buffers: The memory of *sums*, each element once, as fewer tensors: what a world
            of one rank yields. By default *sums*.

    Guarantees:
        * Every element of a total is in the share of exactly one rank, so that it is
          noised once.
        * On a CPU an element is summed in the order of the ranks, so totals are
          reproducible; after the all-gather they are the same on every rank.
    """

    def __init__(
        self,
        world: World,
        sums: Sequence[Tensor],
        shardings: Sequence[Sharding | None],
        *,
        buffers: Sequence[Tensor] | None = None,
    ) -> None:
        self._world = world
        self._results = list(sums)
        self._buffers = self._results if buffers is None else list(buffers)
        self._shardings = shardings
        self._buckets = (
            [_Bucket(world, packed, shardings) for packed in _packed(sums, shardings)]
            if world.size > 1
            else []
        )
        self._num_published = 0

    def __iter__(self) -> Iterator[list[Tensor]]:
        """Yield this rank's shares.

        Raises:
            RankFailedError: If a rank died or timed out.
        """
        if self._world.size == 1:
            yield self._buffers
        for i, bucket in enumerate(self._buckets):
            # One bucket ahead: it travels while this one is being noised.
            for due in self._buckets[i : i + 2]:
                due.start_reduce_scatter(self._results)
            yield [bucket.wait_total()]

    def start_all_gather(self) -> None:
        """Send the share that was yielded last, now noisy, to all ranks."""
        if self._world.size > 1:
            self._buckets[self._num_published].start_all_gather()
            self._num_published += 1

    def results(self) -> list[Tensor]:
        """Return every noisy total, or this rank's shard of it.

        Raises:
            RankFailedError: If a rank died or timed out.
        """
        for bucket in self._buckets:
            bucket.scatter_to(self._results)
        if not any(self._shardings):
            return self._results
        return [
            sharding.shard_of(result) if sharding and sharding.axis is None else result
            for result, sharding in zip(self._results, self._shardings, strict=True)
        ]


@final
class _Bucket:
    """Sums that are exchanged in one collective."""

    def __init__(
        self, world: World, indices: Sequence[int], shardings: Sequence[Sharding | None]
    ) -> None:
        self._world = world
        self._indices = indices
        self._shardings = shardings
        self._shapes: list[torch.Size] = []
        self._rows_WR = self._total_R = torch.empty(0)
        self._work: Any = None

    def start_reduce_scatter(self, sums: list[Tensor]) -> None:
        """Start sending every rank its row; do nothing if that was started before."""
        if self._work is not None:
            return
        local_sums = [sums[i] for i in self._indices]
        self._shapes = [tensor.shape for tensor in local_sums]
        sent_WR = self._matrix(local_sums)
        self._total_R = sent_WR.new_empty(sent_WR.shape[1])
        with translate_errors():
            if _trades_rows(sent_WR.device):
                self._rows_WR = torch.empty_like(sent_WR)
                self._work = distributed.all_to_all_single(
                    self._rows_WR, sent_WR, async_op=True
                )
            else:
                self._work = distributed.reduce_scatter_single(
                    self._total_R, sent_WR.view(-1), async_op=True
                )

    def wait_total(self) -> Tensor:
        """Wait for all ranks' copies of this rank's row, and return their sum."""
        with translate_errors():
            self._work.wait()
        if self._rows_WR.numel():
            # In the order of the ranks: a total does not depend on who came first.
            torch.sum(self._rows_WR, dim=0, out=self._total_R)
            self._rows_WR = self._rows_WR.new_empty(0)
        return self._total_R

    def start_all_gather(self) -> None:
        """Start sending this rank's row to all ranks, unless it stays sharded."""
        if self._is_sharded:
            return
        self._rows_WR = self._total_R.new_empty(self._world.size, len(self._total_R))
        with translate_errors():
            self._work = distributed.all_gather_single(
                self._rows_WR.view(-1), self._total_R, async_op=True
            )

    def scatter_to(self, results: list[Tensor]) -> None:
        """Write this rank's results to their places in *results*."""
        with translate_errors():
            self._work.wait()
        if self._is_sharded:
            totals = self._shards()
        else:
            # The padding at the end is cut off again: it had noise, and is nobody's
            # element.
            sizes = [shape.numel() for shape in self._shapes]
            flat = self._rows_WR.view(-1)[: sum(sizes)]
            totals = [
                part.view(shape)
                for part, shape in zip(flat.split(sizes), self._shapes, strict=True)
            ]
        for index, result in zip(self._indices, totals, strict=True):
            results[index] = result

    @property
    def _is_sharded(self) -> bool:
        return self._cuts[0] is not None

    @property
    def _cuts(self) -> list[Sharding | None]:
        return [_cut(self._shardings[i]) for i in self._indices]

    def _matrix(self, local_sums: Sequence[Tensor]) -> Tensor:
        """Pack the sums into one row per rank, padded to equal length."""
        W = self._world.size
        if self._is_sharded:
            rows = [
                cut.rows(tensor, W)
                for cut, tensor in zip(self._cuts, local_sums, strict=True)
                if cut is not None
            ]
            return torch.cat(rows, dim=1)
        # Example: sums of 6 and 4 elements on 4 ranks are 10 and two zeros, as rows of
        # 3: rank 1 adds up, and adds noise to, elements 3 to 5 of all ranks' sums.
        flat = torch.cat([tensor.reshape(-1) for tensor in local_sums])
        return pad(flat, (0, -len(flat) % W)).view(W, -1)

    def _shards(self) -> list[Tensor]:
        cuts = [cut for cut in self._cuts if cut is not None]
        widths = [cut.width(self._world.size) for cut in cuts]
        parts = self._total_R.split(widths)
        return [cut.shard(part) for cut, part in zip(cuts, parts, strict=True)]


def _trades_rows(device: torch.device) -> bool:
    """Whether to exchange rows and add them here: gloo's reduce-scatter sends twice as much."""
    return device.type == "cpu"


def _cut(sharding: Sharding | None) -> Sharding | None:
    """Return *sharding* if it cuts one axis over all ranks in order, or else None."""
    return None if sharding is None or sharding.axis is None else sharding


def _packed(
    sums: Sequence[Tensor], shardings: Sequence[Sharding | None]
) -> Iterator[list[int]]:
    """Yield the indices of each bucket's sums: of one kind, and one bucketful at most."""
    waiting: dict[object, list[int]] = {}
    for i, (tensor, sharding) in enumerate(zip(sums, shardings, strict=True)):
        kind = (tensor.dtype, tensor.device, _cut(sharding) is None)
        bucket = waiting.setdefault(kind, [])
        size = sum(sums[j].nbytes for j in bucket)
        if bucket and size + tensor.nbytes > _tuning.BUCKET_BYTES:
            yield bucket
            bucket = waiting[kind] = []
        bucket.append(i)
    yield from waiting.values()
