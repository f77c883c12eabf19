"""Parameters sharded by FSDP2 (``torch.distributed.fsdp.fully_shard``).

A forward pass of such a model runs on unsharded parameters that FSDP gathered, and these
are the leaves of the autograd graph. The optimizer's parameters are this rank's shards,
as ``DTensor``. This module alone depends on FSDP's internals, and it refuses every other
kind of model parallelism.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from typing import Any, final

from torch import Tensor
from torch.nn.functional import pad

from dp._ranks import rank_and_size
from dp.exceptions import UnsupportedOperationError


__all__ = (
    "Sharding",
    "any_sharded",
    "sharding_of",
    "shardings_of",
    "unsharded_parameters",
)


@final
@dataclass(frozen=True, slots=True)
class Sharding:
    """How one parameter is sharded over the ranks.

    Attributes:
        parameter: This rank's shard: a ``DTensor``.
        axis: The sharded axis, or None if the shards are not one cut over all ranks in
            order, for example in hybrid sharding, which also replicates them.
    """

    parameter: Any
    axis: int | None

    def rows(self, whole: Tensor, num_ranks: int) -> Tensor:
        """Return the shards of *whole*, padded to equal size: one row per rank."""
        # Example: [10, 3] on 4 ranks is cut into 3, 3, 3 and 1 rows, each padded to 3:
        # [4, 9].
        cut = whole.movedim(self._cut_axis, 0)
        size = -(-len(cut) // num_ranks)  # As torch.chunk cuts: the last may be short.
        missing = num_ranks * size - len(cut)
        padded = pad(cut, (0, 0) * (cut.dim() - 1) + (0, missing))
        return padded.reshape(num_ranks, -1)

    def width(self, num_ranks: int) -> int:
        """Return the number of elements of a row."""
        shape = self.parameter.shape
        size = shape[self._cut_axis]
        return int(shape.numel() // max(1, size) * -(-size // num_ranks))

    def shard(self, row: Tensor) -> Any:
        """Return the ``DTensor`` whose local shard is *row* without its padding."""
        local = self.parameter.to_local()
        cut = local.movedim(self._cut_axis, 0)
        shard = row[: cut.numel()].view(cut.shape).movedim(0, self._cut_axis)
        return self._dtensor(shard.contiguous())

    def shard_of(self, whole: Tensor) -> Any:
        """Return *whole* as a ``DTensor`` that holds this rank's shard of it."""
        mesh = self.parameter.device_mesh
        coordinates = mesh.get_coordinate()
        for size, place, at in zip(
            mesh.shape, self.parameter.placements, coordinates, strict=True
        ):
            if place.is_shard():
                # In hybrid sharding a mesh of 2 x 4 replicates along the first axis,
                # which cuts nothing, and shards along the second.
                step = -(-whole.shape[place.dim] // size)
                end = min((at + 1) * step, whole.shape[place.dim])
                start = min(at * step, end)
                whole = whole.narrow(place.dim, start, end - start)
        return self._dtensor(whole.contiguous())

    @property
    def _cut_axis(self) -> int:
        return 0 if self.axis is None else self.axis

    def _dtensor(self, local: Tensor) -> Any:
        from torch.distributed.tensor import DTensor  # noqa: PLC0415 -- it takes a second

        return DTensor.from_local(
            local,
            self.parameter.device_mesh,
            self.parameter.placements,
            run_check=False,
            shape=self.parameter.shape,
            stride=self.parameter.stride(),
        )


def sharding_of(parameter: Tensor) -> Sharding | None:
    """Return how FSDP2 shards *parameter*, or None if it is not sharded.

    Raises:
        UnsupportedOperationError: If anything but ``fully_shard`` over all ranks
            distributes it.
    """
    if getattr(parameter, "_fsdp_flattened", False):
        raise UnsupportedOperationError(
            f"a parameter of shape {tuple(parameter.shape)} is managed by"
            " FullyShardedDataParallel (FSDP1), which replaces it by a view that"
            " cannot be matched with the autograd graph; use"
            " torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    shard: Any = parameter
    if not hasattr(shard, "placements"):
        return None
    mesh = shard.device_mesh
    _, num_ranks = rank_and_size()
    managed = _managed([parameter]).get(id(parameter))
    if managed is None or managed.fsdp_param.is_dtensor or mesh.size() != num_ranks:
        raise UnsupportedOperationError(
            f"a parameter of shape {tuple(parameter.shape)} is a DTensor with"
            f" placements {shard.placements} on a mesh of {mesh.size()} of"
            f" {num_ranks} ranks that fully_shard alone did not make; tensor,"
            " sequence and pipeline parallelism are not supported, as ranks would"
            " hold parts of one example. Use fully_shard over all ranks"
        )
    # Row r of a bucket goes to rank r, so that shards have to lie in the order of
    # ranks.
    in_order = mesh.mesh.tolist() == list(range(num_ranks))
    (place, *others) = shard.placements
    simple = in_order and not others and place.is_shard()
    return Sharding(shard, place.dim if simple else None)


def shardings_of(parameters: Sequence[Tensor]) -> list[Sharding | None]:
    """Return :func:`sharding_of` for each of *parameters*.

    Raises:
        UnsupportedOperationError: As there.
    """
    is_special = any_sharded(parameters) or _any_has("_fsdp_flattened", parameters)
    return [*map(sharding_of, parameters)] if is_special else [None] * len(parameters)


def any_sharded(parameters: Sequence[Tensor]) -> bool:
    """Whether one of *parameters* is a ``DTensor``."""
    return _any_has("placements", parameters)


def _any_has(name: str, parameters: Sequence[Tensor]) -> bool:
    # A loop in C: of all parameters, several times a step.
    return any(map(hasattr, parameters, repeat(name)))


def unsharded_parameters(
    parameters: Sequence[Tensor],
) -> AbstractContextManager[list[Tensor]]:
    """Gather *parameters*; the context is the tensors that the autograd graph has for them.

    Every rank must enter, even one without examples, since an all-gather needs them all.
    Inside, backward passes start no collectives, so ranks may run different numbers of
    them.
    """
    is_sharded = any_sharded(parameters)
    return _gathered(parameters) if is_sharded else nullcontext([*parameters])


@contextmanager
def _gathered(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    managed = _managed(parameters)
    with ExitStack() as stack:
        for module in _modules_beside(managed.values()):
            stack.enter_context(_unsharded(module))
        yield [
            managed[id(p)].fsdp_param.unsharded_param if id(p) in managed else p
            for p in parameters
        ]


@final
@dataclass(frozen=True, slots=True)
class _Managed:
    """The FSDP module that manages a parameter, and its record of the parameter."""

    module: Any
    fsdp_param: Any


def _managed(parameters: Sequence[Tensor]) -> dict[int, _Managed]:
    """Return the managing FSDP modules of the sharded parameters, by parameter id."""
    # torch has no public way from a parameter to its FSDP module; its own fully_shard
    # looks modules up in this mapping.
    from torch.distributed._composable_state import (  # noqa: PLC0415 -- as above
        _module_state_mapping,
    )
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    managed = {
        id(fsdp_param.sharded_param): _Managed(module, fsdp_param)
        for module in list(_module_state_mapping)
        if isinstance(module, FSDPModule)
        for group in module._get_fsdp_state()._fsdp_param_groups  # noqa: SLF001
        for fsdp_param in group.fsdp_params
    }
    return {id(p): managed[id(p)] for p in parameters if id(p) in managed}


def _modules_beside(managed: Iterable[_Managed]) -> list[Any]:
    """All FSDP modules of these models, frozen ones included, in one order on all ranks."""
    states = dict.fromkeys(
        state
        for entry in managed
        for state in entry.module._get_fsdp_state()._state_ctx.all_states  # noqa: SLF001 -- no getter
    )
    return [state._modules[0] for state in states]  # noqa: SLF001 -- no getter


@contextmanager
def _unsharded(module: Any) -> Iterator[None]:
    """Keep a module's parameters gathered, whatever it does after a backward pass."""
    groups = module._get_fsdp_state()._fsdp_param_groups  # noqa: SLF001 -- no getter
    reshards = [group.reshard_after_backward for group in groups]
    module.unshard()
    module.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for group, does in zip(groups, reshards, strict=True):
            group.reshard_after_backward = does
        module.reshard()
