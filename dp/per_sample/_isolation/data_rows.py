"""What owners say of the data itself, where a first use kept it.

Each row of each use may have one owner, and yet a loss may be made of two examples'
data: where one tensor of data is read twice, by rows of other units, where rows are
read in another order than that of the losses, whose labels then are another example's,
and where a loss is made of pieces of several rows of the batch.

A copy of rows in another order is another tensor, which none of this sees.

Shapes: ``U`` units, ``N`` rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from dp.exceptions import SampleMixingError, SamplingMismatchError
from dp.per_sample._graph.nodes import (
    Node,
    is_checkpointed,
    name_of,
    output_shape,
    saved,
)
from dp.per_sample._graph.uses import Edge, Use
from dp.per_sample._isolation.owners import (
    MIXED,
    NOBODY,
    Owners,
    meet,
    meet_over,
    scattered,
)


__all__ = ("check_batch", "check_data", "check_order", "kept_data")

_UseOwners = Sequence[Mapping[int, Owners]]
# A first use, the data that it kept, and its owners, one for every row.
_Kept = tuple[Use, Tensor, Tensor]


def _rows_of_output(rows: Tensor) -> Tensor:
    return meet(rows, -1)


def _leading_axis(rows: Tensor) -> Tensor:
    return meet_over(rows, range(1, rows.dim()))


# What first uses keep of the data, and its owners, from those of their output.
_DATA: Final[Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    "AddmmBackward0": ("mat1", _rows_of_output),
    "BmmBackward0": ("self", _rows_of_output),
    "ConvolutionBackward0": ("input", _leading_axis),
    # An embedding returns [..., D] for indices [...].
    "EmbeddingBackward0": ("indices", lambda rows: meet(rows, -1)[..., 0]),
    "MmBackward0": ("self", _rows_of_output),
    "MvBackward0": ("self", lambda rows: rows[:, None]),
    "NativeLayerNormBackward0": ("input", lambda rows: rows),
}


# The same where the parameter is the left side of a product.
_DATA_ON_THE_RIGHT: Final[Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]] = {
    name: ("mat2", lambda rows: meet(rows, -2))
    for name in ("BmmBackward0", "MmBackward0")
}


# What losses keep of the labels.
_LABELS: Final[Mapping[str, str]] = {
    "BinaryCrossEntropyBackward0": "target",
    "BinaryCrossEntropyWithLogitsBackward0": "target",
    "HuberLossBackward0": "target",
    "MseLossBackward0": "target",
    "NllLoss2DBackward0": "target",
    "NllLossBackward0": "target",
    "SmoothL1LossBackward0": "target",
}
_NODES_OF_A_LOSS: Final = 6  # Nodes above the labels that are looked for.


def kept_data(uses: Sequence[Use], root: Edge) -> list[Tensor]:
    """Return the data and the labels that a graph keeps, where it does plainly.

    What a checkpoint would have to compute again is left out.

    Args:
        uses: The uses of the graph.
        root: The losses.
    """
    kept = [
        (use.node, _how(use)[0])
        for use in uses
        if use.is_last and use.operation in _DATA
    ]
    # From the losses down, the nearest first: the labels are in one of the first nodes,
    # behind a view, a factor or a mean over tokens.
    pending: list[Node] = [root[0]]
    for _ in range(_NODES_OF_A_LOSS):
        if not pending:
            break
        node = pending.pop(0)
        label = _LABELS.get(name_of(node))
        if label is not None:
            kept.append((node, label))
        pending += [child for child, _ in node.next_functions if child is not None]
    found = [
        getattr(node, f"_saved_{name}")
        for node, name in kept
        if not is_checkpointed(node, name)
    ]
    return [data for data in found if data is not None and data.layout == torch.strided]


def check_order(uses: Sequence[Use], owners: _UseOwners, *, num_units: int) -> None:
    """Refuse data whose rows lie in another order than the losses.

    Raises:
        SampleMixingError: If the owners of a first use neither ascend nor repeat in the
            order of the losses. Who gives the units says whose rows are whose.
    """
    for use, of_use in zip(uses, owners, strict=True):
        # Only first uses keep the data itself. Regular owners are in order by their form.
        for one in of_use.values() if use.is_last else ():
            if one.rows is not None and not _is_in_order(one.rows, num_units):
                raise SampleMixingError(
                    "examples are mixed, or their rows are in another order than the"
                    f" losses, where {use.operation} meets the data, as when torch"
                    " packs sequences by their lengths: an example's labels may meet"
                    " another's data. If all of a loss is its own example's, say so:"
                    " backward(losses, units=torch.arange(len(losses)))"
                )


def _is_in_order(rows: Tensor, num_units: int) -> bool:
    """Whether owners ascend, or run from the first on over and over."""
    unit_N = rows.flatten()
    unit_N = unit_N[unit_N != NOBODY]
    if bool((unit_N.diff() >= 0).all()):
        return True
    # As in sequences of sorted lengths, time-major: each round is a part of the last.
    # Example: lengths 3, 2, 2, 1, time-major: 0 1 2 3 | 0 1 2 | 0, which are rounds of 4, 3
    # and 1, each of them the beginning of the one before.
    starts = (unit_N == 0).nonzero()[:, 0]
    lengths = torch.cat([starts, starts.new_tensor([len(unit_N)])]).diff()
    if len(starts) == 0 or int(starts[0]) or int(lengths[0]) != num_units:
        return False
    number_N = torch.arange(len(unit_N), device=unit_N.device)
    number_N = number_N - starts.repeat_interleave(lengths)
    return torch.equal(number_N, unit_N) and bool((lengths.diff() <= 0).all())


def check_data(uses: Sequence[Use], owners: _UseOwners, *, num_units: int) -> None:
    """Refuse one tensor of data whose rows are one unit's here, and another's there.

    Raises:
        SampleMixingError: If a row goes to the losses of several units.
    """
    # Example: m(x) + m(x)[perm]. Each of the two uses has one owner a row, but row 0 of
    # x goes to loss 0 by one and to loss 2 by the other.
    first = [(u, o[0]) for u, o in zip(uses, owners, strict=True) if _has_data(u, o)]
    # A tensor that is read once has one owner a row already, by the rules.
    if len(first) < 2:  # noqa: PLR2004 -- one alone cannot contradict itself
        return
    by_storage: dict[int, list[tuple[Use, Tensor, Owners]]] = {}
    for use, one in first:
        all_alike = all(one.is_same(other) for _, other in first)
        data = _data_of(use, all_alike=all_alike)
        if data is not None:
            # Two views of one tensor share a storage, whatever their shapes are.
            storage = data.untyped_storage().data_ptr()
            by_storage.setdefault(storage, []).append((use, data, one))
    for reads in by_storage.values():
        if _may_differ(reads):
            _check_same(
                [(use, data, _data_rows(use, o, num_units)) for use, data, o in reads]
            )


def _has_data(use: Use, owners: Mapping[int, Owners]) -> bool:
    known = use.is_last and use.operation in _DATA and 0 in owners
    return known and owners[0].axis != NOBODY


def _how(use: Use) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return what a use keeps of its data, and how owners pass to it."""
    is_left = 0 in use.operands and use.operation in _DATA_ON_THE_RIGHT
    return (_DATA_ON_THE_RIGHT if is_left else _DATA)[use.operation]


