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


def _convolution(site: RuleContext, grad: Tensor) -> Parts:
    parts = Parts()
    weight, bias = 1, 2
    grads = _images(site, grad)  # [B, T, C, ...]
    if bias in site.operands:
        parts[bias] = MaterializedGrads(grads.flatten(3).sum((1, 3)))
    if weight in site.operands:
        inputs = _images(site, site.saved("input"))
        part = ConvolutionGrads(
            inputs=inputs,
            grads=grads,
            kernel=site.saved("weight"),
            stride=list(site.saved("stride")),
            padding=list(site.saved("padding")),
            dilation=list(site.saved("dilation")),
            transposed=site.saved("transposed"),
            output_padding=list(site.saved("output_padding")),
            groups=site.saved("groups"),
        )
        parts[weight] = _kept_if_small(site, part)
    return parts


def _kept_if_small(site: RuleContext, part: ConvolutionGrads) -> GradPart:
    """Keep the gradients if there is room and no faster way to their norms."""
    kernels = site.num_samples * part.kernel.numel()
    num_bytes = kernels * max(4, part.grads.itemsize)
    if not part.is_gram_cheaper and site.budget.take(num_bytes):
        return MaterializedGrads(part.gradients(slice(None)))
    site.budget.take((part.grads.numel() + part.inputs.numel()) * part.grads.itemsize)
    return part


def _images(site: RuleContext, tensor: Tensor) -> Tensor:
    """Return [B, T, C, ...] of [B * T, C, ...]."""
    if site.layout.time_major and site.num_samples > 1:
        apart = tensor.reshape(-1, site.num_samples, *tensor.shape[1:])
        return apart.transpose(0, 1)
    return tensor.reshape(site.num_samples, -1, *tensor.shape[1:])


def _group_norm(site: RuleContext, grad: Tensor) -> Parts:
    # Norming N examples of C channels in G groups is norming one example of N * C
    # channels in N * G groups, whose weight gradients are the examples' own.
    num_images, C = grad.shape[:2]
    rstd = site.saved("result2")
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        grad.contiguous(),
        site.saved("input").contiguous(),
        site.saved("result1").reshape(1, -1),
        rstd.reshape(1, -1),
        rstd.new_ones(1).expand(num_images * C),
        1,
        num_images * C,
        grad[0, 0].numel(),
        num_images * site.saved("group"),
        [False, True, True],
    )
    found = {1: weight, 2: bias}
    return {
        i: MaterializedGrads(_images(site, found[i].view(num_images, C)).sum(1))
        for i in site.operands
    }


def _batch_norm(site: RuleContext, grad: Tensor, *, eps: str = "eps") -> Parts:
    """Serve a norm by running statistics, or one over the channels of one image."""
    if site.saved("training"):
        return _instance_norm(site, grad)
    scale = (site.saved("running_var") + site.saved(eps)).rsqrt()
    found = _summed(site, grad, -site.saved("running_mean") * scale, scale)
    return {i: MaterializedGrads(_images(site, found[i]).sum(1)) for i in site.operands}


def _instance_norm(site: RuleContext, grad: Tensor) -> Parts:
    # torch norms [B, C, ...] as one image of B * C channels.
    scale = site.saved("result2")
    found = _summed(site, grad, -site.saved("result1") * scale, scale)
    if site.num_samples == 1:
        return {
            i: MaterializedGrads(found[i].sum(0, keepdim=True)) for i in site.operands
        }
    shape = (grad.shape[1],)
    return {
        i: SlicedGrads(MaterializedGrads(found[i].view(site.num_samples, -1)), shape, 0)
        for i in site.operands
    }


def _summed(
    site: RuleContext, grad: Tensor, shift_C: Tensor, scale_C: Tensor
) -> Mapping[int, Tensor]:
    """Return the weight's and the bias's gradients, image by image and channel."""
    shape = (*grad.shape[:2], -1)
    bias = grad.reshape(shape).sum(2)
    weighted = (grad * site.saved("input")).reshape(shape).sum(2)
    return {1: weighted * scale_C + bias * shift_C, 2: bias}


def _norms_each_example(site: RuleContext) -> bool:
    if not site.saved("training"):
        return site.axis == 0
    if site.num_samples == 1:
        return True
    num_images = site.use.shape[0]
    return num_images == 1 and site.axis == 1 and not site.layout.time_major


IMAGE_RULES: Final[Mapping[str, Rule]] = {
    "ConvolutionBackward0": Rule(
        _convolution,
        (
            "input",
            "weight",
            "stride",
            "padding",
            "dilation",
            "transposed",
            "output_padding",
            "groups",
        ),
        lambda: F.conv1d(leaf(1, 1, 2), leaf(1, 1, 1), leaf(1)),
        "convolutions of 1 to 3 dimensions, also transposed, dilated, in groups",
        "keep, redo",
        lambda site: site.axis == 0 and 0 not in site.operands,
    ),
    "NativeBatchNormBackward0": Rule(
        _batch_norm,
        (
            "input",
            "running_mean",
            "running_var",
            "training",
            "eps",
            "result1",
            "result2",
        ),
        lambda: F.batch_norm(leaf(2, 1), None, None, training=True),
        "`nn.InstanceNorm`; `nn.BatchNorm` in evaluation mode",
        applies=lambda site: 0 not in site.operands and _norms_each_example(site),
    ),
    "CudnnBatchNormBackward0": Rule(
        partial(_batch_norm, eps="epsilon"),
        (
            "input",
            "running_mean",
            "running_var",
            "training",
            "epsilon",
            "result1",
            "result2",
        ),
        None,
        "`nn.InstanceNorm`; `nn.BatchNorm` in evaluation mode",
        applies=lambda site: 0 not in site.operands and _norms_each_example(site),
    ),
    "NativeGroupNormBackward0": Rule(
        _group_norm,
        ("input", "result1", "result2", "group"),
        lambda: F.group_norm(leaf(1, 2, 2), 1, leaf(2), leaf(2)),
        "`nn.GroupNorm`",
        applies=lambda site: site.axis == 0 and 0 not in site.operands,
    ),
}
