"""Per-example parameter gradients of the operations that are known.

A rule reads what an autograd node kept for its own backward, and the gradient that
reached its output, and returns the parts of the parameters it consumed. An operation
without a rule is not an error: see :mod:`dp.per_sample._engine`.

Shapes: as in :mod:`dp.per_sample._parts`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor

from dp.per_sample._layout import Layout
from dp.per_sample._parts import Convolution, Embedding, Kept, Outer, Part


__all__ = ("RULES", "Rule", "Site")


@final
@dataclass(frozen=True, slots=True)
class Site:
    """What is known of one node before the backward pass.

    Attributes:
        saved: The node's ``_saved_*`` values by name.
        parameters: Parameter and whether it is transposed, by input position.
        layout: Where the examples are in the node's output.
        num_samples: How many there are.
    """

    saved: Mapping[str, Any]
    parameters: Mapping[int, tuple[Tensor, bool]]
    layout: Layout
    num_samples: int

    @property
    def examples_lead(self) -> bool:
        """Whether the first axis of the input is the examples' own."""
        shape = self.saved["input"].shape
        leads = self.num_samples == 1 or self.layout == Layout(-len(shape))
        return leads and shape[0] == self.num_samples

    def rows(self, tensor: Tensor) -> Tensor:
        """Return [B, T, last axis] of a tensor that lies as the gradient does."""
        moved = self.layout.examples_first(tensor, self.num_samples)
        return moved.reshape(self.num_samples, -1, tensor.shape[-1])


Parts = dict[int, Part]


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """How one operation's parameter gradients are found.

    Attributes:
        parts: Returns the parts by input position, of a site and its gradient.
        reads: What of the node it reads: the names are torch's own.
        applies: Whether it can serve a site; if not, the fallback does.
    """

    parts: Callable[[Site, Tensor], Parts]
    reads: tuple[str, ...]
    applies: Callable[[Site], bool] = lambda _site: True


def _addmm(site: Site, grad: Tensor) -> Parts:
    parts = _linear(site, 2, site.saved["mat1"], grad * site.saved["alpha"])
    if 0 in site.parameters:
        parts[0] = _broadcast(site, 0, grad * site.saved["beta"])
    return parts


def _mm(site: Site, grad: Tensor) -> Parts:
    return _linear(site, 1, site.saved["self"], grad)


def _linear(site: Site, weight: int, inputs: Tensor, grad: Tensor) -> Parts:
    if weight not in site.parameters:
        return {}
    transposed = site.parameters[weight][1]
    # The operand is [I, O], so that a transposed parameter is [O, I] itself.
    part = Outer(site.rows(inputs), site.rows(grad), transposed=not transposed)
    return {weight: part}


def _convolution(site: Site, grad: Tensor) -> Parts:
    saved, parts = site.saved, Parts()
    weight, bias = 1, 2
    if bias in site.parameters:
        parts[bias] = Kept(grad.flatten(2).sum(2))
    if weight in site.parameters:
        part = Convolution(
            saved["input"],
            grad,
            site.parameters[weight][0],
            stride=saved["stride"],
            padding=saved["padding"],
            dilation=saved["dilation"],
            groups=saved["groups"],
        )
        activations = grad[0].numel() + saved["input"][0].numel()
        small = part.kernel.numel() <= activations
        parts[weight] = Kept(part.gradients(slice(None))) if small else part
    return parts


def _embedding(site: Site, grad: Tensor) -> Parts:
    g_BTD = site.rows(grad)
    indices_BT = site.rows(site.saved["indices"][..., None])[..., 0]
    padding_BT1 = (indices_BT == site.saved["padding_idx"])[..., None]
    num_rows = len(site.parameters[0][0])
    return {0: Embedding(indices_BT, g_BTD.masked_fill(padding_BT1, 0), num_rows)}


def _layer_norm(site: Site, grad: Tensor) -> Parts:
    saved, shape = site.saved, tuple(site.saved["normalized_shape"])

    def blocks(tensor: Tensor) -> Tensor:
        """Return [B, T, D] for [..., *shape], or [B, T, 1] for what was computed of it."""
        size = math.prod(tensor.shape[tensor.dim() - len(shape) :])
        moved = site.layout.examples_first(tensor, site.num_samples)
        return moved.reshape(site.num_samples, -1, size)

    g_BTD = blocks(grad)
    mean_BT1, rstd_BT1 = blocks(saved["result1"]), blocks(saved["result2"])
    normed_BTD = (blocks(saved["input"]) - mean_BT1) * rstd_BT1
    found = {1: (g_BTD * normed_BTD).sum(1), 2: g_BTD.sum(1)}
    return {i: Kept(found[i].reshape(-1, *shape)) for i in site.parameters}


