"""TRL's trainers: the loss of each text, or of each pair of answers.

``SFTTrainer`` and ``DPOTrainer`` compute the mean over a whole batch, of tokens in the
first and of pairs in the second. Here each example's loss is its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from dp.exceptions import UnsupportedOperationError
from dp.integrations.private._preferences import LOSSES, Preferences, log_probabilities
from dp.integrations.transformers import PrivateTrainer


__all__ = ("PairCollation", "PrivateDPO", "PrivateSFT", "adapter_for")


def adapter_for(trainer: Any) -> type[PrivateTrainer]:
    """Return the private class for *trainer*, after a look at what TRL was told.

    Raises:
        UnsupportedOperationError: If its loss mixes examples, or is not known.
    """
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(trainer).__mro__}
    for adapter in (PrivateSFT, PrivateDPO):
        if names & set(adapter.knows_loss_of):
            adapter.check(trainer)
            return adapter
    return PrivateTrainer


class _OfTRL(PrivateTrainer):
    """What TRL's trainers have in common: they gather metrics of training batches."""

    knows_loss_of: ClassVar[tuple[str, ...]] = ()
    _metrics: dict[str, dict[str, list[float]]]  # TRL's, by mode and name.

    @classmethod
    def check(cls, trainer: Any) -> None:
        """Raise if *trainer* was told what mixes examples or cannot be honoured."""
        if trainer.aux_loss_enabled:
            raise UnsupportedOperationError(
                f"router_aux_loss_coef={trainer.router_aux_loss_coef!r} balances experts"
                " over a whole batch, so that examples are mixed; set it to 0"
            )

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log what the guarantee covers: no metrics of the training data."""
        if not self.unsafe_log_loss:
            self._metrics["train"].clear()
        super().log(logs, start_time)


class PrivateSFT(_OfTRL):
    """An ``SFTTrainer`` whose every text has one loss: the mean over its own tokens."""

    knows_loss_of: ClassVar[tuple[str, ...]] = ("trl.trainer.sft_trainer.SFTTrainer",)

    @classmethod
    def check(cls, trainer: Any) -> None:
        """Raise if texts are packed, or if the loss is not the negative log-likelihood."""
        super().check(trainer)
        args = trainer.args
        if args.packing or trainer.padding_free:
            name = "packing" if args.packing else "padding_free"
            raise UnsupportedOperationError(
                f"{name}=True puts several texts into one row, so that a row would be"
                " protected and a text would not: its owner could have parts of many"
                f" rows. Build the trainer with {name}=False"
            )
        if args.loss_type != "nll":
            raise UnsupportedOperationError(
                f"loss_type={args.loss_type!r} is not known to a private run; use 'nll'"
            )


class PrivateDPO(_OfTRL):
    """A ``DPOTrainer`` whose every pair of answers has one loss.

    The reference model, or the base below an adapter, is a constant of the program.
    """

    knows_loss_of: ClassVar[tuple[str, ...]] = ("trl.trainer.dpo_trainer.DPOTrainer",)
    assumptions: ClassVar[tuple[str, ...]] = (
        "The reference model was not computed from these data.",
    )
    # TRL's own, of its trainer.
    beta: float
    label_smoothing: float
    loss_types: list[str]
    loss_weights: list[float]
    ref_model: Any
    compute_ref_log_probs: Callable[..., tuple[Tensor, Tensor]]

    @classmethod
    def check(cls, trainer: Any) -> None:
        """Raise if pairs are compared with each other, or if a loss is not known."""
        super().check(trainer)
        unknown = [name for name in trainer.loss_types if name not in LOSSES]
        if unknown:
            raise UnsupportedOperationError(
                f"loss_type={unknown[0]!r} sorts or averages over the pairs of a batch,"
                f" or is not known; use one of {', '.join(sorted(LOSSES))}"
            )
        for name, harmless in _HARMLESS.items():
            value = getattr(trainer.args, name)
            if value != harmless:
                raise UnsupportedOperationError(
                    f"{name}={value!r} is not known to a private run; leave it at"
                    f" {harmless!r}"
                )

    def _collation(
        self, collate: Callable[[list[Any]], Any]
    ) -> Callable[[list[Any]], Any]:
        return PairCollation(collate)

    def per_example_losses(
        self, model: Any, inputs: Mapping[str, Any]
    ) -> Float[Tensor, " B"]:
        """Return the loss of every pair, as ``DPOTrainer`` would for that pair alone."""
        flat = {
            name: value.flatten(0, 1)
            for name, value in inputs.items()
            if name not in _REFERENCE
        }
        completion_mask = flat.pop("completion_mask")
        logits = model(**flat, use_cache=False).logits
        logps_B2 = log_probabilities(
            logits, flat["input_ids"], completion_mask
        ).unflatten(0, (-1, 2))
        args: Any = self.args
        lengths_B2 = completion_mask.sum(1).unflatten(0, (-1, 2))
        pairs = Preferences(
            logps=logps_B2,
            reference=self._reference(model, inputs),
            lengths=lengths_B2.clamp(min=1),
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            discopop_tau=args.discopop_tau,
        )
        losses = [
            weight * LOSSES[name](pairs)
            for name, weight in zip(self.loss_types, self.loss_weights, strict=True)
        ]
        return torch.stack(losses).sum(0)

    def _reference(self, model: Any, inputs: Mapping[str, Any]) -> Float[Tensor, "B 2"]:
        """Return the log-probabilities of the reference, which nothing trains."""
        if all(name in inputs for name in _REFERENCE):
            return torch.stack([inputs[name] for name in _REFERENCE], dim=1)
        halves = {name: torch.cat(value.unbind(1)) for name, value in inputs.items()}
        reference = model if self.ref_model is None else self.ref_model
        return torch.stack(self.compute_ref_log_probs(reference, halves), dim=1)


_REFERENCE: Final = ("ref_chosen_logps", "ref_rejected_logps")
_HARMLESS: Final = {
    "use_weighting": False,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
}


class PairCollation:
    """Collate pairs so that the first axis is the pairs'.

    TRL puts all chosen answers before all rejected ones, so that a batch of ``B`` pairs
    has ``2 B`` rows, and no part of it could be told from its place. Here the two
    answers of a pair are along the second axis.

    Args:
        collate: TRL's own.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Return the batch of *examples*."""
        return {
            name: torch.stack(value.chunk(2), dim=1)
            if len(value) == 2 * len(examples)
            else value
            for name, value in self.collate(examples).items()
        }
