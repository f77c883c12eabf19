"""Gradients of convolution kernels.

Shapes: ``B`` examples, ``T`` images of an example, ``C`` channels in, ``O`` out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from dp.per_sample._parts import Part, chunked_norms, wide, zeroed


__all__ = ("Convolution",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(Part):
    """Gradients of a convolution's kernel, computed when they are asked for.

    Args:
        inputs: [B, T, C, ...].
        grads: [B, T, O, ...], of the outputs.
        kernel: The kernel itself.
        stride: As all that follow, of the convolution.
    """

    inputs: Tensor
    grads: Tensor
    kernel: Tensor
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def squared_norms(self) -> Tensor:
        return chunked_norms([self], len(self.inputs), self.kernel.numel())

    def gradients(self, examples: slice) -> Tensor:
        # Examples become groups of one convolution, an example's images its batch.
        inputs, grads = wide(self.inputs[examples]), wide(self.grads[examples])
        b = len(grads)
        by_example = self._backward(
            _side_by_side(inputs),
            _side_by_side(grads),
            grads.new_empty(()).expand(
                b * self.kernel.shape[0], *self.kernel.shape[1:]
            ),
            groups=self.groups * b,
        )
        return by_example.view(b, *self.kernel.shape)

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        grads, inputs = self.grads.to(total.dtype), self.inputs.to(total.dtype)
        factors = factors_B.to(total.dtype).view(-1, *[1] * (grads.dim() - 1))
        weighted = self._backward(
            inputs.flatten(0, 1),
            (grads * factors).flatten(0, 1),
            self.kernel.detach().to(total.dtype),
            groups=self.groups,
        )
        if beta:
            total += weighted
        else:
            total.copy_(weighted)

    def _backward(
        self, inputs: Tensor, grads: Tensor, kernel: Tensor, *, groups: int
    ) -> Tensor:
        result: tuple[Tensor | None, Tensor, Tensor | None]
        result = torch.ops.aten.convolution_backward(
            grads,
            inputs,
            kernel,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            groups,
            [False, True, False],
        )
        return result[1]

    def without(self, bad_B: Tensor) -> Part:
        return replace(
            self,
            inputs=zeroed(self.inputs, bad_B),
            grads=zeroed(self.grads, bad_B),
        )


def _side_by_side(images: Tensor) -> Tensor:
    """Return [T, B * C, ...] of [B, T, C, ...]."""
    return images.transpose(0, 1).flatten(1, 2)