def _data_of(use: Use, *, all_alike: bool) -> Tensor | None:
    """Return the data that a first use kept, if it did.

    What a checkpoint would have to compute again is read only if owners differ.
    """
    name, _ = _how(use)
    if all_alike and is_checkpointed(use.node, name):
        return None
    data: Tensor | None = saved(use.node, name)
    return data if data is None or data.layout == torch.strided else None


def _data_rows(use: Use, owners: Owners, num_units: int) -> Tensor:
    shape = output_shape(use.node, 0)
    device = use.node._input_metadata[0].device  # noqa: SLF001 -- see _graph.nodes
    _, passed = _how(use)
    return passed(owners.as_rows(len(shape), num_units, device))


def _may_differ(reads: Sequence[tuple[Use, Tensor, Owners]]) -> bool:
    # The usual case, as of the queries, keys and values of one layer: the same view of
    # the same rows by all of them, and nothing to compare element by element.
    (_, data, owners), *others = reads
    return not all(
        other.data_ptr() == data.data_ptr()
        and other.shape == data.shape
        and other.stride() == data.stride()
        and one.is_same(owners)
        for _, other, one in others
    )


def _check_same(reads: Sequence[_Kept]) -> None:
    """Compare the owners of every element of a storage that is read more than once."""
    owner_M = _owner_by_element(reads)
    if bool((owner_M == MIXED).any()):
        names = ", ".join(dict.fromkeys(use.operation for use, _, _ in reads))
        raise SampleMixingError(
            f"units meet in the data: a row that is read by {names} goes to the losses"
            " of several examples, so one example's loss depends on another's data."
            " Leave the rows of the data where they are"
        )


