"""Rules of embeddings and of norms over the last axes.

Shapes: ``B`` examples, ``T`` positions of an example, ``D`` dimensions, ``L`` lookups.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample._graph.nodes import leaf, signed, size
from dp.per_sample._parts.embedding import EmbeddingGrads
from dp.per_sample._parts.part import MaterializedGrads
from dp.per_sample._rules.context import Parts, Rule, RuleContext


__all__ = ("SEQUENCE_RULES",)

_SUM, _MEAN = 0, 1  # Modes of an embedding bag, as torch numbers them.


def _embedding(context: RuleContext, grad: Tensor) -> Parts:
    g_BTD = context.rows(grad)
    # [B, T, D] and [B, T]: L = B * T lookups, all of them an example's own.
    indices_BT = context.rows(context.saved("indices")[..., None])[..., 0]
    B, T, D = g_BTD.shape
    owners_B1 = torch.arange(B, device=grad.device)[:, None]
    part = EmbeddingGrads(
        indices_BT.flatten(),
        owners_B1.expand(B, T).flatten(),
        _without_padding(context, indices_BT[..., None], g_BTD).reshape(B * T, D),
        num_rows=context.operands[0].shape[0],
        num_samples=B,
        padding_idx=signed(context.saved("padding_idx")),
    )
    return {0: part}


def _embedding_bag(context: RuleContext, grad: Tensor) -> Parts:
    indices_L, offsets = context.saved("indices"), context.saved("offsets")
    position_L = torch.arange(len(indices_L), device=grad.device)
    # Example: 7 indices with offsets 0, 2, 5 are in the bags 0 0 1 1 1 2 2; with
    # offsets 0, 2, 2, 5 the second bag is empty, and they are in 0 0 2 2 2 3 3.
    bags_L = torch.searchsorted(offsets, position_L, right=True) - 1
    if context.saved("mode") == _MEAN:
        # Padding does not count, neither in the sum nor in the number.
        counted_L1 = grad.new_ones(len(indices_L), 1)
        counted_L1 = _without_padding(context, indices_L[:, None], counted_L1)
        sizes = grad.new_zeros(len(grad), 1).index_add_(0, bags_L, counted_L1)
        # An empty bag has the mean 0, and sends nothing.
        grad = grad / sizes.clamp(min=1)
    # [bags, D] to [L, D]: each lookup gets the gradient of its bag.
    grads_LD = grad[bags_L]
    weights_L = context.saved("per_sample_weights")
    if weights_L is not None:
        grads_LD = grads_LD * weights_L[:, None]
    owner_of_bag = context.owner_tensor(0, grad)
    part = EmbeddingGrads(
        indices_L,
        owner_of_bag.flatten().expand(len(grad))[bags_L],
        _without_padding(context, indices_L[:, None], grads_LD),
        num_rows=context.operands[0].shape[0],
        num_samples=context.num_samples,
        padding_idx=signed(context.saved("padding_idx")),
    )
    return {0: part}


def _without_padding(context: RuleContext, indices: Tensor, grads: Tensor) -> Tensor:
    # -1 stands for none. Filled, not multiplied by zero: a gradient may be infinite.
    padding = signed(context.saved("padding_idx"))
    return grads.masked_fill(indices == padding, 0) if padding >= 0 else grads


def _is_plain(context: RuleContext) -> bool:
    """Whether gradients are divided by no count over the batch."""
    return not context.saved("scale_grad_by_freq")


def _layer_norm(context: RuleContext, grad: Tensor) -> Parts:
    parts = Parts()
    g_BTD = _blocks(context, grad)
    shape = tuple(context.saved("normalized_shape"))
    weight, bias = 1, 2
    if weight in context.operands:
        mean_BT1, rstd_BT1 = (
            _blocks(context, context.saved(name)) for name in ("result1", "result2")
        )
        # One new tensor. Of two operands at a time, since torch has no vectorised loop
        # for three of which some are spread along the last axis.
        normed_BTD = _blocks(context, context.saved("input")) - mean_BT1
        normed_BTD = normed_BTD.mul_(rstd_BT1).mul_(g_BTD)
        parts[weight] = MaterializedGrads(normed_BTD.sum(1).unflatten(1, shape))
    if bias in context.operands:
        parts[bias] = MaterializedGrads(g_BTD.sum(1).unflatten(1, shape))
    return parts


def _rms_norm(context: RuleContext, grad: Tensor) -> Parts:
    shape = tuple(context.saved("normalized_shape"))
    normed_BTD = _blocks(context, context.saved("input")) * _blocks(
        context, context.saved("result1")
    )
    weighted_BD = (normed_BTD * _blocks(context, grad)).sum(1)
    return {1: MaterializedGrads(weighted_BD.unflatten(1, shape))}


def _blocks(context: RuleContext, tensor: Tensor) -> Tensor:
    """Return [B, T, D] for a tensor of [..., *shape], or [B, T, 1] for its statistics."""
    num_normed = len(context.saved("normalized_shape"))
    # Example: a norm over [4, 8] of inputs [B, T, 4, 8] has blocks of 32 entries; its
    # mean is [B, T, 1, 1], and has blocks of one.
    num_axes = tensor.dim() - num_normed
    length, num_blocks = size(tensor.shape[num_axes:]), size(tensor.shape[:num_axes])
    B = context.num_samples
    if B > 1 and not context.examples_lead:
        tensor = context.layout.examples_first(tensor, B)
    return tensor.reshape(B, num_blocks // B, length)


def _norms_within_examples(context: RuleContext) -> bool:
    # Along an axis that is normed, an example's values are computed of others', so that
    # no gradient is one example's alone: nothing for a rule.
    lead = len(context.use.shape) - len(context.saved("normalized_shape"))
    return 0 not in context.operands and (
        context.num_samples == 1 or context.axis < lead
    )


SEQUENCE_RULES: Final[Mapping[str, Rule]] = {
    "EmbeddingBackward0": Rule(
        parts=_embedding,
        spreads=_is_plain,
        reads=("indices", "padding_idx", "scale_grad_by_freq"),
        example=lambda: F.embedding(
            torch.zeros(1, dtype=torch.long, device="cpu"), leaf(2, 1)
        ),
        applies=_is_plain,
    ),
    "EmbeddingBagBackward0": Rule(
        parts=_embedding_bag,
        reads=(
            "indices",
            "offsets",
            "mode",
            "padding_idx",
            "per_sample_weights",
            "scale_grad_by_freq",
        ),
        example=lambda: F.embedding_bag(
            torch.zeros(1, 1, dtype=torch.long, device="cpu"), leaf(2, 1)
        ),
        applies=lambda context: (
            _is_plain(context)
            and context.saved("mode") in (_SUM, _MEAN)
            and [*context.operands] == [0]
        ),
    ),
    "NativeLayerNormBackward0": Rule(
        parts=_layer_norm,
        spreads=_norms_within_examples,
        reads=("input", "result1", "result2", "normalized_shape"),
        example=lambda: F.layer_norm(leaf(1, 2), [2], leaf(2), leaf(2)),
        applies=_norms_within_examples,
        stacks=("input", "result1", "result2"),
    ),
    "FusedRmsNormBackward0": Rule(
        parts=_rms_norm,
        spreads=_norms_within_examples,
        reads=("input", "result1", "normalized_shape"),
        example=None,
        applies=_norms_within_examples,
        stacks=("input", "result1"),
    ),
}
