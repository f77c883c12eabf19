"""Losses of pairs of answers, each of its own pair only.

As ``trl.DPOTrainer`` computes them before it takes the mean over the batch. Left out is
what compares pairs with each other: ``aot`` and ``aot_unpaired`` sort over the batch.

Shapes: ``B`` pairs, the chosen answer before the rejected one (``2``), ``T`` tokens,
``V`` words; ``R`` rows of tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid


__all__ = ("LOSSES", "Preferences", "log_probabilities")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What the losses of pairs are computed from.

    Attributes:
        logps: The log-probability of each answer.
        reference: The same by the reference model, a constant.
        lengths: The number of tokens of each answer, at least 1.
        beta: How far the model may move from the reference.
        label_smoothing: The share of preferences that may be the wrong way round.
        discopop_tau: The temperature of ``discopop``.
    """

    logps: Float[Tensor, "B 2"]
    reference: Float[Tensor, "B 2"]
    lengths: Int[Tensor, "B 2"]
    beta: float
    label_smoothing: float
    discopop_tau: float

    @property
    def ratios(self) -> Float[Tensor, "B 2"]:
        """The log-ratio of each answer to the reference."""
        return self.logps - self.reference

    @property
    def margin(self) -> Float[Tensor, " B"]:
        """By how much more the chosen answer's log-ratio is, times beta."""
        chosen_B, rejected_B = self.ratios.unbind(1)
        return self.beta * (chosen_B - rejected_B)

    @property
    def margin_per_token(self) -> Float[Tensor, " B"]:
        """The same with each log-ratio divided by its answer's length, without beta."""
        chosen_B, rejected_B = (self.ratios / self.lengths).unbind(1)
        return chosen_B - rejected_B


def log_probabilities(
    logits_RTV: Float[Tensor, "R T V"],
    tokens_RT: Int[Tensor, "R T"],
    mask_RT: Int[Tensor, "R T"],
) -> Float[Tensor, " R"]:
    """Return the log-probability of the tokens of each row that the mask names."""
    losses_RT = cross_entropy(
        logits_RTV[:, :-1].float().transpose(1, 2), tokens_RT[:, 1:], reduction="none"
    )
    return -(losses_RT * mask_RT[:, 1:]).sum(1)


def _sigmoid(p: Preferences) -> Tensor:
    """Rafailov et al. 2023, equation 7. https://arxiv.org/abs/2305.18290."""
    return -logsigmoid(p.margin)


def _hinge(p: Preferences) -> Tensor:
    return torch.relu(1 - p.margin)


def _ipo(p: Preferences) -> Tensor:
    """Azar et al. 2023, equation 17, by token. https://arxiv.org/abs/2310.12036."""
    return (p.margin_per_token - 1 / (2 * p.beta)) ** 2


def _robust(p: Preferences) -> Tensor:
    smoothing = p.label_smoothing
    kept, flipped = -logsigmoid(p.margin), -logsigmoid(-p.margin)
    return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)


def _exo_pair(p: Preferences) -> Tensor:
    log_wrong = torch.tensor(p.label_smoothing, device=p.logps.device).log()
    log_right = torch.log1p(torch.tensor(-p.label_smoothing, device=log_wrong.device))
    return p.margin.sigmoid() * (logsigmoid(p.margin) - log_right) + (
        -p.margin
    ).sigmoid() * (logsigmoid(-p.margin) - log_wrong)


def _nca_pair(p: Preferences) -> Tensor:
    chosen_B, rejected_B = (p.beta * p.ratios).unbind(1)
    return (
        -logsigmoid(chosen_B) - logsigmoid(-chosen_B) / 2 - logsigmoid(-rejected_B) / 2
    )


def _bco_pair(p: Preferences) -> Tensor:
    chosen_B, rejected_B = (p.beta * p.ratios).unbind(1)
    return -logsigmoid(chosen_B) - logsigmoid(-rejected_B)


def _sppo_hard(p: Preferences) -> Tensor:
    chosen_B, rejected_B = p.ratios.unbind(1)
    return (chosen_B - 0.5 / p.beta) ** 2 + (rejected_B + 0.5 / p.beta) ** 2


def _apo_zero(p: Preferences) -> Tensor:
    chosen_B, rejected_B = (p.beta * p.ratios).unbind(1)
    return 1 - chosen_B.sigmoid() + rejected_B.sigmoid()


def _apo_down(p: Preferences) -> Tensor:
    return (p.beta * p.ratios[:, 0]).sigmoid() + 1 - p.margin.sigmoid()


def _discopop(p: Preferences) -> Tensor:
    modulation = torch.sigmoid(p.margin / p.discopop_tau)
    return -logsigmoid(p.margin) * (1 - modulation) + torch.exp(-p.margin) * modulation


def _sigmoid_norm(p: Preferences) -> Tensor:
    return -logsigmoid(p.beta * p.margin_per_token)


def _sft(p: Preferences) -> Tensor:
    """The negative log-likelihood of the chosen answer, over its own tokens."""
    return -(p.logps / p.lengths)[:, 0]


LOSSES: Final[Mapping[str, Callable[[Preferences], Tensor]]] = MappingProxyType(
    {
        "apo_down": _apo_down,
        "apo_zero": _apo_zero,
        "bco_pair": _bco_pair,
        "discopop": _discopop,
        "exo_pair": _exo_pair,
        "hinge": _hinge,
        "ipo": _ipo,
        "nca_pair": _nca_pair,
        "robust": _robust,
        "sft": _sft,
        "sigmoid": _sigmoid,
        "sigmoid_norm": _sigmoid_norm,
        "sppo_hard": _sppo_hard,
    }
)
"""The losses of ``DPOConfig.loss_type`` that are of one pair each."""