def _owner_by_element(reads: Sequence[_Kept]) -> Tensor:
    """Return [M] the owner of each element of a storage, MIXED if there are several."""
    elements, owners = [], []
    for _, data, rows in reads:
        # Elements are named by their place in the storage, so that views of any strides can
        # be compared. Example: x[:2] and x[1:] of one tensor meet in the element of row 1.
        storage = torch.arange(
            int(data.storage_offset()) + _span(data), device=data.device
        )
        places = storage.as_strided(data.shape, data.stride(), data.storage_offset())
        elements.append(places.flatten())
        owners.append(rows.expand(data.shape).flatten())
    places, owner = torch.cat(elements), torch.cat(owners)
    return scattered(owner, [int(places.max()) + 1 if len(places) else 0], 0, places)


def _span(data: Tensor) -> int:
    """Return how far a tensor reaches into its storage."""
    # [2, 3] with strides (8, 1), a slice of rows of 8, reaches 1 + 8 + 2 = 11 elements
    # far.
    steps = zip(data.shape, data.stride(), strict=True)
    return 1 + sum((int(length) - 1) * int(step) for length, step in steps if length)


def check_batch(
    uses: Sequence[Use],
    owners: _UseOwners,
    batch: Sequence[Tensor],
    unit_of_row: Tensor | None,
    *,
    num_units: int,
) -> None:
    """Refuse rows of the loader's batch that belong to other units than they were drawn as.

    Of one row all parts belong to one unit, and of two rows if they were drawn as one.

    A batch is recognised by its storage, and a whole copy of it, as ``.to`` makes it on
    another device, by its values. What was computed of a batch, before a parameter met
    it, is another tensor, and is not recognised.

    Args:
        uses: The uses of the graph.
        owners: Whose their outputs are.
        batch: The tensors that the loader yielded, the examples along the first axis.
        unit_of_row: The unit that each row was drawn as; None if each is one.
        num_units: How many units there are.

    Raises:
        SampleMixingError: If losses of several units read one row.
        SamplingMismatchError: If units of losses are not those that were drawn.
    """
    storages = {one.untyped_storage().data_ptr(): one for one in batch if one.numel()}
    by_storage: dict[int, list[_Kept]] = {}
    for use, of_use in zip(uses, owners, strict=True):
        if not _has_data(use, of_use):
            continue
        data = _data_of(use, all_alike=True)
        if data is None:
            continue
        storage = data.untyped_storage().data_ptr()
        if storage not in storages:
            copy = _copy_of_batch(data, of_use[0], batch)
            if copy is None:
                continue
            storages[storage] = copy
        # Owners of one unit alone are not followed: all rows are taken for its.
        is_usual = num_units > 1 and _is_row_by_row(data, of_use[0], storages[storage])
        if not is_usual:
            kept = use, data, _data_rows(use, of_use[0], num_units)
            by_storage.setdefault(storage, []).append(kept)
    for storage, reads in by_storage.items():
        _check_rows(reads, storages[storage], unit_of_row)


