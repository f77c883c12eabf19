"""Whether the batch of a loss function is the one that the loader yielded.

A look sees what is inside of the function. Inputs that were standardised or mixed
between the loader and the function reach it finished, as any other numbers do.

Shapes: ``R`` rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dp._containers import parts_of
from dp.sampling import TicketedLoader


__all__ = ("is_computed",)

_INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTORS: Final = 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D  # Odd, with mixed bits.
_FEWEST: Final = 2  # Of fewer rows, any tensor has a multiple.


@torch.no_grad()
def is_computed(batch: Any, loader: TicketedLoader | None) -> bool:
    """Whether *batch* has other rows than the loader's.

    All rows may be repeated, for several views of each, and moved, to another device and
    type, and their own numbers may change places. Only floating-point tensors with the
    examples along their first axis are compared.

    Args:
        batch: What a loss function is about to be called with.
        loader: The loader that drew it, if there is one.
    """
    if loader is None or not loader.yielded.rows:
        return False
    yielded = loader.yielded
    if yielded.was_written:
        return True
    part = slice(None) if loader.part is None else loader.part
    at_hand = [tensor[part] for tensor in yielded.rows]
    return any(
        yielded.batch_of(tensor) != "last" and _is_other(tensor, at_hand)
        for tensor in _tensors(batch)
    )


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        is_plain = batch.layout == torch.strided and not batch.is_nested
        if is_plain and batch.is_floating_point() and batch.numel() and batch.dim():
            yield batch
    elif not isinstance(batch, PackedSequence):
        for part in (parts_of(batch) or {}).values():
            yield from _tensors(part)


def _is_other(tensor: Tensor, at_hand: Sequence[Tensor]) -> bool:
    """Whether *tensor* has rows as examples have, and they are not those at hand."""
    num_rows, width = len(at_hand[0]), tensor[0].numel()
    if num_rows < _FEWEST:
        return False
    alike = [one for one in at_hand if one[0].numel() == width]
    views, rest = divmod(len(tensor), num_rows)
    if rest and (width == 1 or not alike):
        return False  # A constant, such as weights of classes.
    keys_R = _keys(tensor)
    for one in alike:
        ours_R = _keys(one.to(tensor))
        # Of a part that was cut by hand nobody knows which it is.
        is_part = rest and bool(torch.isin(keys_R, ours_R).all())
        each_R = ours_R.repeat(views).sort().values
        if is_part or torch.equal(keys_R.sort().values, each_R):
            return False
    return True


def _keys(rows: Tensor) -> Int64[Tensor, " R"]:
    """Return a number for each row, whatever the order of the numbers in it is."""
    # Integers wrap around, and their sum is the same in any order and on any device.
    flat = rows.detach().reshape(len(rows), -1).contiguous()
    bits = flat.view(_INTEGERS[flat.element_size()]).long()
    first, second = _FACTORS
    return (((bits * first) ^ (bits >> 7)) * second).square().sum(1)