def _group_norm(site: Site, grad: Tensor) -> Parts:
    # Norming N examples of C channels in G groups is norming one example of N * C
    # channels in N * G groups, whose weight gradients are the examples' own.
    saved = site.saved
    N, C = grad.shape[:2]
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        grad.contiguous(),
        saved["input"].contiguous(),
        saved["result1"].reshape(1, -1),
        saved["result2"].reshape(1, -1),
        saved["result2"].new_ones(1).expand(N * C),
        1,
        N * C,
        grad[0, 0].numel(),
        N * saved["group"],
        [False, True, True],
    )
    found = {1: weight.view(N, C), 2: bias.view(N, C)}
    return {i: Kept(found[i]) for i in site.parameters}


def _add(site: Site, grad: Tensor) -> Parts:
    scales = {0: 1, 1: site.saved["alpha"]}
    return {i: _broadcast(site, i, grad * scales[i]) for i in site.parameters}


def _sub(site: Site, grad: Tensor) -> Parts:
    scales = {0: 1, 1: -site.saved["alpha"]}
    return {i: _broadcast(site, i, grad * scales[i]) for i in site.parameters}


def _mul(site: Site, grad: Tensor) -> Parts:
    factors = {0: "other", 1: "self"}
    return {
        i: _broadcast(site, i, grad * site.saved[factors[i]]) for i in site.parameters
    }


def _broadcast(site: Site, index: int, grad: Tensor) -> Part:
    """Sum every example's gradient over the axes that the parameter was spread over."""
    parameter, transposed = site.parameters[index]
    shape = parameter.mT.shape if transposed else parameter.shape
    if site.num_samples == 1:
        by_example = grad.sum_to_size(shape)[None]
        return Kept(by_example.mT if transposed else by_example)
    sizes = [1] * (grad.dim() - len(shape)) + list(shape)
    sizes.pop(site.layout.axis)  # 1: the parameter does not extend along it.
    grads = site.layout.examples_first(grad, site.num_samples)
    num_shared = grads.dim() - 1 - len(sizes)  # 1 if positions shared the axis.
    spread = [1 + i for i in range(num_shared)] + [
        1 + num_shared + i for i, size in enumerate(sizes) if size == 1
    ]
    summed = grads.sum(spread) if spread else grads
    by_example = summed.reshape(-1, *shape)
    return Kept(by_example.mT if transposed else by_example)


def _is_spread_over_examples(site: Site) -> bool:
    """Whether there is one parameter, without an extent along the examples' axis."""
    if len(site.parameters) > 1:
        return False
    ((parameter, transposed),) = site.parameters.values()
    shape = parameter.mT.shape if transposed else parameter.shape
    reaches = len(shape) + site.layout.axis >= 0
    return site.num_samples == 1 or not reaches or shape[site.layout.axis] == 1


RULES: Final[Mapping[str, Rule]] = {
    "AddBackward0": Rule(_add, ("alpha",), _is_spread_over_examples),
    "AddmmBackward0": Rule(
        _addmm,
        ("mat1", "alpha", "beta"),
        lambda site: 1 not in site.parameters,
    ),
    "ConvolutionBackward0": Rule(
        _convolution,
        ("input", "stride", "padding", "dilation", "groups", "transposed"),
        lambda site: site.examples_lead and not site.saved["transposed"],
    ),
    "EmbeddingBackward0": Rule(
        _embedding,
        ("indices", "padding_idx", "scale_grad_by_freq", "sparse"),
        lambda site: not (site.saved["scale_grad_by_freq"] or site.saved["sparse"]),
    ),
    "MmBackward0": Rule(_mm, ("self",), lambda site: 0 not in site.parameters),
    "MulBackward0": Rule(_mul, ("self", "other"), _is_spread_over_examples),
    "NativeGroupNormBackward0": Rule(
        _group_norm,
        ("input", "result1", "result2", "group"),
        lambda site: site.examples_lead,
    ),
    "NativeLayerNormBackward0": Rule(
        _layer_norm, ("input", "result1", "result2", "normalized_shape")
    ),
    "SubBackward0": Rule(_sub, ("alpha",), _is_spread_over_examples),
}