def _copy_of_batch(
    data: Tensor, owners: Owners, batch: Sequence[Tensor]
) -> Tensor | None:
    """Return all of a storage as the tensor of the batch that was copied there.

    Values are compared, which takes a transfer, only where the rows of the data would
    not be those of the batch, one by one.
    """
    whole = data.detach()
    num_elements = whole.untyped_storage().nbytes() // whole.element_size()
    for one in batch:
        if one.numel() != num_elements or not num_elements or not one.is_contiguous():
            continue
        copy = whole.as_strided(one.shape, one.stride(), 0)
        if _is_row_by_row(data, owners, copy) or _is_copy(copy, one):
            return copy
    return None


def _is_copy(copy: Tensor, original: Tensor) -> bool:
    """Whether values are the same, and say by their differences that this is no chance.

    Six labels that all are 0 equal the token types of six positions, which all examples
    share. Rows that are all alike say nothing of whose they are.
    """
    moved = original.detach().to(copy)
    same = (copy == moved) | (moved != moved)  # noqa: PLR0124 -- NaN
    return bool(same.all()) and not bool((moved == moved[:1]).all())


def _is_row_by_row(data: Tensor, owners: Owners, batch: Tensor) -> bool:
    """Whether a row of the data is, as is usual, one row of the batch, and one unit's."""
    return (
        # As of a batch [8, 16, 32] that is read as [128, 32]: 16 rows of a unit follow
        # one another, of 32 elements each, as far apart as the rows of the batch are:
        # 512.
        owners.is_regular
        and owners.outer == 1
        and data.data_ptr() == batch.data_ptr()
        and data.numel() == batch.numel()
        and data.shape[owners.axis] == len(batch) * owners.inner
        and data.stride(owners.axis) * owners.inner == batch.stride(0)
    )


def _check_rows(
    reads: Sequence[_Kept], batch: Tensor, unit_of_row: Tensor | None
) -> None:
    owner_M = _owner_by_element(reads)
    span = int(batch.storage_offset()) + _span(batch)
    # Owners by element are gathered into the batch's own shape; then a row that has two
    # owners was read for two units' losses.
    storage = torch.full((span,), NOBODY, device=owner_M.device)
    storage[: len(owner_M)] = owner_M[:span]
    rows = storage.as_strided(batch.shape, batch.stride(), batch.storage_offset())
    owner_B = meet(rows.reshape(len(batch), -1), 1).flatten()
    if bool((owner_B == MIXED).any()):
        names = ", ".join(dict.fromkeys(use.operation for use, _, _ in reads))
        raise SampleMixingError(
            f"units meet in the batch: a row that the loader drew is read by {names} for"
            " the losses of several examples. Each loss must be made of rows of its own"
        )
    is_read_B = owner_B != NOBODY
    drawn_B = torch.arange(len(batch)) if unit_of_row is None else unit_of_row
    # Example: rows drawn as 0, 0, 1 and read for the losses of units 4, 4, 2 are of two
    # units either way. Of units 4, 2, 2 they would be three pairs.
    pairs = torch.stack([owner_B[is_read_B], drawn_B.to(owner_B.device)[is_read_B]])
    num_pairs = pairs.unique(dim=1).shape[1]
    if any(len(numbers.unique()) != num_pairs for numbers in pairs):
        raise SamplingMismatchError(
            "units= of the losses are other units than the loader drew: one of them has"
            " rows of several drawn ones, or a drawn one is several. Clipped together,"
            " one of those that were drawn would move the sum by more than the clipping"
            " norm, and clipped apart, too. Let the loader group rows, plan.loader("
            "dataset, units=...), and name no others than it drew: loader.unit_of_row"
        )
