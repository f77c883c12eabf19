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

_SUM, _MEAN = 0, 1  # Modes of an embedding bag.


def _embedding(site: RuleContext, grad: Tensor) -> Parts:
    g_BTD = site.rows(grad)
    indices_BT = site.rows(site.saved("indices")[..., None])[..., 0]
    B, T, D = g_BTD.shape
    owners_B1 = torch.arange(B, device=grad.device)[:, None]
    part = EmbeddingGrads(
        indices_BT.flatten(),
        owners_B1.expand(B, T).flatten(),
        _without_padding(site, indices_BT[..., None], g_BTD).reshape(-1, D),
        num_rows=site.operands[0].shape[0],
        num_samples=B,
    )
    return {0: part}


def _embedding_bag(site: RuleContext, grad: Tensor) -> Parts:
    indices_L, offsets = site.saved("indices"), site.saved("offsets")
    position_L = torch.arange(len(indices_L), device=grad.device)
    bags_L = torch.searchsorted(offsets, position_L, right=True) - 1
    if site.saved("mode") == _MEAN:
        counted_L1 = grad.new_ones(len(indices_L), 1)
        counted_L1 = _without_padding(site, indices_L[:, None], counted_L1)
        sizes = grad.new_zeros(len(grad), 1).index_add_(0, bags_L, counted_L1)
        grad = grad / sizes.clamp(min=1)
    grads_LD = grad[bags_L]
    weights_L = site.saved("per_sample_weights")
    if weights_L is not None:
        grads_LD = grads_LD * weights_L[:, None]
    owner_of_bag = site.layout.owners(grad.shape, site.num_samples, grad.device)
    part = EmbeddingGrads(
        indices_L,
        owner_of_bag.flatten().expand(len(grad))[bags_L],
        _without_padding(site, indices_L[:, None], grads_LD),
        num_rows=site.operands[0].shape[0],
        num_samples=site.num_samples,
    )
    return {0: part}


def _without_padding(site: RuleContext, indices: Tensor, grads: Tensor) -> Tensor:
    padding = signed(site.saved("padding_idx"))
    return grads.masked_fill(indices == padding, 0) if padding >= 0 else grads


def _is_plain(site: RuleContext) -> bool:
    return not (site.saved("scale_grad_by_freq") or site.saved("sparse"))


def _layer_norm(site: RuleContext, grad: Tensor) -> Parts:
    found = Parts()
    g_BTD = _blocks(site, grad)
    shape = tuple(site.saved("normalized_shape"))
    weight, bias = 1, 2
    if weight in site.operands:
        rstd_BT1 = _blocks(site, site.saved("result2"))
        shift_BT1 = -_blocks(site, site.saved("result1")) * rstd_BT1
        inputs_BTD = _blocks(site, site.saved("input"))
        normed_BTD = torch.addcmul(shift_BT1, inputs_BTD, rstd_BT1)
        found[weight] = MaterializedGrads(
            normed_BTD.mul_(g_BTD).sum(1).unflatten(1, shape)
        )
    if bias in site.operands:
        found[bias] = MaterializedGrads(g_BTD.sum(1).unflatten(1, shape))
    return found


def _rms_norm(site: RuleContext, grad: Tensor) -> Parts:
    shape = tuple(site.saved("normalized_shape"))
    normed_BTD = _blocks(site, site.saved("input")) * _blocks(
        site, site.saved("result1")
    )
    weighted_BD = (normed_BTD * _blocks(site, grad)).sum(1)
    return {1: MaterializedGrads(weighted_BD.unflatten(1, shape))}


def _blocks(site: RuleContext, tensor: Tensor) -> Tensor:
    """Return [B, T, D] for [..., *shape], or [B, T, 1] for what was computed of it."""
    num_normed = len(site.saved("normalized_shape"))
    length = size(tensor.shape[tensor.dim() - num_normed :])
    if site.num_samples == 1 or site.examples_lead:
        return tensor.reshape(site.num_samples, -1, length)
    moved = site.layout.examples_first(tensor, site.num_samples)
    return moved.reshape(site.num_samples, -1, length)


def _norms_within_examples(site: RuleContext) -> bool:
    lead = len(site.use.shape) - len(site.saved("normalized_shape"))
    return 0 not in site.operands and (site.num_samples == 1 or site.axis < lead)


SEQUENCE_RULES: Final[Mapping[str, Rule]] = {
    "EmbeddingBackward0": Rule(
        _embedding,
        ("indices", "padding_idx", "scale_grad_by_freq", "sparse"),
        lambda: F.embedding(torch.zeros(1, dtype=torch.long, device="cpu"), leaf(2, 1)),
        "`nn.Embedding`",
        "rows that are looked up",
        _is_plain,
    ),
    "EmbeddingBagBackward0": Rule(
        _embedding_bag,
        (
            "indices",
            "offsets",
            "mode",
            "padding_idx",
            "per_sample_weights",
            "scale_grad_by_freq",
            "sparse",
        ),
        lambda: F.embedding_bag(
            torch.zeros(1, 1, dtype=torch.long, device="cpu"), leaf(2, 1)
        ),
        "`nn.EmbeddingBag` of sums and means",
        "rows that are looked up",
        lambda site: (
            _is_plain(site)
            and site.saved("mode") in (_SUM, _MEAN)
            and [*site.operands] == [0]
        ),
    ),
    "NativeLayerNormBackward0": Rule(
        _layer_norm,
        ("input", "result1", "result2", "normalized_shape"),
        lambda: F.layer_norm(leaf(1, 2), [2], leaf(2), leaf(2)),
        "`nn.LayerNorm`",
        applies=_norms_within_examples,
        stacks=("input", "result1", "result2"),
    ),
    "FusedRmsNormBackward0": Rule(
        _rms_norm,
        ("input", "result1", "normalized_shape"),
        None,
        "`nn.RMSNorm`",
        applies=_norms_within_examples,
        stacks=("input", "result1"),
    ),
}
