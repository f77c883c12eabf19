"""Losses of Hugging Face models, one an example instead of one a batch.

``outputs.loss`` is a mean over the tokens or examples of the whole batch: one example
moves the weight of every other. Here each example's loss is the mean over its own.

Shapes: ``B`` examples, ``T`` tokens, ``K`` classes.
"""

from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.loss.loss_utils import (
    LOSS_MAPPING,
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dp.exceptions import UnsupportedOperationError


__all__ = ("per_example_losses",)

_IGNORED: Final = -100  # The label of a token that has none, all over transformers.
_CAUSAL: Final = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def per_example_losses(
    model: Any, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0
) -> Float[Tensor, " B"]:
    """Return the loss of every example, as *model* would compute it for that one alone.

    For causal and masked language models, sequence-to-sequence models, token
    classification, and sequence (image, audio, video) classification and regression.

    Args:
        model: The model; its ``loss_type`` and ``config`` say which loss it uses.
        logits: What it returned as ``logits``.
        labels: The labels it would be given; those of -100 are left out.
        label_smoothing: Share of the target that is spread over all classes.

    Raises:
        UnsupportedOperationError: If the model's loss is another one.
    """
    loss_type = _loss_type(model)
    loss = LOSS_MAPPING.get(loss_type or "")
    if loss is ForCausalLMLoss:
        if not getattr(model.config, "is_encoder_decoder", False):
            logits, labels = logits[:, :-1], labels[:, 1:]
        return _mean_over_tokens(logits, labels, label_smoothing)
    if loss in (ForMaskedLMLoss, ForTokenClassification):
        return _mean_over_tokens(logits, labels, label_smoothing)
    if loss is ForSequenceClassificationLoss:
        return _of_sequences(logits, labels, model.config, label_smoothing)
    raise UnsupportedOperationError(
        f"{type(model).__name__} has loss_type={loss_type!r}, which is not known to be"
        " a mean over examples; override per_example_losses and return one loss an"
        " example"
    )


def _loss_type(model: Any) -> str | None:
    name: str | None = getattr(model, "loss_type", None)
    adapted = getattr(model, "get_base_model", None)  # Of peft.
    plain = model if adapted is None else adapted()
    if name is None and type(plain).__name__ in _CAUSAL:
        return "ForCausalLM"  # As transformers does, where the name does not say it.
    return name


def _mean_over_tokens(
    logits_BTK: Float[Tensor, "B T K"], labels_BT: Int[Tensor, "B T"], smoothing: float
) -> Float[Tensor, " B"]:
    """Return each example's mean over its own tokens: 0 if it has none."""
    losses_BT = functional.cross_entropy(
        logits_BTK.float().transpose(1, 2),
        labels_BT.to(logits_BTK.device),
        ignore_index=_IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    counts_B = (labels_BT != _IGNORED).sum(1).clamp(min=1).to(losses_BT.device)
    return losses_BT.sum(1) / counts_B


def _of_sequences(
    logits_BK: Float[Tensor, "B K"], labels: Tensor, config: Any, smoothing: float
) -> Float[Tensor, " B"]:
    logits_BK, labels = logits_BK.float(), labels.to(logits_BK.device)
    problem = config.problem_type
    if problem is None:
        if config.num_labels == 1:
            problem = "regression"
        elif labels.dtype in (torch.long, torch.int):
            problem = "single_label_classification"
        else:
            problem = "multi_label_classification"
    if problem == "single_label_classification":
        return functional.cross_entropy(
            logits_BK, labels.view(-1), reduction="none", label_smoothing=smoothing
        )
    if smoothing:
        raise UnsupportedOperationError(
            f"label_smoothing={smoothing!r} has no meaning for {problem}; leave it at 0"
        )
    loss = (
        functional.mse_loss
        if problem == "regression"
        else functional.binary_cross_entropy_with_logits
    )
    targets_BK = labels.to(logits_BK.dtype).view_as(logits_BK)
    return loss(logits_BK, targets_BK, reduction="none").mean(1)
