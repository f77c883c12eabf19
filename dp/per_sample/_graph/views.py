"""Operations whose output is a part of their input, and the same part of other tensors.

Shapes: none are fixed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from dp.per_sample._graph.nodes import Example, Node, leaf, output_shape, saved, signed


__all__ = ("VIEWS",)

_View = Callable[[Node, int, Tensor], Tensor]


def _reshaped(node: Node, index: int, tensor: Tensor) -> Tensor:
    return tensor.view(output_shape(node, index))


def _same(_node: Node, _index: int, tensor: Tensor) -> Tensor:
    return tensor


def _sliced(node: Node, _index: int, tensor: Tensor) -> Tensor:
    dim, start, end, step = (
        signed(saved(node, name)) for name in ("dim", "start", "end", "step")
    )
    # x[1:] keeps the end 2**63 - 1, which aten cuts to the length as it did forward.
    result: Tensor = torch.ops.aten.slice(tensor, dim, start, end, step)
    return result


def _transposed(node: Node, _index: int, tensor: Tensor) -> Tensor:
    return tensor.transpose(signed(saved(node, "dim0")), signed(saved(node, "dim1")))


# Operations whose output is a part of their input in another order, and how to take
# the same part of another tensor. No element may come twice.
VIEWS: Final[Mapping[str, tuple[Example, Sequence[str], _View]]] = {
    # Of [3, 2] a use may take weight.t()[0], of shape [3]: found in a sum of shape [3,
    # 2] by t, then [0], so that what is added to the view is added to the sum. Expand
    # and as_strided are left out, since their elements come twice, and a norm of the
    # operand's gradient is not that of the parameter's then.
    "AliasBackward0": (lambda: torch.ops.aten.alias(leaf(2)), (), _same),
    "CloneBackward0": (lambda: leaf(2).clone(), (), _same),
    "PermuteBackward0": (
        lambda: leaf(2, 3).permute(1, 0),
        ("dims",),
        lambda node, _, tensor: tensor.permute([*map(signed, saved(node, "dims"))]),
    ),
    "SelectBackward0": (
        lambda: leaf(2, 3)[0],
        ("dim", "index"),
        lambda node, _, tensor: tensor.select(
            signed(saved(node, "dim")), signed(saved(node, "index"))
        ),
    ),
    "SliceBackward0": (
        lambda: leaf(3)[1:2],
        ("dim", "start", "end", "step"),
        _sliced,
    ),
    "SplitBackward0": (
        lambda: leaf(4).split(2)[0],
        ("dim", "split_size"),
        lambda node, index, tensor: tensor.split(
            saved(node, "split_size"), signed(saved(node, "dim"))
        )[index],
    ),
    "SplitWithSizesBackward0": (
        lambda: leaf(4).split([1, 3])[0],
        ("dim", "split_sizes"),
        lambda node, index, tensor: tensor.split(
            [*saved(node, "split_sizes")], signed(saved(node, "dim"))
        )[index],
    ),
    "SqueezeBackward0": (lambda: leaf(1, 2).squeeze(), (), _reshaped),
    "SqueezeBackward1": (lambda: leaf(1, 2).squeeze(0), (), _reshaped),
    "TBackward0": (lambda: leaf(2, 3).t(), (), lambda _, __, tensor: tensor.t()),
    # A cast moves nothing; sums and norms have a dtype of their own anyway.
    "ToCopyBackward0": (lambda: leaf(2).to(torch.bfloat16), (), _same),
    "TransposeBackward0": (
        lambda: leaf(2, 3).transpose(0, 1),
        ("dim0", "dim1"),
        _transposed,
    ),
    "TransposeBackward1": (
        lambda: leaf(2, 3).clone().transpose_(0, 1),
        ("dim0", "dim1"),
        _transposed,
    ),
    "UnsafeViewBackward0": (
        lambda: torch.ops.aten._unsafe_view(leaf(2, 3), [6]),  # noqa: SLF001
        (),
        _reshaped,
    ),
    "UnsqueezeBackward0": (lambda: leaf(2)[None], (), _reshaped),
    "ViewBackward0": (lambda: leaf(2, 3).view(6), (), _reshaped),
}
