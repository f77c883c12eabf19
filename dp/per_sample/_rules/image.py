"""Rules of convolutions and of norms over channels.

Shapes: ``B`` examples, ``T`` images of an example, ``C`` channels.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample._graph.nodes import leaf
from dp.per_sample._parts.convolution import ConvolutionGrads
from dp.per_sample._parts.part import GradPart, MaterializedGrads
from dp.per_sample._parts.reparametrized import SlicedGrads
from dp.per_sample._rules.context import Parts, Rule, RuleContext


__all__ = ("IMAGE_RULES",)


def _convolution(context: RuleContext, grad: Tensor) -> Parts:
    parts = Parts()
    weight, bias = 1, 2
    grads = _images(context, grad)  # [B, T, C, ...]
    if bias in context.operands:
        # [B, T, C, H, W] to [B, T, C, P], summed over images and positions to [B, C].
        parts[bias] = MaterializedGrads(grads.flatten(3).sum((1, 3)))
    if weight in context.operands:
        inputs = _images(context, context.saved("input"))
        part = ConvolutionGrads(
            inputs=inputs,
            grads=grads,
            kernel=context.saved("weight"),
            stride=list(context.saved("stride")),
            padding=list(context.saved("padding")),
            dilation=list(context.saved("dilation")),
            transposed=context.saved("transposed"),
            output_padding=list(context.saved("output_padding")),
            groups=context.saved("groups"),
        )
        parts[weight] = _materialize_if_room(context, part)
    return parts


def _materialize_if_room(context: RuleContext, part: ConvolutionGrads) -> GradPart:
    """Materialize gradients if there is room, and no faster way to their norms."""
    # 64 examples of a kernel [512, 512, 3, 3] take 604 MB in float32.
    kernels = context.num_samples * part.kernel.numel()
    num_bytes = kernels * max(4, part.grads.itemsize)
    if not part.is_gram_cheaper and context.budget.try_reserve(num_bytes):
        return MaterializedGrads(part.gradients(slice(None)))
    # Not held: what is kept instead is counted, whether there is room or not, since the
    # norms cannot be had without it.
    context.budget.hold(
        (part.grads.numel() + part.inputs.numel()) * part.grads.itemsize
    )
    return part


def _images(context: RuleContext, tensor: Tensor) -> Tensor:
    """Return [B, T, C, ...] of [B * T, C, ...]."""
    B, shape = context.num_samples, tensor.shape[1:]
    T = tensor.shape[0] // B
    if context.layout.time_major and B > 1:
        # Time-major: the first axis is split into [T, B].
        return tensor.reshape(T, B, *shape).transpose(0, 1)
    return tensor.reshape(B, T, *shape)


def _group_norm(context: RuleContext, grad: Tensor) -> Parts:
    # A norm of N images of C channels in G groups equals a norm of one image of N * C
    # channels in N * G groups, and the weight of that has an entry for every image.
    num_images, C = grad.shape[:2]
    rstd = context.saved("result2")
    # Example: 4 images of 6 channels in 3 groups are one image of 24 channels in 12
    # groups. The weight of ones enters the inputs' gradient alone, which is not asked
    # for. The result is [24], or [4, 6].
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        grad.contiguous(),
        context.saved("input").contiguous(),
        context.saved("result1").reshape(1, -1),
        rstd.reshape(1, -1),
        rstd.new_ones(1).expand(num_images * C),
        1,
        num_images * C,
        grad[0, 0].numel(),
        num_images * context.saved("group"),
        [False, True, True],
    )
    of_images = {1: weight, 2: bias}
    return {
        i: MaterializedGrads(_images(context, of_images[i].view(num_images, C)).sum(1))
        for i in context.operands
    }


def _batch_norm(context: RuleContext, grad: Tensor, *, eps: str = "eps") -> Parts:
    """Serve a norm by running statistics, or an instance norm."""
    if context.saved("training"):
        return _instance_norm(context, grad)
    # Statistics of other batches are constants here, and couple nobody: normed is x *
    # scale + shift with shift = -mean * scale, channel by channel.
    scale = (context.saved("running_var") + context.saved(eps)).rsqrt()
    sums = _sums_by_image(context, grad, -context.saved("running_mean") * scale, scale)
    return {
        i: MaterializedGrads(_images(context, sums[i]).sum(1)) for i in context.operands
    }


def _instance_norm(context: RuleContext, grad: Tensor) -> Parts:
    # torch reshapes [B, C, ...] into one image of B * C channels and norms that.
    scale = context.saved("result2")
    sums = _sums_by_image(context, grad, -context.saved("result1") * scale, scale)
    if context.num_samples == 1:
        return {
            i: MaterializedGrads(sums[i].sum(0, keepdim=True)) for i in context.operands
        }
    shape = (grad.shape[1],)
    return {
        i: SlicedGrads(
            MaterializedGrads(sums[i].view(context.num_samples, -1)), shape, 0
        )
        for i in context.operands
    }


def _sums_by_image(
    context: RuleContext, grad: Tensor, shift_C: Tensor, scale_C: Tensor
) -> Mapping[int, Tensor]:
    """Return the gradients of weight and bias, one entry an image and channel."""
    shape = (*grad.shape[:2], -1)
    bias = grad.reshape(shape).sum(2)
    weighted = (grad * context.saved("input")).reshape(shape).sum(2)
    # The sum of g * (x * scale + shift) is scale * sum(g * x) + shift * sum(g): [N, C],
    # and no normed image is written out.
    return {1: weighted * scale_C + bias * shift_C, 2: bias}


def _norms_each_example(context: RuleContext) -> bool:
    if not context.saved("training"):
        return context.axis == 0
    if context.num_samples == 1:
        return True
    # While training, statistics run over the first axis, and mix what lies along it.
    # Torch's instance norm puts the examples on the channels' axis, [1, B * C, ...].
    num_images = context.use.shape[0]
    return num_images == 1 and context.axis == 1 and not context.layout.time_major


IMAGE_RULES: Final[Mapping[str, Rule]] = {
    "ConvolutionBackward0": Rule(
        parts=_convolution,
        reads=(
            "input",
            "weight",
            "stride",
            "padding",
            "dilation",
            "transposed",
            "output_padding",
            "groups",
        ),
        example=lambda: F.conv1d(leaf(1, 1, 2), leaf(1, 1, 1), leaf(1)),
        applies=lambda context: context.axis == 0 and 0 not in context.operands,
    ),
    "NativeBatchNormBackward0": Rule(
        parts=_batch_norm,
        reads=(
            "input",
            "running_mean",
            "running_var",
            "training",
            "eps",
            "result1",
            "result2",
        ),
        example=lambda: F.batch_norm(leaf(2, 1), None, None, training=True),
        applies=lambda context: (
            0 not in context.operands and _norms_each_example(context)
        ),
    ),
    "CudnnBatchNormBackward0": Rule(
        # cuDNN's node has another name for it.
        parts=partial(_batch_norm, eps="epsilon"),
        reads=(
            "input",
            "running_mean",
            "running_var",
            "training",
            "epsilon",
            "result1",
            "result2",
        ),
        example=None,
        applies=lambda context: (
            0 not in context.operands and _norms_each_example(context)
        ),
    ),
    "NativeGroupNormBackward0": Rule(
        parts=_group_norm,
        reads=("input", "result1", "result2", "group"),
        example=lambda: F.group_norm(leaf(1, 2, 2), 1, leaf(2), leaf(2)),
        applies=lambda context: context.axis == 0 and 0 not in context.operands,
    ),
}
