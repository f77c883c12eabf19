"""Gradients of convolution kernels.

There are two ways to one example's gradient, and which is faster depends on the
channels and the device:

* as products of *windows*: every position at which the kernel is applied reads a window
  of the input, and the gradient is ``grads[O, positions] @ windows[positions, C * K]``,
  a matrix product whose norms may also come from Gram matrices (Bu et al.,
  https://arxiv.org/abs/2205.10683);
* as one convolution with as many groups as examples (Rochette et al.,
  https://arxiv.org/abs/1912.06015).

Shapes: ``B`` examples, ``T`` images of an example, ``C`` channels in, ``O`` out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp import _tuning
from dp.per_sample._parts.factored import FactoredGrads, gram_is_cheaper
from dp.per_sample._parts.part import (
    GradPart,
    chunk_bytes,
    chunked_norms,
    chunks,
    squared_norms,
    wide,
    zeroed,
)


__all__ = ("ConvolutionGrads",)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionGrads(GradPart):
    """Gradients of a convolution's kernel, computed on demand.

    Args:
        inputs: [B, T, C, ...].
        grads: [B, T, O, ...], of the outputs.
        kernel: The kernel itself.
        stride: Like the remaining arguments, as ``torch.convolution`` takes it.
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
        if not self._is_product:
            return chunked_norms(
                [self], len(self.inputs), self.kernel.numel(), self.inputs.device
            )
        norms = []
        for examples in self._chunks(len(self.inputs)):
            product = self._product(examples)
            # A Gram matrix is [positions, positions]: good for many channels and small
            # images.
            norms.append(
                product.squared_norms()
                if self.is_gram_cheaper
                else squared_norms(product.gradients(slice(None)))
            )
        return torch.cat(norms)

    def gradients(self, examples: slice) -> Tensor:
        if not self._is_product:
            return self._convolved(examples)
        # Chunks count from 0, and the slice from its own start: chunk 0:4 of examples
        # 10:17 is 10:14, and 4:8 is 14:17.
        start, stop, _ = examples.indices(len(self.inputs))
        # One chunk's windows at a time: those of all take as often as much as the input
        # as the kernel has elements.
        grads = [
            self._product(
                slice(start + chunk.start, min(start + chunk.stop, stop))
            ).gradients(slice(None))
            for chunk in self._chunks(stop - start)
        ]
        return torch.cat(grads).view(-1, *self.kernel.shape)

    def add_weighted_sum(self, factors_B: Tensor, total: Tensor, *, beta: int) -> None:
        grads, inputs = self.grads.to(total.dtype), self.inputs.to(total.dtype)
        # [B] as [B, 1, 1, ...]: linear in the gradients of the outputs, so those are
        # scaled.
        factors = factors_B.to(total.dtype).view(-1, *[1] * (grads.dim() - 1))
        # An ordinary backward of the whole batch, on gradients that were scaled.
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

    def mask_examples(self, mask_B: Tensor) -> "ConvolutionGrads":
        return replace(
            self,
            inputs=zeroed(self.inputs, mask_B),
            grads=zeroed(self.grads, mask_B),
        )

    @property
    def is_gram_cheaper(self) -> bool:
        """Whether norms take less time than the gradients themselves."""
        # T positions, C * K of a window and O / groups outputs: 4 * 4 positions of a
        # kernel [512, 512, 3, 3] take 16 * (4608 + 512) < 4608 * 512, so Gram matrices
        # it is.
        return self._is_product and gram_is_cheaper(
            self._num_positions,
            self.kernel[0].numel(),
            len(self.kernel) // self.groups,
        )

    @property
    def _num_positions(self) -> int:
        """The number of positions at which one image meets the kernel."""
        fixed = self.inputs if self.transposed else self.grads
        return fixed[0, :, 0].numel()

    @property
    def _is_product(self) -> bool:
        """Whether gradients are computed as products of windows."""
        fewest = _tuning.MANY_CHANNEL_PAIRS.get(self.inputs.device.type, 0)
        pairs = self.kernel.shape[0] * self.kernel.shape[1]
        is_pointwise = self.kernel.numel() == pairs
        # An accelerator has no fewest, and always takes products. On the host a kernel
        # of one position needs no windows at all: its input is one already.
        return not fewest or (self.groups == 1 and (is_pointwise or pairs >= fewest))

    def _chunks(self, num_samples: int) -> list[slice]:
        """Return slices of examples whose windows fit in a cache, or a chunk of memory."""
        # Example: 32 x 32 positions of a kernel [64, 16, 3, 3] have windows of 144
        # elements each, 0.6 MB an example in float32, where the image itself has 66 KB.
        windowed = self._num_positions * self.kernel[0].numel() * self.groups
        size = 4 * max(windowed, self.kernel.numel())
        at_most = (
            _tuning.WINDOW_CHUNK_BYTES
            if self.inputs.is_cpu
            else chunk_bytes(self.inputs.device)
        )
        return chunks(num_samples, size, at_most)

    def _product(self, examples: slice) -> FactoredGrads:
        """Return the gradients as [b, positions, O] times [b, positions, C * ...].

        With several groups, each group has factors of its own, on a second axis. A
        transposed convolution slides over its outputs, not its inputs.
        """
        moving, fixed = wide(self.inputs[examples]), wide(self.grads[examples])
        # The roles are exchanged: each input is spread over a window of the outputs.
        if self.transposed:
            moving, fixed = fixed, moving
        windows = self._windows(moving.flatten(0, 1), fixed.shape[3:])
        # [b * T, C, *kernel, *positions] becomes [b, T, C * K, P].
        by_kernel = windows.reshape(
            *fixed.shape[:2], self.kernel[0].numel() * self.groups, -1
        )
        return FactoredGrads(
            _positions_first(fixed.flatten(3), self.groups),
            _positions_first(by_kernel, self.groups),
        )

    def _windows(self, images: Tensor, positions: Sequence[int]) -> Tensor:
        """Return [b * T, C, *kernel, *positions]: a strided view of the padded images.

        With a kernel of 3 and a stride of 1, ``windows[..., k, p]`` is element ``p + k``.
        """
        sides = [
            pad for padding in reversed(self.padding) for pad in (padding, padding)
        ]
        padded = F.pad(images, sides).contiguous()
        # A kernel's neighbours are dilation apart, and its positions are stride apart:
        # of a row of 7 padded elements, kernel 3 at stride 2 reads 0 1 2, 2 3 4 and 4 5
        # 6.
        per_image, per_channel, *strides = padded.stride()
        moves = [s * by for s, by in zip(strides, self.stride, strict=True)]
        spreads = [s * by for s, by in zip(strides, self.dilation, strict=True)]
        return padded.as_strided(
            (*padded.shape[:2], *self.kernel.shape[2:], *positions),
            (per_image, per_channel, *spreads, *moves),
        )

    def _convolved(self, examples: slice) -> Tensor:
        # Examples become groups of one convolution, an example's images its batch.
        inputs, grads = wide(self.inputs[examples]), wide(self.grads[examples])
        if self.kernel.shape[1] == 1 and self.groups == 1 and not self.transposed:
            return self._correlated(inputs, grads)
        # Inputs [T, b * C, ...] and gradients [T, b * O, ...], with one group for each
        # example if the layer has one: group k sees the channels of example k alone, so
        # the kernel's gradient is [b * O, C, ...].
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

    def _correlated(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """Return the gradients of a kernel that reads one channel, and faster.

        Element k is the sum over positions p of ``grads[p] * image[stride * p + dilation
        * k]``: a convolution of the image by its gradients, with the two exchanged.
        """
        b, T = grads.shape[:2]
        # Every image is a group: [1, b * T, ...] by [b * T * O, 1, ...].
        images = inputs.flatten(0, 2)[None]
        by_image = torch.convolution(
            images,
            grads.flatten(0, 2)[:, None],
            None,
            stride=self.dilation,
            padding=self.padding,
            dilation=self.stride,
            transposed=False,
            output_padding=[0] * (images.dim() - 2),
            groups=b * T,
        )
        # What strides leave of an image is behind the last position of the kernel.
        for axis, length in enumerate(self.kernel.shape[2:], start=2):
            by_image = by_image.narrow(axis, 0, length)
        return by_image.reshape(b, T, *self.kernel.shape).sum(1)

    def _backward(
        self, inputs: Tensor, grads: Tensor, kernel: Tensor, *, groups: int
    ) -> Tensor:
        # The kernel is asked for its shape alone; only its own gradient is computed.
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


def _side_by_side(images: Tensor) -> Tensor:
    """Return [T, B * C, ...] of [B, T, C, ...]."""
    return images.transpose(0, 1).flatten(1, 2)


def _positions_first(images: Tensor, groups: int) -> Tensor:
    """Return [b, T * P, C] of [b, T, C, P]; of several groups, [b, G, T * P, C / G]."""
    if groups == 1:
        return images.transpose(2, 3).flatten(1, 2)
    grouped: Tensor = images.unflatten(2, (groups, -1))
    return grouped.permute(0, 2, 1, 4, 3).flatten(2, 3)
